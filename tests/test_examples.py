"""The examples run, and the shipped copper potential is what docs/user/demo.md says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, fcc111
from ase.calculators.emt import EMT
from ase.md.verlet import VelocityVerlet
from support.paths import REPOSITORY

import cace_fast
from cace_fast import weights

EXAMPLES = REPOSITORY / "examples"
SHIPPED = REPOSITORY / "cace_fast" / "models" / "copper-emt.safetensors"
PNG = b"\x89PNG\r\n\x1a\n"


def run(name: str, *arguments: str, folder: Path) -> str:
    """Run an example as a user does, with warnings as errors, and return what it printed."""
    home = Path(cace_fast.__file__).parents[1]  # the package that these tests test
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(home), "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{name} printed\n{done.stdout}\n{done.stderr}"
    return done.stdout


def number(text: str, pattern: str) -> float:
    """Return the number that a pattern with one group finds in a text."""
    found = re.search(pattern, text)
    assert found is not None, f"{pattern} is not in\n{text}"
    return float(found.group(1))


def emt(atoms: Atoms) -> tuple[float, np.ndarray, np.ndarray]:
    """Return energy, forces and stress [3, 3] of EMT."""
    twin = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, calculator=EMT())
    stress = twin.get_stress(voigt=False) if atoms.pbc.all() else np.zeros((3, 3))
    return twin.get_potential_energy(), twin.get_forces(), stress


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def rattled(atoms: Atoms, spread: float, seed: int = 3) -> Atoms:
    atoms.positions += spread * np.random.default_rng(seed).standard_normal(atoms.positions.shape)
    return atoms


@pytest.fixture(scope="module")
def copper() -> cace_fast.Potential:
    return cace_fast.load("copper-emt", dtype="float64", device="cpu")


@pytest.fixture(scope="module")
def tiny_fit(tmp_path_factory) -> Path:
    """Return the file that a tiny fit with seed 1 wrote."""
    folder = tmp_path_factory.mktemp("fit")
    printed = run("fit_copper_emt.py", "--tiny", "--out", "tiny.safetensors", folder=folder)
    assert "errors on held-out frames" in printed
    assert "crystal" in printed
    return folder / "tiny.safetensors"


@pytest.mark.slow
def test_the_fit_runs_and_agrees_with_emt(tiny_fit):
    spec, tensors = weights.load(tiny_fit)
    assert "tiny" in spec.provenance.note
    potential = cace_fast.Potential(spec, tensors, dtype="float64", device="cpu")
    atoms = rattled(bulk("Cu", a=3.63, cubic=True) * (2, 2, 2), 0.1)
    energy, forces, _ = emt(atoms)
    found = potential.compute(atoms)
    assert abs(found["energy"] - energy) < 2e-3 * len(atoms)
    assert rms(found["forces"] - forces) < 0.02 * rms(forces)


@pytest.mark.slow
def test_the_fit_repeats_byte_for_byte(tiny_fit, tmp_path):
    run("fit_copper_emt.py", "--tiny", "--out", "again.safetensors", folder=tmp_path)
    assert (tmp_path / "again.safetensors").read_bytes() == tiny_fit.read_bytes()


@pytest.mark.slow
def test_another_seed_gives_another_fit(tiny_fit, tmp_path):
    run("fit_copper_emt.py", "--tiny", "--seed", "2", "--out", "other.safetensors", folder=tmp_path)
    first, other = (weights.load(p)[1] for p in (tiny_fit, tmp_path / "other.safetensors"))
    hidden, fitted = "outputs.0.0.layers.0.weight", "outputs.0.0.linear.weight"
    assert torch.equal(first[hidden], other[hidden])
    assert not torch.equal(first[fitted], other[fitted])


@pytest.mark.slow
def test_the_demo_runs(tmp_path):
    printed = run("demo_copper.py", "--quick", "--out", "sub/demo.png", folder=tmp_path)
    picture = (tmp_path / "sub" / "demo.png").read_bytes()
    assert picture.startswith(PNG)
    assert len(picture) > 30_000
    cold = number(printed, r"temperature, cold +(\d+) K")
    hot = number(printed, r"temperature, hot +(\d+) K")
    assert cold < 500 < hot < 2000
    assert abs(number(printed, r"energy drift +([-+][\d.]+) meV/atom/ps")) < 5.0
    assert number(printed, r"energy - EMT +([\d.]+) meV/atom") < 2.0
    assert number(printed, r"forces - EMT +([\d.]+) meV/A") < 30.0
    assert number(printed, r"speed +([\d.]+) us/atom/step") > 0.0


@pytest.mark.slow
def test_the_phonons_run_and_both_ways_agree(tmp_path):
    printed = run("phonons_copper.py", "--quick", "--out", "phonons.png", folder=tmp_path)
    assert (tmp_path / "phonons.png").read_bytes().startswith(PNG)
    assert number(printed, r"differ by at most ([\d.]+) THz") < 0.005
    rows = dict(re.findall(r"│ ([GXL]) +│ +([\d. ]+?) +│", printed))
    assert [float(f) for f in rows["G"].split()] == pytest.approx([0, 0, 0], abs=0.01)
    assert [float(f) for f in rows["X"].split()] == pytest.approx([5.53, 5.53, 8.16], abs=0.05)


@pytest.mark.slow
def test_the_infrared_spectrum_is_that_of_the_polarisation(tmp_path):
    printed = run("infrared.py", "--quick", "--out", "infrared.png", folder=tmp_path)
    assert (tmp_path / "infrared.png").read_bytes().startswith(PNG)
    line = number(printed, r"strongest line +(\d+) 1/cm")
    assert line == pytest.approx(number(printed, r"harmonic, at rest +(\d+) 1/cm"), rel=0.15)
    assert number(printed, r"that of dP/dt itself +(\d+) 1/cm") == line
    assert abs(number(printed, r"energy drift +([-+][\d.]+) meV/atom")) < 0.5


def test_the_shipped_file_says_what_it_is(copper):
    provenance = copper.spec.provenance
    assert SHIPPED.stat().st_size < 200_000
    assert provenance.licence == "MIT"
    assert (REPOSITORY / provenance.source).is_file()
    assert re.fullmatch(r"[0-9a-f]{64}", provenance.sha256)
    for kind in ("crystal", "liquid", "surface"):
        number(provenance.note, kind + r" ([\d.]+) meV/atom, [\d.]+ meV/A")


def test_the_documentation_states_the_errors_of_the_file(copper):
    """The table of docs/user/demo.md and the note in the file are the same numbers."""
    page = (REPOSITORY / "docs" / "user" / "demo.md").read_text()
    noted = re.findall(r"(\w[\w ]*) ([\d.]+) meV/atom, ([\d.]+) meV/A", copper.spec.provenance.note)
    stated = re.findall(r"^\| ([\w ]+) \| ([\d.]+) \| ([\d.]+) \|", page, re.MULTILINE)
    assert len(noted) == 10
    assert stated == noted


def test_the_hidden_layer_is_that_of_the_script(copper, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import fit_copper_emt as script

    representation = script.representation()
    basis = script.hidden_layer(representation, script.descriptor_tensors(representation))
    assert representation == copper.spec.representation
    for name, wanted in (
        ("outputs.0.0.layers.0.weight", basis.weight),
        ("outputs.0.0.layers.0.bias", basis.bias),
        *basis.tensors.items(),
    ):
        # least squares of twelve nearly dependent functions: other libraries, other last digits
        torch.testing.assert_close(copper.weights[name], wanted, rtol=1e-5, atol=1e-6)


def test_an_atom_alone_has_the_energy_of_emt(copper):
    atom = Atoms("Cu")
    assert copper.compute(atom)["energy"] == pytest.approx(emt(atom)[0], abs=1e-9)


HELD_OUT = {
    "crystal": (rattled(bulk("Cu", a=3.64, cubic=True) * (3, 3, 3), 0.12), 1.0, 15.0),
    "vacancy": (rattled((bulk("Cu", a=3.62, cubic=True) * (2, 2, 2))[1:], 0.1), 2.0, 20.0),
    "surface": (
        rattled(fcc111("Cu", (3, 3, 4), a=3.62, vacuum=6.0, periodic=True), 0.1),
        3.0,
        25.0,
    ),
}


@pytest.mark.parametrize("kind", HELD_OUT)
def test_new_structures_agree_with_emt(copper, kind):
    atoms, energy_limit, force_limit = HELD_OUT[kind]
    energy, forces, stress = emt(atoms)
    found = copper.compute(atoms, ("energy", "forces", "stress"))
    assert 1e3 * abs(found["energy"] - energy) / len(atoms) < energy_limit
    assert 1e3 * rms(found["forces"] - forces) < force_limit
    assert np.abs(found["stress"] - stress).max() < 2e-3  # eV/A^3, 0.3 GPa


def test_atoms_repel_at_short_distances(copper):
    distances = np.arange(2.1, 0.35, -0.05)
    pairs = [Atoms("Cu2", [[0.0, 0.0, 0.0], [r, 0.0, 0.0]]) for r in distances]
    energies = np.array(
        [found["energy"] for found in copper.compute(pairs, ("energy",), min_dist=None)]
    )
    assert (np.diff(energies) > 0).all()
    close = [energies[distances >= 1.5][-1], emt(pairs[int((distances >= 1.5).sum()) - 1])[0]]
    assert close[0] == pytest.approx(close[1], rel=0.05)


def test_single_precision_is_enough(copper):
    atoms = HELD_OUT["crystal"][0]
    single = cace_fast.load("copper-emt", dtype="float32", device="cpu").compute(atoms)
    double = copper.compute(atoms)
    assert 1e3 * abs(single["energy"] - double["energy"]) / len(atoms) < 0.02
    assert 1e3 * np.abs(single["forces"] - double["forces"]).max() < 1.0


@pytest.mark.slow
def test_a_hot_crystal_keeps_its_energy():
    """Two thousand kelvin, where the crystal melts: nothing blows up in a picosecond."""
    rng = np.random.default_rng(5)
    atoms = bulk("Cu", a=3.75, cubic=True) * (2, 2, 2)
    spread = np.sqrt(4000.0 * units.kB * atoms.get_masses())
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * spread[:, None])
    atoms.calc = cace_fast.CACECalculator("copper-emt", device="cpu")
    dynamics = VelocityVerlet(atoms, 4 * units.fs)
    totals = []
    dynamics.attach(lambda: totals.append(atoms.get_total_energy() / len(atoms)), interval=5)
    dynamics.run(250)
    assert 1e3 * np.ptp(totals) < 5.0
    assert 1000 < atoms.get_temperature() < 3500
    assert 1e3 * abs(np.polyfit(0.02 * np.arange(len(totals)), totals, 1)[0]) < 2.0
