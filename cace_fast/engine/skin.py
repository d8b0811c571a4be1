"""Verlet skin: a neighbour list that stays valid while atoms move a little."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cace_fast.errors import InputError
from cace_fast.neighbors import Edges, Floats, check_geometry, neighbor_list


class VerletList:
    """Pairs within ``cutoff`` + ``skin``, searched again when two atoms moved that far together.

    A changed cell, periodicity or number of atoms also asks for a new search. What it returns
    holds every pair within ``cutoff`` and some beyond; the engine drops those.

    Parameters
    ----------
    cutoff, skin
        In A; with ``skin`` 0 every changed position asks for a new search.
    in_order
        False leaves the pairs in the order of the search, which is quicker; for an engine that
        sorts them itself.
    """

    def __init__(self, cutoff: float, skin: float, *, in_order: bool = True) -> None:
        if not (np.isfinite(skin) and skin >= 0):
            raise InputError("skin", "a length of at least 0 A", skin)
        self.cutoff, self.skin = float(cutoff), float(skin)
        self.in_order = in_order
        self.n_builds = 0
        self._built: tuple[Floats, Floats, NDArray[np.bool_]] | None = None
        self._edges: Edges | None = None

    def reset(self) -> None:
        """Forget the list, so that the next call searches again."""
        self._built, self._edges = None, None

    def __call__(self, positions: Floats, cell: Floats, pbc: NDArray[np.bool_]) -> Edges:
        """Return candidate pairs for these positions [n, 3], cell [3, 3] and pbc [3]."""
        if self._edges is None or not self._valid(positions, cell, pbc):
            reach = self.cutoff + self.skin
            self._edges = neighbor_list(positions, cell, pbc, reach, in_order=self.in_order)
            self._built = (positions.copy(), cell.copy(), pbc.copy())
            self.n_builds += 1
        return self._edges

    def _valid(self, positions: Floats, cell: Floats, pbc: NDArray[np.bool_]) -> bool:
        if self._built is None:
            return False
        old_positions, old_cell, old_pbc = self._built
        if positions.shape != old_positions.shape:
            return False
        if not (np.array_equal(cell, old_cell) and np.array_equal(pbc, old_pbc)):
            return False
        check_geometry(positions, cell, pbc, self.cutoff)
        moved = positions - old_positions
        squares = np.einsum("ix,ix->i", moved, moved)
        if len(squares) < 2:  # an atom and its images move together
            return True
        # no pair has come closer by more than the two farthest moves together
        second, first = np.sqrt(np.partition(squares, -2)[-2:])
        return bool(first + second <= self.skin)
