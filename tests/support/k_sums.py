"""Systems for sums over k, the direct sum as their oracle, and errors against it."""

from __future__ import annotations

import numpy as np
import torch

from cace_fast.kernels.cpu.library import EwaldSpec
from cace_fast.kernels.cpu.long_range import EwaldSum

DL, SIGMA = 1.9, 0.8
CELLS = {
    "cubic": np.eye(3) * 11.0,
    "triclinic": np.array([[12.0, 0, 0], [5.1, 11.4, 0], [-4.3, 2.7, 13.1]]),
    "left-handed": np.array([[5.1, 11.4, 0], [12.0, 0, 0], [-4.3, 2.7, 13.1]]),
    "elongated": np.diag([5.0, 5.5, 100.0]),
}


def liquid(cell, n, n_q, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n_q)), rng.uniform(-1.0, 2.0, (n, 3)) @ cell


def direct(q, r, cell, exponent=1, k_cell=None):
    total = EwaldSum(EwaldSpec(DL, SIGMA, 1.0, 0.0, 0.0, exponent, 0, 0), k_cell)
    return total.evaluate(q, r, cell, periodic=True, n_threads=1)[1:]


def evaluate(total, q, r, cell, k_cell=None, **options):
    given = (torch.from_numpy(x) for x in (q, r, cell, cell if k_cell is None else k_cell))
    return [x.numpy() for x in total.evaluate(*given, **options)]


def error(got, want):
    """Largest error of potentials, forces and virial, each relative to its largest number."""
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(got, want, strict=True))
