"""The vectors k of the long range, and the choice between direct sums and transforms."""

from __future__ import annotations

from math import pi
from typing import NamedTuple

import torch
from torch import Tensor

from cace_fast.kernels.ewald_method import (
    MOST_PAIRS_ON_GPU,
    TIGHTEST,
    MeshPlan,
    Sphere,
    choose,
    n_k_vectors,
)
from cace_fast.kernels.kspace import axes_of, k2_limit


class SumMethod(NamedTuple):
    """The sum of periodic systems: method, its tolerance, and how many charges atoms have."""

    method: str
    tolerance: float
    n_q: int


DIRECT = SumMethod("direct", 0.0, 1)


def plan_of(
    how: SumMethod, n: int, cell: Tensor, k_cell: Tensor, sphere: Sphere
) -> MeshPlan | None:
    """Return the mesh of a periodic system of n atoms, None for the direct sum.

    On a GPU ``"auto"`` sums directly up to larger systems than on a processor: all its lanes have
    work, and the sum is part of the captured step. MOST_PAIRS_ON_GPU is a prediction
    (docs/developer/kernels.md).
    """
    n_k = n_k_vectors(k_cell.numpy(), sphere.dl)
    if how.method == "auto" and (n * n_k <= MOST_PAIRS_ON_GPU or how.tolerance < TIGHTEST):
        return None
    method = "mesh" if how.method == "auto" else how.method
    cells = cell.numpy(), k_cell.numpy()
    return choose(method, how.tolerance, n, how.n_q, cells[0], sphere, cells[1]).plan


def k_vectors(cell: Tensor, dl: float) -> Tensor:
    """Return the integer vectors n [n_k, 3] float64 with 0 < |k| < 2 pi/dl, one of each pair +-k.

    Raises
    ------
    InputError
        If the cell is singular.
    """
    x, y, z = axes_of(cell, dl)
    x = x[len(x) // 2 :]
    n = torch.cartesian_prod(x, y, z)
    half = (n[:, 0] > 0) | ((n[:, 0] == 0) & ((n[:, 1] > 0) | ((n[:, 1] == 0) & (n[:, 2] > 0))))
    k = 2.0 * pi * n @ torch.linalg.inv(cell).T
    return n[half & ((k * k).sum(1) < k2_limit(dl))]
