"""Read-outs of upstream that are easily misread: batch norm, biases of residual blocks, weights."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from support import upstream_like as u
from support.script_like import save_script
from support.tiny_models import tiny_spec, tiny_structure

from cace_fast import Potential, checkpoint
from cace_fast.errors import UnsupportedModelError
from cace_fast.spec import MLP
from cace_fast.weights import Weights

REP = u.representation()
N = u.n_features(REP)


def _normed():
    readout = u.atomwise(u.Numbers(), N, use_batchnorm=True)
    return u.potential(u.representation(), readout, u.forces())


@pytest.mark.parametrize("layer", ["outnet.0", "outnet.1", "linear_nn"])
def test_batch_norm_in_training_mode_is_refused(tmp_path, layer):
    """Upstream's result would depend on the batch; one layer is enough."""
    model = _normed()
    checkpoint.from_module(model)
    changed = copy.deepcopy(model)
    changed.output_modules[0].get_submodule(layer).batchnorm.train()
    message = (
        rf"{layer}\.batchnorm .*saved in training mode.*call model\.eval\(\) and save it again"
    )
    u.save(changed, tmp_path / "m.pth")
    with pytest.raises(UnsupportedModelError, match=message):
        checkpoint.read(tmp_path / "m.pth")
    with pytest.raises(UnsupportedModelError, match=message):
        checkpoint.from_module(changed)
    changed.eval()  # the remedy
    u.save(changed, tmp_path / "m.pth")
    checkpoint.read(tmp_path / "m.pth")


def test_training_mode_without_batch_norm_means_nothing(tmp_path):
    model = u.water_like().train()
    u.save(model, tmp_path / "m.pth")
    checkpoint.read(tmp_path / "m.pth")
    save_script(u.water_like(), tmp_path / "script")
    checkpoint.read(tmp_path / "script")


def _residual(skip, bias=False, inner=True):
    """Return a residual read-out; ``bias`` is the setting, ``inner`` says what blocks have."""
    numbers, widths = u.Numbers(), (N, 6, 6 if skip else 5)
    blocks = []
    for n_in, n_out in pairwise(widths):
        layers = [
            u.dense(numbers, n_in, n_out, bias=inner),
            u.dense(numbers, n_out, n_out, bias=inner),
        ]
        same = n_in == n_out
        modules = {"a": layers[0], "b": layers[1]}
        modules["skip"] = (
            torch.nn.Identity() if same else u.dense(numbers, n_in, n_out, None, inner)
        )
        blocks.append(u.make("cace.modules.blocks.ResidualBlock", modules=modules))
    readout = u.atomwise(numbers, N, residual=True, bias=bias)
    readout.outnet = torch.nn.Sequential(*blocks, u.dense(numbers, widths[-1], 1, None, bias))
    return readout


@pytest.mark.parametrize("skip", [True, False])
def test_residual_blocks_keep_their_biases(tmp_path, skip):
    model = u.potential(u.representation(), _residual(skip), u.forces())
    u.save(model, tmp_path / "m.pth")
    spec, tensors = checkpoint.read(tmp_path / "m.pth")
    module = spec.submodels[0].modules[0]
    width = 6 if skip else 5
    assert module.mlp == MLP((N, 6, 6, width, width, 1), bias=False, residual=True)
    names = [f"outputs.0.0.{part}.bias" for part in
             ("layers.0", "layers.3", "skips.0", *([] if skip else ["skips.1"]))]  # fmt: skip
    assert set(names) <= set(tensors)
    for part in ("layers.4", "linear"):
        assert f"outputs.0.0.{part}.bias" not in tensors
    atoms = tiny_structure(tiny_spec())
    got, want = (
        Potential(spec, Weights(spec, tensors), dtype="float64", backend=b).compute(
            atoms, ("energy", "forces")
        )
        for b in ("cpu", "reference")
    )
    assert got["energy"] == pytest.approx(want["energy"], rel=1e-12)
    assert abs(got["forces"] - want["forces"]).max() < 1e-10
    without = {n: 0.0 * t if n in names else t for n, t in tensors.items()}
    none = Potential(spec, Weights(spec, without), dtype="float64").compute(atoms)
    assert abs(none["energy"] - want["energy"]) > 1e-3  # they do count


def test_residual_blocks_without_biases_are_refused(tmp_path):
    """Upstream never builds them, so the meaning of such a file is unknown."""
    model = u.potential(u.representation(), _residual(True, inner=False), u.forces())
    u.save(model, tmp_path / "m.pth")
    with pytest.raises(UnsupportedModelError, match="bias in some layers only"):
        checkpoint.read(tmp_path / "m.pth")


def test_a_weight_that_upstream_applies_twice_is_refused(tmp_path):
    model = u.water_like()
    names = {"CACE_energy": "ewald_potential", "CACE_forces": "ewald_potential"}
    model.potential_keys = [model.potential_keys[0], {**names, "weight": 0.5}]
    u.save(model, tmp_path / "m.pth")
    with pytest.raises(UnsupportedModelError, match="which upstream applies twice"):
        checkpoint.read(tmp_path / "m.pth")
