"""Long range: the reference against sums typed in numpy, and against each other."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from cace_fast.errors import InputError
from cace_fast.reference import ewald as module
from cace_fast.reference.ewald import ewald, k_vectors
from cace_fast.spec import Ewald

CELLS = {
    "cubic": np.eye(3) * 6.3,
    "triclinic": np.array([[5.0, 0, 0], [1.7, 4.4, 0], [-2.1, 0.9, 6.1]]),
    "left-handed": np.array([[1.7, 4.4, 0], [5.0, 0, 0], [-2.1, 0.9, 6.1]]),
    "elongated": np.diag([3.0, 3.5, 40.0]),
    "primitive fcc": 3.1 * (1 - np.eye(3)),
}


def system(cell, n=6, n_q=2, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n_q)), rng.uniform(-1.0, 2.0, (n, 3)) @ cell


def direct(q, r, cell, spec):
    """Energy of each channel by the formula, one k vector at a time, every +-k pair twice."""
    volume = abs(np.linalg.det(cell))
    g_vectors = 2 * math.pi * np.linalg.inv(cell).T
    reach = [int(np.linalg.norm(row) / spec.dl) + 2 for row in cell]
    total = np.zeros(q.shape[1])
    for n in itertools.product(*(range(-m, m + 1) for m in reach)):
        k = np.array(n) @ g_vectors
        k2 = k @ k
        if not any(n) or k2 >= (2 * math.pi / spec.dl) ** 2 * (1 - 1e-6):
            continue
        if spec.exponent == 1:
            g = math.exp(-(spec.sigma**2) * k2 / 2) / k2
        else:
            b = spec.sigma * math.sqrt(k2 / 2)
            bracket = math.sqrt(math.pi) * math.erfc(b)
            g = -(k2**1.5) * (bracket + (1 / (2 * b**3) - 1 / b) * math.exp(-b * b))
        structure = np.exp(1j * r @ k) @ q
        total += g * np.abs(structure) ** 2 / volume
    if spec.remove_self_interaction and spec.exponent == 1:
        total -= (q**2).sum() / (spec.sigma * (2 * math.pi) ** 1.5)
    return spec.norm_factor * total


def run(q, r, cell, spec, periodic=True):
    tensors = (torch.tensor(x, dtype=torch.float64) for x in (q, r, cell))
    return ewald(*tensors, spec, periodic=periodic)


@pytest.mark.parametrize("removed", [False, True], ids=["self kept", "self removed"])
@pytest.mark.parametrize("exponent", [1, 6])
@pytest.mark.parametrize("name", CELLS)
def test_periodic_sum(name, exponent, removed):
    cell = CELLS[name]
    q, r = system(cell)
    spec = Ewald("q", "e", 1.9, 0.8, exponent, removed, norm_factor=1.3)
    got = run(q, r, cell, spec).energies
    np.testing.assert_allclose(got.sum(0).numpy(), direct(q, r, cell, spec), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("removed", [False, True], ids=["self kept", "self removed"])
def test_open_sum(removed):
    q, r = system(np.eye(3) * 4.0)
    spec = Ewald("q", "e", 2.0, 0.9, remove_self_interaction=removed, norm_factor=0.7)
    expected = 0.0
    for i, j in itertools.combinations(range(len(q)), 2):
        d = np.linalg.norm(r[i] - r[j])
        expected += q[i] @ q[j] * math.erf(d / (0.9 * math.sqrt(2))) / (d + 1e-6) / (2 * math.pi)
    if not removed:
        expected += (q**2).sum() / (0.9 * (2 * math.pi) ** 1.5)
    got = run(q, r, np.zeros((3, 3)), spec, periodic=False)
    assert got.energies.sum().item() == pytest.approx(0.7 * expected, rel=1e-13)


def test_large_box_tends_to_open_boundaries():
    q, r = system(np.eye(3) * 2.0, n_q=1)
    q -= q.mean(0)
    spec = Ewald("q", "e", 2.0, 1.0)
    box = run(q, r, np.eye(3) * 70.0, spec).energies.sum().item()
    free = run(q, r, np.zeros((3, 3)), spec, periodic=False).energies.sum().item()
    assert box == pytest.approx(free, abs=2e-4)


@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("removed", [False, True])
def test_potential_is_the_derivative_of_a_single_channel(periodic, removed):
    cell = CELLS["triclinic"]
    q, r = system(cell, n_q=1)
    spec = Ewald("q", "e", 1.9, 0.8, remove_self_interaction=removed)
    charges = torch.tensor(q, requires_grad=True)
    result = ewald(charges, torch.tensor(r), torch.tensor(cell), spec, periodic=periodic)
    (slope,) = torch.autograd.grad(result.energies.sum(), charges)
    torch.testing.assert_close(result.potential, slope, rtol=1e-12, atol=1e-13)


def test_energies_of_atoms_do_not_depend_on_the_image():
    cell = CELLS["triclinic"]
    q, r = system(cell)
    moved = r + np.array([[3, -2, 1], *[[0, 0, 0]] * 5]) @ cell
    spec = Ewald("q", "e", 1.9, 0.8)
    torch.testing.assert_close(run(q, r, cell, spec).energies, run(q, moved, cell, spec).energies)


def test_second_derivatives_and_blocks(monkeypatch):
    cell = CELLS["cubic"]
    q, r = system(cell, n=3, n_q=1)
    spec = Ewald("q", "e", 2.9, 0.8)
    whole = run(q, r, cell, spec)
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 21)
    torch.testing.assert_close(run(q, r, cell, spec), whole)
    leaves = [torch.tensor(x, requires_grad=True) for x in (q, r, cell)]
    assert torch.autograd.gradgradcheck(
        lambda q, r, h: ewald(q, r, h, spec, periodic=True).energies.sum(), leaves
    )


def test_vectors_on_the_sphere_are_out():
    # a box of 30 A with dl = 3: (10, 0, 0) and (6, 8, 0) lie on the sphere to rounding
    n = k_vectors(torch.eye(3, dtype=torch.float64) * 30.0, 3.0)
    lengths = (n * n).sum(1)
    assert lengths.max() == 99.0
    full = sum(
        0 < a * a + b * b + c * c < 100 for a, b, c in itertools.product(range(-10, 11), repeat=3)
    )
    assert 2 * len(n) == full
    both = {tuple(row) for row in torch.cat([n, -n]).tolist()}
    assert len(both) == full


def test_one_atom_and_none():
    spec = Ewald("q", "e", 2.0, 1.0)
    q, r = system(np.eye(3) * 5.0, n=1)
    np.testing.assert_allclose(
        run(q, r, np.eye(3) * 5.0, spec).energies.sum(0), direct(q, r, np.eye(3) * 5.0, spec)
    )
    assert run(q[:0], r[:0], np.zeros((3, 3)), spec, periodic=False).energies.shape == (0, 2)
    assert run(q[:0], r[:0], np.eye(3) * 5.0, spec).energies.shape == (0, 2)


def test_refusals():
    q, r = system(np.eye(3))
    with pytest.raises(InputError, match="cell: expected three independent lattice vectors"):
        run(q, r, np.diag([3.0, 3.0, 0.0]), Ewald("q", "e", 2.0, 1.0))
    with pytest.raises(InputError, match="pbc: expected a periodic system"):
        run(q, r, np.zeros((3, 3)), Ewald("q", "e", 2.0, 1.0, exponent=6), periodic=False)
