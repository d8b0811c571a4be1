"""The tolerance of the mesh holds on systems other than those that set its windows.

Those are in bench/long_range_errors.py. Here: wurtzite and rutile, straight and in skewed and
left-handed supercells, barely rattled; ordered ice, random charges; resolutions and widths of
published models.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from support.k_sums import direct, errors, on_mesh

from cace_fast.kernels.ewald_method import TIGHTEST, Sphere, growth

MODULES = [(2.0, 1.0, 1), (3.0, 1.0, 1), (3.0, 1.5, 1), (1.0, 1.0, 1), (2.2, 0.9, 6)]
TOLERANCES = [1e-2, 1e-3, 2e-4, 1e-5, 1e-6, 2e-7, 6e-8, 5e-9, 1e-10, 2e-11, 1e-12]
WURTZITE = (
    np.array([[3.25, 0.0, 0.0], [-1.625, 2.8146, 0.0], [0.0, 0.0, 5.2]]),
    [(1 / 3, 2 / 3, 0.0), (2 / 3, 1 / 3, 0.5), (1 / 3, 2 / 3, 0.382), (2 / 3, 1 / 3, 0.882)],
    [2, 2, -2, -2],
)
RUTILE = (
    np.diag([4.6, 4.6, 2.96]),
    [(0, 0, 0), (0.5, 0.5, 0.5), (0.3, 0.3, 0), (0.7, 0.7, 0), (0.8, 0.2, 0.5), (0.2, 0.8, 0.5)],
    [4, 4, -2, -2, -2, -2],
)
SKEWED = np.array([[3, 1, 0], [-1, 2, 1], [0, 1, 3]])
SUPERCELLS = {
    "one cell": np.eye(3, dtype=int),
    "3 x 3 x 2": np.diag([3, 3, 2]),
    "skewed": SKEWED,
    "left-handed": SKEWED[[1, 0, 2]],
    "1:20": np.diag([2, 2, 32]),
}


def crystal(kind, times, rattle, seed=5):
    """Ions of ``kind`` in the supercell whose vectors are integer rows ``times``."""
    cell, basis, ions = kind
    rng = np.random.default_rng(seed)
    reach = np.abs(times).sum(0)
    grid = np.indices(tuple(2 * reach + 1)).reshape(3, -1).T - reach
    inside = np.linalg.solve(times.T.astype(float), (grid + 1e-6).T).T
    grid = grid[((inside >= 0) & (inside < 1)).all(1)]
    assert len(grid) == round(abs(np.linalg.det(times)))
    r = ((grid[:, None] + np.array(basis)) @ cell).reshape(-1, 3)
    q = np.tile(np.array(ions, float), len(grid))[:, None]
    noisy = q * (1.0 + 0.03 * rng.normal(size=q.shape))
    return noisy, r + rattle * rng.normal(size=r.shape), times @ cell


def random(n, form, seed=3):
    rng = np.random.default_rng(seed)
    cell = np.asarray(form) * (max(n, 6) / 0.1 / abs(np.linalg.det(form))) ** (1 / 3)
    return rng.normal(size=(n, 1)), rng.uniform(-1.0, 2.0, (n, 3)) @ cell, cell


def water(seed=9):
    """Three-point molecules on a lattice, turned at random: charges -2, 1, 1."""
    rng = np.random.default_rng(seed)
    centres = 3.1 * np.indices((4, 4, 5)).reshape(3, -1).T
    bonds = rng.normal(size=(len(centres), 2, 3))
    bonds /= np.linalg.norm(bonds, axis=2, keepdims=True)
    r = np.concatenate([centres[:, None], centres[:, None] + bonds], 1).reshape(-1, 3)
    q = np.tile([-0.8, 0.4, 0.4], len(centres))[:, None]
    return q * (1.0 + 0.05 * rng.normal(size=q.shape)), r, 3.1 * np.diag([4.0, 4.0, 5.0])


SYSTEMS = {
    f"{name}, {shape}, {rattle}": (crystal, kind, times, rattle)
    for name, kind in (("wurtzite", WURTZITE), ("rutile", RUTILE))
    for shape, times in SUPERCELLS.items()
    for rattle in ((0.1, 0.003) if shape == "skewed" else (0.003,))
} | {
    "water": (water,),
    "two": (random, 2, np.diag([1.0, 1.2, 17.0])),
    "five": (random, 5, SKEWED),
    "hundred, left-handed": (random, 100, SKEWED[[2, 1, 0]]),
    "thousand, 1:20": (random, 1000, np.diag([1.0, 1.1, 20.0])),
}


@cache
def known(name, module):
    make, *arguments = SYSTEMS[name]
    system = make(*arguments)
    return system, direct(*system, module)


def worst(system, module, tolerance, want, by="cpu"):
    """The largest error of potentials, forces, virial and energy in units of the tolerance."""
    q, r, cell = (np.ascontiguousarray(x, dtype=float) for x in system)
    got = on_mesh(q, r, cell, tolerance, module, by=by)
    energies = [(q * x[0]).sum() for x in (got, want)]
    energy = abs(energies[0] - energies[1]) / np.abs(q * want[0]).sum()
    return max(*errors(got, want, q, module[1]), energy) / tolerance


@pytest.mark.parametrize("tolerance", TOLERANCES)
@pytest.mark.parametrize("module", MODULES, ids=str)
def test_tolerance_is_kept(module, tolerance):
    for name in SYSTEMS:
        system, want = known(name, module)
        q, _, cell = system
        finest = TIGHTEST * growth(len(q), cell, Sphere(*module[:2])).window
        if tolerance >= finest:
            assert worst(system, module, tolerance, want) < 1.0, name


@pytest.mark.parametrize("tolerance", [1e-3, 2e-7, 1e-10])
def test_tolerance_is_kept_by_plain_torch(tolerance):
    for name in SYSTEMS:
        system, want = known(name, MODULES[0])
        if len(system[0]) <= 200:
            assert worst(system, MODULES[0], tolerance, want, by="torch") < 1.0, name


@pytest.mark.parametrize("tolerance", [1e-6, 1e-10])
def test_ten_thousand_atoms_of_a_crystal(tolerance):
    system = crystal(RUTILE, np.diag([10, 11, 15]), 0.05)
    assert len(system[0]) == 9900
    assert worst(system, MODULES[1], tolerance, direct(*system, MODULES[1])) < 1.0


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-10])
def test_one_atom(tolerance):
    """It feels no force: what is asked for is relative to the scale of forces."""
    system = random(1, SKEWED)
    assert worst(system, MODULES[0], tolerance, direct(*system, MODULES[0])) < 1.0
