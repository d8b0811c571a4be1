"""Sums over k by Fourier transforms: accuracy as promised, against the direct sum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.k_sums import CELLS, DL, SIGMA, direct, error, evaluate, liquid

from cace_fast.errors import BackendUnavailableError, InputError
from cace_fast.kernels import ewald as kernel_ewald
from cace_fast.kernels import transforms
from cace_fast.kernels.ewald_method import choose, crossover, predicted_costs
from cace_fast.kernels.nufft import NufftSum, accuracy
from cace_fast.kernels.plain_nufft import PlainTransforms
from cace_fast.kernels.transforms import make_transforms
from cace_fast.reference import ewald as ref_ewald
from cace_fast.spec import Ewald

CPU = torch.device("cpu")


def crystal(times, n_q):
    """Rocksalt of alternating charges, barely rattled: forces are small differences."""
    numbers = np.indices((times, times, times)).reshape(3, -1).T
    rng = np.random.default_rng(1)
    q = (1.0 - 2.0 * (numbers.sum(1) % 2))[:, None] * np.linspace(1.0, 2.0, n_q)
    return q, 2.8 * numbers + rng.normal(size=(len(q), 3)) * 0.02, np.eye(3) * 2.8 * times


def by_transforms(tolerance, exponent=1, by="auto"):
    wanted, dtype = accuracy(tolerance)
    return NufftSum(DL, SIGMA, exponent, make_transforms(CPU, wanted, dtype, by=by), dtype)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-10])
@pytest.mark.parametrize("by", ["finufft", "torch"])
@pytest.mark.parametrize("exponent", [1, 6])
@pytest.mark.parametrize("name", CELLS)
def test_tolerance_is_kept(name, exponent, by, tolerance):
    cell = CELLS[name]
    q, r = liquid(cell, 150, 3)
    got = evaluate(by_transforms(tolerance, exponent, by), q, r, cell)
    assert error(got, direct(q, r, cell, exponent)) < tolerance


@pytest.mark.parametrize("n_q", [1, 2, 4, 5, 16])
def test_channels_do_not_see_each_other(n_q):
    cell = CELLS["triclinic"]
    q, r = liquid(cell, 80, n_q)
    assert error(evaluate(by_transforms(1e-11), q, r, cell), direct(q, r, cell)) < 1e-11


@pytest.mark.parametrize("n_q", [1, 2])
@pytest.mark.parametrize("n", [1, 2, 17])
def test_few_atoms(n, n_q):
    cell = CELLS["cubic"]
    q, r = liquid(cell, n, n_q)
    potential, forces, virial = evaluate(by_transforms(1e-10), q, r, cell)
    want = direct(q, r, cell)
    np.testing.assert_allclose(potential, want[0], atol=1e-10 * np.abs(want[0]).max())
    # one atom feels no force: the scale is that of its potential
    np.testing.assert_allclose(forces, want[1], atol=1e-10 * np.abs(q * want[0]).max())
    np.testing.assert_allclose(virial, want[2], atol=1e-10 * np.abs(want[2]).max())


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-10])
def test_a_rattled_crystal(tolerance):
    q, r, cell = crystal(8, 1)
    assert error(evaluate(by_transforms(tolerance), q, r, cell), direct(q, r, cell)) < tolerance


@pytest.mark.parametrize("tolerance", [1e-4, 1e-6, 1e-10])
@pytest.mark.parametrize("shape", [(46.0, 46.0, 46.0), (17.0, 17.0, 340.0)])
def test_ten_thousand_atoms(shape, tolerance):
    cell = np.diag(shape)
    q, r = liquid(cell, 10_000, 1)
    q -= q.mean()
    want = direct(q, r, cell)
    assert error(evaluate(by_transforms(tolerance), q, r, cell), want) < tolerance


def test_no_atoms_give_nothing():
    cell = CELLS["cubic"]
    for by in ("finufft", "torch"):
        got = evaluate(by_transforms(1e-6, by=by), np.zeros((0, 2)), np.zeros((0, 3)), cell)
        assert [x.shape for x in got] == [(0, 2), (0, 3), (3, 3)]
        assert not got[2].any()


def test_potentials_alone():
    cell = CELLS["triclinic"]
    for n_q in (1, 3):
        q, r = liquid(cell, 50, n_q)
        total = by_transforms(1e-10)
        got = evaluate(total, q, r, cell, derivatives=False)
        assert error(got[:1], direct(q, r, cell)[:1]) < 1e-10
        assert not got[1].any()
        assert not got[2].any()


def test_a_frozen_set_of_vectors():
    cell = CELLS["triclinic"]
    now = cell @ (np.eye(3) + 0.05 * np.random.default_rng(2).normal(size=(3, 3)))
    q, r = liquid(now, 60, 2)
    frozen = direct(q, r, now, k_cell=cell)
    assert error(evaluate(by_transforms(1e-10), q, r, now, cell), frozen) < 1e-10
    assert error(direct(q, r, now), frozen) > 1e-5  # another set
    spec = Ewald("q", "e", DL, SIGMA)
    given = [torch.from_numpy(x) for x in (q, r, now)]
    of = torch.from_numpy(cell)
    want = ref_ewald.ewald(*given, spec, periodic=True, how=ref_ewald.Summation(of)).energies
    for method in ("direct", "nufft"):
        how = kernel_ewald.EwaldOptions(of, method)
        got = kernel_ewald.ewald(*given, spec, periodic=True, how=how).energies
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_a_frozen_set_has_the_exact_virial():
    """Differences of the energy under strain, which a sharp sphere does not allow."""
    cell = CELLS["triclinic"]
    q, r = liquid(cell, 40, 2)
    h = 1e-4
    for total in (
        lambda r, now: direct(q, r, now, k_cell=cell),
        lambda r, now: evaluate(by_transforms(1e-12), q, r, now, cell),
    ):
        virial = total(r, cell)[2]
        for a, b in ((0, 0), (1, 2), (2, 0)):
            energies = []
            for sign in (1, -1):
                strain = np.eye(3)
                strain[a, b] += sign * h
                energies.append(0.5 * (q * total(r @ strain, cell @ strain)[0]).sum())
            slope = (energies[0] - energies[1]) / (2 * h)
            assert slope == pytest.approx(-virial[a, b], rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("n_q", [1, 2])
def test_gradients_of_the_operator(n_q):
    cell = CELLS["triclinic"]
    q, r = liquid(cell, 12, n_q)
    spec = Ewald("q", "e", DL, SIGMA, remove_self_interaction=True)
    found = []
    for module, how in (
        (kernel_ewald, kernel_ewald.EwaldOptions(method="nufft", tolerance=1e-11)),
        (ref_ewald, ref_ewald.Summation()),
    ):
        leaves = [torch.tensor(x, requires_grad=True) for x in (q, r, cell)]
        result = module.ewald(*leaves, spec, periodic=True, how=how)
        weights = torch.linspace(0.5, 1.5, 12, dtype=torch.float64)[:, None]
        total = (result.energies * weights).sum() + (result.potential**2).sum()
        found.append(torch.autograd.grad(total, leaves))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_plans_are_kept_and_their_memory_is_bounded(monkeypatch):
    total = by_transforms(1e-6)
    for cell in (CELLS["cubic"], CELLS["triclinic"], CELLS["cubic"]):
        q, r = liquid(cell, 30, 1)
        first = evaluate(total, q, r, cell)
        assert all(
            np.array_equal(a, b) for a, b in zip(first, evaluate(total, q, r, cell), strict=True)
        )
    assert total._transforms.n_plans == 4  # two shapes, two types
    monkeypatch.setattr(transforms, "KEPT_POINTS", 100)
    evaluate(total, q, r, CELLS["elongated"])
    assert total._transforms.n_plans == 2


def test_choice():
    assert choose("auto", 100, 1, CELLS["cubic"], 2.0, 1e-6) == "direct"
    assert choose("auto", 100_000, 1, np.eye(3) * 100.0, 2.0, 1e-6) == "nufft"
    assert choose("auto", 100_000, 1, np.eye(3) * 100.0, 2.0, 1e-13) == "direct"
    for method in ("direct", "nufft"):
        assert choose(method, 100, 1, CELLS["cubic"], 2.0, 1e-6) == method
    costs = predicted_costs(100_000, 4, np.eye(3) * 100.0, 2.0, 1e-6)
    assert costs["direct"] > 20 * costs["nufft"]
    with pytest.raises(InputError, match="long_range: expected one of auto, direct, nufft, got"):
        choose("fmm", 1, 1, np.eye(3), 2.0, 1e-6)
    with pytest.raises(InputError, match="long_range_tolerance: expected at least 1e-12 for"):
        choose("nufft", 1, 1, np.eye(3), 2.0, 1e-13)


def test_where_the_choice_changes_over():
    n = crossover(1, 2.0, 1e-6)
    for atoms, method in ((n - 1, "direct"), (n, "nufft")):
        cell = np.eye(3) * (10.0 * atoms) ** (1.0 / 3.0)
        assert choose("auto", atoms, 1, cell, 2.0, 1e-6) == method
    assert 500 < n < 5000
    assert crossover(1, 1.0, 1e-6) < n


def test_refusals():
    q, r = liquid(CELLS["cubic"], 4, 1)
    with pytest.raises(InputError, match="cell: expected three independent lattice vectors"):
        evaluate(by_transforms(1e-6), q, r, np.zeros((3, 3)))
    with pytest.raises(InputError, match="cell: expected one with fewer k vectors"):
        evaluate(by_transforms(1e-6), q, r, CELLS["cubic"] * 1e3)
    with pytest.raises(BackendUnavailableError, match="'cufinufft' is not available here"):
        make_transforms(CPU, 1e-6, torch.complex128, by="cufinufft")
    cuda = torch.device("cuda")
    with pytest.raises(BackendUnavailableError, match=r"cannot be imported.*cace-fast\[gpu\]"):
        make_transforms(cuda, 1e-6, torch.complex128, by="cufinufft")
    assert isinstance(make_transforms(cuda, 1e-6, torch.complex128), PlainTransforms)


def test_structure_factors_of_parts_add_up():
    cell = CELLS["triclinic"]
    q, r = liquid(cell, 90, 3)
    parts = [slice(0, 40), slice(40, 40), slice(40, 90)]
    given = [[torch.from_numpy(x) for x in (q[p].copy(), r[p].copy(), cell, cell)] for p in parts]
    sums = [by_transforms(1e-6) for _ in parts]
    total = sum(s.structure_factors(*g) for s, g in zip(sums, given, strict=True))
    found = [s.finish(total, *g) for s, g in zip(sums, given, strict=True)]
    want = evaluate(by_transforms(1e-6), q, r, cell)
    scale = [np.abs(x).max() for x in want]
    for k in range(2):
        whole = np.concatenate([f[k].numpy() for f in found])
        np.testing.assert_allclose(whole, want[k], rtol=0, atol=1e-12 * scale[k])
    for one in found:
        np.testing.assert_allclose(one.virial.numpy(), want[2], rtol=0, atol=1e-12 * scale[2])
