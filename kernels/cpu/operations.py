"""Single operations of the compiled library on numpy arrays, float64 outside.

They serve the operators of :mod:`cace_fast.kernels` and their tests; an evaluation of a whole
model goes through :class:`cace_fast.kernels.cpu.evaluator.Evaluator` in one call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import byref, c_int32, c_int64, c_void_p
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cace_fast.kernels.cpu import library
from cace_fast.kernels.cpu.evaluator import Evaluator
from cace_fast.kernels.cpu.library import Floats, Ints
from cace_fast.spec import ModelSpec, Readout, to_json


class _List(ctypes.Structure):
    _fields_ = (
        ("n_pairs", c_int64), ("first", c_void_p), ("sender", c_void_p), ("shift", c_void_p),
        ("sent_first", c_void_p), ("sent", c_void_p),
    )  # fmt: skip


class _Frame(ctypes.Structure):
    _fields_ = (
        ("n_owned", c_int32), ("n_all", c_int32), ("n_systems", c_int32), ("n_shifts", c_int32),
        *((name, c_void_p) for name in (
            "species", "positions", "system", "shift_vectors", "system_size", "extras", "list")),
    )  # fmt: skip


class Graph(NamedTuple):
    """Edges of the operations: ``vectors`` [n_edges, 3] float64, indices int64, ``species`` [n]."""

    vectors: Floats
    senders: Ints
    receivers: Ints
    species: Ints


class _Given:
    """A graph as the library takes it: sorted by receiver and the sender's element.

    Vectors stand in the place of cell shifts, with all atoms at the origin.
    """

    def __init__(self, graph: Graph) -> None:
        n, n_edges = len(graph.species), len(graph.senders)
        self.species = graph.species.astype(np.int32)
        self.order = np.lexsort((graph.species[graph.senders], graph.receivers))
        senders, receivers = graph.senders[self.order], graph.receivers[self.order]
        self.vectors = np.ascontiguousarray(graph.vectors[self.order])
        self.sender = senders.astype(np.int32)
        self.shift = np.arange(n_edges, dtype=np.int32)
        self.first = np.searchsorted(receivers, np.arange(n + 1)).astype(np.int64)
        self.sent = np.argsort(senders, kind="stable").astype(np.int32)
        self.sent_first = np.searchsorted(np.sort(senders), np.arange(n + 1)).astype(np.int64)
        self.positions = np.zeros((n, 3))
        self.list = _List(
            n_edges, *(_address(a) for a in (
                self.first, self.sender, self.shift, self.sent_first, self.sent))
        )  # fmt: skip
        self.frame = _Frame(
            n, n, 1, n_edges, _address(self.species), _address(self.positions), None,
            _address(self.vectors), None, None, ctypes.addressof(self.list),
        )  # fmt: skip

    def in_order_given(self, gradient: Floats) -> Floats:
        """Return per-edge numbers in the caller's order of edges."""
        out = np.zeros_like(gradient)
        out[self.order] = gradient
        return out


class Operations(Evaluator):
    """The operations of one specification with its weights.

    Parameters
    ----------
    spec, tensors
        The model; float64 arrays.
    precision
        32 or 64.
    """

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, Floats], precision: int) -> None:
        found = [
            (library.Head(s, m, 0, 0, 0, 1.0), module.n_out)
            for s, sub in enumerate(spec.submodels)
            for m, module in enumerate(sub.modules)
            if isinstance(module, Readout)
        ]
        heads = [head for head, _ in found]
        self._n_out = found[0][1] if found else 0
        super().__init__(to_json(spec), tensors, heads, [], precision)
        rep = spec.representation
        self._a = (rep.n_radial, rep.n_monomials, rep.n_channels)
        self._b = (rep.n_radial, rep.n_invariants, rep.n_channels)

    def moments(self, graph: Graph) -> Floats:
        """Return A [n, n_radial, n_A, C]."""
        given, a = _Given(graph), np.empty((len(graph.species), *self._a))
        self._call("moments", byref(given.frame), a)
        return a

    def moments_gradient(self, graph: Graph, grad_out: Floats) -> Floats:
        """Return the gradient with respect to the vectors [n_edges, 3]."""
        given, found = _Given(graph), np.empty((len(graph.senders), 3))
        self._call("moments_gradient", byref(given.frame), grad_out, found)
        return given.in_order_given(found)

    def contraction(self, a: Floats) -> Floats:
        """Return B [n, n_radial, n_B, C]."""
        b = np.empty((len(a), *self._b))
        self._call("contraction", c_int64(len(a)), a, b)
        return b

    def contraction_gradient(self, a: Floats, grad_out: Floats) -> Floats:
        """Return the gradient with respect to A."""
        found = np.empty_like(a)
        self._call("contraction_gradient", c_int64(len(a)), a, grad_out, found)
        return found

    def messages(self, graph: Graph, a: Floats, b: Floats, step: int) -> Floats:
        """Return A of the next generation."""
        given, out = _Given(graph), np.empty_like(a)
        self._call("messages", byref(given.frame), c_int32(step), a, b, out)
        return out

    def messages_gradient(
        self, graph: Graph, a: Floats, b: Floats, step: int, grad_out: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Return the gradients with respect to A, B and the vectors."""
        given, vectors = _Given(graph), np.empty((len(graph.senders), 3))
        grad_a, grad_b = np.empty_like(a), np.empty_like(b)
        self._call(
            "messages_gradient", byref(given.frame), c_int32(step), a, b, grad_out, grad_a, grad_b,
            vectors,
        )  # fmt: skip
        return grad_a, grad_b, given.in_order_given(vectors)

    def readout(self, x: Floats) -> Floats:
        """Return y [n, n_out] of the first head."""
        y = np.empty((len(x), self._n_out))
        self._call("readout", c_int32(0), c_int64(len(x)), x, y)
        return y

    def readout_gradient(self, x: Floats, grad_out: Floats) -> Floats:
        """Return the gradient with respect to x."""
        found = np.empty_like(x)
        self._call("readout_gradient", c_int32(0), c_int64(len(x)), x, grad_out, found)
        return found

    def _call(self, name: str, *arguments: object) -> None:
        function = getattr(self._lib, f"cf_op_{name}")
        function.restype = ctypes.c_int
        passed = [c_void_p(_address(a)) if isinstance(a, np.ndarray) else a for a in arguments]
        code = function(self._state, *passed)
        if code:
            library.raise_for(code, self._lib.cf_state_error(self._state).decode())


def _address(array: NDArray[np.generic]) -> int:
    assert array.flags.c_contiguous
    return int(array.ctypes.data)
