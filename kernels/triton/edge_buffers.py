"""The edges of a graph on the device, in buffers that outlive a neighbour list."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cace_fast.graph import AtomicGraph
from cace_fast.kernels.edges import Edges, Order, in_order
from cace_fast.kernels.triton.launch import EdgeGeometry

HEADROOM = 1.1  # capacity beyond what a list needs, so that the next one fits
GRAIN = 256  # capacities are multiples of this
FIRST_EDGES, FIRST_SEGMENTS = 16, 2  # of an atom, as a guess; the first list corrects it


class Capacity(NamedTuple):
    """Sizes of all buffers of a step; two graphs with one capacity can share them."""

    atoms: int
    edges: int
    segments: int
    shifts: int
    systems: int

    def holds(self, need: Capacity) -> bool:
        """Whether buffers of this size hold a list: not too small, and not wastefully large."""
        fixed = self.atoms == need.atoms and self.systems == need.systems
        fits = all(have >= least for have, least in zip(self, need, strict=True))
        return fixed and fits and self.edges <= 2 * need.edges + 16 * GRAIN


def with_headroom(need: Capacity) -> Capacity:
    """Return the capacity to allocate for a list."""
    edges, segments = (
        GRAIN * max(1, -(-int(HEADROOM * size) // GRAIN)) for size in (need.edges, need.segments)
    )
    return Capacity(need.atoms, edges, segments, 32 * -(-need.shifts // 32), need.systems)


def initial_capacity(n_atoms: int, n_shifts: int, n_systems: int) -> Capacity:
    """Return the capacity of the first buffers, before there is a list."""
    need = Capacity(n_atoms, FIRST_EDGES * n_atoms, FIRST_SEGMENTS * n_atoms, 0, n_systems)
    return with_headroom(need)._replace(shifts=n_shifts)


def enlarged(have: Capacity, n_edges: int, n_segments: int) -> Capacity:
    """Return the capacity after one that was too small for a list."""
    edges, segments = max(n_edges, have.edges), max(n_segments, have.segments)
    return with_headroom(have._replace(edges=edges, segments=segments))._replace(shifts=have.shifts)


class Listed(NamedTuple):
    """A list in the order of the kernels, without padding.

    ``shift`` [E] is the column of each edge in ``numbers`` [3, n_shifts], the distinct cell shifts
    S; ``system`` [n_shifts] is the system of each shift.
    """

    edges: Order
    shift: Tensor
    numbers: Tensor
    system: Tensor

    def need(self, n_atoms: int, n_systems: int) -> Capacity:
        """Return the least capacity; padding needs one shift more than there are."""
        sizes = (len(self.shift), len(self.edges.seg_atom), len(self.system) + 1)
        return Capacity(n_atoms, *sizes, n_systems)


def listed(graph: AtomicGraph, n_species: int) -> Listed:
    """Return the edges of a graph in the order of the kernels, cell shifts last."""
    reach = int(graph.shifts.abs().max()) if len(graph.shifts) else 0
    base = 2 * reach + 1
    code = graph.batch[graph.receivers]
    for axis in range(3):
        code = code * base + graph.shifts[:, axis] + reach
    codes, shift = torch.unique(code, return_inverse=True)
    numbers = torch.stack([codes // base**k % base - reach for k in (2, 1, 0)])
    edges = in_order(graph.senders, graph.receivers, graph.species, n_species, shift)
    return Listed(edges, shift[edges.order], numbers, codes // base**3)


class EdgeBuffers:
    """Buffers of the edges of one capacity, filled by one list after another.

    Parameters
    ----------
    capacity, device, dtype
        Sizes, device and working precision.
    cutoff
        r_c in A: padding edges are made four times as long.
    """

    def __init__(
        self, capacity: Capacity, device: torch.device, dtype: torch.dtype, cutoff: float
    ) -> None:
        self.capacity, self.cutoff = capacity, cutoff
        c = capacity

        def ints(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int32, device=device)

        def floats(*size: int) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.edges = Edges(
            vectors=floats(3, c.edges),
            sender=ints(c.edges),
            receiver=ints(c.edges),
            seg_first=ints(c.segments + 1),
            seg_atom=ints(c.segments),
            seg_species=ints(c.segments),
            atom_first=ints(c.atoms + 1),
            sent_first=ints(c.atoms + 1),
            sent_edge=ints(c.edges),
        )
        cells = torch.zeros(c.systems + 1, 3, 3, dtype=torch.float64, device=device)
        cells[-1, 0, 0] = 4.0 * cutoff  # belongs to no system: padding edges go along it
        self.lists = EdgeGeometry(
            shift=ints(c.edges),
            numbers=ints(3, c.shifts),
            system=ints(c.shifts),
            cells=cells,
            atoms=(floats(3, c.atoms), floats(3, c.atoms)),
            shifts=(floats(3, c.shifts), floats(3, c.shifts)),
        )

    def fill(self, found: Listed) -> None:
        """Copy a list into the buffers."""
        edges, lists, n_atoms = self.edges, self.lists, self.capacity.atoms
        given, n_edges = found.edges, len(found.shift)
        pairs = (
            (edges.sender, given.sender, 0),
            (edges.receiver, given.receiver, 0),
            (edges.seg_atom, given.seg_atom, 0),
            (edges.seg_species, given.seg_species, 0),
            (edges.sent_edge, given.sent_edge, 0),
            (lists.shift, found.shift, self.capacity.shifts - 1),
            (lists.system, found.system, self.capacity.systems),
        )
        for buffer, values, padding in pairs:
            buffer[: len(values)] = values
            buffer[len(values) :] = padding
        lists.numbers.zero_()
        lists.numbers[:, : found.numbers.shape[1]] = found.numbers
        lists.numbers[0, found.numbers.shape[1] :] = 1
        edges.seg_first[0] = 0
        edges.seg_first[1 : len(given.seg_count) + 1] = given.seg_count.cumsum(0)
        edges.seg_first[len(given.seg_count) + 1 :] = n_edges
        for first, owner in ((edges.atom_first, given.seg_atom), (edges.sent_first, given.sender)):
            first[1:] = torch.bincount(owner, minlength=n_atoms).cumsum(0)
