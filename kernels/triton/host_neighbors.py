"""Host side of the neighbour list on the device: arrays of fixed size, launches, no arithmetic.

Once the grid of bins is chosen, a list is made without reading anything on the host: pairs that do
not fit are counted, and the counts, read later, tell how much capacity is needed. Positions in open
directions need no box: bins are numbered modulo their number there.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cace_fast.errors import InputError
from cace_fast.kernels.edges import Edges
from cace_fast.kernels.triton import _neighbors, configs
from cace_fast.kernels.triton.launch import EdgeGeometry, VerletState, VerletStatus, n_blocks

BIN = 0.5  # of the reach: smaller bins waste fewer candidates, and have more of them to visit
LANES = 32  # of an atom that looks for neighbours
UNROLL = 8  # keys that a lane compares at once
MOST_IMAGES = 2**16  # of a system: a key has 16 bits for them
CLOSE = 0.98  # of the room that bins leave a cell before they are chosen anew


class Grid(NamedTuple):
    """The bins of one system, three numbers each by axis; see ``_neighbors``."""

    number: list[int]
    far: list[int]
    window: list[int]
    images: list[int]
    periodic: list[int]

    @property
    def n_bins(self) -> int:
        """How many bins there are."""
        return int(np.prod(self.number))

    @property
    def n_shifts(self) -> int:
        """How many shifts a pair can have."""
        return int(np.prod([2 * m + 1 for m in self.images]))


def grid_of(
    frame: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    extent: NDArray[np.float64],
    n: int,
    reach: float,
) -> Grid:
    """Return bins for n atoms.

    Parameters
    ----------
    frame
        The cell [3, 3] with unit vectors in open directions.
    pbc, extent
        Which directions are periodic, and how far atoms extend along the others in A.
    n, reach
        Number of atoms, and how far pairs are looked for in A.

    Raises
    ------
    InputError
        For a cell so small that pairs have too many shifts.
    """
    heights = 1.0 / np.linalg.norm(np.linalg.inv(frame), axis=0)
    length = np.where(pbc, heights, np.maximum(extent, 1e-3))
    most = 2.0 * max(n, 1) ** (1.0 / 3.0) + 1.0
    # bins of periodic directions may become narrower before their number has to change
    number = np.clip(np.floor(CLOSE * length / (BIN * reach)), 1, np.floor(most)).astype(int)
    width = np.where(pbc, CLOSE * heights / number, BIN * reach * heights)
    far = np.ceil(reach / width).astype(int)
    window = np.where(pbc, 2 * far + 1, np.minimum(number, 2 * far + 1))
    images = np.where(pbc, (number - 1 + far) // number, 0)
    found = Grid(*(x.astype(int).tolist() for x in (number, far, window, images, pbc)))
    if found.n_shifts > MOST_IMAGES:
        raise InputError(
            "cell",
            f"one of which at most {MOST_IMAGES} images lie within {reach:g} A",
            f"{found.n_shifts} images for {frame.tolist()}",
        )
    return found


class PairSearch:
    """The neighbour list of one system or batch, made on the device again and again.

    Parameters
    ----------
    species, first_atom
        Elements [n] int32 and the first atom of every system [n_systems + 1], on the device.
    reach, skin
        Cutoff plus skin, and the skin, in A.
    """

    def __init__(self, species: Tensor, first_atom: Tensor, reach: float, skin: float) -> None:
        n, device = species.shape[0], species.device
        n_systems = first_atom.shape[0] - 1
        self.species, self.reach = species, reach

        def ints(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.int32, device=device)

        def doubles(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.float64, device=device)

        systems = torch.arange(n_systems, dtype=torch.int32, device=device)
        system_of = torch.repeat_interleave(systems, first_atom.diff().long())
        settings = torch.tensor([reach, reach * reach, BIN * reach, skin], dtype=torch.float64)
        self.kept = VerletState(
            system_of,
            doubles(n_systems, 3, 3),
            ints(n_systems, 17),
            settings.to(device),
            ints(3, n),
            doubles(3, n),
            doubles(n_systems, 9),
        )
        self.found = VerletStatus(
            torch.zeros(n_blocks(n), dtype=torch.float32, device=device), ints(n_systems), ints(2)
        )
        self.n_shifts = 0
        self._placed = doubles(3, n)
        self._bins, self._sorted, self._members = ints(n), ints(n), ints(n).long()
        self._counts, self._ends = ints(LANES * n), ints(LANES * n)
        self._starts, self._first = ints(0), ints(0)

    def set_grids(self, frames: NDArray[np.float64], grids: list[Grid]) -> tuple[Tensor, Tensor]:
        """Take the bins of every system; return the shifts [3, n_shifts] and the system of each.

        The last shift belongs to no system: it is that of padding edges.
        """
        device = self.species.device
        bins = np.cumsum([0, *(grid.n_bins for grid in grids)]).tolist()
        shifts = np.cumsum([0, *(grid.n_shifts for grid in grids)]).tolist()
        rows = [
            [*(x for part in grid for x in part), first, shift]
            for grid, first, shift in zip(grids, bins[:-1], shifts[:-1], strict=True)
        ]
        self.kept.grids.copy_(torch.tensor(rows, dtype=torch.int32).reshape(-1, 17))
        self.kept.frames.copy_(torch.from_numpy(frames))
        self._starts = torch.arange(bins[-1] + 1, dtype=torch.int32, device=device)
        self._first = torch.zeros_like(self._starts)
        self.n_shifts = shifts[-1] + 1
        numbers = [
            one for grid in grids for one in product(*(range(-m, m + 1) for m in grid.images))
        ]
        system = [s for s, grid in enumerate(grids) for _ in range(grid.n_shifts)]
        table = torch.tensor([*numbers, (1, 0, 0)], dtype=torch.int32, device=device)
        owners = torch.tensor([*system, len(grids)], dtype=torch.int32, device=device)
        return table.T.contiguous(), owners

    def run(
        self, positions: Tensor, lists: EdgeGeometry, edges: Edges, work: tuple[Tensor, ...]
    ) -> None:
        """Make the list and write it to ``lists`` and ``edges``, as far as it fits.

        Parameters
        ----------
        positions
            [n, 3] float64.
        lists, edges
            Buffers of the list. ``edges.sent_edge`` is used as work space before it is written.
        work
            Two int64 and two int32 arrays [E]: keys, sorted keys, receivers, running sums.
        """
        keys, sorted_keys, receivers, numbers = work
        self._bin_atoms(positions, lists.cells)
        for write in (False, True):
            self._find_pairs(lists.cells, keys, receivers, write=write)
            if not write:
                torch.cumsum(self._counts, 0, dtype=torch.int32, out=self._ends)
        self._sort_pairs(lists, edges, keys, sorted_keys, receivers)
        torch.cumsum(edges.sent_edge, 0, dtype=torch.int32, out=numbers)
        self._finalize(edges, sorted_keys, numbers)

    def _bin_atoms(self, positions: Tensor, cells: Tensor) -> None:
        """Put atoms into bins, and sort them by bin."""
        kept, n = self.kept, len(self.species)
        _neighbors.place_atoms[(n_blocks(n) + len(self.found.bins_too_small),)](
            positions,
            kept.system_of,
            cells,
            kept.frames,
            kept.grids,
            kept.settings,
            self._placed,
            kept.wraps,
            kept.fractions,
            self._bins,
            kept.reciprocals,
            self.found.bins_too_small,
            n,
            n_blocks(n),
            BLOCK=configs.BLOCK,
            num_warps=configs.BLOCK_WARPS,
        )
        torch.sort(self._bins, stable=True, out=(self._sorted, self._members))
        torch.searchsorted(self._sorted, self._starts, out_int32=True, out=self._first)

    def _find_pairs(self, cells: Tensor, keys: Tensor, receivers: Tensor, *, write: bool) -> None:
        """Count the pairs of every atom, or write them."""
        kept, n = self.kept, len(self.species)
        _neighbors.near_pairs[(n,)](
            self._placed,
            self.species,
            kept.system_of,
            self._bins,
            self._members,
            self._first,
            cells,
            kept.frames,
            kept.grids,
            kept.settings,
            self._ends,
            self._counts,
            keys,
            receivers,
            n,
            len(keys),
            WRITE=write,
            num_warps=1,
        )

    def _sort_pairs(
        self,
        lists: EdgeGeometry,
        edges: Edges,
        keys: Tensor,
        sorted_keys: Tensor,
        receivers: Tensor,
    ) -> None:
        """Sort the pairs of every atom."""
        n_edges = len(keys)
        _neighbors.sort_pairs[(-(-n_edges // LANES),)](
            keys,
            receivers,
            self._ends,
            self.kept.system_of,
            self.kept.grids,
            sorted_keys,
            edges.sender,
            edges.receiver,
            lists.shift,
            edges.sent_edge,
            len(self.species),
            n_edges,
            self.n_shifts,
            UNROLL=UNROLL,
            BLOCK=LANES,
            num_warps=1,
        )

    def _finalize(self, edges: Edges, sorted_keys: Tensor, numbers: Tensor) -> None:
        """Write segments, and the edges that every atom sends."""
        n, n_edges, n_segments = len(self.species), len(sorted_keys), len(edges.seg_atom)
        size = max(n_edges, n_segments + 1, n + 1)
        _neighbors.finalize_segments[(-(-size // LANES),)](
            sorted_keys,
            edges.sender,
            edges.receiver,
            edges.sent_edge,
            numbers,
            self._ends,
            self.species,
            self.kept.system_of,
            self.kept.grids,
            edges.seg_first,
            edges.seg_atom,
            edges.seg_species,
            edges.atom_first,
            edges.sent_first,
            edges.sent_edge,
            self.found.need,
            n,
            n_edges,
            n_segments,
            BLOCK=LANES,
            num_warps=1,
        )
