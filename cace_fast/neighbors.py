"""Neighbour lists: every directed pair within a cutoff, in a fixed order (stateless)."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import numpy as np
import torch
import vesin
from numpy.typing import NDArray

from .errors import InputError

MANY_ATOMS = 2_000  # from here on a search is worth more than one thread
MAX_IMAGES = 100_000  # images of the cell within the cutoff; beyond it the cell is a mistake

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Edges(NamedTuple):
    """Directed pairs: ``senders`` [n_edges], ``receivers`` [n_edges], ``shifts`` [n_edges, 3]."""

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
) -> Edges:
    """Return all pairs with |r_receiver - r_sender + S h| < cutoff, except an atom with itself.

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
        False: in the order of the search, and possibly pairs at the cutoff exactly; for those who
        sort and trim themselves.
    search
        A :class:`Searcher` of this cutoff, whose memory is used again.

    Returns
    -------
    Edges
        int64 arrays in the order of receiver, sender, shift. The order depends on the set of
        pairs alone, so that results do not depend on when a list was built.

    Raises
    ------
    InputError
        For positions or cells that are not finite, or a periodic direction without extent.
    """
    check_geometry(positions, cell, pbc, cutoff)
    none = np.zeros(0, dtype=np.int64)
    if len(positions) == 0:
        return Edges(none, none, np.zeros((0, 3), dtype=np.int64))
    search = search or Searcher(cutoff, len(positions))
    system = {"points": positions, "box": complete_cell(cell, pbc), "periodic": pbc.tolist()}
    if not in_order:
        return search.edges(system)
    receivers, senders, vesin_shifts, distances = search.lists.compute(**system, quantities="ijSd")
    near = distances < cutoff
    receivers, senders = receivers[near].astype(np.int64), senders[near].astype(np.int64)
    shifts = -vesin_shifts[near].astype(np.int64)
    span = 2 * int(np.abs(shifts).max(initial=0)) + 1
    code = (shifts @ np.array([span * span, span, 1], dtype=np.int64)) if span < 10**6 else shifts.T
    order = np.lexsort((*np.atleast_2d(code)[::-1], senders, receivers))
    return Edges(senders[order], receivers[order], shifts[order])


class Searcher:
    """What searches neighbours of about ``n_atoms``, on as many threads as torch uses.

    Its memory is used again: memory that is new to a process can cost more than the search.
    """

    def __init__(self, cutoff: float, n_atoms: int) -> None:
        threads = torch.get_num_threads() if n_atoms >= MANY_ATOMS else 1
        self.lists = vesin.NeighborList(cutoff=float(cutoff), full_list=True, n_threads=threads)
        self._memory: list[tuple[Ints, weakref.ref[_User]]] = []

    def edges(self, system: dict[str, Any]) -> Edges:
        """Return the pairs that vesin finds, in its order."""
        receivers, senders, shifts = self.lists.compute(**system, quantities="ijS", copy=False)
        n = len(receivers)
        # sender, receiver and shift in one array, given back as a whole
        found = self._array(5 * n)
        edges = Edges(found[:n], found[n : 2 * n], found[2 * n : 5 * n].reshape(n, 3))
        np.copyto(edges.senders, senders, casting="unsafe")
        np.copyto(edges.receivers, receivers, casting="unsafe")
        np.negative(shifts, out=edges.shifts)
        return edges

    def _array(self, size: int) -> Ints:
        """Return an array, of memory that no array or tensor given out before still uses."""
        used = [(memory, user) for memory, user in self._memory if user() is not None]
        free = [memory for memory, user in self._memory if user() is None and len(memory) >= size]
        memory = free[0] if free else np.empty(size + size // 16, dtype=np.int64)
        user = _User(memory)
        self._memory = [*used[-1:], (memory, weakref.ref(user))]
        return np.asarray(user)


class _User:
    """The base of all arrays made of a memory: alive as long as one of them."""

    def __init__(self, memory: Ints) -> None:
        self.__array_interface__ = memory.__array_interface__
        self._memory = memory


def check_geometry(positions: Floats, cell: Floats, pbc: NDArray[np.bool_], cutoff: float) -> None:
    """Raise InputError for positions, cell and periodicity that have no neighbour list."""
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise InputError("positions", "an array of shape [n_atoms, 3]", positions.shape)
    bad = np.flatnonzero(~np.isfinite(positions).all(axis=1))
    if len(bad):
        raise InputError("positions", "finite numbers", f"NaN or infinity for atoms {_some(bad)}")
    if not np.isfinite(cell).all():
        raise InputError("cell", "finite numbers", cell.tolist())
    if not pbc.any():
        return
    periodic = complete_cell(cell, pbc)
    lengths = np.linalg.norm(periodic, axis=1)
    if abs(np.linalg.det(periodic)) <= 1e-9 * np.prod(lengths) or not (lengths > 0).all():
        raise InputError("cell", "independent vectors along periodic directions", cell.tolist())
    heights = 1.0 / np.linalg.norm(np.linalg.inv(periodic), axis=0)
    images = np.prod((2 * np.ceil(cutoff / heights) + 1)[pbc])
    if images > MAX_IMAGES:
        expected = f"a cell with at most {MAX_IMAGES} images within {cutoff:g} A"
        raise InputError("cell", expected, f"{images:.3g} images for {cell.tolist()}")


def complete_cell(cell: Floats, pbc: NDArray[np.bool_]) -> Floats:
    """Return the cell with open directions replaced by unit vectors normal to the rest."""
    full = np.array(cell, dtype=np.float64)
    if pbc.all():
        return full
    full[~pbc] = 0.0
    if pbc.sum() == 0:
        return np.eye(3)
    # rows of v beyond the rank of the periodic vectors span what is normal to them
    _, _, v = np.linalg.svd(full[pbc])
    full[~pbc] = v[pbc.sum() :]
    return full


def _some(indices: NDArray[np.intp]) -> str:
    shown = ", ".join(str(i) for i in indices[:5])
    return shown + (f" and {len(indices) - 5} more" if len(indices) > 5 else "")
