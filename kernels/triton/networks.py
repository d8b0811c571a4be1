"""Networks as chains of dense layers; norms, residuals and linear read-outs become rows of them.

Rows that a network does not use in a layer pass through it, so that networks of any depth, and
the linear read-outs beside them, are rows of the same few products (docs/developer/kernels.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cace_fast.spec import MLP

NORM_EPS = 1e-5  # of the batch normalisation of trained models


class Layer(NamedTuple):
    """W [n_out, n_in] and b [n_out], float64, and the activation of every output ('' for none)."""

    weight: Tensor
    bias: Tensor
    kinds: tuple[str, ...]


def layers_of(
    mlp: MLP, weights: Mapping[str, Tensor], prefix: str, linear: bool = False
) -> list[Layer]:
    """Return a network as layers that include its batch normalisation and linear read-out."""
    layers = (_residual if mlp.residual else _plain)(mlp, weights, prefix)
    if not linear:
        return layers
    w, b = _affine(weights, f"{prefix}.linear")
    if len(layers) == 1:
        return [Layer(layers[0].weight + w, layers[0].bias + b, layers[0].kinds)]
    return _with_linear(layers, w, b)


def _plain(mlp: MLP, weights: Mapping[str, Tensor], prefix: str) -> list[Layer]:
    pairs = [_affine(weights, f"{prefix}.layers.{k}") for k in range(mlp.n_layers)]
    names: list[str] = [mlp.activation] * (len(pairs) - 1) + [""]
    return [Layer(w, b, (name,) * len(b)) for name, (w, b) in zip(names, pairs, strict=True)]


def _residual(mlp: MLP, weights: Mapping[str, Tensor], prefix: str) -> list[Layer]:
    """Return a residual network as layers; what skips a layer passes through it as rows.

    Between layers x = M s + c of the rows s: outputs of activations, and rows that skipped them.
    """
    found: list[Layer] = []
    m, c = None, torch.zeros(mlp.widths[0]).double()
    for block, (into, out) in enumerate(mlp.skip_shapes):
        first, second = (_bare(weights, f"{prefix}.layers.{2 * block + k}") for k in (0, 1))
        skip = (torch.eye(out).double(), torch.zeros(out).double())
        if into != out:
            skip = _affine(weights, f"{prefix}.skips.{block}")
        # the first layer's rows and those that skip, as maps of x, then of the rows before
        w, b = torch.cat([first.weight, skip[0]]), torch.cat([first.bias, skip[1]])
        kinds = (mlp.activation,) * out + ("",) * out
        found.append(Layer(w if m is None else w @ m, b + w @ c, kinds))
        one, none = torch.eye(out).double(), torch.zeros(out).double()
        inner = torch.cat([torch.diag(first.scale), one if mlp.batch_norm else 0.0 * one], 1)
        w = torch.cat([second.weight @ inner, torch.cat([0.0 * one, one], 1)])
        b = torch.cat([second.bias + second.weight @ first.offset, none])
        found.append(Layer(w, b, kinds))
        m, c = torch.cat([torch.diag(second.scale), one], 1), second.offset
    last = _bare(weights, f"{prefix}.layers.{mlp.n_layers - 1}")
    assert m is not None
    found.append(Layer(last.weight @ m, last.bias + last.weight @ c, ("",) * len(last.bias)))
    return found


def _with_linear(layers: list[Layer], weight: Tensor, bias: Tensor) -> list[Layer]:
    """Return layers whose last rows carry a linear read-out to the end."""
    n_out = len(bias)
    one, none = torch.eye(n_out).double(), torch.zeros(n_out).double()
    found = []
    for k, (w, b, kinds) in enumerate(layers):
        if k == len(layers) - 1:
            found.append(Layer(torch.cat([w, one], 1), b, kinds))
            continue
        wider = torch.cat([w, weight]) if k == 0 else torch.block_diag(w, one)
        more = torch.cat([b, bias if k == 0 else none])
        found.append(Layer(wider, more, (*kinds, *("",) * n_out)))
    return found


class _Bare(NamedTuple):
    """W and b of a layer, and the normalisation of its activated outputs: x scale + offset."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    offset: Tensor


def _bare(weights: Mapping[str, Tensor], name: str) -> _Bare:
    w, b = _without_norm(weights, name)
    scale, offset = _norm(weights, name, len(b))
    return _Bare(w, b, scale, offset)


def _affine(weights: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Return W, b of a linear layer, its stored normalisation included, float64 on the CPU."""
    w, b = _without_norm(weights, name)
    scale, offset = _norm(weights, name, len(b))
    return w * scale[:, None], b * scale + offset


def _without_norm(weights: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    w = _exact(weights[f"{name}.weight"])
    bias = weights.get(f"{name}.bias")
    return w, torch.zeros(len(w)).double() if bias is None else _exact(bias)


def _norm(weights: Mapping[str, Tensor], name: str, n: int) -> tuple[Tensor, Tensor]:
    """Return batch normalisation as a factor and an offset."""
    if f"{name}.norm.mean" not in weights:
        return torch.ones(n).double(), torch.zeros(n).double()
    mean, variance, weight, bias = (
        _exact(weights[f"{name}.norm.{part}"]) for part in ("mean", "variance", "weight", "bias")
    )
    scale = weight * torch.rsqrt(variance + NORM_EPS)
    return scale, bias - mean * scale


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def merged(networks: Sequence[list[Layer]]) -> list[Layer]:
    """Return one chain of at least two layers that computes all networks of the same inputs."""
    depth = max(2, *(len(layers) for layers in networks))
    found = []
    for k in range(depth):
        parts = [layers[k] if k < len(layers) else _through(layers[-1]) for layers in networks]
        join = torch.cat if k == 0 else (lambda blocks: torch.block_diag(*blocks))
        found.append(
            Layer(
                join([p.weight for p in parts]),
                torch.cat([p.bias for p in parts]),
                tuple(kind for p in parts for kind in p.kinds),
            )
        )
    return found


def _through(layer: Layer) -> Layer:
    n = len(layer.bias)
    return Layer(torch.eye(n).double(), torch.zeros(n).double(), ("",) * n)
