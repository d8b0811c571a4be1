"""Systems that stay on the device and move there, with a neighbour list that is reused."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cace_fast.errors import InputError
from cace_fast.graph import AtomicGraph, ModelOutput, join
from cace_fast.min_dist import MinDist, check_min_dist
from cace_fast.process import ordinary
from cace_fast.reference.model import by_system

from .protocol import Engine


class Batch:
    """Several systems that are evaluated together while their atoms move.

    See ``docs/user/batches.md``.

    Pairs are found on the device and reused while atoms move less than the skin. With the Triton
    engine a step is one captured graph, with a new list or without one, and the host reads five
    numbers after it (:class:`cace_fast.engine.runner.Runner`); other engines find pairs in torch
    operations (:class:`cace_fast.engine.moving.MovingGraph`).

    Parameters
    ----------
    engine
        The engine to evaluate with.
    graph
        Elements, cells, periodicity and first positions; its pairs are not looked at.
    skin
        In A.
    min_dist
        Shortest distance allowed between two atoms: in A, ``"auto"`` or None.
    isolated
        Energies of isolated atoms [n_elements] in eV by embedding row, which are added.

    Attributes
    ----------
    n_systems, n_atoms
        How many there are.
    system_index
        [n_atoms] int64, the system of each atom.
    pbc
        [n_systems, 3] bool.

    Raises
    ------
    InputError
        For a skin or ``min_dist`` that is no length, or a system that the engine refuses.

    Examples
    --------
    ::

        batch = potential.batch(list_of_atoms, skin=0.5)
        while True:
            forces = batch.evaluate(("forces",)).forces
            batch.positions += ...  # in place: nothing leaves the device
    """

    def __init__(
        self,
        engine: Engine,
        graph: AtomicGraph,
        skin: float,
        *,
        min_dist: MinDist = None,
        isolated: Tensor | None = None,
    ) -> None:
        check_min_dist(min_dist)
        self._engine, self._skin, self._min_dist = engine, skin, min_dist
        self._isolated = isolated
        self._built_before = 0
        self._take(graph)

    def _take(self, graph: AtomicGraph) -> None:
        device = self._engine.weights["embedding.sender"].device
        empty = graph.senders[:0]
        bare = replace(graph, senders=empty, receivers=empty, shifts=graph.shifts[:0])
        self._graph = bare.to(device)  # its positions are the first ones
        self._moving = self._engine.moving(self._graph, self._skin)
        table = self._isolated
        self._offset = None if table is None else table.to(device)[self._graph.species]

    @property
    def n_systems(self) -> int:
        """Number of systems (``docs/user/batches.md``)."""
        return self._graph.n_systems

    @property
    def n_atoms(self) -> int:
        """Number of atoms of all systems (``docs/user/batches.md``)."""
        return self._graph.n_atoms

    @property
    def system_index(self) -> Tensor:
        """The system of each atom [n_atoms] int64 (``docs/user/batches.md``)."""
        return self._graph.batch

    @property
    def pbc(self) -> Tensor:
        """Which directions of each system are periodic [n_systems, 3] bool.

        See ``docs/user/batches.md``.
        """
        return self._graph.pbc

    @property
    def positions(self) -> Tensor:
        """The positions [n_atoms, 3] float64 in A on the device; a loop may write them in place.

        See ``docs/user/batches.md``.

        Setting them raises InputError for a tensor of another shape, dtype or device.
        """
        return self._moving.positions

    @positions.setter
    def positions(self, value: Tensor) -> None:
        held = self.positions
        if value is not held:
            held.copy_(_like(held, value, "positions"))

    @property
    def cell(self) -> Tensor:
        """The cells [n_systems, 3, 3] float64 in A, lattice vectors as rows; set it as a whole.

        See ``docs/user/batches.md``.

        Setting it raises InputError for a tensor of another shape, dtype or device.
        """
        return self._graph.cell

    @cell.setter
    def cell(self, value: Tensor) -> None:
        taken = _like(self._graph.cell, value, "cell").clone()
        self._graph = replace(self._graph, cell=taken)
        self._moving.set_cell(taken)

    @property
    def n_builds(self) -> int:
        """Number of neighbour searches so far (``docs/user/batches.md``)."""
        return self._built_before + self._moving.n_builds

    @ordinary
    def evaluate(
        self,
        wanted: Collection[str] = ("forces",),
        *,
        positions: Tensor | None = None,
        cell: Tensor | None = None,
    ) -> ModelOutput:
        """Return energies and what else is wanted, on the device.

        See ``docs/conventions.md``, "Results".

        Parameters
        ----------
        wanted
            Any of ``forces``, ``virials``, ``latent_charges``, ``born_charges``,
            ``atom_virials``.
        positions, cell
            New positions [n_atoms, 3] and cells [n_systems, 3, 3] in A, float64 on the device of
            the engine; None for those of the last call.

        Returns
        -------
        ModelOutput
            ``energy`` [n_systems] and ``energies`` [n_atoms] in eV with the energies of isolated
            atoms, ``forces`` [n_atoms, 3] in eV/A, ``virials`` [n_systems, 3, 3] in eV.

        Raises
        ------
        InputError
            For arrays of another shape or type, atoms that are too close, and what
            :meth:`cace_fast.Potential.compute` refuses.
        PropertyNotImplementedError
            For charges of a model that has none.
        CaceFastError
            If a result is not finite.
        """
        if positions is not None:
            self.positions = positions
        if cell is not None:
            self.cell = cell
        output = self._moving.evaluate(wanted, self._min_dist)
        if self._offset is None:
            return output
        total = output.energy + by_system(self._offset, self._graph)
        return replace(output, energy=total, energies=output.energies + self._offset)

    def replace(self, leave: Sequence[int], enter: Batch | None = None) -> None:
        """Take systems out of the batch, and put those of another batch at its end.

        The order of those that stay is kept; positions and cells go with their systems. The next
        evaluation searches neighbours again. ``enter`` stays as it is (``docs/user/batches.md``).

        Parameters
        ----------
        leave
            Numbers of the systems that leave.
        enter
            A batch of the same potential.

        Raises
        ------
        InputError
            For numbers of no system, or if no system would be left.
        """
        left = set(leave)
        if not left <= set(range(self.n_systems)):
            raise InputError("leave", f"systems from 0 to {self.n_systems - 1}", sorted(left))
        stays = [number for number in range(self.n_systems) if number not in left]
        parts = [self._system(number) for number in stays]
        if enter is not None:
            parts += [enter._system(number) for number in range(enter.n_systems)]
        if not parts:
            raise InputError("leave", "systems to stay or to enter", "none")
        self._built_before = self.n_builds
        self._take(join(parts))

    def _system(self, number: int) -> AtomicGraph:
        """Return one system with its present positions."""
        g = self._graph
        mine = g.batch == number
        return AtomicGraph(
            positions=self.positions[mine].clone(),
            species=g.species[mine],
            cell=g.cell[number : number + 1].clone(),
            pbc=g.pbc[number : number + 1],
            batch=torch.zeros_like(g.batch[mine]),
            senders=g.senders[:0],
            receivers=g.receivers[:0],
            shifts=g.shifts[:0],
            inputs={key: value[mine] for key, value in g.inputs.items()},
        )


def _like(held: Tensor, value: Tensor, name: str) -> Tensor:
    """Return a new value in the place of ``held``; InputError if it is of another kind."""
    if value.shape != held.shape or value.dtype != held.dtype or value.device != held.device:
        expected = f"a {held.dtype} tensor of shape {list(held.shape)} on {held.device}"
        raise InputError(name, expected, f"{value.dtype} {list(value.shape)} on {value.device}")
    return value.detach()
