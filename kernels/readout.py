"""Read-out: a small network on the features, as :func:`cace_fast.reference.readout.readout`.

The operator takes [n, n_in] and returns [n, n_out]. It has the first derivative with respect to the
features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cace_fast.kernels import _operators as shared
from cace_fast.kernels.cpu.operations import Network
from cace_fast.spec import Readout, readout_from_json, readout_to_json
from cace_fast.weights import readout_shapes

if TYPE_CHECKING:
    from cace_fast.kernels.triton import operators


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
        x [n, n_in], float32 or float64: flattened features, further inputs behind them.
    weights
        Tensors ``{prefix}.layers.*``, ``{prefix}.skips.*``, ``{prefix}.linear.*``; constants.
    spec
        The read-out.
    prefix
        Prefix of its tensors, ``outputs.<sub-model>.<module>``.
    backend
        ``"cpu"`` or ``"triton"``; None for the best one of the device.

    Raises
    ------
    InputError
        For wrong shapes or dtypes, or weights that require gradients.
    BackendUnavailableError
        If no kernels, or not the ones named, serve the device.
    """
    shared.require("features", features, (None, spec.mlp.widths[0]), shared.FLOATS)
    chosen = shared.select_backend(features.device, backend)
    names, text = spec.derive(_described)
    tensors = shared.require_constant(weights, [prefix + name for name in names])
    out: Tensor = _readout(features.contiguous(), tensors, text, chosen)
    return out


def _described(spec: Readout) -> tuple[tuple[str, ...], str]:
    """Return what follows the prefix in the names of the tensors, and the read-out as text."""
    return _made_once(spec)  # torch.compile takes only a plain function as a constant


@lru_cache(maxsize=16)
def _made_once(spec: Readout) -> tuple[tuple[str, ...], str]:
    return tuple(readout_shapes(spec, "")), readout_to_json(spec)


@lru_cache(maxsize=16)
def _read(text: str) -> Readout:
    return readout_from_json(text)


def _network(text: str, weights: Sequence[Tensor], precision: int) -> Network:
    """Make the network on the CPU."""
    module = _read(text)
    names = (name.removeprefix(".") for name in readout_shapes(module, ""))
    arrays = {name: shared.array(w) for name, w in zip(names, weights, strict=True)}
    return Network(module, arrays, precision)


def _on_device(features: Tensor, weights: list[Tensor], text: str) -> operators.Network:
    """Return the Triton kernels with their features."""
    from cace_fast.kernels.triton import operators

    module = _read(text)
    names = readout_shapes(module, operators.Network.PREFIX)
    return operators.Network(features, dict(zip(names, weights, strict=True)), module)


@torch.library.custom_op("cace_fast::readout", mutates_args=())
def _readout(features: Tensor, weights: list[Tensor], spec: str, backend: str) -> Tensor:
    if backend == "triton":
        return _on_device(features, weights, spec).value()
    with shared.compiled(_network, spec, weights, features.dtype) as network:
        found = network.run(shared.array(features))
    return torch.from_numpy(found).to(features.dtype)


@_readout.register_fake
def _(features: Tensor, weights: list[Tensor], spec: str, backend: str) -> Tensor:
    return features.new_empty(features.shape[0], _read(spec).n_out)


@torch.library.custom_op("cace_fast::readout_gradient", mutates_args=())
def _readout_gradient(
    grad_out: Tensor, features: Tensor, weights: list[Tensor], spec: str, backend: str
) -> Tensor:
    if backend == "triton":
        return _on_device(features, weights, spec).gradient(grad_out)
    with shared.compiled(_network, spec, weights, features.dtype) as network:
        found = network.gradient(shared.array(features), shared.array(grad_out))
    return torch.from_numpy(found).to(features.dtype)


@_readout_gradient.register_fake
def _(grad_out: Tensor, features: Tensor, weights: list[Tensor], spec: str, backend: str) -> Tensor:
    return torch.empty_like(features)


shared.differentiable_once(_readout, _readout_gradient, "readout")
