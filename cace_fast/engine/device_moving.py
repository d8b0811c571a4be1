"""Systems that move on the device: a neighbour list of fixed capacity, made there when it is due.

A step tells how far atoms have strayed since the list was made. Shortly before they leave the skin
the next step makes a new list; where they have left it, the step is repeated with one. What does
not fit the buffers, or the bins, is answered by larger ones and never by numbers that lack pairs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from cace_fast.device_neighbors import DevicePairs
from cace_fast.errors import InputError
from cace_fast.geometry import MAX_WRAPS, check_crowd, check_geometry, check_wraps, complete_cell
from cace_fast.graph import AtomicGraph, ModelOutput
from cace_fast.kernels.triton.edge_buffers import Capacity, grown, guessed
from cace_fast.kernels.triton.host_neighbors import PairSearch, grid_of
from cace_fast.kernels.triton.step import Launchers, Status, Step
from cace_fast.min_dist import MinDist

from .checks import check_positions
from .device_run import DeviceRun
from .long_range import LongRange

EARLY = 0.9  # of the skin: from here on the next step makes a list
NOWHERE = np.zeros((0, 3))


class MovingRun(DeviceRun):
    """A system or batch whose positions and list stay on the device.

    Parameters
    ----------
    kernels, long_range
        As for :class:`DeviceRun`.
    graph
        Elements, systems, cells and first positions, on the device.
    skin
        In A.
    """

    def __init__(
        self, kernels: Launchers, long_range: LongRange, graph: AtomicGraph, skin: float
    ) -> None:
        super().__init__(kernels, long_range)
        if not (np.isfinite(skin) and skin >= 0):
            raise InputError("skin", "a length of at least 0 A", skin)
        if not graph.n_atoms:
            raise InputError("graph", "at least one atom", "none")
        self.n_builds = 0
        self.positions = graph.positions.clone()
        self._graph = replace(graph, cell=graph.cell.clone())
        self._due = True
        counts = torch.bincount(graph.batch, minlength=graph.n_systems)
        first_atom = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
        reach = kernels.rep.cutoff + skin
        self._search = PairSearch(graph.species.int(), first_atom, reach, skin)
        self._first_atom: list[int] = first_atom.tolist()
        self._set_grids()

    def set_cell(self, cell: Tensor) -> None:
        """Take new cells [n_systems, 3, 3]; the list is kept as long as they allow it."""
        self._graph.cell.copy_(cell)
        step = self.step
        assert step is not None
        step.pairs.lists.cells[:-1] = cell
        self._take_systems(step, self._graph)

    def evaluate(self, wanted: Collection[str], min_dist: MinDist) -> ModelOutput:
        """Return energies and what else is wanted of the positions as they stand."""
        derivatives = bool({"forces", "virials"} & set(wanted))
        while True:
            # due until all is done: an interrupt may leave half a list
            rebuild, self._due = self._due, True
            status = self.run(derivatives=derivatives, rebuild=rebuild)
            self.n_builds += rebuild
            if not np.isfinite(status.strayed):
                check_positions(self.positions)
                self._check_wraps()
            if rebuild and self._made_room(status):
                continue
            if rebuild:
                self.check_slabs(self.positions)
            self._due = status.strayed > EARLY**2
            if rebuild or status.strayed <= 1.0:
                break
        self.check(status, min_dist)
        return self.output(wanted)

    def _check_wraps(self) -> None:
        """Raise InputError for atoms too many cells away for a list."""
        g = self._graph
        frames = torch.where(g.pbc[:, :, None], g.cell, self._search.kept.frames)
        inverse = torch.linalg.inv(frames)[g.batch]
        fraction = torch.einsum("nx,nxk->nk", self.positions, inverse)
        away = torch.where(g.pbc[g.batch], fraction, 0.0).abs().amax(1)
        check_wraps(torch.nonzero(~(away < MAX_WRAPS)).flatten().cpu().numpy())

    def _made_room(self, status: Status) -> bool:
        """Make bins or buffers anew if the new list did not fit; return whether it did not."""
        step = self.step
        assert step is not None
        c, need = step.capacity, (int(status.n_edges), int(status.n_segments))
        if status.faults:
            self._set_grids()
            return True
        if need[0] <= c.edges and need[1] <= c.segments:
            return False
        check_crowd(need[0], self._graph.n_atoms, self._search.reach)
        self._fill(grown(c, *need))
        return True

    def _set_grids(self) -> None:
        """Choose bins for the cells and positions as they are; the host looks at both."""
        search, g = self._search, self._graph
        cells, pbc = g.cell.cpu().numpy(), g.pbc.cpu().numpy()
        places = np.zeros((g.n_atoms, 3)) if pbc.all() else self.positions.cpu().numpy()
        frames, grids = [], []
        for s, (a, b) in enumerate(zip(self._first_atom, self._first_atom[1:], strict=False)):
            check_geometry(NOWHERE, cells[s], pbc[s], search.reach)
            frame = complete_cell(cells[s], pbc[s])
            along = places[a:b] @ np.linalg.inv(frame)
            extent = np.ptp(along, axis=0) if b > a else np.zeros(3)
            extent = np.where(np.isfinite(extent), extent, 0.0)
            frames.append(frame)
            grids.append(grid_of(frame, pbc[s], extent, b - a, search.reach))
        self._shifts = search.set_grids(np.stack(frames), grids)
        if self.step is None:
            self._fill(guessed(g.n_atoms, search.n_shifts, g.n_systems))
        else:
            self._fill(self.step.capacity._replace(shifts=search.n_shifts))

    def _fill(self, capacity: Capacity) -> None:
        """Make buffers of a capacity and give them all that does not move."""
        step = self._allocate(capacity, self._search)
        step.inputs.positions = self.positions
        step.pairs.lists.numbers.copy_(self._shifts[0])
        step.pairs.lists.system.copy_(self._shifts[1])
        step.pairs.lists.cells[:-1] = self._graph.cell
        step.take_atoms(self._graph)
        self._take_extras(step, self._graph)
        self._take_systems(step, self._graph)

    def pairs(self) -> DevicePairs:
        """Return the list as it stands, with shifts of the positions as they are given."""
        step: Step | None = self.step
        assert step is not None
        edges, lists, n = step.pairs.edges, step.pairs.lists, int(self._search.found.need[0])
        senders, receivers = edges.sender[:n].long(), edges.receiver[:n].long()
        wraps = self._search.kept.wraps.T.long()
        shifts = lists.numbers.T.long()[lists.shift[:n].long()]
        return DevicePairs(senders, receivers, shifts - wraps[receivers] + wraps[senders])

    def graph(self) -> AtomicGraph:
        """Return the system as a graph with its list."""
        found = self.pairs()._asdict()
        return replace(self._graph, positions=self.positions.clone(), **found)
