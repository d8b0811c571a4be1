"""Named tensors and their file."""

from __future__ import annotations

import json
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support import golden

from cace_fast import CheckpointError, InputError, weights
from cace_fast.spec import energy_keys, energy_program, file_to_json, program_from_json, to_json
from cace_fast.weights import Weights, expected_shapes

SPEC, TENSORS = golden.model()


def test_names_and_shapes():
    shapes = expected_shapes(SPEC)
    assert list(shapes) == list(TENSORS)
    assert shapes["mixing.2"] == (4, 3, 4)
    assert shapes["outputs.0.1.layers.2.weight"] == (2, 3)
    assert "outputs.0.1.layers.2.bias" not in shapes  # the charges have no bias


def mixing(tensor):
    """A change of one tensor."""
    return lambda tensors: tensors.update({"mixing.1": tensor})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("mixing.1"), r"weights\['mixing.1'\]: .*got missing"),
        (lambda t: t.update(extra=torch.ones(1)), r"weights\['extra'\]: .*got unknown"),
        (mixing(torch.ones(4, 3, 5)), r"shape \(4, 3, 4\), got .*\(4, 3, 5\)"),
        (mixing(torch.ones(4, 3, 4, dtype=torch.int64)), "floating tensor"),
        (mixing(torch.full((4, 3, 4), torch.nan)), "finite numbers, got NaN"),
    ],
)
def test_wrong_tensors_are_refused(change, message):
    tensors = dict(TENSORS)
    change(tensors)
    with pytest.raises(InputError, match=message):
        Weights(SPEC, tensors)


def test_save_and_load(tmp_path):
    path = tmp_path / "model.safetensors"
    single = {name: t.float() for name, t in TENSORS.items()}
    weights.save(path, SPEC, single)
    spec, found = weights.load(path)
    assert spec == SPEC
    assert all(torch.equal(found[name], single[name]) for name in single)
    assert found["mixing.0"].dtype == torch.float32
    assert os.listdir(tmp_path) == ["model.safetensors"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_shared_and_strided_tensors_are_written(tmp_path):
    tensors = dict(TENSORS)
    tensors["mixing.0"] = torch.ones(1).expand(4, 3, 4)
    tensors["embedding.receiver"] = tensors["embedding.sender"]
    weights.save(tmp_path / "m.safetensors", SPEC, tensors)
    assert weights.load(tmp_path / "m.safetensors")[1]["mixing.0"].sum() == 48


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    weights.save(path, SPEC, TENSORS)
    before = path.read_bytes()

    def broken(*_args, **_kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        weights.save(path, SPEC, TENSORS)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="without a 'cace_fast' specification"):
        weights.load(path)
    save_file({"x": torch.ones(2)}, path, metadata={"cace_fast": "{}"})
    with pytest.raises(CheckpointError, match="version: expected 1 or 2, got None"):
        weights.load(path)
    whole = tmp_path / "model.safetensors"
    weights.save(whole, SPEC, TENSORS)
    data = whole.read_bytes()
    for cut in (0, 7, 100, len(data) // 2, len(data) - 1):
        whole.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match="not a readable safetensors file"):
            weights.load(whole)
    with pytest.raises(FileNotFoundError):
        weights.load(tmp_path / "nothing")


def test_weights_move_without_copies_when_there():
    same = TENSORS.to("cpu", torch.float64)
    assert same["mixing.0"] is TENSORS["mixing.0"]
    assert TENSORS.to("cpu", torch.float32)["mixing.0"].dtype == torch.float32


def content_of(path):
    """The text in the metadata of a file, decoded."""
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["cace_fast"])


def write(path, content):
    """A file of the golden model with another text."""
    save_file(dict(TENSORS), path, metadata={"cace_fast": json.dumps(content)})


def test_the_file_says_what_its_energies_are_made_of(tmp_path):
    path = tmp_path / "model.safetensors"
    weights.save(path, SPEC, TENSORS)
    content = content_of(path)
    assert content["version"] == 2
    assert content["total"] == energy_program(SPEC).energy_key
    programs = [program_from_json(json.dumps(given)) for given in content["programs"]]
    assert programs == [energy_program(SPEC, key) for key in energy_keys(SPEC)]


def test_version_1_keeps_loading(tmp_path):
    path = tmp_path / "old.safetensors"
    save_file(dict(TENSORS), path, metadata={"cace_fast": to_json(SPEC)})
    assert content_of(path)["version"] == 1
    spec, found = weights.load(path)
    assert spec == SPEC
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["programs"].pop(), "programs: expected one of the energy 'total', got none"),
        (lambda c: c["programs"].append(c["programs"][0]), "programs: expected 4 programs, got 5"),
        (lambda c: c["programs"].reverse(), r"programs\[0\]: expected what the specification"),
        (lambda c: c["programs"][3]["heads"][0].update(weight=2.0),
         r"programs\[3\]: expected what the specification makes of the energy 'total'"),
        (lambda c: c["programs"][3]["heads"][0].update(column=1), "EnergyHead.column: expected"),
        (lambda c: c.update(programs=None), "programs: expected a list"),
        (lambda c: c["programs"].__setitem__(0, 7), "expected an EnergyProgram, got int"),
        (lambda c: c.update(total="E"), "total: expected 'total', got 'E'"),
        (lambda c: c.pop("total"), "total: expected 'total'"),
        (lambda c: c.update(more=1), "expected version, model, total and programs"),
        (lambda c: c.update(version=3), "version: expected 1 or 2, got 3"),
        (lambda c: c.update(version=True), "version: expected 1 or 2, got True"),
        (lambda c: c["model"]["submodels"][0]["modules"][2].update(dl=1.6),
         "expected what the specification makes of the energy 'ewald'"),
    ],
)  # fmt: skip
def test_programs_that_do_not_fit_are_refused(tmp_path, change, message):
    path = tmp_path / "model.safetensors"
    content = json.loads(file_to_json(SPEC))
    change(content)
    write(path, content)
    with pytest.raises(CheckpointError, match=message):
        weights.load(path)
