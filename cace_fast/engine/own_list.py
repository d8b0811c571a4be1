"""The Verlet list of systems that move on the device; its buffers have a fixed capacity.

A step tells how far atoms have moved since the list was made. Shortly before one leaves the skin
the next step makes a new list; where one has left it, the step is repeated with a new list. When
buffers or bins are too small, larger ones are made and the step is repeated, so that no result
lacks pairs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cace_fast.device_neighbors import DevicePairs
from cace_fast.errors import InputError
from cace_fast.geometry import MAX_WRAPS, check_crowd, check_geometry, check_wraps, complete_cell
from cace_fast.graph import AtomicGraph
from cace_fast.kernels.triton.edge_buffers import Capacity, enlarged, initial_capacity
from cace_fast.kernels.triton.host_neighbors import PairSearch, grid_of
from cace_fast.kernels.triton.step import Status, Step

from .checks import check_positions

REBUILD_AT = 0.9  # of the skin: from here on the next step makes a list
NO_POSITIONS = np.zeros((0, 3))


class OwnList:
    """Systems that move, and their Verlet list (``docs/developer/kernels.md``).

    Parameters
    ----------
    graph
        Elements, systems, cells and first positions, on the device; its pairs are not looked at.
    cutoff, skin
        In A.

    Attributes
    ----------
    graph
        The systems; positions and cells are written in place.
    search
        Makes the list.
    due
        Whether the next step has to make a list.
    n_builds
        How many lists have been made.

    Raises
    ------
    InputError
        For a skin that is no length, no atoms, or a cell without room for a list.
    """

    def __init__(self, graph: AtomicGraph, cutoff: float, skin: float) -> None:
        if not (np.isfinite(skin) and skin >= 0):
            raise InputError("skin", "a length of at least 0 A", skin)
        if not graph.n_atoms:
            raise InputError("graph", "at least one atom", "none")
        self.due, self.n_builds = True, 0
        self.graph = replace(graph, positions=graph.positions.clone(), cell=graph.cell.clone())
        counts = torch.bincount(graph.batch, minlength=graph.n_systems)
        first_atom = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
        self.search = PairSearch(graph.species.int(), first_atom, cutoff + skin, skin)
        self._first_atom: list[int] = first_atom.tolist()
        self._shifts = self._set_grids()

    def _set_grids(self) -> tuple[Tensor, Tensor]:
        """Choose bins for the present cells and positions; the host reads both.

        Returns
        -------
        numbers, owners
            The shifts [3, n_shifts] that pairs can have, and the system of each.
        """
        search, g = self.search, self.graph
        cells, pbc = g.cell.cpu().numpy(), g.pbc.cpu().numpy()
        places = np.zeros((g.n_atoms, 3)) if pbc.all() else g.positions.cpu().numpy()
        frames, grids = [], []
        for s, (a, b) in enumerate(zip(self._first_atom, self._first_atom[1:], strict=False)):
            check_geometry(NO_POSITIONS, cells[s], pbc[s], search.reach)
            frame = complete_cell(cells[s], pbc[s])
            along = places[a:b] @ np.linalg.inv(frame)
            extent = np.ptp(along, axis=0) if b > a else np.zeros(3)
            extent = np.where(np.isfinite(extent), extent, 0.0)
            frames.append(frame)
            grids.append(grid_of(frame, pbc[s], extent, b - a, search.reach))
        return search.set_grids(np.stack(frames), grids)

    def first_capacity(self) -> Capacity:
        """Return the capacity of buffers before there is a list (``docs/developer/kernels.md``)."""
        return initial_capacity(self.graph.n_atoms, self.search.n_shifts, self.graph.n_systems)

    def fill(self, step: Step) -> None:
        """Write positions, shifts and cells to new buffers, in which positions move from now on.

        See ``docs/developer/kernels.md``.
        """
        self.due = True  # there is no list in them
        step.inputs.positions = self.graph.positions
        lists = step.pairs.lists
        lists.numbers.copy_(self._shifts[0])
        lists.system.copy_(self._shifts[1])
        lists.cells[:-1] = self.graph.cell

    def room(self, status: Status, have: Capacity) -> Capacity | None:
        """Return the capacity that a new list needs; None if bins and buffers suffice.

        See ``docs/developer/kernels.md``.

        Bins that are too small are chosen anew.

        Raises
        ------
        InputError
            For more pairs than atoms can have.
        """
        if status.bins_too_small:
            self._shifts = self._set_grids()
            return have._replace(shifts=self.search.n_shifts)
        n_edges, n_segments = int(status.n_edges), int(status.n_segments)
        if n_edges <= have.edges and n_segments <= have.segments:
            return None
        check_crowd(n_edges, self.graph.n_atoms, self.search.reach)
        return enlarged(have, n_edges, n_segments)

    @staticmethod
    def has_left(status: Status) -> bool:
        """Tell whether atoms have left the skin, so that the list lacks pairs.

        See ``docs/developer/kernels.md``.
        """
        return not status.displacement_ratio <= 1.0

    @staticmethod
    def leaves(status: Status) -> bool:
        """Tell whether atoms are about to leave the skin, so that the next step makes a list.

        See ``docs/developer/kernels.md``.
        """
        return status.displacement_ratio > REBUILD_AT**2

    def check_places(self) -> None:
        """Raise InputError for positions that are not finite, or too many cells away.

        See ``docs/user/errors.md``.
        """
        g = self.graph
        check_positions(g.positions)
        frames = torch.where(g.pbc[:, :, None], g.cell, self.search.kept.frames)
        inverse = torch.linalg.inv(frames)[g.batch]
        fraction = torch.einsum("nx,nxk->nk", g.positions, inverse)
        away = torch.where(g.pbc[g.batch], fraction, 0.0).abs().amax(1)
        check_wraps(torch.nonzero(~(away < MAX_WRAPS)).flatten().cpu().numpy())

    def pairs(self, step: Step) -> DevicePairs:
        """Return the list in the buffers, with shifts for the positions as given (equation 1)."""
        edges, lists, n = step.pairs.edges, step.pairs.lists, int(self.search.found.need[0])
        senders, receivers = edges.sender[:n].long(), edges.receiver[:n].long()
        wraps = self.search.kept.wraps.T.long()
        shifts = lists.numbers.T.long()[lists.shift[:n].long()]
        return DevicePairs(senders, receivers, shifts - wraps[receivers] + wraps[senders])

    def whole(self, step: Step) -> AtomicGraph:
        """Return the systems as a graph with the list in the buffers.

        See ``docs/developer/kernels.md``.
        """
        found = self.pairs(step)._asdict()
        return replace(self.graph, positions=self.graph.positions.clone(), **found)
