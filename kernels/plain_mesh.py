"""Spreading and gathering in plain torch, for any device; the reference of the kernels.

Nothing here looks at the device or calls a library for products of matrices, so that a step can be
captured with it.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from cace_fast.kernels.ewald_method import MeshPlan
from cace_fast.kernels.window import MORE_TERMS, Window, polynomials

POINTS_AT_ONCE = 2_000_000  # atoms x points of their stencils in one block


class PlainMesh:
    """See :class:`cace_fast.kernels.mesh.MeshKernels`."""

    def spread(self, plan: MeshPlan, inverse: Tensor, r: Tensor, q: Tensor) -> Tensor:
        """Return the charges on the grid [n_q, N1, N2, N3].

        It adds integers: on a GPU they may come in any order, and give the same bits. No point gets
        more than the sum of all charges, so that they cannot overflow.
        """
        size, n_q = plan.size, q.shape[1]
        unit = units(q)
        grid = torch.zeros(n_q, size[0] * size[1] * size[2], dtype=torch.int64, device=q.device)
        for part in _blocks(len(r), plan):
            index, (x, y, z), _ = _stencils(plan, inverse, r[part])
            weights = torch.einsum("ni,nj,nk->nijk", x, y, z).flatten(1).to(q)
            values = torch.round((q[part] / unit).T[:, :, None] * weights).long()
            grid.index_add_(1, index.flatten(), values.flatten(1))
        return (grid * unit[:, None]).to(plan.dtype).reshape(n_q, *size)

    def gather(
        self, plan: MeshPlan, inverse: Tensor, r: Tensor, q: Tensor, grid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return potentials [n, n_q], and sum_c q_c dphi_c/dr [n, 3] in 1/A."""
        potential, gradient = torch.zeros_like(q), torch.zeros_like(r)
        flat = grid.flatten(1)
        for part in _blocks(len(r), plan):
            index, (x, y, z), (dx, dy, dz) = _stencils(plan, inverse, r[part])
            points = flat[:, index.flatten()].reshape(len(flat), *index.shape)
            points = points.unflatten(2, (plan.window.width,) * 3)  # [n_q, n, w, w, w]
            lines = (points * z[:, None, None, :]).sum(4)
            planes, by_y = (lines * y[:, None, :]).sum(3), (lines * dy[:, None, :]).sum(3)
            by_z = ((points * dz[:, None, None, :]).sum(4) * y[:, None, :]).sum(3)
            found = [(planes * x).sum(2), (planes * dx).sum(2), (by_y * x).sum(2)]
            found = [f.T.to(q) for f in (*found, (by_z * x).sum(2))]
            potential[part] = found[0]
            along = [(q[part] * f).sum(1) * n for f, n in zip(found[1:], plan.size, strict=True)]
            a, b, c = along
            for k in range(3):
                gradient[part, k] = a * inverse[k, 0] + b * inverse[k, 1] + c * inverse[k, 2]
        return potential, gradient


def units(q: Tensor) -> Tensor:
    """Return what the integers of a grid count [n_q], for charges q [n, n_q] in float64."""
    return q.abs().sum(0).clamp(min=torch.finfo(q.dtype).tiny) * 2.0**-62


def _blocks(n: int, plan: MeshPlan) -> list[slice]:
    step = max(1, POINTS_AT_ONCE // plan.window.width**3)
    return [slice(start, start + step) for start in range(0, n, step)]


def _stencils(
    plan: MeshPlan, inverse: Tensor, r: Tensor
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return points [n, width^3] of each atom; of each axis weights and slopes [n, width]."""
    width = plan.window.width
    tables = coefficients(plan.window, plan.dtype, r.device)
    offsets = torch.arange(width, device=r.device)
    index = torch.zeros((len(r), 1), dtype=torch.int64, device=r.device)
    weights, slopes = [], []
    for axis, size in enumerate(plan.size):
        fraction = (r * inverse[:, axis]).sum(1)
        u = (fraction - torch.floor(fraction)) * size
        begin = torch.ceil(u - 0.5 * width)
        x = (2.0 * (begin - u + 0.5 * width) - 1.0).to(plan.dtype)
        value, slope = (_horner(c, x) for c in tables)
        weights.append(value)
        slopes.append(slope)
        points = (begin.long()[:, None] + offsets) % size
        index = (index[:, :, None] * size + points[:, None, :]).flatten(1)
    return index, weights, slopes


@cache
def coefficients(window: Window, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the coefficients [2, degree + 1, width] of a window and of its slope.

    They are made once for a device: the step that is captured finds them there.
    """
    degree = window.width + MORE_TERMS[str(dtype).removeprefix("torch.")]
    return torch.tensor(polynomials(window, degree), dtype=torch.float64).to(device, dtype)


def _horner(table: Tensor, x: Tensor) -> Tensor:
    """Return polynomials [n, width] of x [n], table [degree + 1, width]."""
    total = table[-1].expand(len(x), -1)
    for row in table.flip(0)[1:]:
        total = total * x[:, None] + row
    return total
