"""Launches of the kernels that spread charges on a mesh and gather potentials from it."""

from __future__ import annotations

import torch
from torch import Tensor

from cace_fast.kernels.ewald_method import MeshPlan
from cace_fast.kernels.plain_mesh import coefficients, units
from cace_fast.kernels.triton import _mesh

WARPS = 1  # of a program, which has one atom


class DeviceMesh:
    """See :class:`cace_fast.kernels.mesh.MeshKernels`."""

    def spread(self, plan: MeshPlan, inverse: Tensor, r: Tensor, q: Tensor) -> Tensor:
        """Return the charges on the grid [n_q, N1, N2, N3].

        It adds integers, as :class:`cace_fast.kernels.plain_mesh.PlainMesh` does.
        """
        n_q, unit = q.shape[1], units(q)
        grid = torch.zeros(n_q, *plan.size, dtype=torch.int64, device=q.device)
        if len(r):
            _mesh.spread[(len(r),)](
                r.contiguous(),
                q.contiguous(),
                unit,
                inverse.contiguous(),
                coefficients(plan.window, plan.dtype, r.device),
                grid,
                *plan.size,
                N_CHARGES=n_q,
                **_shape(plan, r.device),
                num_warps=WARPS,
            )
        return (grid * unit[:, None, None, None]).to(plan.dtype)

    def gather(
        self, plan: MeshPlan, inverse: Tensor, r: Tensor, q: Tensor, grid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return potentials [n, n_q], and sum_c q_c dphi_c/dr [n, 3] in 1/A."""
        potential = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        gradient = torch.empty(r.shape, dtype=r.dtype, device=r.device)
        if len(r):
            _mesh.gather[(len(r),)](
                r.contiguous(),
                q.contiguous(),
                inverse.contiguous(),
                coefficients(plan.window, plan.dtype, r.device),
                grid.contiguous(),
                potential,
                gradient,
                *plan.size,
                N_CHARGES=q.shape[1],
                **_shape(plan, r.device),
                num_warps=WARPS,
            )
        return potential, gradient


def _shape(plan: MeshPlan, device: torch.device) -> dict[str, int]:
    """Return the sizes that a kernel is compiled for."""
    width = plan.window.width
    terms = coefficients(plan.window, plan.dtype, device).shape[1]
    return {"WIDTH": width, "TERMS": terms, "LANES": 8 if width <= 8 else 16}
