"""Read-out: every network variant against torch's own layers."""

from __future__ import annotations

import pytest
import torch
from support.tolerances import assert_as_good, to_dtype, value_and_grads
from torch import nn

from cace_fast.reference.readout import ACTIVATIONS, mlp, readout
from cace_fast.spec import MLP, Readout
from cace_fast.weights import mlp_shapes

LAYERS = {
    "silu": nn.SiLU(), "relu": nn.ReLU(), "tanh": nn.Tanh(), "sigmoid": nn.Sigmoid(),
    "elu": nn.ELU(), "gelu": nn.GELU(), "softplus": nn.Softplus(), "mish": nn.Mish(),
    "identity": nn.Identity(),
}  # fmt: skip


def random_tensors(shapes, seed=4):
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape, generator=generator, dtype=torch.float64)
        found[name] = tensor.abs() + 0.5 if name.endswith("variance") else tensor
    return found


def dense(x, weights, name, spec, norm=True):
    """One linear layer by torch's modules, with batch norm where the network has it."""
    weight = weights[f"{name}.weight"]
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=spec.bias, dtype=weight.dtype)
    state = {"weight": weight} | ({"bias": weights[f"{name}.bias"]} if spec.bias else {})
    x = torch.func.functional_call(layer, state, (x,))
    return batch_norm(x, weights, name) if spec.batch_norm and norm else x


def batch_norm(x, weights, name):
    norm = nn.BatchNorm1d(x.shape[1], dtype=x.dtype).eval()
    state = {
        "weight": weights[f"{name}.norm.weight"],
        "bias": weights[f"{name}.norm.bias"],
        "running_mean": weights[f"{name}.norm.mean"],
        "running_var": weights[f"{name}.norm.variance"],
    }
    return torch.func.functional_call(norm, state, (x,))


def plain(x, weights, spec):
    """The network as docs/theory.md 7 describes it, layer by layer."""
    act = LAYERS[spec.activation]
    last = spec.n_layers - 1
    if not spec.residual:
        for k in range(last):
            x = act(dense(x, weights, f"net.layers.{k}", spec))
        return dense(x, weights, f"net.layers.{last}", spec, norm=False)
    for block in range(last // 2):
        into, out = spec.widths[2 * block], spec.widths[2 * block + 2]
        skip = x if into == out else dense(x, weights, f"net.skips.{block}", spec)
        for half in (0, 1):
            name = f"net.layers.{2 * block + half}"
            x = act(dense(x, weights, name, spec, norm=False))
            if spec.batch_norm:
                x = batch_norm(x, weights, name) + skip
        x = x if spec.batch_norm else x + skip
    return dense(x, weights, f"net.layers.{last}", spec, norm=False)


NETWORKS = {
    "real": MLP((12, 8, 6, 1)),
    "no bias": MLP((12, 8, 3), bias=False),
    "one layer": MLP((12, 2)),
    "batch norm": MLP((12, 8, 6, 2), batch_norm=True),
    "residual": MLP((12, 8, 6, 6, 6, 2), residual=True, activation="tanh"),
    "residual and batch norm": MLP((12, 8, 6, 1), residual=True, batch_norm=True),
    "residual of equal widths and batch norm": MLP((12, 12, 12, 1), residual=True, batch_norm=True),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, dtype):
    spec = NETWORKS[name]
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    tensors = {"x": x, **random_tensors(mlp_shapes(spec, "net"))}

    def run(function):
        def call(x, **weights):  # torch's own batch norm has no gradient for its statistics
            fixed = {
                k: w.detach() if k.endswith(("mean", "variance")) else w for k, w in weights.items()
            }
            return function(x, fixed)

        return call

    oracle = value_and_grads(run(lambda x, w: plain(x, w, spec)), tensors)
    low = to_dtype(tensors, dtype)
    floor = value_and_grads(run(lambda x, w: plain(x, w, spec)), low)
    got = value_and_grads(run(lambda x, w: mlp(x, w, spec, "net")), low)
    assert_as_good(got, oracle, floor, growth=4.0)  # gradients are sums over atoms and layers


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    x = torch.linspace(-4, 4, 50, dtype=torch.float64)
    torch.testing.assert_close(ACTIVATIONS[activation](x), LAYERS[activation](x))


def test_linear_part_is_added():
    spec = Readout("E", MLP((12, 4, 2)), linear=True)
    shapes = mlp_shapes(spec.mlp, "net") | {"net.linear.weight": (2, 12), "net.linear.bias": (2,)}
    weights = random_tensors(shapes)
    x = random_tensors({"x": (3, 12)})["x"]
    expected = (
        plain(x, weights, spec.mlp)
        + x @ weights["net.linear.weight"].T
        + weights["net.linear.bias"]
    )
    torch.testing.assert_close(readout(x, weights, spec, "net"), expected)


def test_no_atoms():
    spec = NETWORKS["real"]
    weights = random_tensors(mlp_shapes(spec, "net"))
    assert mlp(torch.zeros(0, 12, dtype=torch.float64), weights, spec, "net").shape == (0, 1)
