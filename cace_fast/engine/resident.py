"""Systems whose positions stay on the device, with a neighbour list of their own."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import Tensor

from cace_fast.device_neighbors import DeviceVerletList
from cace_fast.errors import InputError
from cace_fast.graph import AtomicGraph, ModelOutput
from cace_fast.min_dist import MinDist
from cace_fast.process import ordinary

from .reference import ReferenceEngine


class ResidentSystem:
    """One system or a batch of them on a device, for loops that move atoms there.

    Pairs are found on the device and kept while atoms move less than the skin. With the Triton
    engine a step is one captured graph, with a new list or without one, and the host reads five
    numbers after it; other engines find pairs in torch operations.

    Parameters
    ----------
    engine
        The engine to evaluate with.
    graph
        Elements, cells, periodicity and first positions; its pairs are not looked at.
    skin
        In A.

    Examples
    --------
    ::

        system = ResidentSystem(engine, graph, skin=0.5)
        while True:
            forces = system.evaluate(wanted=("forces",)).forces
            system.positions += ...  # in place: nothing leaves the device
    """

    def __init__(self, engine: ReferenceEngine, graph: AtomicGraph, skin: float) -> None:
        self._engine = engine
        device = engine.weights["embedding.sender"].device
        empty = graph.senders[:0]
        bare = replace(graph, senders=empty, receivers=empty, shifts=graph.shifts[:0])
        self._graph = replace(bare.to(device), positions=bare.positions.to(device, copy=True))
        self._own = engine.moving(self._graph, skin)
        self._list = DeviceVerletList(engine.spec.representation.cutoff, skin)

    @property
    def positions(self) -> Tensor:
        """The positions [n, 3] float64 on the device; a loop may write them in place."""
        return self._graph.positions if self._own is None else self._own.positions

    @positions.setter
    def positions(self, value: Tensor) -> None:
        held = self.positions
        if value is not held:
            held.copy_(_like(held, value, "positions"))

    @property
    def n_builds(self) -> int:
        """How often pairs were searched."""
        return self._list.n_builds if self._own is None else self._own.n_builds

    @ordinary
    def evaluate(
        self,
        positions: Tensor | None = None,
        cell: Tensor | None = None,
        *,
        wanted: Collection[str] = ("forces",),
        min_dist: MinDist = None,
    ) -> ModelOutput:
        """Return energies and what else is wanted, on the device.

        Parameters
        ----------
        positions, cell
            New positions [n, 3] and cells [n_systems, 3, 3], float64 on the device of the engine;
            None for those of the last call.
        wanted, min_dist
            As for :meth:`ReferenceEngine.evaluate`.

        Raises
        ------
        InputError
            For arrays of another shape or type.
        """
        g = self._graph
        if positions is not None:
            self.positions = positions
        if cell is not None:
            self._graph = g = replace(g, cell=_like(g.cell, cell, "cell"))
        if self._own is not None:
            return self._own.evaluate(cell, wanted, min_dist)
        pairs = self._list(g.positions, g.cell, g.pbc, g.batch)
        whole = replace(g, senders=pairs.senders, receivers=pairs.receivers, shifts=pairs.shifts)
        return self._engine.evaluate(whole, wanted, min_dist=min_dist)


def _like(held: Tensor, value: Tensor, name: str) -> Tensor:
    """Return a new value in the place of ``held``; InputError if it is of another kind."""
    if value.shape != held.shape or value.dtype != held.dtype or value.device != held.device:
        expected = f"a {held.dtype} tensor of shape {list(held.shape)} on {held.device}"
        raise InputError(name, expected, f"{value.dtype} {list(value.shape)} on {value.device}")
    return value.detach()
