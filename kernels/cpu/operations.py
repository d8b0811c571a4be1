"""Single operations of the compiled library on numpy arrays, float64 outside.

They serve the operators of :mod:`cace_fast.kernels` and their tests; an evaluation of a whole
model goes through :class:`cace_fast.kernels.cpu.evaluator.Evaluator` in one call.
"""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import byref
from math import prod
from typing import NamedTuple

import numpy as np

from cace_fast import tables
from cace_fast.kernels.cpu import interface, library
from cace_fast.kernels.cpu.library import Floats, Handle, Ints, address
from cace_fast.spec import ModelSpec, Readout, readout_to_json, to_json


def contraction(a: Floats, l_max: int, nu_max: int, precision: int) -> Floats:
    """Return B [..., n_B, C] of A [..., n_A, C] (``docs/theory.md``, equations 13 to 16).

    The library computes in ``precision``, 32 or 64 bits.

    Raises
    ------
    CaceFastError, MemoryError
        If the library fails.
    """
    b = np.empty((*a.shape[:-2], tables.n_features(l_max, nu_max), a.shape[-1]))
    code = library.library().cf_contraction(
        l_max, nu_max, precision, prod(a.shape[:-2]), a.shape[-1], address(a), address(b)
    )
    library.raise_for(code, "contraction")
    return b


def contraction_gradient(
    a: Floats, grad_out: Floats, l_max: int, nu_max: int, precision: int
) -> Floats:
    """Return dE/dA [..., n_A, C] of dE/dB ``grad_out`` [..., n_B, C] (equations 13 to 16).

    Raises
    ------
    CaceFastError, MemoryError
        If the library fails.
    """
    found = np.empty_like(a)
    code = library.library().cf_contraction_gradient(
        l_max,
        nu_max,
        precision,
        prod(a.shape[:-2]),
        a.shape[-1],
        address(a),
        address(grad_out),
        address(found),
    )
    library.raise_for(code, "contraction")
    return found


class Network:
    """The network of a read-out (``docs/theory.md``, equation 24); threads may share it.

    Parameters
    ----------
    module, tensors
        The read-out, and its tensors by their names without its prefix, float64.
    precision
        32 or 64.

    Raises
    ------
    UnsupportedModelError
        If the library does not have the network.
    """

    n_bytes = 0  # of buffers between calls

    def __init__(self, module: Readout, tensors: Mapping[str, Floats], precision: int) -> None:
        self._n_out = module.n_out
        self._handle = Handle.of_tensors("network", readout_to_json(module), tensors, precision)

    def run(self, x: Floats) -> Floats:
        """Return y [n, n_out] of x [n, n_in] (equation 24).

        Raises
        ------
        CaceFastError, MemoryError
            If the library fails.
        """
        y = np.empty((len(x), self._n_out))
        code = library.library().cf_network_run(self._handle, len(x), address(x), address(y))
        library.raise_for(code, "network")
        return y

    def gradient(self, x: Floats, grad_out: Floats) -> Floats:
        """Return dE/dx [n, n_in] of dE/dy ``grad_out`` [n, n_out] (equation 24).

        Raises
        ------
        CaceFastError, MemoryError
            If the library fails.
        """
        found = np.empty_like(x)
        code = library.library().cf_network_gradient(
            self._handle, len(x), address(x), address(grad_out), address(found)
        )
        library.raise_for(code, "network")
        return found


class Graph(NamedTuple):
    """Edges in any order (``docs/theory.md``, equation 1).

    ``vectors`` [n_edges, 3] float64 in A; ``senders``, ``receivers`` [n_edges] and ``species`` [n]
    int64.
    """

    vectors: Floats
    senders: Ints
    receivers: Ints
    species: Ints


class EdgeOperations:
    """Moments and messages of one representation, and their buffers: for one thread at a time.

    ``docs/theory.md``, sections 4 and 6, has the formulas.

    Parameters
    ----------
    spec, tensors
        A model without outputs, and its tensors, float64.
    precision
        32 or 64.

    Raises
    ------
    UnsupportedModelError
        If the library does not have a part of the representation.
    """

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, Floats], precision: int) -> None:
        rep = spec.representation
        self._a = (rep.n_radial, rep.n_monomials, rep.n_channels)
        model = Handle.of_tensors("model", to_json(spec), tensors, 0, None)
        self._state = Handle("state", model, precision)

    @property
    def n_bytes(self) -> int:
        """Memory in bytes held by the buffers (``cf_state_bytes``)."""
        return int(library.library().cf_state_bytes(self._state))

    def moments(self, graph: Graph) -> Floats:
        """Return A [n, n_radial, n_A, C] (equation 11).

        Raises
        ------
        CaceFastError, MemoryError
            If the library fails.
        """
        a = np.empty((len(graph.species), *self._a))
        self._call("moments", graph, address(a))
        return a

    def moments_gradient(self, graph: Graph, grad_out: Floats) -> Floats:
        """Return dE/dd [n_edges, 3] of dE/dA ``grad_out`` [n, n_radial, n_A, C] (equation 11).

        Raises
        ------
        CaceFastError, MemoryError
            If the library fails.
        """
        found = np.empty_like(graph.vectors)
        self._call("moments_gradient", graph, address(grad_out), address(found))
        return found

    def messages(self, graph: Graph, a: Floats, b: Floats, step: int) -> Floats:
        """Return A [n, n_radial, n_A, C] of the next generation (equation 21).

        ``a`` [n, n_radial, n_A, C] and ``b`` [n, n_radial, n_B, C] are those of the one before.

        Raises
        ------
        CaceFastError, MemoryError
            If the library fails.
        """
        out = np.empty_like(a)
        message = interface.MessageC(step, address(a), address(b))
        self._call("messages", graph, byref(message), address(out))
        return out

    def messages_gradient(
        self, graph: Graph, a: Floats, b: Floats, step: int, grad_out: Floats
    ) -> tuple[Floats, Floats, Floats]:
        """Return dE/dA, dE/dB and dE/dd [n_edges, 3] of the gradient of the next generation.

        ``grad_out`` is dE/dA' of equation 21; dE/dA, dE/dB and dE/dA' are shaped like A, B and A.

        Raises
        ------
        CaceFastError, MemoryError
            If the library fails.
        """
        found = np.empty_like(a), np.empty_like(b), np.empty_like(graph.vectors)
        message = interface.MessageC(step, address(a), address(b))
        self._call(
            "messages_gradient", graph, byref(message), address(grad_out), *map(address, found)
        )
        return found

    def _call(self, name: str, graph: Graph, *arguments: object) -> None:
        lib = library.library()
        edges = interface.EdgesC(len(graph.senders), len(graph.species), *map(address, graph))
        code = getattr(lib, f"cf_{name}")(self._state, byref(edges), *arguments)
        if code:
            library.raise_for(code, lib.cf_state_error(self._state).decode())
