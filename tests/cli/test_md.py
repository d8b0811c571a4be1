"""`cace-fast md`: right physics, and runs that are killed and continued bit for bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.io import read
from ase.md.verlet import VelocityVerlet
from support.command import cace_fast, start, succeed
from support.md_runs import (
    ENSEMBLES,
    OPTIONS,
    WAVE,
    Killed,
    arguments,
    assert_equal_runs,
    kill_after,
    log,
    simulation,
    whole_run,
)
from support.tiny_models import tiny_potential, tiny_spec, tiny_structure

from cace_fast.cli.restart import Restart
from cace_fast.cli.simulation import WORK, Simulation
from cace_fast.interfaces.ase import CACECalculator
from cace_fast.loading import load


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_outputs(md_files, ensemble):
    succeed(*arguments(ensemble))
    rows, frames = log(), read("run.extxyz", ":")
    assert [int(row["step"]) for row in rows] == list(range(13))
    assert [atoms.info["step"] for atoms in frames] == [0, 4, 8, 12]
    potential = load("m.safetensors", device="cpu")
    for atoms in frames:
        row = rows[atoms.info["step"]]
        found = potential.compute(atoms, ("energy", "forces"))
        assert float(row["potential_eV"]) == pytest.approx(found["energy"], abs=1e-5)
        assert atoms.get_potential_energy() == float(row["potential_eV"])
        assert np.allclose(atoms.get_forces(), found["forces"], atol=1e-5)
        kinetic = (atoms.get_momenta() ** 2 / atoms.get_masses()[:, None]).sum() / 2
        assert float(row["kinetic_eV"]) == pytest.approx(kinetic, abs=1e-5)
        assert float(row["volume_A3"]) == pytest.approx(atoms.get_volume(), rel=1e-6)
    volumes = {row["volume_A3"] for row in rows}
    assert (len(volumes) > 1) == (ensemble == "npt")
    assert ("pressure_GPa" in rows[0]) == ("conserved_eV" in rows[0]) == (ensemble == "npt")


def test_nve_is_velocity_verlet_of_the_model(md_files):
    succeed(*arguments("nve", timestep=0.5, **{"default-dtype": "float64"}))
    first, *_, last = read("run.extxyz", ":")
    rows = log()
    totals = np.array([float(row["total_eV"]) for row in rows])
    kinetic = np.array([float(row["kinetic_eV"]) for row in rows])
    assert np.ptp(totals) < 0.01 * np.ptp(kinetic)
    atoms = first.copy()
    atoms.calc = CACECalculator("m.safetensors", default_dtype="float64")
    VelocityVerlet(atoms, 0.5 * units.fs).run(12)
    assert np.allclose(atoms.positions, last.positions, atol=1e-6)


def test_first_momenta(md_files):
    """Drawn from the temperature with the seed, the centre of mass at rest; else those given."""
    tiny_structure(tiny_spec(**OPTIONS), 6).write("in.xyz")
    for output, options in (("a", {}), ("b", {}), ("c", {"seed": 1}), ("d", {"temperature": 1200})):
        succeed(*arguments(output=output, steps=1, **{"traj-every": 1}, **options))
    a, b, c, d = (read(f"{name}.extxyz", "0").get_momenta() for name in "abcd")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert np.allclose(2 * a, d, atol=1e-7)
    assert np.allclose(a.sum(0), 0.0, atol=1e-5)
    assert float(log("a")[0]["temperature_K"]) == pytest.approx(300.0, rel=0.1)
    atoms = read("a.extxyz", "0")
    atoms.set_momenta(3 * a)
    atoms.write("in.xyz")
    succeed(*arguments(output="e", steps=1, temperature=5))
    assert np.allclose(read("e.extxyz", "0").get_momenta(), 3 * a, atol=1e-7)


def test_thermostat_and_barostat_get_their_settings(md_files):
    """With strong friction the bath sets the temperature; the pressure sets the volume."""
    succeed(*arguments(output="warm", steps=1))
    read("warm.extxyz", "0").write("in.xyz")  # has momenta of 300 K
    last = []
    for temperature, friction in ((1500, 0.2), (1, 0.2), (1, 0.0)):
        bath = {"steps": 60, "temperature": temperature, "friction": friction, "seed": 5}
        name = f"bath-{temperature}-{friction}"
        succeed(*arguments("nvt", name, **bath))
        last.append(np.mean([float(row["temperature_K"]) for row in log(name)[-20:]]))
    hot, cold, free = last
    assert hot > 1.5 * free
    assert cold < free / 3
    succeed(*arguments("npt", "pressed", steps=40, pressure=20))
    succeed(*arguments("npt", "pulled", steps=40, pressure=-20))
    volumes = [float(log(name)[-1]["volume_A3"]) for name in ("pressed", "pulled")]
    assert volumes[0] < float(log("pressed")[0]["volume_A3"]) < volumes[1]


@pytest.mark.parametrize("field", [None, WAVE], ids=["", "field"])
@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_runs_killed_after_any_step_continue_bit_for_bit(md_files, ensemble, field):
    whole_run(ensemble, field)
    for step in (1, 4, 5, 6, 10, 11):
        run = simulation(ensemble, "cut", field=field)
        with closing(run.outputs):
            run.begin(force=True)
            with pytest.raises(Killed):
                run.run(12, 5, kill_after(step, run))
        # what a kill in the middle of a write leaves behind
        with open("cut.extxyz", "ab") as file:
            file.write(b"8\nLattice=")
        with open("cut.csv", "ab") as file:
            file.write(b"7,7.0,")
        Path("cut.restart.npz.part").write_bytes(b"half a restart file")
        again = simulation(ensemble, "cut", field=field)
        with closing(again.outputs):
            again.resume()
            assert again.step == 5 * (step // 5)
            again.run(12, 5, lambda: None)
        assert_equal_runs("whole", "cut")
    assert not Path("cut.restart.npz.part").exists()
    assert (WORK in Restart.load(Path("cut.restart.npz")).arrays) == (field is not None)


@pytest.mark.parametrize("moment", ["before the restart file", "after it", "after the outputs"])
def test_runs_killed_while_they_begin_continue(md_files, monkeypatch, moment):
    succeed(*arguments(output="whole"))
    places = {
        "before the restart file": "cace_fast.cli.simulation.Simulation._save",
        "after it": "cace_fast.cli.outputs.Outputs.open",
        "after the outputs": "cace_fast.cli.simulation.Simulation.run",
    }

    def die(*_):
        raise Killed

    monkeypatch.setattr(places[moment], die)
    with pytest.raises(Killed):
        cace_fast(*arguments(), catch_exceptions=False)
    monkeypatch.undo()
    monkeypatch.chdir(md_files)
    succeed(*arguments(), "--restart")
    assert_equal_runs("whole", "run")


@pytest.mark.parametrize(("ensemble", "lines"), [("nve", 12), ("nvt", 26), ("npt", 45)])
def test_a_process_killed_by_sigkill_continues_bit_for_bit(md_files, ensemble, lines):
    """A real SIGKILL, a second process that continues, and a third that nobody killed."""
    words = [*arguments(ensemble, steps=60, **{"restart-every": 7}), "--restart"]
    process = start(*words)
    deadline = time.monotonic() + 120
    while not Path("run.csv").exists() or Path("run.csv").read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed = Restart.load(Path("run.restart.npz")).step
    assert 0 < killed < 60
    continued = start(*words)
    _, text = continued.communicate()
    assert continued.returncode == 0, text
    assert f"continuing run after step {killed}" in text
    whole = start(*arguments(ensemble, "whole", steps=60, **{"restart-every": 7}))
    _, text = whole.communicate()
    assert whole.returncode == 0, text
    assert_equal_runs("whole", "run")


def test_longer_runs_continue_shorter_ones(md_files):
    succeed(*arguments("nvt", "whole", steps=12))
    succeed(*arguments("nvt", steps=7), "--restart")
    result = succeed(*arguments("nvt", steps=12), "--restart")
    assert "continuing run after step 7" in result.stderr
    assert_equal_runs("whole", "run")
    again = succeed(*arguments("nvt", steps=12), "--restart")
    assert "step 12" in again.stderr
    assert_equal_runs("whole", "run")


def test_neighbours_are_searched_anew_at_every_restart_write(md_files, monkeypatch):
    calls = []
    honest = CACECalculator.reset_neighbors
    monkeypatch.setattr(
        CACECalculator, "reset_neighbors", lambda self: (calls.append(1), honest(self))
    )
    succeed(*arguments(steps=12))
    assert len(calls) == 4  # at the beginning, after 5, 10 and 12 steps


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"temperature": 301}, "temperature: expected 300.0 as in the run"),
        ({"timestep": 0.5}, "timestep: expected 1.0"),
        ({"seed": 4}, "seed: expected 0"),
        ({"traj-every": 2}, "traj_every: expected 4"),
        ({"default-dtype": "float64"}, "precision: expected float32 "),
        ({"ensemble": "npt"}, "ensemble: expected nve"),
        ({"field": "0,0,0.1"}, "field: expected None"),
        ({"slab-vacuum": 9}, "slab_vacuum: expected None"),
    ],
)
def test_other_settings_are_refused(md_files, options, name):
    succeed(*arguments(steps=6))
    before = Path("run.extxyz").read_bytes()
    result = cace_fast(*arguments(options.pop("ensemble", "nve"), steps=12, **options), "--restart")
    assert result.exit_code == 3
    assert f"--restart: {name}" in result.stderr
    assert Path("run.extxyz").read_bytes() == before


def test_another_model_or_structure_is_refused(md_files):
    succeed(*arguments(steps=6))
    shutil.copy("m.safetensors", "kept")
    tiny_potential(seed=2, **OPTIONS).save("m.safetensors")
    assert "--restart: model: expected" in cace_fast(*arguments(), "--restart").stderr
    shutil.copy("kept", "m.safetensors")
    atoms = read("in.xyz")
    atoms.info["name"] = "another"
    atoms.write("in.xyz")
    assert "--restart: structure: expected" in cace_fast(*arguments(), "--restart").stderr


def test_nothing_is_overwritten_without_force(md_files):
    succeed(*arguments(steps=6))
    before = {p: p.read_bytes() for p in md_files.iterdir()}
    result = cace_fast(*arguments(steps=6))
    assert result.exit_code == 3
    assert "run.restart.npz exists already. Pass --restart to continue its run." in result.stderr
    Path("run.restart.npz").unlink()
    lost = cace_fast(*arguments(steps=6), "--restart")
    assert "run.extxyz exists already" in lost.stderr
    after = {p: p.read_bytes() for p in md_files.iterdir()}
    assert after == {p: b for p, b in before.items() if p.name != "run.restart.npz"}
    succeed(*arguments(steps=6, seed=3), "--force")
    assert Path("run.csv").read_bytes() != before[md_files / "run.csv"]


def damaged(path):
    path.write_bytes(path.read_bytes()[:-100])


def of_other_kind(path):
    np.savez(path, head=np.frombuffer(json.dumps({"version": 99}).encode(), dtype=np.uint8))


class Trap:
    """A class whose unpickling a hostile file would use to run code."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


def with_objects(path):
    """An array of Python objects would be a pickle: code that runs when it is read."""
    np.savez(path, head=np.array([Trap()], dtype=object))


@pytest.mark.parametrize("spoil", [damaged, of_other_kind, with_objects])
def test_damaged_restart_files(md_files, spoil):
    succeed(*arguments(steps=6))
    spoil(Path("run.restart.npz"))
    result = cace_fast(*arguments(), "--restart")
    assert result.exit_code == 3
    assert "--restart: expected a restart file of cace-fast md" in result.stderr
    assert not Path("trapped").exists()


def test_outputs_that_are_too_short(md_files):
    succeed(*arguments(steps=6))
    Path("run.csv").write_bytes(b"")
    result = cace_fast(*arguments(), "--restart")
    assert result.exit_code == 3
    assert "got 0 bytes in run.csv" in result.stderr


def test_states_of_another_ase_are_refused(md_files):
    """An attribute that the integrator has and the file lacks would be lost without a word."""
    succeed(*arguments("npt", steps=6))
    saved = Restart.load(Path("run.restart.npz"))
    del saved.arrays["_thermostat._p_eta"]
    saved.save(Path("run.restart.npz"))
    result = cace_fast(*arguments("npt"), "--restart")
    assert result.exit_code == 3
    assert "got one without _thermostat._p_eta" in result.stderr


def test_wrong_arguments(md_files):
    assert "--timestep: expected a time above 0" in cace_fast(*arguments(timestep=0)).stderr
    both = cace_fast(*arguments(), "--restart", "--force")
    assert "--force: expected either --restart or --force" in both.stderr
    for options, text in (
        ({"field": "1,x,2"}, "--field: expected numbers X,Y,Z, got '1,x,2'"),
        ({"field-frequency": 5}, "--field: expected X,Y,Z in V/A, with --field-..., got none"),
        ({"field": "0,0,1", "field-pulse": "3"}, "--field-pulse: expected numbers T0,WIDTH, got"),
        ({"field": "0,0,1", "field-pulse": "3,-1"}, "--field-pulse: expected a width above 0 fs"),
    ):
        assert text in cace_fast(*arguments(**options)).stderr
    atoms = read("in.xyz")
    atoms.pbc = False
    atoms.write("in.xyz")
    result = cace_fast(*arguments("npt"))
    assert result.exit_code == 3
    assert "--ensemble npt: needs a structure that is periodic in three" in result.stderr
    assert not Path("run.csv").exists()


def test_interrupts_say_how_to_continue(md_files, monkeypatch):
    def interrupt(self, *_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Simulation, "run", interrupt)
    result = cace_fast(*arguments())
    assert result.exit_code == 130
    assert "interrupted after step 0; --restart continues" in result.stderr


def test_further_inputs_and_results_of_the_file(md_files):
    """Inputs of the model are kept, and an old energy of the file is no obstacle."""
    options = {"inputs": ("charge_states",)}
    tiny_potential(**options).save("m.safetensors")
    atoms = tiny_structure(tiny_spec(**options), 2)
    atoms.info["free_energy"] = 1.0
    atoms.write("in.xyz")
    succeed(*arguments(steps=4))
    last = read("run.extxyz", "-1")
    expected = load("m.safetensors", device="cpu").compute(last)["energy"]
    assert last.get_potential_energy() == pytest.approx(expected, abs=1e-5)
