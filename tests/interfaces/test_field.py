"""Electric fields in molecular dynamics: their effect, their time, and their work."""

from __future__ import annotations

import copy
import pickle
import runpy

import numpy as np
import pytest
from ase import units
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.md.verlet import VelocityVerlet
from support.markdown import blocks
from support.paths import REPOSITORY
from support.tiny_models import tiny_potential, tiny_structure

from cace_fast import CACECalculator, FieldWork, OscillatingField, load
from cace_fast.cli.integrators import draw_momenta
from cace_fast.errors import InputError

WAVE = OscillatingField((0.3, -0.2, 0.4), frequency=40.0, phase=30.0, pulse=(12.0, 9.0))
STATIC = (0.2, 0.1, -0.3)


@pytest.fixture(scope="module")
def charged():
    return tiny_potential(ewald_channels=1)


def structure(potential, pbc):
    atoms = tiny_structure(potential.spec, 2, pbc=pbc)
    draw_momenta(atoms, 300.0, np.random.default_rng(3))
    return atoms


def test_an_oscillating_field_is_its_formula():
    np.testing.assert_allclose(OscillatingField(STATIC)(17.0), STATIC, rtol=0)
    wave = OscillatingField((0, 0, 2.0), frequency=10.0, phase=90.0)  # a period of 100 fs
    for time, value in ((0.0, 0.0), (25.0, -2.0), (50.0, 0.0), (75.0, 2.0)):
        np.testing.assert_allclose(wave(time), [0, 0, value], atol=1e-12)
    pulse = OscillatingField((1.0, 0, 0), frequency=10.0, pulse=(200.0, 30.0))
    assert pulse(200.0)[0] == 1.0
    assert pulse(250.0)[0] == pytest.approx(-np.exp(-0.5 * (50 / 30) ** 2))
    assert pulse(275.0)[0] == pytest.approx(0.0, abs=1e-12)
    assert pulse(150.0)[0] == pytest.approx(pulse(250.0)[0])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"amplitude": (1.0, 2.0)}, "amplitude: expected three finite numbers, got"),
        ({"amplitude": ("x", 0, 0)}, "amplitude: expected three finite numbers, got"),
        ({"frequency": np.inf}, "frequency: expected a finite number, got inf"),
        ({"pulse": (1.0, 0.0)}, "pulse: expected a time and a width above 0, in fs, got"),
    ],
)
def test_wrong_fields_are_refused(options, text):
    with pytest.raises(InputError, match=text):
        OscillatingField(**{"amplitude": (0.0, 0.0, 1.0)} | options)


def balance(potential, pbc, field, timestep):
    """Return (change of the energy without the field's own, work, imbalance) of 24 fs."""
    atoms = structure(potential, pbc)
    atoms.calc = CACECalculator(potential, external_field=field)
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    work = FieldWork(dynamics)

    def energy():
        return atoms.get_total_energy() - atoms.calc.field_energy

    first, worst, changes = energy(), 0.0, []
    for _ in range(round(24.0 / timestep)):
        dynamics.run(1)
        changes.append(energy() - first)
        worst = max(worst, abs(changes[-1] - work.work))
    return max(map(abs, changes)), work.work, worst


@pytest.mark.parametrize("pbc", [True, False], ids=["periodic", "open"])
@pytest.mark.parametrize("field", [STATIC, WAVE], ids=["static", "in time"])
def test_the_energy_changes_by_the_work_to_the_order_of_the_integrator(charged, pbc, field):
    """Half the step gives a quarter of the imbalance, which is far less than the work."""
    change, work, coarse = balance(charged, pbc, field, 0.3)
    _, _, fine = balance(charged, pbc, field, 0.15)
    assert 3.5 < coarse / fine < 4.6
    assert abs(work) > 1e-3
    assert change > 15 * coarse


def test_a_static_field_on_an_open_system_conserves_the_total(charged):
    atoms = structure(charged, False)
    atoms.calc = CACECalculator(charged, external_field=STATIC)
    dynamics = VelocityVerlet(atoms, 0.25 * units.fs)
    work = FieldWork(dynamics)
    total, own = atoms.get_total_energy(), atoms.calc.field_energy
    dipole = charged.compute(atoms, ("dipole",))["dipole"]
    assert own == pytest.approx(-dipole @ STATIC, abs=1e-12)
    dynamics.run(100)
    change = atoms.calc.field_energy - own
    assert abs(atoms.get_total_energy() - total) < 0.02 * abs(change)
    assert work.work == pytest.approx(-change, rel=0.01)


@pytest.mark.parametrize("kind", ["nve", "nvt", "npt"])
def test_forces_are_those_of_the_field_at_the_time_of_their_structure(charged, kind):
    """Any function of time, called once for each structure, with each integrator."""
    times = []

    def field(time):
        times.append(time)
        return [0.0, 0.01 * time, 0.3]

    atoms = structure(charged, True)
    atoms.calc = CACECalculator(charged, external_field=field, compute_stress=True)
    dt = 0.5 * units.fs
    make = {
        "nve": lambda: VelocityVerlet(atoms, dt),
        "nvt": lambda: Langevin(
            atoms, dt, temperature_K=300, friction=0.02, fixcm=False, rng=np.random.default_rng(0)
        ),
        "npt": lambda: IsotropicMTKNPT(
            atoms, dt, temperature_K=300, pressure_au=0.0, tdamp=100 * dt, pdamp=1000 * dt
        ),
    }
    dynamics = make[kind]()
    FieldWork(dynamics)
    for step in range(1, 5):
        dynamics.run(1)
        np.testing.assert_allclose(atoms.calc.field, [0.0, 0.005 * step, 0.3], atol=1e-14)
        plain = charged.compute(atoms, ("forces", "bec"))
        born = plain["bec"] - plain["bec"].mean(0)
        np.testing.assert_allclose(
            atoms.get_forces(), plain["forces"] + born @ atoms.calc.field, rtol=0, atol=1e-10
        )
    np.testing.assert_allclose(times, [0.0, 0.5, 1.0, 1.5, 2.0], atol=1e-12)


def test_the_clock_begins_where_the_run_stands(charged):
    """Existing results, which have the field of another time, are not used."""
    atoms = structure(charged, True)
    atoms.calc = CACECalculator(charged, external_field=WAVE)
    early = atoms.get_forces()
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    dynamics.nsteps = 20
    work = FieldWork(dynamics)
    np.testing.assert_allclose(atoms.calc.field, WAVE(10.0))
    assert not np.allclose(atoms.get_forces(), early, atol=1e-3)
    atoms.get_stress()  # is not there yet: calculated for the same structure, at its own time
    np.testing.assert_allclose(atoms.calc.field, WAVE(10.0))
    work.begin(work=0.75)
    assert work.work == 0.75


def test_calculators_with_fields_are_copied(charged):
    calc = CACECalculator(charged, external_field=WAVE)
    calc.time = 5.0
    for again in (copy.deepcopy(calc), pickle.loads(pickle.dumps(calc))):
        atoms = structure(charged, True)
        atoms.calc = again
        atoms.get_forces()
        np.testing.assert_array_equal(again.field, WAVE(5.0))


def test_wrong_uses_are_refused(charged):
    atoms = structure(charged, True)
    atoms.calc = CACECalculator(charged)
    with pytest.raises(InputError, match="dynamics: expected atoms with a CACECalculator that has"):
        FieldWork(VelocityVerlet(atoms, 1.0))
    atoms.calc = CACECalculator(charged, external_field=lambda time: [time, 0.0])
    with pytest.raises(InputError, match="external_field: expected three finite numbers"):
        atoms.get_forces()
    atoms.calc = CACECalculator(load("copper-emt"), external_field=STATIC)
    atoms.numbers[:] = 29
    with pytest.raises(NotImplementedError, match="charge"):
        atoms.get_forces()


def test_the_page_shows_how():
    """The block of docs/user/electric_fields.md runs, and its energy changes by the work."""
    page = (REPOSITORY / "docs" / "user" / "electric_fields.md").read_text()
    (block,) = (b for b in blocks(page) if b.info == ("python",))
    names = {}
    exec(block.code, names)
    crystal = runpy.run_path(str(REPOSITORY / "examples" / "infrared.py"))["make_potential"]()
    assert abs(names["run"](crystal)) < 1e-4
