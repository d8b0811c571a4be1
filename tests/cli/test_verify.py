"""`cace-fast verify`: the table, the exit code, JSON."""

from __future__ import annotations

import json

import pytest
from support.command import cace_fast, succeed
from support.tiny_models import tiny_potential, tiny_structure

from cace_fast.potential import Potential


@pytest.fixture
def files(tmp_path):
    potential = tiny_potential()
    potential.save(tmp_path / "m.safetensors")
    tiny_structure(potential.spec, 2).write(tmp_path / "in.xyz")
    return tmp_path


def break_forces(monkeypatch):
    honest = Potential.evaluate

    def evaluate(self, *arguments, **options):
        results = honest(self, *arguments, **options)
        for result in results:
            if "forces" in result:
                result["forces"] = 1.01 * result["forces"]
        return results

    monkeypatch.setattr(Potential, "evaluate", evaluate)


def test_a_sound_model(files):
    text = succeed("verify", files / "m.safetensors", "--steps", "5").stdout
    assert "float32), on a structure made from its elements" in text
    assert "forces = -dE/dr of the float64 energy" in text
    assert "latent charges = float64 reference" in text
    assert text.rstrip().endswith("all 25 checks ok")


def test_a_structure_of_ones_own(files):
    options = ("--steps", "5", "--default-dtype", "float64")
    text = succeed("verify", files / "m.safetensors", files / "in.xyz", *options).stdout
    assert f"float64), {files / 'in.xyz'}" in text


def test_a_wrong_model_fails(files, monkeypatch):
    break_forces(monkeypatch)
    result = cace_fast("verify", files / "m.safetensors", files / "in.xyz", "--steps", "5")
    assert result.exit_code == 1
    *lines, last = result.stdout.splitlines()
    failed = [line for line in lines if line.endswith(" FAILED")]
    assert any(line.startswith("forces = float64 reference") for line in failed)
    assert last == f"{len(failed)} of 25 checks FAILED"


def test_json(files, monkeypatch):
    sound = json.loads(succeed("verify", files / "m.safetensors", "--json", "--steps", "2").stdout)
    assert sound["ok"] is True
    assert all(row["ok"] and row["value"] <= row["limit"] for row in sound["checks"])
    break_forces(monkeypatch)
    result = cace_fast("verify", files / "m.safetensors", "--json", "--steps", "2")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["ok"] is False


def test_upstream_files(shared):
    path = shared / "data" / "upstream" / "water-mp0-lr" / "model.pth"
    assert "checks ok" in succeed("verify", path, "--steps", "3").stdout
