"""`cace-fast info`."""

from __future__ import annotations

import json
import re

import pytest
from support.command import succeed
from support.tiny_models import tiny_potential, tiny_spec, tiny_weights

from cace_fast.spec import ModelSpec, from_json, program_from_json
from cace_fast.weights import Weights, save


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    potential = tiny_potential(
        elements=(8, 1, 29), steps=("M+Ar+Bchi", "Ar"), ewald_channels=2, inputs=("charge_states",)
    )
    potential.save(path)
    return path


def test_what_a_person_looks_for(model):
    text = " ".join(succeed("info", model).stdout.split())
    for fact in (
        "elements H O Cu",
        "cutoff 4 A",
        "l_max 2",
        "nu_max 3",
        "message passing memory+Ar+Bchi, Ar",
        "energy CACE_energy",
        "further inputs charge_states",
        "long range E_lr: Ewald sum over 'q', 1/r^1, dl 1.7 A, sigma 1 A",
        "direct sum below about",
        "on a GPU about 8,400, a prediction",
        "long range of a slab E_lr: where its vacuum is stated (slab_vacuum",
        "precision of the file float64",
        "licence MIT",
        "note made for tests",
        f"bytes {model.stat().st_size:,}",
    ):
        assert fact in text


def test_json_holds_the_whole_specification(model):
    found = json.loads(succeed("info", model, "--json").stdout)
    assert found["elements"] == ["H", "O", "Cu"]
    assert found["energy"] == "CACE_energy"
    assert found["further inputs"] == ["charge_states"]
    options = {"elements": (8, 1, 29), "steps": ("M+Ar+Bchi", "Ar"), "ewald_channels": 2}
    spec = tiny_spec(**options, inputs=("charge_states",))
    assert from_json(json.dumps(found["specification"])) == spec
    assert found["parameters"] == sum(t.numel() for t in tiny_weights(spec).values())
    assert found["features per atom"] == spec.representation.n_features


def test_a_long_range_that_slabs_do_not_have(tmp_path):
    path = tmp_path / "model.safetensors"
    tiny_potential(ewald_channels=1, ewald={"exponent": 6}).save(path)
    assert json.loads(succeed("info", path, "--json").stdout)["long range of a slab"] == [
        "E_lr: none for 1/r^6"
    ]


def test_full_lists_tensors(model):
    text = succeed("info", model, "--full").stdout
    assert "ModelSpec(" in text
    assert "messages.0.bchi.layers.0.weight" in text
    assert "float64" in text


def test_memory_of_a_gpu_grows_with_the_atoms(model):
    pytest.importorskip("triton", reason="its kernels say what they need")
    pattern = r"([\d.]+) GiB for (\d+) atoms, ([\d.]+) kB each with 38 neighbours of 3 elements"
    found = []
    for n in (100_000, 200_000):
        text = json.loads(succeed("info", model, "--json", "--memory", n).stdout)["GPU memory"]
        size, atoms, each = re.fullmatch(pattern, text).groups()
        assert int(atoms) == n
        assert float(size) == pytest.approx(n * float(each) * 1000 / 2**30, rel=0.01)
        found.append(float(size))
    assert found[1] == pytest.approx(2.0 * found[0], rel=0.02)


def test_bare_descriptors(tmp_path):
    whole = tiny_spec()
    spec = ModelSpec(whole.representation)
    tensors = {k: t for k, t in tiny_weights(whole).items() if not k.startswith("outputs.")}
    save(tmp_path / "bare.safetensors", spec, Weights(spec, tensors))
    text = succeed("info", tmp_path / "bare.safetensors").stdout
    assert "bare descriptor: features only" in text


def test_upstream_files(shared):
    path = shared / "data" / "upstream" / "water-mp0-lr" / "model.pth"
    found = json.loads(succeed("info", path, "--json").stdout)
    assert found["elements"] == ["H", "O"]
    assert found["cutoff"] == 5.5
    assert found["source"] == "model.pth"
    assert len(found["sha256 of the source"]) == 64
    assert found["long range"]
    assert found["units"] == {"energy": "eV", "length": "A", "assumed": True}
    assert "eV, A (assumed: upstream's files do not say)" in succeed("info", path).stdout


def test_units_of_a_model_that_states_them():
    assert "assumed" not in succeed("info", "copper-emt").stdout


def test_what_energies_are_made_of(tmp_path):
    path = tmp_path / "model.safetensors"
    potential = tiny_potential(ewald_channels=1)
    potential.save(path)
    found = json.loads(succeed("info", path, "--json").stdout)
    assert found["made of"] == potential.program.parts()
    assert len(found["made of"]) == 2
    texts = [json.dumps(given) for given in found["energy programs"]]
    assert potential.program in [program_from_json(text) for text in texts]
    assert str(potential.program) in succeed("info", path, "--full").stdout
