"""Named tensors and their file."""

from __future__ import annotations

import os
import stat

import pytest
import torch
from safetensors.torch import save_file
from support import golden

from cace_fast import CheckpointError, InputError, weights
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

    monkeypatch.setattr(weights, "save_file", broken)
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
    with pytest.raises(CheckpointError, match="version: expected 1"):
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
