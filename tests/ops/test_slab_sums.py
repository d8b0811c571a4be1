"""The long range of slabs as an operation: the sum over the plane itself, evaluators, refusals."""

from __future__ import annotations

from math import pi, sqrt

import numpy as np
import pytest
import torch
from support.physics import rotation

from cace_fast import InputError
from cace_fast.kernels import ewald as kernel
from cace_fast.kernels.cpu.interface import EwaldSpec
from cace_fast.kernels.cpu.long_range import EwaldSum
from cace_fast.reference import ewald as reference
from cace_fast.slab import planar_sum, slab_of
from cace_fast.spec import Ewald

SIGMA = 0.9
CELL = np.array([[6.0, 0.3, -0.2], [1.7, 5.0, 0.4], [0.3, -0.4, 5.2]])


def charges(n=7, n_q=2, seed=0, cell=CELL):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n_q)), rng.uniform(0.0, 0.9, (n, 3)) @ cell


def special(name, x):
    return getattr(torch.special, name)(torch.from_numpy(x)).numpy()


def plane_sum(q, r, cell):
    """The sum over the plane by itself: every k in it by its closed form along the normal."""
    normal = np.cross(cell[0], cell[1])
    area = np.linalg.norm(normal)
    normal = normal / area
    d = r[:, None] - r[None]
    z = d @ normal
    terms = -0.5 * (
        z * special("erf", z / (sqrt(2) * SIGMA))
        + SIGMA * sqrt(2 / pi) * np.exp(-0.5 * (z / SIGMA) ** 2)
    )
    dual = 2 * pi * np.linalg.inv(np.array([cell[0], cell[1], normal])).T
    for i, j in np.ndindex(17, 17):
        k = (i - 8) * dual[0] + (j - 8) * dual[1]
        length = np.linalg.norm(k)
        if 0 < length < 12.0:
            up, down = (
                np.exp(s * length * z)
                * special("erfc", length * SIGMA / sqrt(2) + s * z / (sqrt(2) * SIGMA))
                for s in (1, -1)
            )
            terms = terms + np.cos(d @ k) / (4 * length) * (up + down)
    return np.einsum("ic,jc,ij->", q, q, terms) / area


def energy(q, r, cell, vacuum, open_axis=2, dl=0.65):
    given = (torch.from_numpy(np.ascontiguousarray(x)) for x in (q, r, cell))
    found = reference.ewald(
        *given, Ewald("q", "e", dl, SIGMA), periodic=True, open_axis=open_axis,
        how=reference.Summation(slab_vacuum=vacuum),
    )  # fmt: skip
    return found.energies.sum().item()


@pytest.mark.parametrize("neutral", [False, True])
def test_it_is_the_sum_over_the_plane(neutral):
    """With a vacuum as wide as the cell; what is left falls exponentially."""
    q, r = charges()
    q = q - q.mean(0) if neutral else q
    want = plane_sum(q, r, CELL)
    errors = [abs(energy(q, r, CELL, vacuum) - want) for vacuum in (5.0, 10.0, 20.0)]
    assert errors[0] < 1e-4
    assert errors[1] < 5e-7
    assert errors[2] < 1e-11


def test_a_wide_box_without_the_planar_terms_comes_close_slowly():
    """The three-dimensional sum of a neutral slab is off by M^2/V, which falls as 1/L."""
    q, r = charges(n_q=1)
    q -= q.mean()
    want, spec = plane_sum(q, r, CELL), Ewald("q", "e", 0.65, SIGMA)
    normal = np.cross(CELL[0], CELL[1]) / np.linalg.norm(np.cross(CELL[0], CELL[1]))
    for period in (40.0, 80.0):
        box = np.array([CELL[0], CELL[1], period * normal])
        given = (torch.from_numpy(x) for x in (q, r, box))
        plain = reference.ewald(*given, spec, periodic=True).energies.sum().item()
        moment, volume = q[:, 0] @ (r @ normal), abs(np.linalg.det(box))
        assert want - plain == pytest.approx(moment**2 / volume, rel=1e-8)


def test_what_the_energy_does_not_depend_on():
    q, r = charges()
    want = energy(q, r, CELL, 20.0)
    normal = np.cross(CELL[0], CELL[1]) / np.linalg.norm(np.cross(CELL[0], CELL[1]))
    up = r + 3.7 * normal
    assert energy(q, up, CELL, 20.0) == pytest.approx(want, abs=1e-12)
    images = r + np.random.default_rng(1).integers(-2, 3, (len(r), 2)) @ CELL[:2]
    assert energy(q, images, CELL, 20.0) == pytest.approx(want, abs=1e-12)
    leaning = CELL.copy()
    leaning[2] += 0.7 * CELL[0] - 1.3 * CELL[1]
    assert energy(q, r, leaning, 20.0) == pytest.approx(want, abs=1e-12)
    upside = CELL * [[1], [1], [-1]]
    assert energy(q, r, upside, 20.0) == pytest.approx(want, abs=1e-12)
    for axis in (0, 1):
        turned = np.roll(CELL, axis - 2, axis=0)
        assert energy(q, r, turned, 20.0, axis) == pytest.approx(want, abs=1e-12)
    turn = rotation(3)
    assert energy(q, r @ turn.T, CELL @ turn.T, 20.0) == pytest.approx(want, abs=1e-12)


def derivatives(evaluate, q, r, cell, **options):
    """Energies, dE/dq, forces and virial of one evaluator by automatic differentiation."""
    leaves = [torch.tensor(x, requires_grad=True) for x in (q, r, np.zeros((3, 3)))]
    strain = 0.5 * (leaves[2] + leaves[2].T)
    h = torch.from_numpy(np.ascontiguousarray(cell))
    spec = Ewald("q", "e", 1.5, SIGMA, remove_self_interaction=True, norm_factor=1.3)
    found = evaluate(
        leaves[0], leaves[1] + leaves[1] @ strain, h + h @ strain, spec, periodic=True, **options
    )
    slopes = torch.autograd.grad(found.energies.sum(), leaves)
    return [x.detach().numpy() for x in (found.energies, slopes[0], -slopes[1], -slopes[2])]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_evaluators_agree(axis):
    """The reference by differentiation, the closed forms of the library and of torch."""
    cell = np.ascontiguousarray(np.roll(CELL, axis - 2, axis=0))
    q, r = charges(9)
    want = derivatives(
        reference.ewald, q, r, cell, open_axis=axis, how=reference.Summation(slab_vacuum=12.0)
    )
    for method, limit in (("direct", 1e-14), ("mesh", 1e-11)):
        how = kernel.EwaldOptions(method=method, slab_vacuum=12.0)
        got = derivatives(kernel.ewald, q, r, cell, open_axis=axis, how=how)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=limit * max(1.0, np.abs(b).max()))
    total = EwaldSum(EwaldSpec(1.5, SIGMA, 1.3, 0.0, 0.0, 1, 1, 0), slab_vacuum=12.0)
    compiled = total.evaluate(q, r, cell, periodic=2 + axis, n_threads=1)
    for a, b in zip(compiled, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-14 * max(1.0, np.abs(b).max()))


def test_closed_forms_on_any_device():
    """`planar_sum`, for engines without automatic differentiation."""
    q, r = charges(9)
    want = derivatives(
        reference.ewald, q, r, CELL, open_axis=2, how=reference.Summation(slab_vacuum=12.0)
    )
    slab = slab_of(torch.from_numpy(CELL), 2, 12.0)
    bare = EwaldSpec(1.5, SIGMA, 1.0, 0.0, 0.0, 1, 0, 0)
    box = slab.cell.numpy().copy()
    _, phi, forces, virial = EwaldSum(bare).evaluate(q, r, box, periodic=1, n_threads=1)
    given = (torch.from_numpy(x) for x in (forces, virial))
    more, forces, virial = planar_sum(torch.from_numpy(q), torch.from_numpy(r), slab, SIGMA, *given)
    np.testing.assert_allclose(1.3 * forces, want[2], rtol=0, atol=1e-14)
    np.testing.assert_allclose(1.3 * virial, want[3], rtol=0, atol=1e-13)
    own = 2 * 2 * (2 * pi) ** -1.5 / SIGMA * q  # two channels lose the self term twice
    np.testing.assert_allclose(1.3 * (phi + more.numpy() - own), want[1], rtol=0, atol=1e-13)


def test_second_derivatives():
    q, r = charges(3, 1)
    leaves = [torch.tensor(x, requires_grad=True) for x in (q, r, CELL)]
    spec, how = Ewald("q", "e", 2.9, SIGMA), reference.Summation(slab_vacuum=6.0)
    assert torch.autograd.gradgradcheck(
        lambda q, r, h: reference.ewald(
            q, r, h, spec, periodic=True, open_axis=2, how=how
        ).energies.sum(),
        leaves,
    )


def test_the_library_refuses_for_other_hosts():
    spec = EwaldSpec(1.5, SIGMA, 1.0, 0.0, 0.0, 1, 0, 0)
    q, r = charges()
    with pytest.raises(InputError, match="pbc: expected all or no directions periodic, or two"):
        EwaldSum(spec).evaluate(q, r, CELL, periodic=4, n_threads=1)
    with pytest.raises(InputError, match="positions: expected atoms of a slab within the height"):
        EwaldSum(spec, slab_vacuum=9.0).evaluate(q, 4.0 * r, CELL, periodic=4, n_threads=1)
    six = EwaldSpec(1.5, SIGMA, 1.0, 0.0, 0.0, 6, 0, 0)
    with pytest.raises(InputError, match=r"pbc: expected a periodic system .* exponent 6"):
        EwaldSum(six, slab_vacuum=9.0).evaluate(q, r, CELL, periodic=4, n_threads=1)


def test_operators_refuse_too():
    q, r = charges()
    given = [torch.from_numpy(x) for x in (q, r, CELL)]
    with pytest.raises(InputError, match=r"how\.slab_vacuum: expected the vacuum"):
        kernel.ewald(*given, Ewald("q", "e", 1.5, SIGMA), periodic=True, open_axis=2)
    with pytest.raises(InputError, match="positions: expected atoms of a slab within 5"):
        kernel.ewald(
            given[0], 4.0 * given[1], given[2], Ewald("q", "e", 1.5, SIGMA), periodic=True,
            open_axis=2, how=kernel.EwaldOptions(slab_vacuum=9.0),
        )  # fmt: skip
    for module, how in ((kernel, kernel.EwaldOptions), (reference, reference.Summation)):
        with pytest.raises(InputError, match="pbc: expected a periodic system"):
            module.ewald(
                *given, Ewald("q", "e", 1.5, SIGMA, exponent=6), periodic=True, open_axis=2,
                how=how(slab_vacuum=9.0),
            )  # fmt: skip
