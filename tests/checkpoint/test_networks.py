"""Networks of upstream's read-outs become specification and tensors."""

from __future__ import annotations

import pytest
import torch
from support import upstream_like as u
from support.both_ways import N_FEATURES, both_ways, with_outputs

from cace_fast import checkpoint
from cace_fast.errors import UnsupportedModelError
from cace_fast.spec import MLP


@pytest.mark.parametrize("n_hidden", [(), (5,), (5, 4, 3, 2)], ids=len)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_networks(tmp_path, n_hidden, bias, linear, norm):
    readout = u.atomwise(
        u.Numbers(), N_FEATURES, n_hidden=n_hidden, bias=bias, add_linear_nn=linear,
        use_batchnorm=norm,
    )  # fmt: skip
    spec, tensors = both_ways(with_outputs(readout), tmp_path / "m.pth")
    found = spec.submodels[0].modules[0]
    assert found.mlp == MLP(
        (N_FEATURES, *n_hidden, 1), bias, batch_norm=norm and bool(n_hidden or linear)
    )
    assert found.linear == linear
    if norm and n_hidden:
        first = readout.outnet[0].batchnorm
        assert tensors["outputs.0.0.layers.0.norm.mean"] is first.running_mean
        assert tensors["outputs.0.0.layers.0.norm.variance"] is first.running_var
        assert tensors["outputs.0.0.layers.0.norm.weight"] is first.weight


def residual_block(numbers, n_in, n_out, norm, names, bias=True):
    layers = [u.dense(numbers, n_in, n_out, bias=bias), u.dense(numbers, n_out, n_out, bias=bias)]
    modules = dict(zip(names, layers, strict=True))
    if norm:
        modules = {names[0]: layers[0], "bn1": u.norm(numbers, n_out)}
        modules |= {names[1]: layers[1], "bn2": u.norm(numbers, n_out)}
    if n_in == n_out:
        modules["skip"] = torch.nn.Identity()
    else:
        skip = u.dense(numbers, n_in, n_out, None, bias=bias)
        modules["skip"] = torch.nn.Sequential(skip, u.norm(numbers, n_out)) if norm else skip
    return u.make("cace.modules.blocks.ResidualBlock", modules=modules)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("names", [("dense1", "dense2"), ("layer_0", "layer_1")])
def test_residual_networks(tmp_path, norm, names):
    numbers = u.Numbers()
    readout = u.atomwise(numbers, N_FEATURES, use_batchnorm=norm, residual=True)
    blocks = [residual_block(numbers, N_FEATURES, 6, norm, names)]
    blocks += [residual_block(numbers, 6, 6, norm, names)]
    readout.outnet = torch.nn.Sequential(*blocks, u.dense(numbers, 6, 1, None))
    spec, tensors = both_ways(with_outputs(readout), tmp_path / "m.pth")
    mlp = spec.submodels[0].modules[0].mlp
    assert mlp == MLP((N_FEATURES, 6, 6, 6, 6, 1), residual=True, batch_norm=norm)
    assert "outputs.0.0.skips.0.weight" in tensors
    assert "outputs.0.0.skips.1.weight" not in tensors
    assert ("outputs.0.0.skips.0.norm.mean" in tensors) == norm
    assert ("outputs.0.0.layers.3.norm.mean" in tensors) == norm


FUNCTIONS = torch.nn.functional
ACTIVATIONS = {
    "silu": [FUNCTIONS.silu, torch.nn.SiLU()],
    "relu": [FUNCTIONS.relu, torch.nn.ReLU(), torch.relu],
    "tanh": [FUNCTIONS.tanh, torch.nn.Tanh(), torch.tanh],
    "sigmoid": [FUNCTIONS.sigmoid, torch.nn.Sigmoid(), torch.sigmoid],
    "elu": [FUNCTIONS.elu, torch.nn.ELU()],
    "gelu": [FUNCTIONS.gelu, torch.nn.GELU()],
    "softplus": [FUNCTIONS.softplus, torch.nn.Softplus()],
    "mish": [FUNCTIONS.mish, torch.nn.Mish()],
}


@pytest.mark.parametrize(
    ("name", "written"), [(name, w) for name, ways in ACTIVATIONS.items() for w in ways]
)
def test_activations(tmp_path, name, written):
    readout = u.atomwise(u.Numbers(), N_FEATURES, activation=written)
    spec, _ = both_ways(with_outputs(readout), tmp_path / "m.pth")
    assert spec.submodels[0].modules[0].mlp.activation == name


@pytest.mark.parametrize("written", [
    FUNCTIONS.leaky_relu, torch.exp, torch.sin, torch.nn.LeakyReLU(), torch.nn.ELU(alpha=0.5),
    torch.nn.GELU(approximate="tanh"), torch.nn.Softplus(beta=2.0),
], ids=str)  # fmt: skip
def test_unknown_activations_are_refused(tmp_path, written):
    model = with_outputs(u.atomwise(u.Numbers(), N_FEATURES, activation=written))
    message = r"outnet\.0"
    with pytest.raises(UnsupportedModelError, match=message):
        checkpoint.from_module(model)
    u.save(model, tmp_path / "m.pth")
    with pytest.raises(UnsupportedModelError, match=message):
        checkpoint.read(tmp_path / "m.pth")


def test_a_function_of_the_user_is_refused():
    def silu(x):
        return x

    model = with_outputs(u.atomwise(u.Numbers(), N_FEATURES, activation=silu))
    with pytest.raises(UnsupportedModelError, match=r"activation .*silu is not provided"):
        checkpoint.from_module(model)
