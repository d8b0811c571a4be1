"""Host side of the moments and of what stands around a model: edges, launches, no arithmetic.

Arrays are component-major and contiguous, [component, lane]; lanes are edges, segments or atoms,
and their number may be a capacity: what stands behind the last one is empty (docs/kernels.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cace_fast.kernels import shapes
from cace_fast.kernels.edges import Edges, radial_table
from cace_fast.kernels.triton import _forces, _moments, configs
from cace_fast.spec import Representation

SPLIT = 1024  # positions are split at multiples of 1/1024 A: differences are exact up to 16384 A


class Moments:
    """The moments kernels of one representation.

    Parameters
    ----------
    spec, weights
        The representation and its tensors; their device and dtype are those of the work.
    """

    def __init__(self, spec: Representation, weights: Mapping[str, Tensor]) -> None:
        self.table = radial_table(spec, weights)
        self.n_b, self.n_a = spec.radial.n_rbf, spec.n_monomials
        self.constants: dict[str, Any] = {
            "NB": self.n_b, "RADIAL": shapes.radial_shape(spec), "PAR": shapes.parents(spec.l_max),
        }  # fmt: skip
        self.slopes = shapes.derivatives(spec.l_max)
        self.chunks = shapes.radial_chunks(self.n_b, spec.l_max)

    def forward(self, edges: Edges, rho: Tensor) -> None:
        """Write rho [n_b n_A, S]."""
        tile, grid = _tiles(rho.shape[1])
        for first, count in self.chunks:
            _moments.moments_forward[grid](
                edges.vectors, edges.seg_first, self.table, rho, rho.shape[1],
                edges.vectors.shape[1], N0=first, NR=count, **self.constants,
                BA=tile.rows, BE=tile.lanes, num_warps=tile.warps,
            )  # fmt: skip

    def backward(
        self, edges: Edges, grad_rho: Tensor, grad_vectors: Tensor, *, add: bool = False
    ) -> None:
        """Write dE/dd [3, E] of dE/drho [n_b n_A, S], or add it to what is there."""
        tile, grid = _tiles(grad_rho.shape[1])
        for first, count in self.chunks:
            _moments.moments_backward[grid](
                edges.vectors, edges.seg_first, self.table, grad_rho, grad_vectors,
                grad_rho.shape[1], edges.vectors.shape[1], N0=first, NR=count, **self.constants,
                DER=self.slopes, ADD=add or first > 0,
                BA=tile.rows, BE=tile.lanes, num_warps=tile.warps,
            )  # fmt: skip

    def rate(self, edges: Edges, along: Tensor, out: Tensor) -> None:
        """Write the change of rho [n_b n_A, S] when vectors change by ``along`` [3, E]."""
        tile, grid = _tiles(out.shape[1])
        for first, count in self.chunks:
            _moments.moments_rate[grid](
                edges.vectors, along, edges.seg_first, self.table, out, out.shape[1],
                edges.vectors.shape[1], N0=first, NR=count, **self.constants,
                BA=tile.rows, BE=tile.lanes, num_warps=tile.warps,
            )  # fmt: skip

    def backward_rate(self, edges: Edges, along: Tensor, grad_rho: Tensor, out: Tensor) -> None:
        """Write the change of ``backward`` [3, E] when vectors change by ``along`` [3, E]."""
        count = int(edges.sender.shape[0])
        segment = torch.repeat_interleave(edges.seg_first.diff())
        _moments.moments_backward_rate[_blocks(count)](
            edges.vectors, along, segment.int(), self.table, grad_rho, out,
            grad_rho.shape[1], edges.vectors.shape[1], count, **self.constants, DER=self.slopes,
            BLOCK=configs.BLOCK, num_warps=configs.BLOCK_WARPS,
        )  # fmt: skip

    def by_table(self, edges: Edges, grad_rho: Tensor, along: Tensor | None) -> Tensor:
        """Return dE/da_n, dE/db_n [2 n_b] of dE/drho, or their change along ``along`` [3, E]."""
        count = int(edges.sender.shape[0])
        segment = torch.repeat_interleave(edges.seg_first.diff())
        out = grad_rho.new_empty(2 * self.n_b, count)
        _moments.moments_by_table[_blocks(count)](
            edges.vectors, edges.vectors if along is None else along, segment.int(), self.table,
            grad_rho, out, grad_rho.shape[1], edges.vectors.shape[1], count, **self.constants,
            RATE=along is not None, BLOCK=configs.BLOCK, num_warps=configs.BLOCK_WARPS,
        )  # fmt: skip
        return out.sum(1, dtype=torch.float64).to(out)


def split(values: Tensor, high: Tensor, low: Tensor) -> None:
    """Write [n, 3] float64 as the sum of ``high`` and ``low`` [3, n] of the working precision."""
    n = values.shape[0]
    _forces.split_positions[_blocks(n)](
        values, high, low, n, GRID=SPLIT, BLOCK=configs.BLOCK, num_warps=configs.BLOCK_WARPS
    )


def shift_vectors(
    numbers: Tensor, system: Tensor, cells: Tensor, high: Tensor, low: Tensor
) -> None:
    """Write S h of ``numbers`` S [3, n_shifts] int32 as the sum of ``high`` and ``low``.

    ``cells`` [n_systems, 3, 3] is float64; ``system`` [n_shifts] says which one counts.
    """
    n = numbers.shape[1]
    _forces.shift_vectors[_blocks(n)](
        numbers, system, cells, high, low, n, GRID=SPLIT,
        BLOCK=configs.BLOCK, num_warps=configs.BLOCK_WARPS,
    )  # fmt: skip


def edge_vectors(
    atoms: Sequence[Tensor], shifts: Sequence[Tensor], edges: Edges, shift: Tensor, closest: Tensor
) -> None:
    """Write ``edges.vectors``, and the smallest square of every block of edges.

    ``atoms`` are the split positions [3, n], ``shifts`` the split vectors S h [3, n_shifts] that
    ``shift`` [E] numbers, ``closest`` [blocks of E].
    """
    n_edges = edges.vectors.shape[1]
    _forces.edge_vectors[_blocks(n_edges)](
        *atoms, *shifts, edges.sender, edges.receiver, shift, edges.vectors, closest,
        atoms[0].shape[1], n_edges, shifts[0].shape[1],
        BLOCK=configs.BLOCK, num_warps=configs.BLOCK_WARPS,
    )  # fmt: skip


def gather_forces(
    edges: Edges,
    grad_vectors: Tensor,
    forces: Tensor,
    virials: Tensor | None = None,
    more: Tensor | None = None,
) -> None:
    """Write forces [3, n] of dE/dd [3, E], added to ``more``; and virials [6, n] of atoms."""
    n = forces.shape[1]
    tile, grid = _tiles(n)
    _forces.gather_forces[grid](
        edges.vectors, grad_vectors, edges.seg_first, edges.atom_first, edges.sent_first,
        edges.sent_edge, forces if more is None else more, forces,
        forces if virials is None else virials, n, edges.vectors.shape[1],
        MORE=more is not None, VIRIALS=virials is not None,
        BA=tile.rows, BE=tile.lanes, num_warps=tile.warps,
    )  # fmt: skip


def system_sums(values: Tensor, first_atom: Tensor, out: Tensor) -> None:
    """Write the sums of ``values`` [rows, n] over systems, float64 [rows, n_systems]."""
    rows, n_systems = out.shape
    _forces.system_sums[(n_systems, rows)](
        values, first_atom, out, values.shape[1], n_systems,
        BLOCK=configs.SUM_BLOCK, num_warps=configs.BLOCK_WARPS,
    )  # fmt: skip


def n_blocks(n: int) -> int:
    """Return how many programs of one lane for each of ``n`` there are."""
    return -(-n // configs.BLOCK)


def _blocks(n: int) -> tuple[int]:
    return (n_blocks(n),)


def _tiles(n_rows: int) -> tuple[configs.Tile, tuple[int]]:
    tile = configs.tile(n_rows)
    return tile, (-(-n_rows // tile.rows),)
