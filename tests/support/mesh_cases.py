"""The mesh kernels of a device against plain torch: spreading, gathering, and the bits of sums."""

from __future__ import annotations

import numpy as np
import torch

from cace_fast.kernels.ewald_method import MeshPlan, Sphere, mesh_plan
from cace_fast.kernels.plain_mesh import PlainMesh
from cace_fast.kernels.triton.host_mesh import DeviceMesh
from support.k_sums import CELLS, DL, SIGMA, liquid

CASES = [
    ("triclinic", 7, 1, 2e-2, torch.float32),
    ("left-handed", 5, 3, 1e-4, torch.float32),
    ("cubic", 5, 2, 1e-2, torch.float64),
    ("elongated", 6, 2, 1e-4, torch.float64),
    ("triclinic", 3, 1, 1e-12, torch.float64),
]
ROUNDING = 8  # of polynomials and of the sums of a stencil


def assert_same_as_plain(
    name: str, n: int, n_q: int, tolerance: float, dtype: torch.dtype, device: torch.device
) -> None:
    """Compare grids, potentials and gradients of the kernels with those of plain torch."""
    cell = CELLS[name]
    plan = mesh_plan(n, cell, cell, Sphere(DL, SIGMA), tolerance)._replace(dtype=dtype)
    q, r = (torch.from_numpy(x).to(device) for x in liquid(cell, n, n_q))
    r[0] = 0.0  # an atom on a point, and one whose fraction rounds to 1
    r[1] = -1e-18
    inverse = torch.from_numpy(np.linalg.inv(cell)).to(device)
    grid = PlainMesh().spread(plan, inverse, r, q)
    assert_close(DeviceMesh().spread(plan, inverse, r, q), grid, plan)
    values = torch.randn(grid.shape, generator=torch.Generator().manual_seed(4)).to(grid)
    wanted = PlainMesh().gather(plan, inverse, r, q, values)
    found = DeviceMesh().gather(plan, inverse, r, q, values)
    for got, want in zip(found, wanted, strict=True):
        assert_close(got, want, plan)


def assert_a_place_that_is_not_finite_stays_inside(device: torch.device) -> None:
    """The emulator sees every address; what comes out is not finite."""
    cell = CELLS["triclinic"]
    plan = mesh_plan(3, cell, cell, Sphere(DL, SIGMA), 1e-2)
    q, r = (torch.from_numpy(x).to(device) for x in liquid(cell, 3, 1))
    r[0, 0], r[1, 1] = torch.nan, torch.inf
    inverse = torch.from_numpy(np.linalg.inv(cell)).to(device)
    grid = DeviceMesh().spread(plan, inverse, r, q)
    potential, gradient = DeviceMesh().gather(plan, inverse, r, q, torch.ones_like(grid))
    assert torch.isfinite(potential[:, 0]).tolist() == [False, False, True]
    assert torch.isfinite(gradient).all(1).tolist() == [False, False, True]


def assert_order_does_not_matter(plan: MeshPlan, cell: np.ndarray, device: torch.device) -> None:
    """Spread atoms in two orders: the same bits."""
    q, r = (torch.from_numpy(x).to(device) for x in liquid(cell, 9, 2))
    inverse = torch.from_numpy(np.linalg.inv(cell)).to(device)
    # powers of two: the unit, a sum of magnitudes, is the same in every order
    q = torch.exp2(torch.round(q)) * torch.sign(q)
    orders = (r, q), (r.flip(0), q.flip(0))
    first, second = (DeviceMesh().spread(plan, inverse, *order) for order in orders)
    assert first.any()
    assert torch.equal(first, second)


def assert_close(found: torch.Tensor, expected: torch.Tensor, plan: MeshPlan) -> None:
    """Compare to the rounding of the grid, and of an atom's place in grid points in float64."""
    place = max(plan.size) * torch.finfo(torch.float64).eps
    bound = ROUNDING * torch.finfo(plan.dtype).eps + place
    error = float((found.double() - expected.double()).abs().max())
    assert error <= bound * float(expected.abs().max())
