"""`cace-fast eval` with frames that fail, earlier predictions, and files without structures."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import read, write
from support.command import cace_fast, succeed
from support.tiny_models import tiny_potential

from cace_fast import InputError, load

CIF = """data_x
_cell_length_a 3.6
_cell_length_b 3.6
_cell_length_c 3.6
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_symmetry_space_group_name_H-M 'P 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
"""
SITES = {
    "shared": ("Cu1 Cu 0 0 0 1\nCu2 Cu 0.5 0.5 0 0.6\nNi1 Ni 0.5 0.5 0 0.4\n", "Cu 0.6, Ni 0.4"),
    "rare": ("Cu1 Cu 0 0 0 1\nCu2 Cu 0.5 0.5 0 0.3\n", "Cu 0.3"),
    "split": ("Cu1 Cu 0 0 0 0.5\nCu2 Cu 0.035 0 0 0.5\n", "Cu 0.5"),
}


def frames() -> list[Atoms]:
    found = [bulk("Cu", cubic=True) for _ in range(7)]
    for k, atoms in enumerate(found):
        atoms.rattle(0.02, seed=k)
    return found


def evaluate(*more: object, output: str = "out.xyz") -> object:
    words = ("--configs", "in.xyz", "--model", "copper-emt", "--output", output)
    return cace_fast("eval", *words, *more)


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Seven frames, of which 2 and 5 cannot be evaluated."""
    monkeypatch.chdir(tmp_path)
    found = frames()
    found[2].positions[1] = found[2].positions[0]
    found[5].numbers[0] = 40
    write("in.xyz", found)
    return found


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_good_frames_before_a_bad_one_are_written(broken, batch):
    result = evaluate("--batch-size", batch)
    assert result.exit_code == 3
    assert "frame 2: positions: expected atoms at least" in result.stderr
    done = read("out.xyz", ":")
    assert len(done) == 2
    assert all("CACE_energy" in atoms.info for atoms in done)


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_bad_frames_are_skipped_on_request(broken, batch):
    result = evaluate("--skip-errors", "--batch-size", batch)
    assert result.exit_code == 1
    assert "skipped frame 2: positions: expected atoms at least" in result.stderr
    assert "skipped frame 5: numbers: expected elements among Cu, got Zr" in result.stderr
    assert "2 of 7 frames were skipped" in result.stderr
    assert "wrote out.xyz: 5 frames" in result.stderr
    done, potential = read("out.xyz", ":"), load("copper-emt", device="cpu")
    for atoms, k in zip(done, (0, 1, 3, 4, 6), strict=True):
        np.testing.assert_allclose(atoms.positions, broken[k].positions, atol=1e-8)
        expected = potential.compute(broken[k])["energy"]
        assert atoms.info["CACE_energy"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kept", [1, 3, 4])
def test_a_run_that_skips_continues(broken, kept):
    evaluate("--skip-errors")
    whole = Path("out.xyz").read_bytes()
    lines = whole.splitlines(keepends=True)
    Path("out.xyz").write_bytes(b"".join(lines[: 6 * kept + 3]))  # frames of 4 atoms
    result = evaluate("--skip-errors")
    assert result.exit_code == 1
    assert f"holds {kept} frames of an interrupted run" in result.stderr
    assert "2 of 7 frames were skipped" in result.stderr
    assert Path("out.xyz").read_bytes() == whole


def test_nothing_is_left_where_nothing_was_written(broken):
    write("in.xyz", broken[2])
    assert evaluate().exit_code == 3
    assert not Path("out.xyz").exists()
    assert evaluate("--skip-errors").exit_code == 1
    assert not Path("out.xyz").exists()


def test_frames_without_atoms(broken):
    text = "0\nProperties=species:S:1:pos:R:3\n"
    Path("in.xyz").write_text(text)
    result = evaluate()
    assert result.exit_code == 3
    assert "frame 0: atoms: expected at least one atom, got none" in result.stderr
    for command in ("bench", "verify"):
        result = cace_fast(command, "copper-emt", "in.xyz")
        assert result.exit_code == 3
        assert "STRUCTURE: expected a structure with at least one atom" in result.stderr


def test_predictions_of_another_model_give_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_potential(ewald_channels=1).save("m.safetensors")
    atoms = Atoms("OH", positions=[[0, 0, 0], [1, 0, 0]], cell=[6, 6, 6], pbc=True)
    atoms.info["CACE_remark"], atoms.info["energy_of_dft"] = "mine", 1.0
    write("in.xyz", [atoms, atoms])
    names = "energy,forces,charges,bec,stress"
    succeed("eval", "--configs", "in.xyz", "--model", "m.safetensors", "--output", "first.xyz",
            "--properties", names)  # fmt: skip
    tiny_potential(seed=2).save("n.safetensors")
    words = ("eval", "--configs", "first.xyz", "--model", "n.safetensors", "--output")
    for output in ("second.xyz", "second.xyz"):  # again: it is complete, and recognised as its own
        result = cace_fast(*words, output, "--properties", "energy,forces")
    assert "second.xyz is complete (2 frames)" in result.stderr
    last = read("second.xyz", "-1")
    own = {key for key in (*last.info, *last.arrays) if key.startswith("CACE_")}
    assert own == {"CACE_energy", "CACE_forces", "CACE_model", "CACE_remark"}
    assert last.info["energy_of_dft"] == 1.0
    text = Path("second.xyz").read_text().splitlines(keepends=True)
    Path("second.xyz").write_text("".join(text[:6]))  # one whole frame, and a part of the other
    succeed(*words, "second.xyz", "--properties", "energy,forces")
    assert Path("second.xyz").read_text() == "".join(text)


@pytest.mark.parametrize("kind", SITES)
def test_partial_occupancies_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    sites, named = SITES[kind]
    Path("a.cif").write_text(CIF + sites)
    result = cace_fast("eval", "--configs", "a.cif", "--model", "copper-emt", "--output", "o.xyz")
    assert result.exit_code == 3
    assert "frame 0: occupancy: expected sites with one whole atom each, got " in result.stderr
    assert named in result.stderr
    assert cace_fast("verify", "copper-emt", "a.cif").exit_code == 3
    atoms = read("a.cif")
    with pytest.raises(InputError, match="occupancy: expected sites with one whole atom each"):
        load("copper-emt").compute(atoms)
    del atoms.info["occupancy"]
    assert np.isfinite(load("copper-emt").compute(atoms, min_dist=None)["energy"])


def test_whole_occupancies_are_taken(tmp_path):
    (tmp_path / "a.cif").write_text(CIF + "Cu1 Cu 0 0 0 1\nCu2 Cu 0.5 0.5 0 1.0\n")
    atoms = read(tmp_path / "a.cif")
    assert "occupancy" in atoms.info
    assert np.isfinite(load("copper-emt").compute(atoms)["energy"])
    atoms.info["occupancy"] = {"of": "something else"}
    assert np.isfinite(load("copper-emt").compute(atoms)["energy"])
    atoms.arrays["occupancy"] = np.array([1.0, 0.5])
    with pytest.raises(InputError, match=r"got 0.5 at atom 1\. .* atoms.arrays"):
        load("copper-emt").compute(atoms)


def test_a_pdb_file_without_a_cell_is_open(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    atoms = Atoms("Cu3", positions=[[0, 0, 0], [2.5, 0, 0], [0, 2.5, 0]])
    write("a.pdb", atoms)
    none = "CRYST1    1.000    1.000    1.000  90.00  90.00  90.00 P 1           1\n"
    Path("a.pdb").write_text(none + Path("a.pdb").read_text())
    words = ("eval", "--configs", "a.pdb", "--model", "copper-emt", "--output", "o.xyz")
    result = succeed(*words)
    assert "frame 0 of a.pdb: a cell of 1 x 1 x 1 A stands for none" in result.stderr
    found = read("o.xyz")
    assert not found.pbc.any()
    expected = load("copper-emt", device="cpu").compute(atoms)["energy"]
    assert found.info["CACE_energy"] == pytest.approx(expected, abs=1e-5)


EVAL = ("eval", "--configs", "in.xyz", "--model", "copper-emt", "--output")
RELAX = ("relax", "copper-emt", "in.xyz", "--output")
PATHS = [
    ((*EVAL, "o.traj"), "--output: expected a name that ends in .xyz or .extxyz, got o.traj. ASE"),
    ((*RELAX, "o.cif"), "--output: expected a name that ends in .xyz or .extxyz, got o.cif. ASE"),
    ((*EVAL, "no/o.xyz"), "--output: no such folder: no. Make it first."),
    ((*RELAX, "no/o.xyz"), "--output: no such folder: no. Make it first."),
    (("bench", "copper-emt", "in.xyz", "--output", "no/o.json"), "--output: no such folder: no."),
    (("convert", "copper-emt", "no/o.safetensors"), "OUTPUT: no such folder: no. Make it first."),
    (("relax", "copper-emt", "pipe", "--output", "o.xyz"), "STRUCTURE: expected a file, got pipe"),
    ((*EVAL, "o.xyz", "--configs", "pipe"), "--configs: expected a file, got pipe, a pipe or dev"),
    ((*EVAL, "pipe.xyz", "--force"), "--output: expected a name for a file, got pipe.xyz, a pipe"),
    (("verify", "copper-emt", "x" * 400), "STRUCTURE: expected a path of this system, got 'xxxx"),
    (("bench", "copper-emt", "."), "STRUCTURE: expected a file, got ., a folder"),
    (("bench", "copper-emt", "--compare", "pipe"), "--compare: expected a file, got pipe"),
]


@pytest.mark.parametrize(("words", "text"), PATHS)
def test_paths(broken, words, text):
    for name in ("pipe", "pipe.xyz"):
        os.mkfifo(name)
    before = sorted(os.listdir())
    result = cace_fast(*words)
    assert result.exit_code == 3
    assert text in result.stderr
    assert sorted(os.listdir()) == before


def test_the_last_of_several_frames_is_told(broken):
    write("in.xyz", frames())
    result = succeed("relax", "copper-emt", "in.xyz", "--output", "o.xyz", "--fmax", 0.5)
    assert "in.xyz has 7 frames: the last one is taken" in result.stderr
