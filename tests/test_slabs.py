"""Slabs with charges: the two-dimensional sum itself, derivatives, evaluators, refusals."""

from __future__ import annotations

from math import pi, sqrt

import numpy as np
import pytest
import torch
from ase import Atoms
from support.physics import displaced, rotation
from support.tiny_models import tiny_spec, tiny_weights

from cace_fast import CACECalculator, InputError, Potential
from cace_fast.engine import LongRange
from cace_fast.kernels import ewald as kernel
from cace_fast.kernels.cpu.library import EwaldSpec
from cace_fast.kernels.cpu.long_range import EwaldSum
from cace_fast.reference import ewald as reference
from cace_fast.slab import planar_sum, slab_of
from cace_fast.spec import Ewald

SIGMA = 0.9
CELL = np.array([[6.0, 0.3, -0.2], [1.7, 5.0, 0.4], [0.3, -0.4, 5.2]])
PROPERTIES = ("energy", "energies", "forces", "virials", "stress", "latent_charges")


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
    for method, limit in (("direct", 1e-14), ("nufft", 1e-11)):
        how = kernel.Summation(method=method, slab_vacuum=12.0)
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


# --- whole models ---------------------------------------------------------------------------

MODELS = {
    "one channel": {"ewald_channels": 1},
    "three channels": {"ewald_channels": 3, "ewald": {"remove_self_interaction": True}},
    "field": {"ewald_channels": 2, "ewald": {"external_field": 0.3, "norm_factor": 1.2}},
}


def potential(name="one channel", **options):
    spec = tiny_spec(**MODELS[name])
    given = {"dtype": "float64", "backend": "cpu", "slab_vacuum": 12.0} | options
    return Potential(spec, tiny_weights(spec), **given)


def slab(axis=2, seed=2):
    """Twelve atoms, the normal tilted against every Cartesian axis."""
    rng = np.random.default_rng(seed)
    grid = np.indices((2, 3, 2)).reshape(3, -1).T
    cell = np.array([[5.2, 0.4, -0.1], [-0.9, 7.4, 0.3], [0.5, -0.3, 6.5]])
    r = (grid + 0.2) / [2, 3, 2.6] @ cell + rng.uniform(-0.2, 0.2, (12, 3))
    order = np.roll(np.arange(3), axis - 2)
    pbc = np.array([True, True, False])[order]
    return Atoms([8, 1] * 6, r, cell=cell[order], pbc=pbc)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("method", ["direct", "nufft"])
@pytest.mark.parametrize("name", MODELS)
def test_evaluators_of_models_agree(name, method, backend):
    want = potential(name, backend="reference", long_range="auto").compute(slab(), PROPERTIES)
    got = potential(name, backend=backend, long_range=method).compute(slab(), PROPERTIES)
    for key in PROPERTIES:
        scale = max(1.0, np.abs(want[key]).max())
        np.testing.assert_allclose(got[key], want[key], rtol=0, atol=1e-10 * scale, err_msg=key)
    single = potential(name, backend=backend, long_range=method, dtype="float32")
    alone = single.compute(slab(), PROPERTIES)
    for key in PROPERTIES:
        scale = max(1.0, np.abs(want[key]).max())
        np.testing.assert_allclose(alone[key], want[key], rtol=0, atol=2e-5 * scale, err_msg=key)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_forces_are_differences_of_the_energy(name, backend):
    own, atoms, h = potential(name, backend=backend), slab(), 1e-4
    forces = own.compute(atoms)["forces"]
    moves = [(0, 2), (5, 0), (7, 1)]
    frames = [displaced(atoms, i, a, s * h) for i, a in moves for s in (1, -1)]
    found = [r["energy"] for r in own.compute(frames, ("energy",))]
    for number, (i, a) in enumerate(moves):
        slope = (found[2 * number] - found[2 * number + 1]) / (2 * h)
        assert forces[i, a] == pytest.approx(-slope, rel=1e-6, abs=2e-7)


@pytest.mark.parametrize("k_set", ["sphere", "frozen"])
@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_stress_is_differences_of_the_energy(backend, axis, k_set):
    """All six components; along the normal the height of the cell follows, the vacuum stays."""
    own, atoms, h = potential("three channels", backend=backend, k_set=k_set), slab(axis), 1e-4
    stress = own.compute(atoms, ("stress",))["stress"]
    volume = abs(np.linalg.det(atoms.cell[:]))
    for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        found = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[a, b] += 0.5 * sign * h
            strain[b, a] += 0.5 * sign * h
            moved = atoms.copy()
            moved.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
            found.append(own.compute(moved)["energy"])
        slope = (found[0] - found[1]) / (2 * h)
        assert stress[a, b] * volume == pytest.approx(slope, rel=1e-6, abs=2e-6)


def test_nothing_depends_on_the_vacuum():
    atoms = slab()
    few, many = (potential(slab_vacuum=v).compute(atoms, PROPERTIES) for v in (25.0, 75.0))
    # the sharp sphere has other vectors in another box: that is what is left
    for key, limit in (("energy", 2e-3), ("forces", 2e-3), ("stress", 1e-4)):
        np.testing.assert_allclose(few[key], many[key], rtol=0, atol=limit, err_msg=key)
    np.testing.assert_array_equal(few["latent_charges"], many["latent_charges"])


def test_no_neighbours_across_the_open_direction():
    """The short range does not see the box: atoms above and below do not meet."""
    atoms = slab()
    flat = atoms.copy()
    normal = np.cross(atoms.cell[0], atoms.cell[1])
    along = atoms.positions @ (normal / np.linalg.norm(normal))
    flat.cell[2] = normal / np.linalg.norm(normal) * (np.ptp(along) + 1e-6)
    a, b = (potential(slab_vacuum=1.0).compute(x, ("energies_sr",)) for x in (atoms, flat))
    np.testing.assert_allclose(a["energies_sr"], b["energies_sr"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["direct", "nufft"])
def test_batches_of_slabs_and_others(method):
    bulk, free = slab(), slab()
    bulk.pbc, free.pbc = True, False
    frames = [slab(), bulk, free, slab(0), slab(2, seed=4)]
    own = potential(long_range=method)
    names = tuple(name for name in PROPERTIES if name != "stress")
    for atoms, got in zip(frames, own.compute(frames, names), strict=True):
        want = potential(backend="reference", long_range="direct").compute(atoms, names)
        for key in names:
            np.testing.assert_allclose(got[key], want[key], rtol=1e-9, atol=1e-9, err_msg=key)
    # the fourth is the first with its axes in another order
    assert len({round(r["energy"], 6) for r in own.compute(frames)}) == 4


def test_born_charges_of_a_slab():
    """Differences of the polarisation: by phases in the plane, of sum q z along the normal."""
    own, atoms, h = potential(backend="reference"), slab(), 1e-4
    bec = own.compute(atoms, ("bec",))["bec"]
    box = slab_of(torch.from_numpy(atoms.cell[:].copy()), 2, 12.0).cell.numpy()
    s = atoms.positions @ np.linalg.inv(box)

    def components(moved):
        q = own.compute(moved, ("charges",))["charges"]
        q = q - q.mean()
        place = moved.positions @ np.linalg.inv(box)
        return np.array([*(q @ np.exp(2j * pi * place[:, :2]) / (2j * pi)), q @ place[:, 2]])

    for i, a in ((0, 0), (3, 2), (7, 1)):
        high, low = (components(displaced(atoms, i, a, x * h)) for x in (1, -1))
        slope = (high - low) / (2 * h)
        phase = np.array([*np.exp(-2j * pi * s[i, :2]), 1.0])
        expected = (slope * phase).real @ box
        np.testing.assert_allclose(bec[i, a], expected, rtol=0, atol=1e-8)


def test_the_calculator_takes_the_vacuum():
    atoms, own = slab(), potential()
    want = own.compute(atoms, ("energy", "forces", "stress"))
    atoms.calc = CACECalculator(potential(slab_vacuum=None), slab_vacuum=12.0)
    assert atoms.get_potential_energy() == pytest.approx(want["energy"], abs=1e-12)
    np.testing.assert_allclose(atoms.get_forces(), want["forces"], rtol=0, atol=1e-12)
    voigt = want["stress"].flatten()[[0, 4, 8, 5, 2, 1]]
    np.testing.assert_allclose(atoms.get_stress(), voigt, rtol=0, atol=1e-12)
    assert CACECalculator(own).potential is own


def test_another_potential_of_the_same_model_keeps_the_settings():
    first = potential(long_range="nufft", long_range_tolerance=1e-7, k_set="frozen")
    first.compute(slab())
    second = first.changed(energy_key="E_lr")
    assert second.long_range == first.long_range
    assert second.energy_key == "E_lr"
    assert first.changed(slab_vacuum=30.0).long_range.slab_vacuum == 30.0


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "reference"])
class TestRefusals:
    def test_slabs_without_a_vacuum_and_wires(self, backend):
        atoms = slab()
        with pytest.raises(InputError, match=r"pbc: expected all or no.*vacuum.*slab_vacuum="):
            potential(backend=backend, slab_vacuum=None).compute(atoms)
        atoms.pbc = (True, False, False)
        with pytest.raises(InputError, match=r"pbc: expected all or no.*Make the wire"):
            potential(backend=backend).compute(atoms)

    def test_atoms_that_the_cell_does_not_hold(self, backend):
        atoms = slab()
        atoms.positions[3] += 9.0 * atoms.cell[2] / np.linalg.norm(atoms.cell[2])
        with pytest.raises(
            InputError, match=r"positions: expected atoms of a slab within 6\.\d+ A along"
        ):
            potential(backend=backend).compute(atoms)

    def test_the_one_of_a_batch_is_named(self, backend):
        bad = slab()
        bad.cell[2] *= 0.2
        with pytest.raises(InputError, match=r"structure 1: positions: expected atoms of a slab"):
            potential(backend=backend).compute([slab(), bad])

    def test_a_cell_without_a_height(self, backend):
        atoms = slab()
        atoms.cell[2] = 0.0
        with pytest.raises(InputError, match=r"cell: expected three independent.*for a slab"):
            potential(backend=backend).compute(atoms)

    def test_dispersion(self, backend):
        spec = tiny_spec(ewald_channels=1, ewald={"exponent": 6})
        own = Potential(spec, tiny_weights(spec), backend=backend, slab_vacuum=12.0)
        with pytest.raises(InputError, match=r"pbc: expected a periodic system .* exponent 6"):
            own.compute(slab())


@pytest.mark.parametrize("vacuum", [0.0, -1.0, float("inf"), float("nan")])
def test_a_vacuum_is_a_length(vacuum):
    with pytest.raises(InputError, match="slab_vacuum: expected a length above 0 A"):
        LongRange(slab_vacuum=vacuum)


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
    for module, how in ((kernel, kernel.Summation), (reference, reference.Summation)):
        with pytest.raises(InputError, match="pbc: expected a periodic system"):
            module.ewald(
                *given, Ewald("q", "e", 1.5, SIGMA, exponent=6), periodic=True, open_axis=2,
                how=how(slab_vacuum=9.0),
            )  # fmt: skip
