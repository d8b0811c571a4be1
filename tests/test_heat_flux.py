"""Virials of atoms and the heat flux: every backend, short range and messages."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights

from cace_fast import Potential, PropertyNotImplementedError

MODELS = {
    "short range": {},
    "Bchi": {"steps": ("Bchi",)},
    "Ar": {"steps": ("M+Ar",)},
    "two steps": {"steps": ("M+Ar+Bchi", "Bchi"), "l_max": 2},
    "averages": {"atomic_energies": ((8, -3.0), (1, -0.5))},
}
BACKENDS = ("reference", "cpu")
ASKED = ("energy", "energies", "forces", "virials", "atom_virials", "heat_flux")


def potential_of(name, backend):
    spec = tiny_spec(**MODELS[name])
    return Potential(spec, tiny_weights(spec), dtype="float64", backend=backend)


def moving(spec, pbc, seed=4) -> Atoms:
    atoms = tiny_structure(spec, 2, spacing=2.0, pbc=pbc)
    atoms.set_velocities(np.random.default_rng(seed).normal(scale=0.2, size=(len(atoms), 3)))
    return atoms


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_derivative_of_the_energys_centre(name, backend):
    """J = d/dt sum_i r_i E_i of a free cluster, kinetic energies included."""
    potential = potential_of(name, backend)
    atoms = moving(potential.spec, pbc=False)
    found = potential.compute(atoms, ASKED)
    r, v, m = atoms.positions, atoms.get_velocities(), atoms.get_masses()[:, None]

    def moment(t):
        """Where the energy is after t, to second order in t."""
        later = atoms.copy()
        later.positions = r + t * v + 0.5 * t * t * found["forces"] / m
        speed = v + t * found["forces"] / m
        own = potential.compute(later, ("energies",))["energies"]
        own = own + 0.5 * (m * speed * speed).sum(1)
        return own @ later.positions

    def slope(h):
        return (moment(h) - moment(-h)) / (2.0 * h)

    h = 2e-3
    expected = (64 * slope(h / 4) - 20 * slope(h / 2) + slope(h)) / 45  # sixth order
    scale = np.abs(found["heat_flux"]).max()
    np.testing.assert_allclose(found["heat_flux"], expected, rtol=0, atol=1e-8 * scale)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pbc", [True, False])
def test_virials_of_atoms_sum_to_the_virial(name, pbc):
    atoms = moving(potential_of(name, "cpu").spec, pbc)
    found = {b: potential_of(name, b).compute(atoms, ASKED) for b in BACKENDS}
    for result in found.values():
        total = result["atom_virials"].sum(0)
        np.testing.assert_allclose(total, result["virials"], rtol=0, atol=1e-10)
    for key in ("atom_virials", "heat_flux"):
        np.testing.assert_allclose(found["cpu"][key], found["reference"][key], rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["short range", "two steps"])
def test_it_turns_with_the_structure_and_does_not_see_the_cell(name, backend):
    """Small cells, whose pairs are images of each other, too; batches are as single structures."""
    potential = potential_of(name, backend)
    atoms = moving(potential.spec, pbc=True)
    found = potential.compute(atoms, ASKED)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    turned = atoms.copy()
    turned.set_cell(atoms.cell.array @ turn, scale_atoms=False)
    turned.positions = atoms.positions @ turn
    turned.set_velocities(atoms.get_velocities() @ turn)
    order = np.random.default_rng(2).permutation(len(atoms))
    shuffled = atoms[order]
    large = atoms.repeat((2, 1, 1))
    results = potential.compute([turned, shuffled, large], ASKED)
    limit = {"rtol": 0, "atol": 1e-9}
    w = found["atom_virials"]
    np.testing.assert_allclose(results[0]["atom_virials"], turn.T @ w @ turn, **limit)
    np.testing.assert_allclose(results[0]["heat_flux"], found["heat_flux"] @ turn, **limit)
    np.testing.assert_allclose(results[1]["atom_virials"], w[order], **limit)
    np.testing.assert_allclose(results[2]["atom_virials"], np.concatenate([w, w]), **limit)
    np.testing.assert_allclose(results[2]["heat_flux"], 2 * found["heat_flux"], **limit)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_agrees(backend):
    spec = tiny_spec(**MODELS["two steps"])
    single = Potential(spec, tiny_weights(spec), dtype="float32", backend=backend)
    atoms = moving(spec, pbc=True)
    exact = potential_of("two steps", backend).compute(atoms, ASKED)["atom_virials"]
    found = single.compute(atoms, ASKED)["atom_virials"]
    np.testing.assert_allclose(found, exact, rtol=0, atol=1e-4 * np.abs(exact).max())


@pytest.mark.parametrize("backend", BACKENDS)
def test_models_with_charges_have_none(backend):
    spec = tiny_spec(ewald_channels=1)
    potential = Potential(spec, tiny_weights(spec), backend=backend)
    for name in ("atom_virials", "heat_flux"):
        with pytest.raises(PropertyNotImplementedError, match="long-range energy"):
            potential.compute(moving(spec, pbc=True), (name,))


def test_no_atoms_and_single_atoms():
    potential = potential_of("two steps", "cpu")
    one = Atoms("O", velocities=[[0.1, 0.0, 0.0]])
    found = potential.compute([one, Atoms()], ASKED)
    assert not found[0]["atom_virials"].any()
    energy = found[0]["energy"] + one.get_kinetic_energy()
    np.testing.assert_allclose(found[0]["heat_flux"], [0.1 * energy, 0, 0], rtol=1e-12)
    assert found[1]["atom_virials"].shape == (0, 3, 3)
    assert not found[1]["heat_flux"].any()
