"""Protocols of engines, as :class:`cace_fast.Potential` and :class:`.batch.Batch` use them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from torch import Tensor

from cace_fast.device_neighbors import DevicePairs
from cace_fast.graph import AtomicGraph, ModelOutput
from cace_fast.min_dist import MinDist
from cace_fast.spec import ModelSpec


class Moving(Protocol):
    """Systems that stay on the device and move there, with a Verlet list (decision 0018)."""

    @property
    def n_builds(self) -> int:
        """Number of neighbour searches so far (``docs/user/batches.md``)."""

    @property
    def positions(self) -> Tensor:
        """The positions [n, 3] float64 in A, which may be written in place.

        See ``docs/user/batches.md``.
        """

    def set_cell(self, cell: Tensor) -> None:
        """Take new cells [n_systems, 3, 3] in A at the next evaluation, which checks them.

        See ``docs/user/batches.md``.
        """

    def pairs(self) -> DevicePairs:
        """Return the list: all pairs within the cutoff, and some beyond.

        See ``docs/theory.md``, section 1.
        """

    def evaluate(self, wanted: Collection[str], min_dist: MinDist) -> ModelOutput:
        """Evaluate the present positions and cells; see :meth:`Engine.evaluate`."""


class Engine(Protocol):
    """Evaluates a model; made by :func:`cace_fast.engine.make_engine` (decision 0018).

    Attributes
    ----------
    backend
        The name of the engine.
    note
        Why ``auto`` did not choose a faster one.
    sorts_pairs
        Whether candidate pairs may come in any order; else they have to ascend in the receiver.
    spec, weights
        The model; ``weights`` on the device and in the dtype that it computes with.
    """

    backend: str
    note: str
    sorts_pairs: bool
    spec: ModelSpec
    weights: Mapping[str, Tensor]

    @property
    def description(self) -> str:
        """Which code runs, as ``cace-fast info`` and ``bench`` print it.

        See ``docs/user/install.md``.
        """

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent in each part so far; empty where that is not measured.

        See ``docs/user/performance.md``.
        """

    def to_device(self, graph: AtomicGraph) -> AtomicGraph:
        """Return the graph on the device that :meth:`evaluate` needs."""

    def evaluate(
        self, graph: AtomicGraph, /, wanted: Collection[str] = (), *, min_dist: MinDist = None
    ) -> ModelOutput:
        """Return energies and what else is ``wanted`` (``docs/conventions.md``, "Results").

        Parameters
        ----------
        graph
            The systems; pairs beyond the cutoff do no harm.
        wanted
            Any of ``forces``, ``virials``, ``latent_charges``, ``born_charges``,
            ``atom_virials``.
        min_dist
            Shortest distance allowed between two atoms in A; ``"auto"``: 0.35 times the sum of
            their covalent radii; None allows any.

        Returns
        -------
        ModelOutput
            Energies in eV, and of the rest what was wanted.

        Raises
        ------
        InputError
            If two atoms are closer than ``min_dist``, or positions or cells are not finite.
        PropertyNotImplementedError
            For charges of a model that has none.
        CaceFastError
            If a result is not finite.
        """

    def features(self, graph: AtomicGraph) -> Tensor:
        """Return the invariants [n, n_radial, n_B, C, T] in the working dtype (equation 21)."""

    def hessian(self, graph: AtomicGraph) -> Tensor:
        """Return the second derivatives of the energy [n, 3, n, 3] float64 in eV/A^2.

        See ``docs/conventions.md``, "Results".

        Raises
        ------
        InputError
            For positions or cells that are not finite.
        """

    def moving(self, graph: AtomicGraph, skin: float) -> Moving:
        """Return systems that move, with a Verlet list (``docs/user/batches.md``).

        Parameters
        ----------
        graph
            The systems on the device, without pairs; its positions are copied.
        skin
            In A.

        Raises
        ------
        InputError
            For a skin that is no length, or a cell without room for a list.
        """
