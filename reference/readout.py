"""Read-out: a small network on the features of each atom, ``docs/theory.md`` section 7."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from cace_fast.spec import MLP, Readout

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "relu": functional.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": functional.elu,
    "gelu": functional.gelu,
    "softplus": functional.softplus,
    "mish": functional.mish,
    "identity": lambda x: x,
}
NORM_EPS = 1e-5


def readout(features: Tensor, weights: Mapping[str, Tensor], spec: Readout, prefix: str) -> Tensor:
    """Return the outputs y [n, n_out] of every atom (equation 24).

    Parameters
    ----------
    features
        x [n, n_in]: flattened features, further inputs behind them.
    weights
        Tensors ``{prefix}.layers.*``, ``{prefix}.skips.*``, ``{prefix}.linear.*``.
    spec
        The read-out.
    prefix
        Where its tensors stand, ``outputs.<sub-model>.<module>``.
    """
    y = mlp(features, weights, spec.mlp, prefix)
    if spec.linear:
        y = y + linear(features, weights, f"{prefix}.linear")
    return y


def mlp(x: Tensor, weights: Mapping[str, Tensor], spec: MLP, prefix: str) -> Tensor:
    """Return the network's outputs [n, n_out] for inputs ``x`` [n, n_in] (equations 22 and 23)."""
    act = ACTIVATIONS[spec.activation]
    last = spec.n_layers - 1
    if not spec.residual:
        for k in range(last):
            layer = f"{prefix}.layers.{k}"
            x = act(normed(affine(x, weights, layer), weights, layer))
        return affine(x, weights, f"{prefix}.layers.{last}")
    for block, (into, out) in enumerate(spec.skip_shapes):
        skip = x if into == out else linear(x, weights, f"{prefix}.skips.{block}")
        first, second = f"{prefix}.layers.{2 * block}", f"{prefix}.layers.{2 * block + 1}"
        x = normed(act(affine(x, weights, first)), weights, first)
        if spec.batch_norm:
            x = x + skip
        x = normed(act(affine(x, weights, second)), weights, second) + skip
    return affine(x, weights, f"{prefix}.layers.{last}")


def affine(x: Tensor, weights: Mapping[str, Tensor], prefix: str) -> Tensor:
    """Return W x + b [n, out] of ``x`` [n, in], or W x where there is no bias (equation 22)."""
    return functional.linear(x, weights[f"{prefix}.weight"], weights.get(f"{prefix}.bias"))


def linear(x: Tensor, weights: Mapping[str, Tensor], prefix: str) -> Tensor:
    """Return W x + b [n, out], batch-normalised where the file has a norm (equation 23)."""
    return normed(affine(x, weights, prefix), weights, prefix)


def normed(x: Tensor, weights: Mapping[str, Tensor], prefix: str) -> Tensor:
    """Return ``x`` [n, out] normalised by the stored statistics; ``x`` itself without them.

    See ``docs/theory.md``, section 7.
    """
    if f"{prefix}.norm.mean" not in weights:
        return x
    mean, variance, weight, bias = (
        weights[f"{prefix}.norm.{name}"] for name in ("mean", "variance", "weight", "bias")
    )
    return (x - mean) * torch.rsqrt(variance + NORM_EPS) * weight + bias
