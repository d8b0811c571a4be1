"""Latent charges and results made of them: dipole, Born charges, fields, and their weight."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms
from support import golden
from support.physics import displaced, rotation
from support.structures import water
from support.tiny_models import tiny_potential

from cace_fast import CACECalculator, InputError, Potential, PropertyNotImplementedError
from cace_fast.spec import Ewald, ModelSpec


def golden_potential(**options):
    return Potential(*golden.model(), **({"dtype": "float64", "backend": "reference"} | options))


@pytest.fixture(scope="module")
def charged():
    """A model with one charge channel."""
    return tiny_potential(ewald_channels=1, dtype="float64")


def test_born_charges_of_a_molecule_are_dipole_derivatives(charged):
    atoms = water(False)
    bec = charged.compute(atoms, ("bec",))["bec"]
    h = 1e-4
    for i, a in ((0, 0), (1, 2), (3, 1)):
        high, low = (
            charged.compute(displaced(atoms, i, a, s * h), ("dipole",))["dipole"] for s in (1, -1)
        )
        np.testing.assert_allclose(bec[i, a], (high - low) / (2 * h), rtol=0, atol=1e-8)
    np.testing.assert_allclose(bec.sum(0), 0.0, atol=1e-10)  # the mean charge was removed


def lattice_polarisation(potential, atoms):
    """Sum of q exp(2 pi i s) for each lattice direction, of physical charges without their mean."""
    q = potential.compute(atoms, ("charges",))["charges"]
    s = atoms.positions @ np.linalg.inv(np.asarray(atoms.cell))
    return (q - q.mean()) @ np.exp(2j * np.pi * s)


def test_dephased_born_charges_of_a_crystal_are_derivatives_of_its_polarisation(charged):
    """Differences of the polarisation, each lattice component with the phase of its atom."""
    atoms = water(True)
    bec = charged.replace(born_charges="dephased").compute(atoms, ("bec",))["bec"]
    cell, h = np.asarray(atoms.cell), 1e-4
    s = atoms.positions @ np.linalg.inv(cell)
    for i, a in ((0, 0), (1, 2), (4, 1)):
        high, low = (lattice_polarisation(charged, displaced(atoms, i, a, x * h)) for x in (1, -1))
        slope = (high - low) / (2 * h) / (2j * np.pi)
        expected = (slope * np.exp(-2j * np.pi * s[i])).real @ cell
        np.testing.assert_allclose(bec[i, a], expected, rtol=0, atol=1e-8)


def test_born_charges_turn_with_the_structure(charged):
    turn = rotation(3)
    atoms = water(True)
    turned = Atoms(
        atoms.numbers, atoms.positions @ turn.T, cell=np.asarray(atoms.cell) @ turn.T, pbc=True
    )
    a, b = (charged.compute(x, ("bec",))["bec"] for x in (atoms, turned))
    np.testing.assert_allclose(b, np.einsum("ax,nxy,by->nab", turn, a, turn), rtol=0, atol=1e-10)


def test_weight_of_the_long_range_enters_physical_charges():
    plain = tiny_potential(ewald_channels=1, dtype="float64")
    scaled = tiny_potential(ewald_channels=1, dtype="float64", ewald={"norm_factor": 4.0})
    a, b = (p.compute(water(False), ("dipole", "charges", "bec")) for p in (plain, scaled))
    np.testing.assert_allclose(b["dipole"], 2.0 * a["dipole"])
    np.testing.assert_allclose(b["bec"], 2.0 * a["bec"])
    np.testing.assert_allclose(b["charges"], a["charges"])  # as upstream: without the weight


def test_charges_need_one_channel():
    four = tiny_potential(ewald_channels=4)
    assert four.compute(water(True), ("latent_charges",))["latent_charges"].shape == (6, 4)
    for name in ("charges", "bec"):
        with pytest.raises(PropertyNotImplementedError, match=r"one charge channel is needed.* 4"):
            four.compute(water(True), (name,))
    with pytest.raises(PropertyNotImplementedError, match="charges: this model has no charges"):
        tiny_potential().compute(water(True), ("charges",))
    with pytest.raises(PropertyNotImplementedError, match="dipole: defined for open systems"):
        tiny_potential(ewald_channels=1).compute(water(True), ("dipole",))


@pytest.mark.parametrize("pbc", [(True, True, False), (True, False, False)])
def test_long_range_in_partly_periodic_cells_is_refused(charged, pbc):
    atoms = water(True)
    atoms.pbc = pbc
    with pytest.raises(InputError, match=r"pbc: expected all or no directions.*vacuum"):
        charged.compute(atoms)


def test_external_field_and_neutrality_terms():
    spec, weights = golden.model()

    def energy(**fields):
        modules = tuple(
            replace(m, **fields) if isinstance(m, Ewald) else m for m in spec.submodels[0].modules
        )
        changed = ModelSpec(spec.representation, (replace(spec.submodels[0], modules=modules),))
        return Potential(changed, weights, dtype="float64").compute(atoms, ("energy", "energies"))

    atoms = golden.atoms("open")
    plain = energy()
    q = golden_potential().compute(atoms, ("latent_charges",))["latent_charges"]
    field = energy(external_field=0.3, external_field_direction=1)
    # an open system has one energy for both channels: both terms are added once
    expected = -0.3 * (q.sum(1) @ atoms.positions[:, 1]) / math.sqrt(90.0474)
    assert field["energy"] - plain["energy"] == pytest.approx(expected, abs=1e-13)
    assert field["energies"].sum() == pytest.approx(field["energy"], abs=1e-13)
    neutral = energy(charge_neutral_lambda=7.0)
    assert neutral["energy"] - plain["energy"] == pytest.approx(7.0 * q.mean() ** 2, abs=1e-13)
    by_name = {"external_field": "efield", "external_field_direction": "direction"}
    with pytest.raises(InputError, match="efield: expected an input of this model"):
        energy(**by_name)
    atoms.info |= {"efield": 0.3, "direction": 1}
    assert energy(**by_name)["energy"] == pytest.approx(field["energy"], abs=1e-13)


def test_a_field_does_the_work_that_forces_say(charged):
    """Forces equal differences of a molecule's energy in a field; a crystal has none."""
    options = {"external_field": [0.4, -0.3, 0.8], "skin": 0.0}
    atoms = water(False)
    atoms.calc = CACECalculator(charged, **options)
    forces, h = atoms.get_forces(), 1e-4
    assert atoms.get_potential_energies().sum() == pytest.approx(atoms.get_potential_energy())
    for i, a in ((0, 0), (2, 1), (4, 2)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[i, a] += sign * h
            moved.calc = CACECalculator(charged, **options)
            energies.append(moved.get_potential_energy())
        slope = (energies[0] - energies[1]) / (2 * h)
        assert forces[i, a] == pytest.approx(-slope, rel=1e-6, abs=1e-7)
    plain, crystal = water(True), water(True)
    plain.calc, crystal.calc = CACECalculator(charged), CACECalculator(charged, **options)
    assert crystal.get_potential_energy() == plain.get_potential_energy()
    assert not np.allclose(crystal.get_forces(), plain.get_forces(), atol=1e-6)
