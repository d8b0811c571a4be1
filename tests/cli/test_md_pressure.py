"""`cace-fast md` at constant pressure: the right pressure, one k set, no volume that runs away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.io import read
from scipy.optimize import brentq
from support.command import cace_fast, succeed
from support.md_runs import arguments, log

from cace_fast.cli.integrators import draw_momenta
from cace_fast.cli.restart import Restart
from cace_fast.cli.simulation import K_CELL
from cace_fast.loading import load


def test_constant_pressure_keeps_the_vectors_k_of_the_first_cell(md_files):
    first = read("in.xyz").cell[:]
    result = succeed(*arguments("npt", steps=12, pressure=20))
    assert "the vectors k of the first cell, kept (--k-set frozen)" in result.stderr
    saved = Restart.load(Path("run.restart.npz")).arrays
    assert np.array_equal(saved[K_CELL], first)
    assert not np.array_equal(saved["atoms.cell"], first)
    potential = load("m.safetensors", device="cpu", k_set="frozen")
    potential.long_range.reference_cell, last = first, read("run.extxyz", "-1")
    assert abs(last.get_potential_energy() - potential.compute(last)["energy"]) < 1e-6
    result = succeed(*arguments("npt", "own", pressure=20), "--k-set", "sphere")
    assert "vectors k" not in result.stderr
    assert K_CELL not in Restart.load(Path("own.restart.npz")).arrays
    other = cace_fast(*arguments("npt", "own", steps=20, pressure=20), "--restart")
    assert "--restart: k_set: expected sphere as in the run" in other.stderr


def copper(volume, pressure, steps, timestep):
    """Return the log of 32 atoms of copper at constant pressure that begin at 300 K."""
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.set_cell(np.eye(3) * volume ** (1 / 3), scale_atoms=True)
    draw_momenta(atoms, 600.0, np.random.default_rng(0))  # half of it goes into the lattice
    atoms.write("cu.xyz")
    run = {"steps": steps, "timestep": timestep, "pressure": pressure, "traj-every": 10**6}
    words = arguments("npt", **run, **{"default-dtype": "float64", "restart-every": 10**6})
    succeed("md", "copper-emt", "cu.xyz", *words[3:], "--force")
    return {key: np.array([float(row[key]) for row in log()]) for key in log()[0]}


def test_constant_pressure_is_that_of_the_equation_of_state(md_files):
    """A crystal at the volume of 5 GPa stays there; one that begins wider goes there."""
    potential = load("copper-emt", device="cpu", dtype="float64")

    def excess(volume):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(np.eye(3) * (volume / 8) ** (1 / 3), scale_atoms=True)
        cold = -potential.compute(atoms, ("stress",))["stress"].trace() / 3
        thermal = 2.0 * 3 * units.kB * 300.0 * 32 / volume  # Grueneisen's, gamma about 2
        return (cold + thermal) / units.GPa - 5.0

    volume = brentq(excess, 350.0, 390.0)
    found = copper(volume, 5.0, 600, 3.0)
    assert found["volume_A3"].mean() == pytest.approx(volume, rel=3e-3)
    assert found["pressure_GPa"].mean() == pytest.approx(5.0, abs=0.2)
    assert found["temperature_K"].mean() == pytest.approx(300.0, abs=40.0)
    wide = copper(1.02 * volume, 5.0, 150, 3.0)["volume_A3"]
    assert wide.min() < volume < wide[0]


def test_constant_pressure_conserves_to_the_order_of_the_integrator(md_files):
    wide, fine = (np.ptp(copper(378.0, 0.0, 160 * k, 4.0 / k)["conserved_eV"]) for k in (1, 2))
    assert 3.0 < wide / fine < 5.5
    kinetic = 1.5 * 32 * units.kB * 300.0
    assert wide < 0.01 * kinetic


def test_a_cell_that_runs_away_ends_the_run(md_files):
    """Atoms coincide: the typed error comes before the volume is nonsense."""
    atoms = read("in.xyz")
    atoms.set_cell(0.6 * atoms.cell[:], scale_atoms=True)
    atoms.write("in.xyz")
    words = arguments("npt", steps=400, temperature=3000, timestep=0.5)
    result = cace_fast(*words, "--k-set", "sphere")
    assert result.exit_code == 3
    volume = atoms.get_volume()
    assert (
        f"--ensemble npt: expected a volume within a factor of 3 of the first, {volume:.0f} A^3"
        in (result.stderr)
    )
    assert "run --ensemble nvt first and begin with its last frame" in result.stderr
    last = log()[-1]
    assert float(last["volume_A3"]) > 3 * volume > float(log()[-2]["volume_A3"])
    assert f"A^3 after step {last['step']}, at " in result.stderr
