"""The vectors k of the long range: which there are, what each counts, and when to transform."""

from __future__ import annotations

from math import pi, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from cace_fast.errors import InputError
from cace_fast.kernels.sums import MOST_PAIRS_ON_GPU, TIGHTEST, choose, n_k_vectors
from cace_fast.spec import Ewald

SPHERE = 1.0 - 1e-6  # k^2 below this fraction of k_max^2: vectors on the sphere are always out


class How(NamedTuple):
    """How periodic systems are summed: method, its tolerance, and how many charges atoms have."""

    method: str
    tolerance: float
    n_q: int


DIRECT = How("direct", 0.0, 1)


def method_of(how: How, n: int, cell: Tensor, dl: float) -> str:
    """Return ``"direct"`` or ``"nufft"`` for a periodic system of n atoms.

    By itself a GPU sums directly for longer than a processor: all its lanes have work, and the sum
    is part of the captured step. MOST_PAIRS_ON_GPU is a prediction (docs/kernels.md).
    """
    n_k = n_k_vectors(cell.numpy(), dl)
    if how.method == "auto" and (n * n_k <= MOST_PAIRS_ON_GPU or how.tolerance < TIGHTEST):
        return "direct"
    method = "nufft" if how.method == "auto" else how.method
    return choose(method, n, how.n_q, cell.numpy(), dl, how.tolerance)


def k_vectors(cell: Tensor, dl: float) -> Tensor:
    """Return the integer vectors n [n_k, 3] float64 with 0 < |k| < 2 pi/dl, one of each pair +-k.

    Raises
    ------
    InputError
        If the cell is singular.
    """
    lengths = torch.linalg.vector_norm(cell, dim=1)
    if not bool(torch.linalg.det(cell).abs() > 1e-9 * lengths.prod()):
        raise InputError(
            "cell", "three independent lattice vectors for a periodic Ewald sum", cell.tolist()
        )
    limits = [max(1, int(length / dl)) for length in lengths.tolist()]
    axes = [torch.arange(-m, m + 1, dtype=torch.float64) for m in limits]
    axes[0] = axes[0][limits[0] :]
    n = torch.cartesian_prod(*axes)
    half = (n[:, 0] > 0) | ((n[:, 0] == 0) & ((n[:, 1] > 0) | ((n[:, 1] == 0) & (n[:, 2] > 0))))
    k = 2.0 * pi * n @ torch.linalg.inv(cell).T
    return n[half & ((k * k).sum(1) < (2.0 * pi / dl) ** 2 * SPHERE)]


def kernel(k2: Tensor, module: Ewald) -> tuple[Tensor, Tensor]:
    """Return g [n_k] of squared wave vectors, and dg/dk^2 (docs/theory.md, equation 26)."""
    sigma = module.sigma
    if module.exponent == 1:
        g = torch.exp(-0.5 * sigma**2 * k2) / k2
        return g, -g * (0.5 * sigma**2 + 1.0 / k2)
    k = k2.sqrt()
    b = sigma * k / sqrt(2.0)
    bell = torch.exp(-b * b)
    g = -(k**3) * (sqrt(pi) * torch.erfc(b) + (0.5 / b**3 - 1.0 / b) * bell)
    return g, 1.5 * g / k2 + 0.75 * sigma / sqrt(2.0) * k2 * bell / b**4
