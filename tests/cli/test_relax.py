"""`cace-fast relax`."""

from __future__ import annotations

import numpy as np
import pytest
from ase.io import read
from support.command import cace_fast, succeed
from support.tiny_models import tiny_potential, tiny_structure

from cace_fast.loading import load


@pytest.fixture
def files(tmp_path):
    potential = tiny_potential()
    potential.save(tmp_path / "m.safetensors")
    tiny_structure(potential.spec, 3).write(tmp_path / "in.xyz")
    return tmp_path


def relax(files, *more):
    output = ["--output", files / "out.xyz"]
    return cace_fast("relax", files / "m.safetensors", files / "in.xyz", *output, *more)


@pytest.mark.parametrize("optimizer", ["fire", "bfgs", "lbfgs"])
def test_forces_vanish(files, optimizer):
    result = relax(files, "--optimizer", optimizer, "--fmax", "0.02")
    assert result.exit_code == 0, result.stderr
    assert "converged after" in result.stderr
    atoms = read(files / "out.xyz")
    found = load(files / "m.safetensors", dtype="float64", device="cpu").compute(atoms)
    assert np.linalg.norm(found["forces"], axis=1).max() < 0.0201
    assert atoms.get_potential_energy() == pytest.approx(found["energy"], abs=1e-6)
    assert np.allclose(atoms.get_forces(), found["forces"], atol=1e-5)
    assert np.array_equal(atoms.cell, read(files / "in.xyz").cell)


def test_the_cell_relaxes_on_request(files):
    assert relax(files, "--cell", "--fmax", "0.01").exit_code == 0
    atoms = read(files / "out.xyz")
    potential = load(files / "m.safetensors", dtype="float64", device="cpu")
    assert abs(potential.compute(atoms, ("virials",))["virials"]).max() / len(atoms) < 0.01
    assert abs(atoms.get_volume() / read(files / "in.xyz").get_volume() - 1.0) > 0.01


def test_slabs_relax_with_their_vacuum(files):
    """The forces are those of the slab with this vacuum, and of no other."""
    tiny_potential(ewald_channels=1, ewald={"norm_factor": 5.0}).save(files / "m.safetensors")
    atoms = read(files / "in.xyz")
    atoms.pbc = (True, True, False)
    atoms.write(files / "in.xyz")
    assert "pbc: expected all or no directions periodic" in relax(files).stderr
    assert not (files / "out.xyz").exists()
    words = ("--steps", "3", "--default-dtype", "float64")
    assert "NOT converged after 3 steps" in relax(files, "--slab-vacuum", "2.5", *words).stderr
    atoms = read(files / "out.xyz")
    forces = {
        vacuum: load(
            files / "m.safetensors", dtype="float64", device="cpu", slab_vacuum=vacuum
        ).compute(atoms)["forces"]
        for vacuum in (2.5, 12.0)
    }
    assert np.allclose(atoms.get_forces(), forces[2.5], rtol=0, atol=1e-6)
    assert not np.allclose(atoms.get_forces(), forces[12.0], rtol=0, atol=1e-4)


def test_what_has_not_converged_is_written_and_said(files):
    result = relax(files, "--steps", "2")
    assert result.exit_code == 1
    assert "NOT converged after 2 steps" in result.stderr
    assert len(read(files / "out.xyz")) == 27


def test_nothing_is_overwritten_without_force(files):
    (files / "out.xyz").write_text("precious")
    result = relax(files)
    assert result.exit_code == 3
    assert "exists already" in result.stderr
    assert (files / "out.xyz").read_text() == "precious"
    assert relax(files, "--force", "--fmax", "0.5").exit_code == 0


def test_wrong_arguments(files):
    atoms = read(files / "in.xyz")
    atoms.pbc = (True, True, False)
    atoms.write(files / "in.xyz")
    assert "--cell: needs a structure that is periodic in three" in relax(files, "--cell").stderr
    result = relax(files, "--fmax", "0")
    assert result.exit_code == 3
    assert "--fmax: expected a force above 0" in result.stderr
    assert not (files / "out.xyz").exists()


def test_results_of_the_file_give_way(files):
    """A file may have an energy under a name that the calculator uses."""
    atoms = read(files / "in.xyz")
    atoms.arrays["forces"] = np.ones((27, 3))
    atoms.write(files / "in.traj")
    model, out = files / "m.safetensors", files / "out.xyz"
    succeed("relax", model, files / "in.traj", "--output", out, "--fmax", "0.5")
    assert np.abs(read(out).get_forces()).max() < 0.5
