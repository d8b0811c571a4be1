"""Slabs with charges in whole models: derivatives, batches, Born charges, settings, refusals."""

from __future__ import annotations

from math import pi

import numpy as np
import pytest
import torch
from ase import Atoms
from support.physics import displaced
from support.tiny_models import tiny_spec, tiny_weights

from cace_fast import CACECalculator, InputError, Potential
from cace_fast.engine import LongRange
from cace_fast.slab import slab_of

PROPERTIES = ("energy", "energies", "forces", "virials", "stress", "latent_charges")
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
@pytest.mark.parametrize("method", ["direct", "mesh"])
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
    """The short range does not see the box: atoms above and below do not interact."""
    atoms = slab()
    flat = atoms.copy()
    normal = np.cross(atoms.cell[0], atoms.cell[1])
    along = atoms.positions @ (normal / np.linalg.norm(normal))
    flat.cell[2] = normal / np.linalg.norm(normal) * (np.ptp(along) + 1e-6)
    a, b = (potential(slab_vacuum=1.0).compute(x, ("energies_sr",)) for x in (atoms, flat))
    np.testing.assert_allclose(a["energies_sr"], b["energies_sr"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["direct", "mesh"])
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


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_dephased_born_charges_of_a_slab(axis):
    """Differences of the polarisation: by phases in the plane, of sum q z along the normal."""
    own, atoms, h = potential(backend="reference"), slab(axis), 1e-4
    bec = own.replace(born_charges="dephased").compute(atoms, ("bec",))["bec"]
    box = slab_of(torch.from_numpy(atoms.cell[:].copy()), axis, 12.0).cell.numpy()
    s = atoms.positions @ np.linalg.inv(box)
    inside = np.arange(3) != axis

    def components(moved):
        q = own.compute(moved, ("charges",))["charges"]
        q = q - q.mean()
        place = moved.positions @ np.linalg.inv(box)
        return np.where(inside, q @ np.exp(2j * pi * place) / (2j * pi), q @ place)

    for i, a in ((0, 0), (3, 2), (7, 1)):
        high, low = (components(displaced(atoms, i, a, x * h)) for x in (1, -1))
        slope = (high - low) / (2 * h)
        phase = np.where(inside, np.exp(-2j * pi * s[i]), 1.0)
        expected = (slope * phase).real @ box
        np.testing.assert_allclose(bec[i, a], expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_frozen_set_is_that_of_the_box(backend):
    atoms = slab(0)
    own = potential(backend=backend, k_set="frozen")
    want = potential(backend=backend).compute(atoms)["energy"]
    assert own.compute(atoms)["energy"] == pytest.approx(want, abs=1e-12)
    box = slab_of(torch.from_numpy(atoms.cell[:].copy()), 0, 12.0).cell.numpy()
    np.testing.assert_allclose(own.long_range.reference_cell, box, rtol=0, atol=1e-12)


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
    first = potential(long_range="mesh", long_range_tolerance=1e-7, k_set="frozen")
    first.compute(slab())
    second = first.replace(energy_key="E_lr")
    assert second.long_range == first.long_range
    assert second.energy_key == "E_lr"
    assert first.replace(slab_vacuum=30.0).long_range.slab_vacuum == 30.0


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
