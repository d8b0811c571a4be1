"""Common parts of all operators: checks of arguments, derivatives, objects that a CPU reuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cace_fast.errors import BackendUnavailableError, InputError, PropertyNotImplementedError
from cace_fast.kernels import backend as backends
from cace_fast.kernels.cpu.library import Floats
from cace_fast.kernels.cpu.operations import EdgeOperations, Graph, Network
from cace_fast.process import Lock
from cace_fast.spec import ModelSpec, Representation, from_json, to_json
from cace_fast.weights import expected_shapes, same_values

FLOATS = (torch.float32, torch.float64)
INTS = (torch.int64,)


def require(
    name: str, tensor: Tensor, shape: tuple[int | None, ...], dtypes: tuple[torch.dtype, ...]
) -> None:
    """Raise InputError unless ``tensor`` has this shape (None: any size) and one of ``dtypes``."""
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

    ``torch.compiler.assume_constant_result`` does the same, but imports dynamo: a second and 170 MB
    for everyone who never compiles.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def described(spec: Representation) -> tuple[tuple[str, ...], str]:
    """Return the names of a representation's tensors, and its text for operators."""
    return spec.derive(_described)


def _described(spec: Representation) -> tuple[tuple[str, ...], str]:
    return _made_once(spec)  # torch.compile takes only a plain function as a constant


@lru_cache(maxsize=16)
def _made_once(spec: Representation) -> tuple[tuple[str, ...], str]:
    whole = ModelSpec(spec)
    return tuple(expected_shapes(whole)), to_json(whole)


@lru_cache(maxsize=16)
def read(text: str) -> ModelSpec:
    """Return the specification in an operator's text; the result is cached."""
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

    It is for operators without gradients with respect to weights: a missing gradient would look
    like zero.
    """
    for name in names:
        if name in weights and weights[name].requires_grad:
            raise InputError(
                f"weights[{name!r}]",
                "a tensor that does not require gradients",
                "one that does",
                "Use cace_fast.reference for gradients with respect to weights.",
            )
    return require_weights(weights, names)


@constant
def select_backend(device: torch.device, name: str | None) -> str:
    """Return the backend for a device: the one named, or the best available one.

    Raises
    ------
    InputError
        If there is no backend of that name.
    BackendUnavailableError
        If none can run there, or the one named cannot; an operator never falls back.
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


Operator = Callable[..., Any]


def differentiable(operator: Any, backward: Operator) -> None:
    """Register the derivative of an operator of torch.

    ``backward(ctx, *gradients)`` reads the operator's arguments by :func:`saved_inputs` and returns
    :func:`pad_grads`.
    """
    operator.register_autograd(backward, setup_context=_keep)


def differentiable_once(operator: Any, gradient: Any, name: str) -> None:
    """Register ``gradient``, another operator, as the only derivative.

    It takes the gradient of the result and the operator's arguments; it returns the gradients with
    respect to the first of these.
    """

    def backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
        arguments = saved_inputs(ctx)
        found = gradient(grad_out, *arguments)
        return pad_grads(arguments, *(found if isinstance(found, tuple) else (found,)))

    differentiable(operator, backward)
    differentiable(gradient, no_higher_derivative(name, "first"))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    leaves, ctx.structure = pytree.tree_flatten(inputs)
    ctx.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    ctx.save_for_backward(*(leaf for leaf in leaves if isinstance(leaf, Tensor)))


def saved_inputs(ctx: Any) -> tuple[Any, ...]:
    """Return the arguments of the operator, in ``backward``."""
    tensors = iter(ctx.saved_tensors)
    leaves = [next(tensors) if other is None else other for other in ctx.others]
    found: tuple[Any, ...] = pytree.tree_unflatten(leaves, ctx.structure)
    return found


def pad_grads(arguments: tuple[Any, ...], *first: Any) -> tuple[Any, ...]:
    """Return gradients of the first arguments, and None for the others."""
    return (*first, *map(_nothing, arguments[len(first) :]))


def _nothing(argument: Any) -> list[None] | None:
    """Return None for an argument without a gradient, and one for each tensor of a list."""
    if isinstance(argument, list) and all(isinstance(x, Tensor) for x in argument):
        return [None] * len(argument)
    return None


def no_higher_derivative(name: str, order: str) -> Callable[..., NoReturn]:
    """Return a backward that raises PropertyNotImplementedError (``docs/developer/training.md``).

    ``order`` names the highest derivative that the operator ``name`` has.
    """

    def backward(ctx: Any, *gradients: Any) -> NoReturn:
        raise PropertyNotImplementedError(
            f"{name}: this operator has {order} derivatives at most in autograd "
            "(docs/developer/training.md has the list); use "
            f"cace_fast.reference.{name} for higher ones"
        )

    return backward


MAX_KEPT = 8
MAX_BYTES = 2**26  # of buffers and weights; calls of larger objects take longer than making them


Made = TypeVar("Made", EdgeOperations, Network)  # objects of the library for an operator


class _Entry(NamedTuple):
    key: tuple[str, int]
    weights: list[Tensor]  # copies, so that a change in place is noticed
    made: Any
    n_bytes: int

    def is_for(self, key: tuple[str, int], weights: Sequence[Tensor]) -> bool:
        return self.key == key and same_values(self.weights, weights)


class _Kept:
    """Compiled objects that nobody uses now, the one used last in front.

    A caller takes one out while it uses it, so two threads never share buffers.
    """

    def __init__(self) -> None:
        self._lock = Lock(self)
        self._entries: list[_Entry] = []

    def take(self, key: tuple[str, int], weights: Sequence[Tensor]) -> _Entry | None:
        with self._lock:
            for i, entry in enumerate(self._entries):
                if entry.is_for(key, weights):
                    return self._entries.pop(i)
        return None

    def put(self, entry: _Entry) -> None:
        with self._lock:
            kept: list[_Entry] = []
            room = MAX_BYTES
            for old in (entry, *self._entries):
                if old.n_bytes <= room and len(kept) < MAX_KEPT:
                    kept.append(old)
                    room -= old.n_bytes
            self._entries = kept

    def reset(self) -> None:
        """Drop everything: a forked child builds new ones."""
        self._entries = []


_KEPT = _Kept()


@contextmanager
def compiled(
    make: Callable[[str, Sequence[Tensor], int], Made],
    text: str,
    weights: Sequence[Tensor],
    dtype: torch.dtype,
) -> Iterator[Made]:
    """Yield the compiled object of an operator, reused from earlier calls with equal inputs.

    The weights are compared by value, as :func:`cace_fast.weights.same_values` does.

    Parameters
    ----------
    make
        Makes it from the text, the weights and the precision, 32 or 64.
    text
        Everything that determines it besides weights and precision.
    weights
        The tensors of the operator on the CPU; the same number for each ``text``.
    dtype
        float32 or float64, the precision.
    """
    key = (text, precision_of(dtype))
    entry = _KEPT.take(key, weights)
    if entry is None:
        own, made = [w.detach().clone() for w in weights], make(text, weights, key[1])
    else:
        own, made = entry.weights, entry.made
    yield made
    # not reached after an error, which may leave an operation half done
    _KEPT.put(_Entry(key, own, made, made.n_bytes + sum(w.nbytes for w in own)))


def edge_operations(text: str, weights: Sequence[Tensor], precision: int) -> EdgeOperations:
    """Make the moments and messages of a representation's text with all its tensors."""
    spec = read(text)
    arrays = {name: array(tensor) for name, tensor in named(weights, spec).items()}
    return EdgeOperations(spec, arrays, precision)


def graph_of(vectors: Tensor, senders: Tensor, receivers: Tensor, species: Tensor) -> Graph:
    """Return the edges as arrays."""
    indices = (np.ascontiguousarray(t.numpy()) for t in (senders, receivers, species))
    return Graph(array(vectors), *indices)


def array(tensor: Tensor) -> Floats:
    """Return a tensor as a float64 array in C order."""
    return np.ascontiguousarray(tensor.detach().double().numpy())


def precision_of(dtype: torch.dtype) -> int:
    """Return 64 for float64, 32 for float32."""
    return 64 if dtype == torch.float64 else 32
