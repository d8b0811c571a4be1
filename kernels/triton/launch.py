"""Host side of the moments, forces and sums: edges, launches, no arithmetic.

Arrays are component-major and contiguous, [component, lane]; lanes are edges, segments or atoms.
Their number may be a capacity: elements behind the last lane are empty
(docs/developer/kernels.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cace_fast.kernels import shapes
from cace_fast.kernels.edges import Edges, radial_table
from cace_fast.kernels.triton import _forces, _moments, configs
from cace_fast.spec import Representation

MOST_NUMBERS = 2**31 - 1  # of one array: kernels number them by int32
SPLIT = 1024  # positions are split at multiples of 1/1024 A: differences are exact up to 16384 A


class EdgeGeometry(NamedTuple):
    """Shifts, cells and split positions of edges.

    Attributes
    ----------
    shift, numbers, system
        [E] the shift of each edge; S [3, n_shifts] of each shift, and its system [n_shifts].
    cells
        [n_systems + 1, 3, 3] float64; the last one belongs to padding edges.
    atoms, shifts
        Positions [3, n] and S h [3, n_shifts], two numbers of each.
    """

    shift: Tensor
    numbers: Tensor
    system: Tensor
    cells: Tensor
    atoms: tuple[Tensor, Tensor]
    shifts: tuple[Tensor, Tensor]


class VerletState(NamedTuple):
    """State of a list that was made on the device; see ``host_neighbors``."""

    system_of: Tensor
    frames: Tensor
    grids: Tensor
    settings: Tensor
    wraps: Tensor
    fractions: Tensor
    reciprocals: Tensor


class VerletStatus(NamedTuple):
    """Status of such a list for the host: displacements of blocks of atoms, bad systems, sizes."""

    displacement_ratio: Tensor
    bins_too_small: Tensor
    need: Tensor


@dataclass
class Results:
    """Results of a step.

    ``energies`` [2, n] of atoms, short and long range, their sums ``totals`` [2, n_systems],
    ``virial_sums`` [6, n_systems] (xx yy zz yz xz xy) and the share of the long range in these,
    ``long_virials``, are float64. ``outputs`` y [n_out, n], ``forces`` [3, n] and ``virials`` [6,
    n] of atoms are in the working precision. ``closest`` holds the smallest squared distance of
    every block of edges, ``status`` [5] float64 the numbers that the host reads after a step
    (``_forces.totals``).
    """

    energies: Tensor
    totals: Tensor
    closest: Tensor
    outputs: Tensor
    forces: Tensor
    virials: Tensor
    virial_sums: Tensor
    long_virials: Tensor
    status: Tensor


class Moments:
    """The moments kernels of one representation.

    Parameters
    ----------
    spec, weights
        The representation and its tensors; the kernels use their device and dtype.
    """

    def __init__(self, spec: Representation, weights: Mapping[str, Tensor]) -> None:
        self.table = radial_table(spec, weights)
        self.n_b, self.n_a = spec.radial.n_rbf, spec.n_monomials
        self.constants: dict[str, Any] = {
            "N_RBF": self.n_b,
            "RADIAL": shapes.radial_shape(spec),
            "PARENT": shapes.parents(spec.l_max),
        }
        self.slopes = shapes.derivatives(spec.l_max)
        self.chunks = shapes.radial_chunks(self.n_b, spec.l_max)

    def forward(self, edges: Edges, rho: Tensor) -> None:
        """Write rho [n_b n_A, S]."""
        tile, grid = tiles(rho.shape[1])
        for first, count in self.chunks:
            _moments.moments_forward[grid](
                edges.vectors,
                edges.seg_first,
                self.table,
                rho,
                rho.shape[1],
                edges.vectors.shape[1],
                FIRST_RBF=first,
                COUNT_RBF=count,
                **self.constants,
                BLOCK_SEG=tile.rows,
                BLOCK_EDGE=tile.lanes,
                num_warps=tile.warps,
            )

    def backward(
        self, edges: Edges, grad_rho: Tensor, grad_vectors: Tensor, *, add: bool = False
    ) -> None:
        """Write dE/dd [3, E] of dE/drho [n_b n_A, S], or add it."""
        tile, grid = tiles(grad_rho.shape[1])
        for first, count in self.chunks:
            _moments.moments_backward[grid](
                edges.vectors,
                edges.seg_first,
                self.table,
                grad_rho,
                grad_vectors,
                grad_rho.shape[1],
                edges.vectors.shape[1],
                FIRST_RBF=first,
                COUNT_RBF=count,
                **self.constants,
                DERIVATIVES=self.slopes,
                ADD=add or first > 0,
                BLOCK_SEG=tile.rows,
                BLOCK_EDGE=tile.lanes,
                num_warps=tile.warps,
            )

    def jvp(self, edges: Edges, tangent: Tensor, out: Tensor) -> None:
        """Write the change of rho [n_b n_A, S] when vectors change by ``tangent`` [3, E]."""
        tile, grid = tiles(out.shape[1])
        for first, count in self.chunks:
            _moments.moments_jvp[grid](
                edges.vectors,
                tangent,
                edges.seg_first,
                self.table,
                out,
                out.shape[1],
                edges.vectors.shape[1],
                FIRST_RBF=first,
                COUNT_RBF=count,
                **self.constants,
                BLOCK_SEG=tile.rows,
                BLOCK_EDGE=tile.lanes,
                num_warps=tile.warps,
            )

    def vjp_jvp(self, edges: Edges, tangent: Tensor, grad_rho: Tensor, out: Tensor) -> None:
        """Write the change of ``backward`` [3, E] when vectors change by ``tangent`` [3, E]."""
        count = int(edges.sender.shape[0])
        segment = torch.repeat_interleave(edges.seg_first.diff())
        _moments.moments_vjp_jvp[_blocks(count)](
            edges.vectors,
            tangent,
            segment.int(),
            self.table,
            grad_rho,
            out,
            grad_rho.shape[1],
            edges.vectors.shape[1],
            count,
            **self.constants,
            DERIVATIVES=self.slopes,
            BLOCK=configs.BLOCK,
            num_warps=configs.BLOCK_WARPS,
        )

    def by_table(self, edges: Edges, grad_rho: Tensor, tangent: Tensor | None) -> Tensor:
        """Return dE/da_n, dE/db_n [2 n_b] of dE/drho, or their change along ``tangent`` [3, E]."""
        count = int(edges.sender.shape[0])
        segment = torch.repeat_interleave(edges.seg_first.diff())
        out = grad_rho.new_empty(2 * self.n_b, count)
        _moments.moments_by_table[_blocks(count)](
            edges.vectors,
            edges.vectors if tangent is None else tangent,
            segment.int(),
            self.table,
            grad_rho,
            out,
            grad_rho.shape[1],
            edges.vectors.shape[1],
            count,
            **self.constants,
            TANGENT=tangent is not None,
            BLOCK=configs.BLOCK,
            num_warps=configs.BLOCK_WARPS,
        )
        return out.sum(1, dtype=torch.float64).to(out)


def split(values: Tensor, high: Tensor, low: Tensor) -> None:
    """Write [n, 3] float64 as the sum of ``high`` and ``low`` [3, n] of the working precision."""
    n = values.shape[0]
    _forces.split_atoms[_blocks(n)](
        values, high, low, n, GRID=SPLIT, BLOCK=configs.BLOCK, num_warps=configs.BLOCK_WARPS
    )


def split_positions(
    positions: Tensor,
    lists: EdgeGeometry,
    kept: VerletState | None = None,
    displacement_ratio: Tensor | None = None,
) -> None:
    """Write positions [n, 3] and the shifts S h of ``lists``, each as a sum of two.

    With ``kept``, a list that was made on the device, positions are first moved back by the cells
    that they lay away then; ``displacement_ratio`` gets the largest displacement of every block of
    atoms (``_forces.split_positions``).
    """
    n, n_shifts = positions.shape[0], lists.numbers.shape[1]
    fill = VerletState(*(positions,) * len(VerletState._fields)) if kept is None else kept
    _forces.split_positions[(n_blocks(n) + n_blocks(n_shifts),)](
        positions,
        lists.cells,
        *lists.atoms,
        lists.numbers,
        lists.system,
        *lists.shifts,
        *fill,
        positions if displacement_ratio is None else displacement_ratio,
        n,
        n_shifts,
        n_blocks(n),
        KEEPS_LIST=kept is not None,
        GRID=SPLIT,
        BLOCK=configs.BLOCK,
        num_warps=configs.BLOCK_WARPS,
    )


def edge_vectors(lists: EdgeGeometry, edges: Edges, closest: Tensor) -> None:
    """Write ``edges.vectors``, and in ``closest`` the smallest square of every block of edges."""
    n_edges = edges.vectors.shape[1]
    _forces.edge_vectors[_blocks(n_edges)](
        *lists.atoms,
        *lists.shifts,
        edges.sender,
        edges.receiver,
        lists.shift,
        edges.vectors,
        closest,
        lists.atoms[0].shape[1],
        n_edges,
        lists.numbers.shape[1],
        BLOCK=configs.BLOCK,
        num_warps=configs.BLOCK_WARPS,
    )


def gather_forces(
    edges: Edges,
    grad_vectors: Tensor,
    forces: Tensor,
    virials: Tensor | None = None,
    more: Tensor | None = None,
) -> None:
    """Write forces [3, n] of dE/dd [3, E], added to ``more``; and virials [6, n] of atoms."""
    n = forces.shape[1]
    tile, grid = tiles(n)
    _forces.gather_forces[grid](
        edges.vectors,
        grad_vectors,
        edges.seg_first,
        edges.atom_first,
        edges.sent_first,
        edges.sent_edge,
        forces if more is None else more,
        forces,
        forces if virials is None else virials,
        n,
        edges.vectors.shape[1],
        MORE=more is not None,
        VIRIALS=virials is not None,
        BLOCK_ATOM=tile.rows,
        BLOCK_EDGE=tile.lanes,
        num_warps=tile.warps,
    )


def totals(
    results: Results,
    energy_weights: Tensor,
    first_atom: Tensor,
    *,
    derivatives: bool,
    long_range: bool,
    kept: VerletStatus | None = None,
) -> None:
    """Write energies of atoms, float64 sums of energies and virials, and ``results.status``.

    ``energy_weights`` [n_out, n] is the weight of each output in the energy; virials are summed
    with ``derivatives``; ``kept`` belongs to a list that was made on the device.
    """
    n_out, n = results.outputs.shape
    n_systems = first_atom.shape[0] - 1
    displacement_ratio, bins_too_small, need = (results.closest,) * 3 if kept is None else kept
    _forces.totals[(n_systems + 1, 8 if derivatives else 2)](
        results.outputs,
        energy_weights,
        results.energies,
        results.virials,
        first_atom,
        results.totals,
        results.virial_sums,
        results.long_virials,
        results.closest,
        displacement_ratio,
        bins_too_small,
        need,
        results.status,
        n,
        n_out,
        n_systems,
        results.closest.shape[0],
        displacement_ratio.shape[0],
        int(long_range),
        KEEPS_LIST=kept is not None,
        BLOCK=configs.SUM_BLOCK,
        num_warps=configs.BLOCK_WARPS,
    )


def n_blocks(n: int) -> int:
    """Return the number of programs if each has one lane per item of ``n``."""
    return -(-n // configs.BLOCK)


def _blocks(n: int) -> tuple[int]:
    return (n_blocks(n),)


def tiles(n_rows: int) -> tuple[configs.Tile, tuple[int]]:
    """Return the tile for a number of rows, and the number of programs."""
    tile = configs.tile(n_rows)
    return tile, (-(-n_rows // tile.rows),)
