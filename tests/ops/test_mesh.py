"""Sums over k by a mesh: against the direct sum, and the compiled kernels against plain torch."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
import torch
from support.k_sums import CELLS, DL, MODULE, SIGMA, direct, errors, ewald_sum, liquid, on_mesh

from cace_fast.errors import InputError
from cace_fast.kernels import ewald as kernel_ewald
from cace_fast.kernels import window
from cace_fast.kernels.ewald_method import Sphere, choose, crossover, growth, mesh_plan
from cace_fast.reference import ewald as ref_ewald
from cace_fast.spec import Ewald

SPHERE = Sphere(DL, SIGMA)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-10])
@pytest.mark.parametrize("by", ["cpu", "torch"])
@pytest.mark.parametrize("exponent", [1, 6])
@pytest.mark.parametrize("name", CELLS)
def test_tolerance_is_kept(name, exponent, by, tolerance):
    cell, module = CELLS[name], (DL, SIGMA, exponent)
    q, r = liquid(cell, 150, 3)
    got = on_mesh(q, r, cell, tolerance, module, by=by)
    assert max(errors(got, direct(q, r, cell, module), q)) < tolerance


@pytest.mark.parametrize("n_q", [1, 5])
@pytest.mark.parametrize("exponent", [1, 6])
@pytest.mark.parametrize("name", CELLS)
def test_compiled_kernels_are_those_of_plain_torch(name, exponent, n_q):
    """The same window, grid and order of operations but for sums: only rounding differs."""
    cell, module = CELLS[name], (DL, SIGMA, exponent)
    q, r = liquid(cell, 40, n_q)
    grown = growth(40, cell, SPHERE).window
    for tolerance in [min(0.9, 1.1 * w.error * grown) for w in window.WINDOWS]:
        plan = mesh_plan(40, cell, cell, SPHERE, tolerance)
        limit = 3e-6 if plan.dtype == torch.float32 else 1e-12
        ours, plain = (on_mesh(q, r, cell, tolerance, module, by=by) for by in ("cpu", "torch"))
        assert max(errors(ours, plain, q)) < limit, plan


@pytest.mark.parametrize("made", window.WINDOWS, ids=str)
def test_polynomials_are_the_window(made):
    half = 0.5 * made.width
    for precision, limit in (("float32", 3e-7), ("float64", 1e-13)):
        degree = made.width + window.MORE_TERMS[precision]
        found = window.polynomials(made, degree)
        for coefficients, function, scale in (
            (found[0], made.value, 1.0),
            (found[1], lambda z: -made.slope(z) / half, 1.0),
        ):
            table = np.array(coefficients)
            assert table.shape == (degree + 1, made.width)
            x = np.linspace(-0.999, 0.999, 101)
            for j in range(made.width):
                want = np.array([function(((u + 1.0) / 2.0 + j) / half - 1.0) for u in x])
                got = np.polynomial.polynomial.polyval(x, table[:, j])
                # where the window ends its slope is infinite, and so small that it does not matter
                edge = 1e4 * made.value(1.0) if j in (0, made.width - 1) else made.value(1.0)
                np.testing.assert_allclose(got, want, rtol=0, atol=(limit + edge) * scale)


@pytest.mark.parametrize("made", window.WINDOWS, ids=str)
def test_the_transform_of_the_window(made):
    nodes, weights = np.array(window.quadrature(made)).T
    x = np.linspace(-1.0, 1.0, 200_001)
    values = np.array([made.value(z) for z in x])
    for k in (0.0, 0.7, np.pi / made.oversampling):
        want = 0.5 * made.width * np.trapezoid(values * np.cos(0.5 * k * made.width * x), x)
        assert (weights * np.cos(k * nodes)).sum() == pytest.approx(want, rel=1e-6)


def test_slopes_are_derivatives():
    made = window.WINDOWS[-1]
    for z in (-0.9, -0.3, 0.0, 0.55, 0.99):
        assert made.slope(z) == pytest.approx(
            (made.value(z + 1e-6) - made.value(z - 1e-6)) / 2e-6, rel=1e-5
        )


@pytest.mark.parametrize("n_q", [1, 2])
@pytest.mark.parametrize("n", [1, 2, 17])
def test_few_atoms(n, n_q):
    cell = CELLS["cubic"]
    q, r = liquid(cell, n, n_q)
    for tolerance in (1e-5, 1e-10):
        assert max(errors(on_mesh(q, r, cell, tolerance), direct(q, r, cell), q)) < tolerance


@pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-10])
@pytest.mark.parametrize("shape", [(46.0, 46.0, 46.0), (17.0, 17.0, 340.0), (60.0, 60.0, 27.0)])
def test_ten_thousand_atoms(shape, tolerance):
    cell = np.diag(shape)
    q, r = liquid(cell, 10_000, 1)
    q -= q.mean()
    got, want = on_mesh(q, r, cell, tolerance), direct(q, r, cell)
    assert max(errors(got, want, q)) < tolerance
    # a window's derivative keeps momentum to its error alone
    assert np.abs(got[1].sum(0)).max() < tolerance * sqrt(len(q)) * np.abs(want[1]).max()


@pytest.mark.parametrize("by", ["cpu", "torch"])
def test_no_atoms_give_nothing(by):
    cell = CELLS["cubic"]
    got = on_mesh(np.zeros((0, 2)), np.zeros((0, 3)), cell, 1e-6, by=by)
    assert [x.shape for x in got] == [(0, 2), (0, 3), (3, 3)]
    assert not got[2].any()


@pytest.mark.parametrize("tolerance", [1e-6, 1e-10])
def test_shifts_by_parts_of_a_grid_cell(tolerance):
    """Energy and forces do not see where the grid lies, up to the tolerance."""
    cell = CELLS["triclinic"]
    q, r = liquid(cell, 150, 1)
    plan = mesh_plan(150, cell, cell, SPHERE, tolerance)
    found = [
        on_mesh(q, r + part * (cell / np.array(plan.size)[:, None]).sum(0), cell, tolerance)
        for part in (0.0, 0.25, 0.5, 0.75, 7.0)
    ]
    for other in found[1:]:
        assert max(errors(other, found[0], q)) < tolerance
        assert abs((q * (other[0] - found[0][0])).sum()) < tolerance * np.abs(q * found[0][0]).sum()


@pytest.mark.parametrize("tolerance", [1e-6, 1e-10])
def test_threads_do_not_change_a_bit(tolerance):
    cell = np.diag([45.0, 50.0, 41.0])  # several blocks of the grid along each axis
    q, r = liquid(cell, 4000, 2)
    before = torch.get_num_threads()
    found = []
    for n in (1, 2, 3, 4):
        torch.set_num_threads(n)
        found.append(on_mesh(q, r, cell, tolerance, n_threads=n))
    torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_order_of_atoms_changes_nothing_but_rounding():
    cell = CELLS["triclinic"]
    q, r = liquid(cell, 500, 2)
    order = np.random.default_rng(3).permutation(500)
    one, other = on_mesh(q, r, cell, 1e-10), on_mesh(q[order], r[order], cell, 1e-10)
    assert (
        max(errors([other[0], other[1], other[2]], [x[order] for x in one[:2]] + [one[2]], q))
        < 1e-12
    )


def test_atoms_far_outside_the_cell():
    cell = CELLS["triclinic"]
    q, r = liquid(cell, 60, 1)
    far = r + np.array([[1e4, 0, -3e3]]).repeat(60, 0) @ cell
    assert max(errors(on_mesh(q, far, cell, 1e-6), on_mesh(q, r, cell, 1e-6), q)) < 1e-6


def test_a_frozen_set_of_vectors():
    cell = CELLS["triclinic"]
    now = cell @ (np.eye(3) + 0.05 * np.random.default_rng(2).normal(size=(3, 3)))
    q, r = liquid(now, 60, 2)
    frozen = direct(q, r, now, k_cell=cell)
    for by in ("cpu", "torch"):
        assert max(errors(on_mesh(q, r, now, 1e-10, k_cell=cell, by=by), frozen, q)) < 1e-10
    assert max(errors(direct(q, r, now), frozen, q)) > 1e-5  # another set
    spec = Ewald("q", "e", DL, SIGMA)
    given = [torch.from_numpy(x) for x in (q, r, now)]
    of = torch.from_numpy(cell)
    want = ref_ewald.ewald(*given, spec, periodic=True, how=ref_ewald.Summation(of)).energies
    for method in ("direct", "mesh"):
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
        lambda r, now: on_mesh(q, r, now, 2e-11, k_cell=cell),
        lambda r, now: on_mesh(q, r, now, 2e-11, k_cell=cell, by="torch"),
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
@pytest.mark.parametrize("tolerance", [1e-3, 1e-10])
def test_forces_are_the_derivative_of_the_energy(tolerance, n_q):
    """Of that of the mesh, whatever its window: so energy is conserved also where it is coarse."""
    cell = CELLS["triclinic"]
    q, r = liquid(cell, 30, n_q)
    plan = mesh_plan(30, cell, cell, SPHERE, tolerance)._replace(dtype=torch.float64)
    given = [torch.from_numpy(x) for x in (q, r, cell)]
    from cace_fast.kernels.mesh import MeshSum
    from cace_fast.kernels.plain_mesh import PlainMesh

    total = MeshSum(*MODULE, PlainMesh())
    forces = total.evaluate(plan, *given, given[2]).forces
    h = 1e-5
    for atom, x in ((0, 0), (7, 1), (19, 2)):
        energies = []
        for sign in (1, -1):
            moved = given[1].clone()
            moved[atom, x] += sign * h
            phi = total.evaluate(plan, given[0], moved, given[2], given[2]).potential
            energies.append(float(0.5 * (given[0] * phi).sum()))
        slope = (energies[0] - energies[1]) / (2 * h)
        assert slope == pytest.approx(-float(forces[atom, x]), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("n_q", [1, 2])
def test_gradients_of_the_operator(n_q):
    cell = CELLS["triclinic"]
    q, r = liquid(cell, 12, n_q)
    spec = Ewald("q", "e", DL, SIGMA, remove_self_interaction=True)
    found = []
    for module, how in (
        (kernel_ewald, kernel_ewald.EwaldOptions(method="mesh", tolerance=2e-11)),
        (ref_ewald, ref_ewald.Summation()),
    ):
        leaves = [torch.tensor(x, requires_grad=True) for x in (q, r, cell)]
        result = module.ewald(*leaves, spec, periodic=True, how=how)
        weights = torch.linspace(0.5, 1.5, 12, dtype=torch.float64)[:, None]
        total = (result.energies * weights).sum() + (result.potential**2).sum()
        found.append(torch.autograd.grad(total, leaves))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_choice():
    large = np.eye(3) * 100.0
    assert choose("auto", 1e-6, 100, 1, CELLS["cubic"], SPHERE).method == "direct"
    assert choose("auto", 1e-6, 100_000, 1, large, SPHERE).method == "mesh"
    assert choose("auto", 1e-13, 100_000, 1, large, SPHERE).method == "direct"
    for method in ("direct", "mesh"):
        assert choose(method, 1e-6, 100, 1, CELLS["cubic"], SPHERE).method == method
    costs = {m: choose(m, 1e-6, 100_000, 4, large, SPHERE).seconds for m in ("direct", "mesh")}
    assert costs["direct"] > 20 * costs["mesh"]
    with pytest.raises(InputError, match="long_range: expected one of auto, direct, mesh, got"):
        choose("fmm", 1e-6, 1, 1, np.eye(3), SPHERE)
    with pytest.raises(InputError, match="long_range_tolerance: expected at least 1e-12 for"):
        choose("mesh", 1e-13, 1, 1, np.eye(3), SPHERE)
    long = np.diag([17.0, 17.0, 340.0])  # whose waves make errors grow
    assert choose("auto", 2e-12, 10_000, 1, long, SPHERE).method == "direct"
    with pytest.raises(InputError, match=r"long_range_tolerance: expected at least 9.*e-12 for"):
        choose("mesh", 2e-12, 10_000, 1, long, SPHERE)
    q, r = liquid(long, 10, 1)
    with pytest.raises(InputError, match=r"long_range_tolerance: expected at least 9.*e-12 for"):
        on_mesh(q, r, long, 2e-12)


def test_single_precision_where_it_keeps_the_tolerance():
    """Not in boxes so long that potentials dwarf forces."""
    cubic, long = np.eye(3) * 46.0, np.diag([17.0, 17.0, 340.0])
    for tolerance, cell, dtype in (
        (1e-6, cubic, torch.float32),
        (1e-7, cubic, torch.float64),
        (1e-6, long, torch.float64),
        (1e-5, long, torch.float32),
    ):
        assert mesh_plan(10_000, cell, cell, SPHERE, tolerance).dtype == dtype


def test_where_the_choice_changes_over():
    n = crossover(1, Sphere(2.0, 1.0), 1e-6)
    for atoms, method in ((n - 1, "direct"), (n, "mesh")):
        cell = np.eye(3) * (10.0 * atoms) ** (1.0 / 3.0)
        assert choose("auto", 1e-6, atoms, 1, cell, Sphere(2.0, 1.0)).method == method
    assert 200 < n < 5000
    assert crossover(1, Sphere(1.0, 1.0), 1e-6) < n


@pytest.mark.parametrize("by", ["cpu", "torch"])
def test_refusals(by):
    q, r = liquid(CELLS["cubic"], 4, 1)
    with pytest.raises(InputError, match="cell: expected three independent lattice vectors"):
        on_mesh(q, r, np.diag([9.0, 9.0, 0.0]), 1e-6, by=by)


def test_a_box_that_is_too_large():
    q, r = liquid(CELLS["cubic"], 4, 1)
    for method in ("direct", "mesh", "auto"):
        total = ewald_sum(MODULE, method=method, tolerance=1e-6)
        with pytest.raises(InputError, match=r"takes at most 4 GB and 60 s, got about .* GB"):
            total.evaluate(q, r, CELLS["cubic"] * 100.0, periodic=True, n_threads=1)
