"""Systems for sums over k, the direct sum as their oracle, and errors against it."""

from __future__ import annotations

from math import pi

import numpy as np
import torch

from cace_fast.kernels.cpu.interface import EwaldSpec
from cace_fast.kernels.cpu.long_range import EwaldSum
from cace_fast.kernels.ewald_method import Sphere, choose
from cace_fast.kernels.mesh import MeshSum
from cace_fast.kernels.plain_mesh import PlainMesh

DL, SIGMA = 1.9, 0.8
MODULE = (DL, SIGMA, 1)  # dl, sigma, exponent
CELLS = {
    "cubic": np.eye(3) * 11.0,
    "triclinic": np.array([[12.0, 0, 0], [5.1, 11.4, 0], [-4.3, 2.7, 13.1]]),
    "left-handed": np.array([[5.1, 11.4, 0], [12.0, 0, 0], [-4.3, 2.7, 13.1]]),
    "elongated": np.diag([5.0, 5.5, 100.0]),
}


def liquid(cell, n, n_q, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n_q)), rng.uniform(-1.0, 2.0, (n, 3)) @ cell


def ewald_sum(module, k_cell=None, **options):
    dl, sigma, exponent = module
    return EwaldSum(EwaldSpec(dl, sigma, 1.0, 0.0, 0.0, exponent, 0, 0), k_cell, **options)


def direct(q, r, cell, module=MODULE, k_cell=None):
    """Potentials, forces and virial by the direct sum."""
    return ewald_sum(module, k_cell).evaluate(q, r, cell, periodic=True, n_threads=1)[1:]


def on_mesh(q, r, cell, tolerance, module=MODULE, k_cell=None, by="cpu", n_threads=1):
    """The same by a mesh: of the compiled library, or in plain torch."""
    if by == "cpu":
        total = ewald_sum(module, k_cell, method="mesh", tolerance=tolerance)
        return total.evaluate(q, r, cell, periodic=True, n_threads=n_threads)[1:]
    of = cell if k_cell is None else k_cell
    plan = choose("mesh", tolerance, *q.shape, cell, Sphere(*module[:2]), of).plan
    given = (torch.from_numpy(np.ascontiguousarray(x, dtype=float)) for x in (q, r, cell, of))
    return [x.numpy() for x in MeshSum(*module, PlainMesh()).evaluate(plan, *given)]


def scales(q, sigma):
    """What potentials, forces and virials are at least measured by: docs/theory.md, "The mesh"."""
    square = (q * q).sum(1).mean() if len(q) else 0.0
    unit = 1.0 / (2.0 * pi * sigma)
    return unit * square**0.5, unit * square / sigma, len(q) * unit * square


def errors(got, want, q, sigma=SIGMA):
    """Errors of potentials, forces and virial, each relative to its largest number or its scale."""
    return [
        np.abs(a - b).max() / max(np.abs(b).max(), least)
        for a, b, least in zip(got, want, scales(q, sigma), strict=True)
    ]
