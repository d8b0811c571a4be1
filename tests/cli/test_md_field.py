"""`cace-fast md` in electric fields, and of slabs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from support.command import cace_fast, succeed
from support.md_runs import FIELD, WAVE, arguments, assert_equal_runs, log

from cace_fast.cli.restart import Restart
from cace_fast.cli.simulation import K_CELL
from cace_fast.loading import load


@pytest.mark.parametrize("pbc", [True, False], ids=["periodic", "open"])
def test_the_log_has_field_and_work_and_they_balance_the_energy(md_files, pbc):
    atoms = read("in.xyz")
    atoms.pbc = pbc
    atoms.write("in.xyz")
    run = {"default-dtype": "float64", "timestep": 0.25, "steps": 64} | FIELD
    result = succeed(*arguments(**run))
    rows = {key: np.array([float(row[key]) for row in log()]) for key in log()[0]}
    assert f"work of the field {rows['work_eV'][-1]:.6f} eV" in result.stderr
    for step in (0, 32, 64):
        field = [rows[f"field_{axis}_V_A"][step] for axis in "xyz"]
        np.testing.assert_allclose(field, WAVE(0.25 * step), rtol=1e-12)
    balance = rows["total_eV"] - rows["field_eV"] - rows["work_eV"]
    # what is left is the integrator's own error, which a run without a field has too
    assert np.ptp(balance) < 0.2 * np.ptp(rows["work_eV"])
    assert (np.abs(rows["field_eV"]).max() > 0.01) == (not pbc)
    plain = read("run.extxyz", "-1")
    energy = load("m.safetensors", device="cpu", dtype="float64").compute(plain)["energy"]
    own = rows["potential_eV"][-1] - rows["field_eV"][-1]
    assert own == pytest.approx(energy, abs=1e-6)
    longer = succeed(*arguments(**run | {"steps": 72}), "--restart")
    assert "continuing run after step 64" in longer.stderr
    succeed(*arguments(output="whole", **run | {"steps": 72}))
    assert_equal_runs("whole", "run")
    other = cace_fast(*arguments(**run | {"steps": 75, "field-phase": 31}), "--restart")
    assert "--restart: field: expected OscillatingField(amplitude=(0.3, -0.2, 0.4)" in other.stderr


def test_slabs_run_with_their_vacuum(md_files):
    atoms = read("in.xyz")
    atoms.pbc = (True, True, False)
    atoms.write("in.xyz")
    assert "pbc: expected" in cace_fast(*arguments()).stderr
    succeed(*arguments(**{"slab-vacuum": 15.0, "k-set": "frozen"}))
    last = read("run.extxyz", "-1")
    potential = load("m.safetensors", device="cpu", slab_vacuum=15.0)
    expected = potential.compute(last)["energy"]
    assert last.get_potential_energy() == pytest.approx(expected, abs=1e-5)
    assert K_CELL in Restart.load(Path("run.restart.npz")).arrays
