"""Neighbour lists: every directed pair within a cutoff, in a fixed order (stateless)."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
import vesin
from numpy.typing import NDArray

from .device_neighbors import device_neighbor_list
from .geometry import Floats, check_geometry, complete_cell
from .kernels.cpu.library import NotLoadedError
from .kernels.cpu.search import PairSearch

MANY_ATOMS = 2_000  # from here on several threads speed up a search
# vesin has a table of all boxes of its grid, empty ones included; open directions have as many as
# the longest extent of the atoms. In slabs and wires it pairs every one of these with every other.
# From 100 000 boxes on it divides their numbers by one factor, and then by a number that became
# zero. It has no bound on pairs. Well within these limits it is safe; beyond, the bounded search of
# device_neighbors takes over.
MAX_BOXES, MAX_BOXES_PER_ATOM, ITS_MOST_BOXES = 5_000, 8, 100_000
MAX_MEETINGS, MAX_MEETINGS_PER_ATOM = 100_000, 100
FARTHEST, MOST_SKEWED = 1e5, 1e3  # A; and a ratio of length to height of a cell
FAR = 8  # cells: if atoms are farther away, vesin visits all cells between
MAX_CROWD = 1_000  # neighbours of an atom, as estimated

Ints = NDArray[np.int64]


class NeighborList(NamedTuple):
    """Directed pairs, int64 (``docs/theory.md``, equation 1).

    ``senders`` and ``receivers`` are [n_edges], ``shifts`` [n_edges, 3].
    """

    senders: Ints
    receivers: Ints
    shifts: Ints


def neighbor_list(
    positions: Floats,
    cell: Floats,
    pbc: NDArray[np.bool_],
    cutoff: float,
    *,
    in_order: bool = True,
    search: Searcher | None = None,
) -> NeighborList:
    """Return all pairs with |r_receiver - r_sender + S h| < cutoff, except an atom with itself.

    These are the edges of ``docs/theory.md``, equation 1.

    Parameters
    ----------
    positions
        [n, 3] float64, A; need not lie inside the cell.
    cell
        [3, 3] float64, A, lattice vectors as rows; vectors of open directions may be zero.
    pbc
        [3] bool.
    cutoff
        In A.
    in_order
        False: in the order of the search, and possibly with pairs at exactly the cutoff; for
        callers that sort and trim themselves.
    search
        A :class:`Searcher` of this cutoff, whose memory is used again.

    Returns
    -------
    NeighborList
        int64 arrays in the order of receiver, sender, shift. The order depends on the set of
        pairs alone, so that results do not depend on when a list was built.

    Raises
    ------
    InputError
        For positions or cells that are not finite, a periodic direction without extent, atoms
        more than 1e9 cells away, or more than 5 000 neighbours of an atom on average.
    """
    check_geometry(positions, cell, pbc, cutoff)
    none = np.zeros(0, dtype=np.int64)
    if len(positions) == 0:
        return NeighborList(none, none, np.zeros((0, 3), dtype=np.int64))
    box = complete_cell(cell, pbc)
    inverse = np.asarray(np.linalg.inv(box), dtype=np.float64)
    wraps = np.where(pbc, np.floor(positions @ inverse), 0.0)
    if np.abs(wraps).max() <= FAR:
        return _near(positions, box, inverse, pbc, cutoff, in_order, search)
    found = _near(positions - wraps @ box, box, inverse, pbc, cutoff, in_order, search)
    away = wraps.astype(np.int64)  # the same for all pairs of two atoms: their order is kept
    return found._replace(shifts=found.shifts - away[found.receivers] + away[found.senders])


def _near(
    positions: Floats,
    box: Floats,
    inverse: Floats,
    pbc: NDArray[np.bool_],
    cutoff: float,
    in_order: bool,
    search: Searcher | None,
) -> NeighborList:
    """Return the pairs of atoms that lie in their cell or not far from it."""
    if not _is_ordinary(positions, box, inverse, pbc, cutoff):
        arrays = (torch.from_numpy(np.ascontiguousarray(a)) for a in (positions, box, pbc))
        r, h, periodic = arrays
        pairs = device_neighbor_list(r, h[None], periodic[None], cutoff)
        return NeighborList(*(part.numpy() for part in pairs))
    search = search or Searcher(cutoff, len(positions))
    system = {"points": positions, "box": box, "periodic": pbc.tolist()}
    if not in_order:
        return search.edges(system)
    receivers, senders, vesin_shifts, distances = search.lists.compute(**system, quantities="ijSd")
    near = distances < cutoff
    receivers, senders = receivers[near].astype(np.int64), senders[near].astype(np.int64)
    shifts = -vesin_shifts[near].astype(np.int64)
    span = 2 * int(np.abs(shifts).max(initial=0)) + 1
    code = (shifts @ np.array([span * span, span, 1], dtype=np.int64)) if span < 10**6 else shifts.T
    order = np.lexsort((*np.atleast_2d(code)[::-1], senders, receivers))
    return NeighborList(senders[order], receivers[order], shifts[order])


class Searcher:
    """Searches neighbours within ``cutoff`` in A, for about ``n_atoms`` atoms.

    The compiled engine searches where it is here, else vesin. Its memory is used again: memory that
    is new to a process can cost more than the search (``docs/developer/measurements.md``).
    """

    def __init__(self, cutoff: float, n_atoms: int) -> None:
        self._threads = torch.get_num_threads() if n_atoms >= MANY_ATOMS else 1
        self._cutoff = float(cutoff)
        self._memory: list[tuple[Ints, weakref.ref[_User]]] = []
        self._compiled: PairSearch | None = None
        with suppress(NotLoadedError):
            self._compiled = PairSearch()

    @property
    def lists(self) -> Any:
        """A list of vesin with these settings (``docs/developer/dependencies.md``)."""
        return vesin.NeighborList(cutoff=self._cutoff, full_list=True, n_threads=self._threads)

    def edges(self, system: dict[str, Any]) -> NeighborList:
        """Return the pairs (equation 1) in the order of the search."""
        if self._compiled is not None:
            found = self._compiled.run(
                system["points"], system["box"], system["periodic"], self._cutoff, self._threads
            )
            return self._kept(*found)
        receivers, senders, shifts = self.lists.compute(**system, quantities="ijS", copy=False)
        edges = self._kept(receivers, senders, shifts)
        np.negative(edges.shifts, out=edges.shifts)
        return edges

    def _kept(self, receivers: Any, senders: Any, shifts: Any) -> NeighborList:
        """Return copies of arrays that the search will write over."""
        n = len(receivers)
        # sender, receiver and shift in one array, which is freed as a whole
        found = self._array(5 * n)
        edges = NeighborList(found[:n], found[n : 2 * n], found[2 * n : 5 * n].reshape(n, 3))
        np.copyto(edges.senders, senders, casting="unsafe")
        np.copyto(edges.receivers, receivers, casting="unsafe")
        np.copyto(edges.shifts.reshape(-1), np.reshape(shifts, -1), casting="unsafe")
        return edges

    def _array(self, size: int) -> Ints:
        """Return an array in memory that no array or tensor given out before still uses."""
        used = [(memory, user) for memory, user in self._memory if user() is not None]
        free = [memory for memory, user in self._memory if user() is None and len(memory) >= size]
        memory = free[0] if free else np.empty(size + size // 16, dtype=np.int64)
        user = _User(memory)
        self._memory = [*used[-1:], (memory, weakref.ref(user))]
        return np.asarray(user)


class _User:
    """The base of all arrays in a memory: it lives as long as one of them."""

    def __init__(self, memory: Ints) -> None:
        self.__array_interface__ = memory.__array_interface__
        self._memory = memory


def _is_ordinary(
    positions: Floats, box: Floats, inverse: Floats, pbc: NDArray[np.bool_], cutoff: float
) -> bool:
    """Tell whether a structure is of the usual kind: a small grid, no far or crowded atoms."""
    n = len(positions)
    heights = 1.0 / np.linalg.norm(inverse, axis=0)
    fraction = positions @ inverse
    low = np.where(pbc, 0.0, fraction.min(axis=0))
    extent = np.where(pbc, 1.0, fraction.max(axis=0) - low) * heights
    number = np.maximum(np.floor(extent / cutoff), 1.0)
    lengths = np.linalg.norm(box, axis=1)
    if np.abs(positions).max() > FARTHEST or lengths.max() > MOST_SKEWED * heights.min():
        return False
    longest = np.floor(np.ptp(positions, axis=0).max() / cutoff) + 1.0
    of_vesin = np.where(pbc, number, np.maximum(number, longest))
    with np.errstate(over="ignore"):
        n_boxes = float(np.prod(of_vesin))
        meetings = n_boxes * float(np.prod(of_vesin[~pbc])) if pbc.any() else 0.0
    if not meetings <= MAX_MEETINGS + MAX_MEETINGS_PER_ATOM * n:
        return False
    # eight times as many as counted here, to allow for vesin's rounding
    thinnest = of_vesin.min() * (ITS_MOST_BOXES / (8.0 * n_boxes)) ** (1.0 / 3.0)
    if n_boxes > MAX_BOXES and not (thinnest >= 2.0 and n_boxes <= MAX_BOXES_PER_ATOM * n):
        return False
    # boxes are a cutoff wide in open directions, and at least that, or the cell, in periodic ones
    width = np.where(pbc, heights / number, cutoff)
    neighbors = 4.19 * cutoff**3 / float(np.prod(width))  # for each atom of a box
    if n * neighbors <= MAX_CROWD:
        return True
    place = np.where(pbc, fraction - np.floor(fraction), fraction - low) * heights / width
    place = np.minimum(place, number - 1.0).astype(np.int64)
    code = (place[:, 0] * int(number[1]) + place[:, 1]) * int(number[2]) + place[:, 2]
    counts = np.bincount(code).astype(np.float64)
    return float(counts @ counts) / n * neighbors <= MAX_CROWD
