"""The ASE calculator: results, units, what changes between calls, copies, threads, committees."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.calculator import PropertyNotImplementedError, all_properties
from ase.md.verlet import VelocityVerlet
from ase.stress import full_3x3_to_voigt_6_stress
from support import golden, upstream_like
from support.physics import PhysicsTests
from support.tiny_models import tiny_potential, tiny_structure

from cace_fast import CACECalculator, InputError, Potential, UnknownElementError
from cace_fast.committee import Committee

GOLDEN = Potential(*golden.model(), dtype="float64", backend="reference")


class TestPhysics(PhysicsTests):
    """One calculator for all structures: its neighbour list has to follow."""

    calculator = CACECalculator(GOLDEN, skin=0.7)

    def evaluate(self, atoms):
        atoms = atoms.copy()
        atoms.calc = self.calculator
        found = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if atoms.pbc.all():
            v = atoms.get_stress() * -atoms.get_volume()
            found["virials"] = np.array(
                [[v[0], v[5], v[4]], [v[5], v[1], v[3]], [v[4], v[3], v[2]]]
            )
        return found


def prepared(potential=GOLDEN, kind="periodic", **options):
    atoms = golden.atoms(kind)
    atoms.calc = CACECalculator(potential, **options)
    return atoms


def test_results_hold_names_of_ase_only():
    atoms = prepared(tiny_potential(ewald_channels=1, elements=(8, 1, 6)), kind="open")
    atoms.get_forces()
    for name in ("charges", "dipole", "born_effective_charges", "energies", "free_energy"):
        atoms.calc.get_property(name, atoms)
    assert set(atoms.calc.results) <= set(all_properties)
    assert set(atoms.calc.results) >= {
        "energy",
        "free_energy",
        "energies",
        "forces",
        "charges",
        "dipole",
    }
    properties = atoms.get_properties(["energy", "forces"])
    assert properties["energy"] == atoms.get_potential_energy()


def test_values_are_those_of_the_potential():
    atoms = prepared()
    want = GOLDEN.compute(atoms, ("energy", "energies", "forces", "stress"))
    assert atoms.get_potential_energy() == want["energy"]
    assert atoms.get_potential_energy(force_consistent=True) == want["energy"]
    np.testing.assert_array_equal(atoms.get_potential_energies(), want["energies"])
    np.testing.assert_array_equal(atoms.get_forces(), want["forces"])
    np.testing.assert_allclose(
        atoms.get_stress(), full_3x3_to_voigt_6_stress(want["stress"]), rtol=1e-13
    )


def test_units():
    atoms, plain = prepared(energy_units_to_eV=2.0, length_units_to_A=0.5), prepared()
    assert atoms.get_potential_energy() == pytest.approx(2.0 * plain.get_potential_energy())
    np.testing.assert_allclose(atoms.get_forces(), 4.0 * plain.get_forces())
    np.testing.assert_allclose(atoms.get_stress(), 16.0 * plain.get_stress())
    isolated = prepared(atomic_energies={8: -2.0, 1: -0.5}, energy_units_to_eV=2.0)
    extra = 2.0 * (2 * -2.0 + 2 * -0.5)
    assert isolated.get_potential_energy() == pytest.approx(
        2.0 * plain.get_potential_energy() + extra
    )
    assert isolated.get_potential_energies().sum() == pytest.approx(isolated.get_potential_energy())


def test_charge_unit_and_keys():
    potential = tiny_potential(ewald_channels=1, elements=(8, 1, 6))
    plain = prepared(potential, kind="open").get_charges()
    double = prepared(potential, kind="open", charge_unit=2 / np.sqrt(90.0474)).get_charges()
    np.testing.assert_allclose(double, 2 * plain)
    np.testing.assert_array_equal(
        prepared(potential, kind="open", charge_key="q").get_charges(), plain
    )
    with pytest.raises(InputError, match="charge_key: expected one of q, got 'Q'"):
        prepared(potential, charge_key="Q")


def test_keys_choose_a_part():
    part = prepared(energy_key="ewald", kind="open")
    want = golden.EXPECTED["open"]
    assert part.get_potential_energy() == pytest.approx(want["ewald"], abs=1e-11)
    np.testing.assert_allclose(part.get_forces()[0], want["ewald forces"], atol=1e-11)
    assert prepared(forces_key="forces").get_potential_energy() == prepared().get_potential_energy()
    with pytest.raises(
        InputError, match="forces_key: expected forces of the energy 'ewald', got 'forces'"
    ):
        prepared(energy_key="ewald", forces_key="forces")
    with pytest.raises(InputError, match="energy_key: expected one of"):
        prepared(energy_key="enthalpy")


def test_everything_may_change_between_calls():
    calculator = CACECalculator(GOLDEN, skin=1.0)
    rng = np.random.default_rng(2)
    atoms = golden.atoms("periodic")
    atoms.calc = calculator

    def check():
        fresh = GOLDEN.compute(atoms)
        assert atoms.get_potential_energy() == pytest.approx(fresh["energy"], abs=1e-12)
        np.testing.assert_allclose(atoms.get_forces(), fresh["forces"], rtol=0, atol=1e-12)

    check()
    atoms.positions += rng.normal(0, 0.03, (5, 3))
    check()
    atoms.numbers[0] = 6
    check()
    atoms.set_cell(atoms.cell * 1.05, scale_atoms=False)
    check()
    atoms.pbc = False
    check()
    atoms.pbc = True
    check()
    del atoms[2]
    check()
    atoms += Atoms("C", [[2.0, 0.4, 2.2]])
    check()
    atoms.positions[0] += atoms.cell[1]
    check()


@pytest.mark.parametrize("where", ["arrays", "info"])
def test_further_inputs_may_change_too(where):
    """ASE's own comparison does not see info or extra arrays."""
    potential = tiny_potential(inputs=("charge_states",))
    atoms = tiny_structure(potential.spec)
    atoms.calc = CACECalculator(potential, data_key={"charge_states": "my_charge"})
    place = getattr(atoms, where)
    energies = []
    for value in (0.5, -0.5, 0.5):
        place["my_charge"] = np.full(len(atoms), value)
        energies.append(atoms.get_potential_energy())
    assert energies[0] == energies[2] != energies[1]
    before = atoms.calc.results
    atoms.get_potential_energy()
    assert atoms.calc.results is before  # nothing changed: nothing computed
    place["my_charge"][2] = 3.0  # in place
    assert atoms.get_potential_energy() != energies[0]
    del place["my_charge"]
    with pytest.raises(InputError, match=r"charge_states: .*atoms.arrays\['my_charge'\]"):
        atoms.get_potential_energy()


def test_what_a_list_shares_between_steps_follows_the_structure():
    """Only a step that changes nothing but positions may share the rest with the step before."""
    atoms = prepared(kind="periodic")
    atoms.get_forces()
    kept = atoms.calc._list
    builds = kept.n_builds
    changes = [
        lambda a: a.rattle(0.01, seed=1),
        lambda a: a.set_atomic_numbers(a.numbers[::-1]),
        lambda a: a.rattle(0.01, seed=2),
        lambda a: a.set_cell(1.01 * a.cell[:]),
        lambda a: a.set_pbc(False),
        lambda a: a.rattle(0.01, seed=3),
    ]
    for change in changes:
        change(atoms)
        fresh = atoms.copy()
        fresh.calc = CACECalculator(GOLDEN)
        np.testing.assert_array_equal(atoms.get_forces(), fresh.get_forces())
        assert atoms.get_potential_energy() == fresh.get_potential_energy()
        np.testing.assert_array_equal(atoms.calc.atoms.positions, atoms.positions)
        np.testing.assert_array_equal(atoms.calc.atoms.numbers, atoms.numbers)
    assert kept.n_builds == builds + 2  # for the cell and for the boundary


def test_a_single_atom_that_is_lost_is_named():
    atoms = Atoms("O", cell=[9.0, 9.0, 9.0], pbc=True)
    atoms.calc = CACECalculator(GOLDEN)
    atoms.get_forces()
    atoms.positions[0, 1] = np.nan
    with pytest.raises(InputError, match="NaN or infinity for atoms 0"):
        atoms.get_forces()


def test_clear_refusals_and_recovery():
    atoms = prepared()
    want = atoms.get_potential_energy()
    for change, error in (
        (lambda a: a.numbers.__setitem__(0, 26), UnknownElementError),
        (lambda a: a.positions.__setitem__((1, 1), np.nan), InputError),
        (lambda a: a.positions.__setitem__(1, a.positions[0]), InputError),
    ):
        broken = atoms.copy()
        broken.calc = atoms.calc
        change(broken)
        for _ in range(2):  # nothing half-computed is handed out the second time
            with pytest.raises(error):
                broken.get_potential_energy()
    assert atoms.get_potential_energy() == want
    near = golden.atoms("open")
    near.positions[1] = near.positions[0] + [0.04, 0, 0]
    near.calc = CACECalculator(GOLDEN, min_dist=None)
    assert np.isfinite(near.get_potential_energy())


def test_missing_properties_raise_as_ase_expects():
    atoms = prepared(kind="open")
    with pytest.raises(PropertyNotImplementedError, match="stress"):
        atoms.get_stress()
    with pytest.raises(PropertyNotImplementedError, match="switched off"):
        prepared(compute_stress=False).get_stress()
    with pytest.raises(PropertyNotImplementedError):
        prepared().get_charges()  # two channels
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_magnetic_moments()


def test_external_field_acts_on_forces():
    potential = tiny_potential(ewald_channels=1, elements=(8, 1, 6))
    plain = prepared(potential, kind="open")
    field = prepared(potential, kind="open", external_field=[0.1, 0, -0.2], electric_field_unit=2.0)
    bec = potential.compute(plain, ("bec",))["bec"]
    bec = bec - bec.mean(0)
    np.testing.assert_allclose(
        field.get_forces() - plain.get_forces(), bec @ [0.2, 0.0, -0.4], rtol=0, atol=1e-12
    )
    work = potential.compute(plain, ("dipole",))["dipole"] @ [0.2, 0.0, -0.4]
    want = plain.get_potential_energy() - work
    assert field.get_potential_energy() == pytest.approx(want, abs=1e-12)
    assert field.get_potential_energy(force_consistent=True) == pytest.approx(want, abs=1e-12)
    np.testing.assert_allclose(
        field.get_potential_energies(),
        plain.get_potential_energies() - work / len(plain),
        atol=1e-12,
    )
    for wrong in (1, [1.0, 2.0], [np.nan, 0, 0]):
        with pytest.raises(InputError, match="external_field: expected three"):
            prepared(potential, external_field=wrong)


def test_copies_and_pickles_are_independent():
    atoms = prepared()
    want = atoms.get_forces()
    for again in (copy.deepcopy(atoms.calc), pickle.loads(pickle.dumps(atoms.calc))):
        other = golden.atoms("periodic")
        other.calc = again
        np.testing.assert_array_equal(other.get_forces(), want)
        other.positions += 0.1 * np.arange(15).reshape(5, 3)
        other.get_forces()
    twin = atoms.copy()  # ASE leaves the calculator behind
    twin.calc = atoms.calc
    twin.positions[0] += 0.2
    assert not np.array_equal(twin.get_forces(), want)
    np.testing.assert_array_equal(atoms.get_forces(), want)


def test_threads():
    """One potential, a calculator for each thread."""
    want = {}
    frames = []
    for seed in range(6):
        atoms = golden.atoms("periodic")
        atoms.rattle(0.05, seed=seed)
        frames.append(atoms)
        want[seed] = GOLDEN.compute(atoms)["forces"]
    barrier = threading.Barrier(3)

    def work(worker):
        barrier.wait()
        calculator = CACECalculator(GOLDEN)
        found = []
        for atoms in frames[worker::3]:
            own = atoms.copy()
            own.calc = calculator
            found.append(own.get_forces())
        return found

    with ThreadPoolExecutor(3) as pool:
        for worker, found in enumerate(pool.map(work, range(3))):
            for seed, forces in zip(range(worker, 6, 3), found, strict=True):
                np.testing.assert_array_equal(forces, want[seed])


def test_lists_are_rebuilt_rarely_and_results_do_not_depend_on_it():
    trajectories = []
    for skin in (0.0, 0.9):
        atoms = prepared(skin=skin)
        atoms.set_velocities(np.random.default_rng(1).normal(0, 0.03, (5, 3)))
        dynamics = VelocityVerlet(atoms, timestep=0.1 * units.fs)
        dynamics.run(30)
        trajectories.append(atoms.positions.copy())
        builds = atoms.calc._list.n_builds
    np.testing.assert_array_equal(*trajectories)
    assert builds < 10
    atoms.calc.reset_neighbors()
    atoms.positions[0, 0] += 1e-6
    atoms.get_forces()
    assert atoms.calc._list.n_builds == builds + 1


def members():
    return [tiny_potential(seed=seed) for seed in (1, 2, 3)]


def test_committee():
    models = members()
    atoms = tiny_structure(models[0].spec)
    atoms.calc = CACECalculator(models)
    single = [m.compute(atoms, ("energy", "forces", "stress")) for m in models]
    energies = [s["energy"] for s in single]
    assert atoms.get_potential_energy() == pytest.approx(np.mean(energies), abs=1e-12)
    np.testing.assert_allclose(
        atoms.get_forces(), np.mean([s["forces"] for s in single], axis=0), rtol=0, atol=1e-12
    )
    stress = full_3x3_to_voigt_6_stress(np.mean([s["stress"] for s in single], axis=0))
    np.testing.assert_allclose(atoms.get_stress(), stress, rtol=0, atol=1e-13)
    spread = atoms.calc.potential.compute(atoms, ("energy_std", "forces_std", "energy"))
    assert spread["energy_std"] == pytest.approx(np.std(energies))
    assert spread["forces_std"].shape == (len(atoms), 3)
    several = atoms.calc.potential.compute([atoms, atoms[:4]], ("energy_std",))
    assert several[0]["energy_std"] == pytest.approx(spread["energy_std"])
    assert set(atoms.calc.results) <= set(all_properties)


def test_committee_searches_once(monkeypatch):
    calls = []
    import cace_fast.committee as module

    plain = module.neighbor_list
    monkeypatch.setattr(module, "neighbor_list", lambda *a, **k: calls.append(1) or plain(*a, **k))
    models = members()
    atoms = tiny_structure(models[0].spec)
    Committee(models).compute([atoms, atoms[:3]], ("energy",))
    assert len(calls) == 2
    with pytest.raises(InputError, match="members: expected at least two"):
        Committee(models[:1])


def test_models_by_pattern_and_list(tmp_path):
    for number, model in enumerate(members()):
        model.save(tmp_path / f"model-{number}.safetensors")
    calculator = CACECalculator(str(tmp_path / "model-*.safetensors"))
    assert len(calculator.potential.members) == 3
    assert len(CACECalculator([tmp_path / "model-0.safetensors"] * 2).potential.members) == 2
    with pytest.raises(FileNotFoundError, match="no file matches"):
        CACECalculator(str(tmp_path / "other-*.pth"))
    with pytest.raises(InputError, match="model_path: expected a model"):
        CACECalculator([])


def test_module_in_memory_is_a_snapshot():
    module = upstream_like.water_like()
    calculator = CACECalculator(module, default_dtype="float64")
    atoms = Atoms([8, 1], [[0, 0, 0], [0, 0.3, 1.2]])
    atoms.calc = calculator
    before = atoms.get_potential_energy()
    for parameter in module.parameters():
        parameter.data.mul_(2.0)
    atoms.calc.reset()
    assert atoms.get_potential_energy() == before
