"""Verlet lists: neighbour lists that stay valid while atoms move a little."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cace_fast.device_neighbors import DevicePairs, device_neighbor_list
from cace_fast.errors import InputError
from cace_fast.geometry import Floats
from cace_fast.graph import AtomicGraph
from cace_fast.neighbors import NeighborList, Searcher, neighbor_list
from cace_fast.process import Lock
from cace_fast.spec import Representation
from cace_fast.structures import geometry_of, graph_of

if TYPE_CHECKING:
    from ase import Atoms


def _require_skin(skin: float) -> None:
    if not (np.isfinite(skin) and skin >= 0):
        raise InputError("skin", "a length of at least 0 A", skin)


class _Built(NamedTuple):
    """A list, and the structure that it was made for."""

    positions: Floats
    cell: Floats
    pbc: NDArray[np.bool_]
    edges: NeighborList


class _Last(NamedTuple):
    """The last graph made with a list, and what it was made of."""

    edges: NeighborList
    numbers: NDArray[np.int64]
    spec: Representation
    graph: AtomicGraph


class VerletList:
    """Pairs within ``cutoff`` + ``skin``, searched again when two atoms moved that far together.

    A changed cell, periodicity or number of atoms also asks for a new search. The list has every
    pair within ``cutoff`` and some beyond; the engine drops those (``docs/theory.md``, section 1).

    Parameters
    ----------
    cutoff, skin
        In A; with ``skin`` 0 every changed position asks for a new search.
    in_order
        False leaves the pairs in the order of the search, which is quicker; for an engine that
        sorts them itself.

    Raises
    ------
    InputError
        If ``skin`` is not a length of at least 0.
    """

    def __init__(self, cutoff: float, skin: float, *, in_order: bool = True) -> None:
        _require_skin(skin)
        self.cutoff, self.skin = float(cutoff), float(skin)
        self.in_order = in_order
        self.n_builds = 0
        self._built: _Built | None = None
        self._last: _Last | None = None
        self._search: Searcher | None = None
        self._searches_for = (0, 0)  # atoms, threads
        self._lock = Lock(self)

    @property
    def made_for(self) -> tuple[Floats, Floats, NDArray[np.bool_]] | None:
        """Positions [n, 3] in A, cell [3, 3] in A and pbc [3] of the last search, or None.

        See ``docs/theory.md``, section 1.
        """
        built = self._built
        return None if built is None else (built.positions, built.cell, built.pbc)

    def reset(self) -> None:
        """Drop the list: the next call searches again (``docs/user/threads_and_processes.md``)."""
        self._built, self._last, self._search = None, None, None

    def graph(self, atoms: Atoms, spec: Representation, inputs: dict[str, str]) -> AtomicGraph:
        """Return :func:`~cace_fast.structures.graph_of` of the structure, with candidate pairs.

        Where only positions have changed, everything else is shared with the last graph, as the
        same tensors: engines need not look at it again.

        Raises
        ------
        InputError
            As for :func:`~cace_fast.structures.graph_of` and
            :func:`~cace_fast.neighbors.neighbor_list`.
        """
        if inputs:
            return graph_of(atoms, spec, inputs=inputs, edges=self)
        with self._lock:
            return self._graph(atoms, spec)

    def _graph(self, atoms: Atoms, spec: Representation) -> AtomicGraph:
        positions, cell, pbc = geometry_of(atoms)
        edges, last = self(positions, cell, pbc), self._last
        if (
            last is not None
            and last.edges is edges
            and last.spec is spec
            and bool((last.numbers == atoms.numbers).all())
        ):
            return replace(last.graph, positions=torch.from_numpy(positions))
        graph = graph_of(atoms, spec, edges=lambda *_: edges)
        self._last = _Last(edges, np.array(atoms.numbers), spec, graph)
        return graph

    def __call__(self, positions: Floats, cell: Floats, pbc: NDArray[np.bool_]) -> NeighborList:
        """Return candidate pairs for these positions [n, 3], cell [3, 3] and pbc [3]."""
        with self._lock:
            built = self._built
            if built is None or not self._valid(built, positions, cell, pbc):
                reach = self.cutoff + self.skin
                search = self._searcher(reach, len(positions))
                edges = neighbor_list(
                    positions, cell, pbc, reach, in_order=self.in_order, search=search
                )
                # one assignment: an interrupt between two would leave a list of other positions
                built = _Built(positions.copy(), cell.copy(), pbc.copy(), edges)
                self._built = built
                self.n_builds += 1
            return built.edges

    def _searcher(self, reach: float, n_atoms: int) -> Searcher:
        """Return the searcher of the last list; its warm memory saves a fifth of the time."""
        wanted = (n_atoms, torch.get_num_threads())
        if self._search is None or self._searches_for != wanted:
            self._search, self._searches_for = Searcher(reach, n_atoms), wanted
        return self._search

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies, without the lock and the memory of a library."""
        own = self.__dict__ | {"_search": None}
        del own["_lock"]
        return own

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock(self)

    def _valid(
        self, built: _Built, positions: Floats, cell: Floats, pbc: NDArray[np.bool_]
    ) -> bool:
        if positions.shape != built.positions.shape:
            return False
        if not ((cell == built.cell).all() and (pbc == built.pbc).all()):
            return False
        moved = positions - built.positions
        squares = np.einsum("ix,ix->i", moved, moved)
        if len(squares) < 2:  # an atom and its images move together
            return bool(np.isfinite(squares).all())
        # no pair has come closer by more than the two farthest moves together; a position that is
        # not finite fails this and is named by the search
        squares.partition(len(squares) - 2)
        return bool(np.sqrt(squares[-2:]).sum() <= self.skin)


class DeviceVerletList:
    """Pairs within ``cutoff`` + ``skin`` on the device, searched again when atoms moved that far.

    Like :class:`VerletList`, for tensors: it returns the same object until two atoms moved by
    ``skin`` together, or cell, periodicity or number of atoms changed. The host reads one number a
    call.

    Parameters
    ----------
    cutoff, skin
        In A.

    Raises
    ------
    InputError
        If ``skin`` is not a length of at least 0.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        _require_skin(skin)
        self.cutoff, self.skin = float(cutoff), float(skin)
        self.n_builds = 0
        self._built: tuple[DevicePairs, Tensor, Tensor, Tensor] | None = None

    def __call__(
        self, positions: Tensor, cell: Tensor, pbc: Tensor, batch: Tensor | None = None
    ) -> DevicePairs:
        """Return candidate pairs; arguments as for :func:`device_neighbor_list`."""
        if self._built is None or not self._valid(positions, cell, pbc):
            reach = self.cutoff + self.skin
            pairs = device_neighbor_list(positions, cell, pbc, reach, batch)
            self._built = (pairs, positions.clone(), cell.clone(), pbc.clone())
            self.n_builds += 1
        return self._built[0]

    def _valid(self, positions: Tensor, cell: Tensor, pbc: Tensor) -> bool:
        assert self._built is not None
        _, old_positions, old_cell, old_pbc = self._built
        if positions.shape != old_positions.shape or cell.shape != old_cell.shape:
            return False
        moved = torch.linalg.vector_norm(positions - old_positions, dim=1)
        farthest = torch.topk(moved, min(2, len(moved))).values.sum()
        same = (cell == old_cell).all() & (pbc == old_pbc).all()
        return bool((farthest <= self.skin) & same)
