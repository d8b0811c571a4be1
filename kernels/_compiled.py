"""The compiled operations behind the operators of a CPU, kept from one call to the next."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cace_fast.kernels import _checks
from cace_fast.kernels.cpu.operations import Graph, Operations
from cace_fast.process import Lock
from cace_fast.spec import ModelSpec

MAX_KEPT = 8
MAX_BYTES = 2**26  # of buffers and weights together; above it a call takes longer than building

Model = tuple[ModelSpec, Sequence[Tensor]]


class _Entry(NamedTuple):
    key: Hashable
    weights: list[Tensor]  # copies, so that a change in place is seen whoever made it
    operations: Operations
    n_bytes: int

    def is_for(self, key: Hashable, weights: Sequence[Tensor]) -> bool:
        alike = self.key == key and len(self.weights) == len(weights)
        return alike and all(map(_same, self.weights, weights))


class _Kept:
    """Operations that nobody uses now, the one used last in front.

    Whoever uses one takes it out, so two threads never share buffers.
    """

    def __init__(self) -> None:
        self._lock = Lock(self)
        self._entries: list[_Entry] = []

    def take(self, key: Hashable, weights: Sequence[Tensor]) -> _Entry | None:
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
        """Forget everything; a forked child builds its own."""
        self._entries = []


_KEPT = _Kept()


@contextmanager
def compiled(
    key: Hashable, weights: Sequence[Tensor], dtype: torch.dtype, model: Callable[[], Model]
) -> Iterator[Operations]:
    """Give the compiled operations of a model, built only where no call before had the same.

    The weights are compared by value, in microseconds. Their version numbers would be quicker but
    miss changes through ``tensor.data`` and numpy, which averages of weights are made with.

    Parameters
    ----------
    key
        What, beside weights and precision, decides about the model.
    weights
        The tensors of the operator on the CPU; the same number for each ``key``.
    dtype
        float32 or float64, the precision.
    model
        Returns the specification and all its tensors, in its order.
    """
    precision = 64 if dtype == torch.float64 else 32
    key = (key, precision)
    entry = _KEPT.take(key, weights)
    if entry is None:
        own, operations = [w.detach().clone() for w in weights], _build(*model(), precision)
    else:
        own, operations = entry.weights, entry.operations
    yield operations
    # not after an error, which may leave an operation half done
    _KEPT.put(_Entry(key, own, operations, operations.n_bytes + sum(w.nbytes for w in own)))


def compiled_of(
    text: str, weights: Sequence[Tensor], dtype: torch.dtype
) -> AbstractContextManager[Operations]:
    """Give :func:`compiled` operations of a specification's text with all its tensors."""
    return compiled(text, weights, dtype, lambda: (_checks.read(text), weights))


def _build(spec: ModelSpec, tensors: Sequence[Tensor], precision: int) -> Operations:
    arrays = {
        name: tensor.detach().double().numpy()
        for name, tensor in _checks.named(tensors, spec).items()
    }
    return Operations(spec, arrays, precision)


def _same(kept: Tensor, given: Tensor) -> bool:
    return kept.dtype == given.dtype and torch.equal(kept, given)


def graph_of(vectors: Tensor, senders: Tensor, receivers: Tensor, species: Tensor) -> Graph:
    """Return the edges as arrays."""
    return Graph(array(vectors), senders.numpy(), receivers.numpy(), species.numpy())


def array(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a tensor as a float64 array in C order."""
    return np.ascontiguousarray(tensor.detach().double().numpy())
