"""Checks of the arguments of operators, and the choice of their backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from cace_fast.errors import BackendUnavailableError, InputError
from cace_fast.kernels import backend as backends
from cace_fast.spec import ModelSpec, Representation, from_json, to_json
from cace_fast.weights import expected_shapes

FLOATS = (torch.float32, torch.float64)
INTS = (torch.int64,)


def require(
    name: str, tensor: Tensor, shape: tuple[int | None, ...], dtypes: tuple[torch.dtype, ...]
) -> None:
    """Raise InputError unless ``tensor`` has a shape (None: any size) and one of some dtypes."""
    fits = len(shape) == tensor.dim() and all(
        want is None or want == got for want, got in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype not in dtypes:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        kinds = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        got = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        raise InputError(name, f"a {kinds} tensor of shape [{sizes}]", got)


def require_edges(vectors: Tensor, senders: Tensor, receivers: Tensor, species: Tensor) -> None:
    """Raise InputError unless edges and species have the shapes of an atomic graph."""
    require("vectors", vectors, (None, 3), FLOATS)
    for name, tensor in (("senders", senders), ("receivers", receivers)):
        require(name, tensor, (vectors.shape[0],), INTS)
    require("species", species, (None,), INTS)


Function = TypeVar("Function", bound=Callable[..., Any])


def constant(function: Function) -> Function:
    """Mark a function whose result torch.compile takes as a constant.

    This is all that ``torch.compiler.assume_constant_result`` does; but that imports dynamo, a
    second and 170 MB for everyone who never compiles.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def described(spec: Representation) -> tuple[tuple[str, ...], str]:
    """Return the names of a representation's tensors, and itself as text for operators."""
    return spec.derive(_described)


def _described(spec: Representation) -> tuple[tuple[str, ...], str]:
    return _made_once(spec)  # torch.compile takes only a plain function as a constant


@lru_cache(maxsize=16)
def _made_once(spec: Representation) -> tuple[tuple[str, ...], str]:
    whole = ModelSpec(spec)
    return tuple(expected_shapes(whole)), to_json(whole)


@lru_cache(maxsize=16)
def read(text: str) -> ModelSpec:
    """Return the specification of an operator's text, which is the same in every call."""
    return from_json(text)


def named(tensors: Sequence[Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Return the tensors of :func:`described`, as an operator gets them, by their names."""
    return dict(zip(expected_shapes(spec), tensors, strict=True))


def require_weights(weights: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    """Return the tensors called ``names``; InputError for one missing."""
    for name in names:
        if name not in weights:
            raise InputError(f"weights[{name!r}]", "the tensors of the specification", "nothing")
    return [weights[name] for name in names]


def require_constant(weights: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    """Return the tensors called ``names``; InputError for one missing or one to be trained.

    For operators without gradients with respect to weights: a missing one would look like zero.
    """
    for name in names:
        if name in weights and weights[name].requires_grad:
            raise InputError(
                f"weights[{name!r}]", "a tensor that does not require gradients", "one that does",
                "Use cace_fast.reference for gradients with respect to weights.",
            )  # fmt: skip
    return require_weights(weights, names)


@constant
def select_backend(device: torch.device, name: str | None) -> str:
    """Return the backend for a device: the one named, or the best available one.

    Raises
    ------
    BackendUnavailableError
        If there is none, or the one named cannot run there; an operator never falls back.
    """
    states = backends.states()
    here = [s.name for s in states if s.available and device.type in s.devices]
    if name is None and here:
        return here[0]
    if name in here:
        return str(name)
    known = {s.name: s for s in states}
    if name is not None and name not in known:
        raise InputError("backend", f"one of {', '.join(known)}", repr(name))
    for_device = [s for s in states if device.type in s.devices]
    state = known[name] if name is not None else (for_device or list(states))[0]
    reason = state.reason or f"it does not serve the device {str(device)!r}"
    remedy = state.remedy or f"Use device={state.devices[0]!r}."
    raise BackendUnavailableError(state.name, reason, here or ["none"], remedy)
