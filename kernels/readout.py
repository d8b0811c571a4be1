"""Read-out: a small network on the features, as :func:`cace_fast.reference.readout.readout`.

[n, n_in] in, [n, n_out] out. First derivative with respect to the features only.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cace_fast.kernels import _checks
from cace_fast.kernels._autograd import differentiable_once
from cace_fast.kernels._compiled import Model, array, compiled
from cace_fast.kernels.cpu.operations import Operations
from cace_fast.spec import (
    CutoffFunction,
    ModelSpec,
    RadialBasis,
    Readout,
    Representation,
    SubModel,
    to_json,
)
from cace_fast.weights import expected_shapes

if TYPE_CHECKING:
    from cace_fast.kernels.triton.operators import Network

PREFIX = "outputs.0.0"


def readout(
    features: Tensor,
    weights: Mapping[str, Tensor],
    spec: Readout,
    prefix: str,
    *,
    backend: str | None = None,
) -> Tensor:
    """Return the outputs y [n, n_out] of every atom (``docs/theory.md``, equation 24).

    Parameters
    ----------
    features
        x [n, n_in]: flattened features, further inputs behind them.
    weights
        Tensors ``{prefix}.layers.*``, ``{prefix}.skips.*``, ``{prefix}.linear.*``; constants.
    spec
        The read-out.
    prefix
        Where its tensors stand, ``outputs.<sub-model>.<module>``.
    backend
        ``"cpu"`` or ``"triton"``; None for the best one of the device.

    Raises
    ------
    InputError
        For wrong shapes or dtypes, or weights that require gradients.
    BackendUnavailableError
        If no kernels, or not the ones named, serve the device.
    """
    _checks.require("features", features, (None, spec.mlp.widths[0]), _checks.FLOATS)
    chosen = _checks.select_backend(features.device, backend)
    names, text = spec.derive(_described)
    tensors = _checks.require_constant(weights, [prefix + name for name in names])
    out: Tensor = _readout(features.contiguous(), tensors, text, chosen)
    return out


def _described(spec: Readout) -> tuple[tuple[str, ...], str]:
    """Return what follows the prefix in the names of the tensors, and the read-out as text."""
    return _made_once(spec)  # torch.compile takes only a plain function as a constant


@lru_cache(maxsize=16)
def _made_once(spec: Readout) -> tuple[tuple[str, ...], str]:
    whole = _model(spec)
    own = [name for name in expected_shapes(whole) if name.startswith(PREFIX)]
    return tuple(name.removeprefix(PREFIX) for name in own), to_json(whole)


def _model(spec: Readout) -> ModelSpec:
    """Return a model of one read-out whose features are as many as its inputs."""
    rep = Representation(
        (1,), 1, True, 1.0, RadialBasis("bessel", 1), CutoffFunction("polynomial", 1.0),
        spec.mlp.widths[0], 0, 1,
    )  # fmt: skip
    return ModelSpec(rep, (SubModel((replace(spec, features=("node_feats",)),)),))


def _operations(
    weights: list[Tensor], text: str, dtype: torch.dtype
) -> AbstractContextManager[Operations]:
    """Give the operations of the network."""

    def whole() -> Model:
        spec = _checks.read(text)
        shapes = expected_shapes(spec)
        ones = {name: torch.ones(shape, device="cpu") for name, shape in shapes.items()}
        others = [tensor for name, tensor in ones.items() if not name.startswith(PREFIX)]
        return spec, [*others, *weights]

    return compiled(text, weights, dtype, whole)


def _on_device(features: Tensor, weights: list[Tensor], text: str) -> Network:
    """Return the Triton kernels with their features."""
    from cace_fast.kernels.triton.operators import Network

    spec = _checks.read(text)
    module = spec.submodels[0].modules[0]
    assert isinstance(module, Readout)
    names = [name for name in expected_shapes(spec) if name.startswith(PREFIX)]
    return Network(features, dict(zip(names, weights, strict=True)), module)


@torch.library.custom_op("cace_fast::readout", mutates_args=())
def _readout(features: Tensor, weights: list[Tensor], spec: str, backend: str) -> Tensor:
    if backend == "triton":
        return _on_device(features, weights, spec).value()
    with _operations(weights, spec, features.dtype) as operations:
        found = operations.readout(array(features))
    return torch.from_numpy(found).to(features.dtype)


@_readout.register_fake
def _(features: Tensor, weights: list[Tensor], spec: str, backend: str) -> Tensor:
    module = _checks.read(spec).submodels[0].modules[0]
    assert isinstance(module, Readout)
    return features.new_empty(features.shape[0], module.n_out)


@torch.library.custom_op("cace_fast::readout_gradient", mutates_args=())
def _readout_gradient(
    grad_out: Tensor, features: Tensor, weights: list[Tensor], spec: str, backend: str
) -> Tensor:
    if backend == "triton":
        return _on_device(features, weights, spec).gradient(grad_out)
    with _operations(weights, spec, features.dtype) as operations:
        found = operations.readout_gradient(array(features), array(grad_out))
    return torch.from_numpy(found).to(features.dtype)


@_readout_gradient.register_fake
def _(grad_out: Tensor, features: Tensor, weights: list[Tensor], spec: str, backend: str) -> Tensor:
    return torch.empty_like(features)


differentiable_once(_readout, _readout_gradient, "readout")
