"""The calculator's results: their structure, what is computed together, and habits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import PropertyNotImplementedError
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.optimize import BFGS
from support import golden
from support.tiny_models import tiny_potential

from cace_fast import CACECalculator, InputError, Potential, load

GOLDEN = Potential(*golden.model(), dtype="float64", backend="reference")


def prepared(potential=GOLDEN, kind="periodic", **options):
    atoms = golden.atoms(kind)
    atoms.calc = CACECalculator(potential, **options)
    return atoms


def watched(monkeypatch, potential):
    """Return a list of the properties that a potential is asked for."""
    asked, plain = [], potential.evaluate

    def evaluate(frames, properties, **options):
        asked.append(set(properties))
        return plain(frames, properties, **options)

    monkeypatch.setattr(potential, "evaluate", evaluate)
    return asked


USUAL = {"energy", "energies", "forces"}


def test_energy_and_forces_are_one_evaluation_and_stress_joins_them(monkeypatch):
    asked = watched(monkeypatch, GOLDEN)
    atoms = prepared()
    atoms.get_potential_energy()
    assert {"energy", "free_energy", "energies", "forces"} == set(atoms.calc.results)
    atoms.get_potential_energy()
    atoms.get_forces()
    assert asked == [USUAL]
    atoms.get_stress()
    for _ in range(2):
        atoms.positions[0, 0] += 0.01
        atoms.get_potential_energy()
        atoms.get_forces()
        atoms.get_stress()
    assert asked[1:] == [USUAL | {"stress"}] * 3
    alone = golden.atoms("open")  # has none: the habit waits
    alone.calc = atoms.calc
    alone.get_forces()
    assert asked[4:] == [USUAL]
    atoms.calc = CACECalculator(GOLDEN, compute_stress=True)
    atoms.get_forces()
    atoms.get_stress()
    assert asked[5:] == [USUAL | {"stress"}]
    atoms.calc = CACECalculator(GOLDEN, compute_stress=False)
    with pytest.raises(PropertyNotImplementedError, match="stress: switched off"):
        atoms.get_stress()


def test_a_relaxation_of_the_cell_costs_one_evaluation_a_step(monkeypatch):
    potential = load("copper-emt", dtype="float64")
    asked = watched(monkeypatch, potential)
    atoms = bulk("Cu", a=3.7)
    atoms.calc = CACECalculator(potential)
    run = BFGS(FrechetCellFilter(atoms), logfile=None)
    run.run(fmax=0.0, steps=5)
    assert asked == [USUAL | {"stress"}] * 6


def test_charges_and_dipole_join_too(monkeypatch):
    potential = tiny_potential(ewald_channels=1, elements=(8, 1, 6))
    asked = watched(monkeypatch, potential)
    atoms = prepared(potential, kind="open")
    atoms.get_charges()
    atoms.get_dipole_moment()
    atoms.positions[0, 0] += 0.01
    atoms.get_potential_energy()
    atoms.get_charges()
    atoms.get_dipole_moment()
    periodic = golden.atoms("periodic")
    periodic.calc = atoms.calc
    periodic.get_charges()
    charges, dipole = USUAL | {"charges"}, USUAL | {"charges", "dipole"}
    assert asked == [charges, dipole, dipole, charges]


def test_results_are_of_one_structure(monkeypatch):
    first, second = golden.atoms("periodic"), golden.atoms("periodic")
    second.positions[0] += 0.3
    want = GOLDEN.compute(second)["forces"]
    calc = CACECalculator(GOLDEN)
    calc.calculate(first, ["energy", "forces", "stress"])
    calc.calculate(second, ["energy"])
    second.calc = calc
    np.testing.assert_array_equal(second.get_forces(), want)
    calc.calculate(first, ["energy", "stress"])
    broken = second.copy()
    broken.positions[1] = np.nan
    with pytest.raises(InputError):
        calc.calculate(broken, ["energy"])
    assert calc.results == {}
    with pytest.raises(InputError):
        calc.get_property("forces", broken)
    np.testing.assert_array_equal(second.get_forces(), want)
    calc.calculate(first, ["energy"], system_changes=[])  # a caller who is wrong about that
    np.testing.assert_array_equal(calc.results["forces"], GOLDEN.compute(first)["forces"])
    # interrupted at any point, the next answer is right
    monkeypatch.setattr(calc, "_results", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        second.get_forces()
    monkeypatch.undo()
    np.testing.assert_array_equal(second.get_forces(), want)


def test_born_charges_are_in_results_when_asked_for(tmp_path):
    potential = tiny_potential(ewald_channels=1, elements=(8, 1, 6))
    atoms = prepared(potential, kind="open", external_field=[0.1, 0.0, 0.0])
    atoms.get_forces()
    assert "born_effective_charges" not in atoms.calc.results
    write(tmp_path / "a.xyz", atoms)
    again = read(tmp_path / "a.xyz")
    np.testing.assert_allclose(again.get_forces(), atoms.get_forces(), atol=1e-8)
    assert again.get_potential_energy() == pytest.approx(atoms.get_potential_energy())
    born = atoms.calc.get_property("born_effective_charges", atoms)
    np.testing.assert_array_equal(atoms.calc.born_charges, born)
    assert "forces" in atoms.calc.results
    atoms.positions[0, 0] += 0.01
    atoms.get_forces()
    assert "born_effective_charges" not in atoms.calc.results


def test_unknown_properties_are_refused():
    with pytest.raises(PropertyNotImplementedError, match="magmom, polarization: no property"):
        CACECalculator(GOLDEN).calculate(golden.atoms("open"), ["energy", "magmom", "polarization"])


def test_one_calculator_in_several_threads():
    frames = [golden.atoms("periodic") for _ in range(6)]
    want = []
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
        want.append(GOLDEN.compute(atoms)["forces"])
    calculator, order = CACECalculator(GOLDEN), list(range(6)) * 5

    def work(number):
        own = frames[number].copy()
        own.calc = calculator
        return own.get_forces(), own.get_potential_energy()

    with ThreadPoolExecutor(4) as pool:
        for number, (forces, _) in zip(order, pool.map(work, order), strict=True):
            np.testing.assert_allclose(forces, want[number], rtol=0, atol=1e-12)
