"""Sums over edges with the derivatives that training needs, by the compiled library, in float64."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import byref, c_double, c_int32, c_int64, c_void_p

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cace_fast.kernels import shapes
from cace_fast.kernels.cpu import library
from cace_fast.kernels.cpu.library import Floats
from cace_fast.kernels.edges import Edges, radial_table
from cace_fast.spec import Representation


class _Functions(ctypes.Structure):
    _fields_ = (
        ("kind", c_int32),
        ("cutoff", c_int32),
        ("n_b", c_int32),
        ("n_a", c_int32),
        ("p", c_double),
        ("table", c_void_p),
        ("parent", c_void_p),
        ("axis", c_void_p),
    )


class _Sums(ctypes.Structure):
    _fields_ = (
        ("n_segments", c_int64),
        *(
            (name, c_void_p)
            for name in (
                "first",
                "vectors",
                "tangent",
                "grad_sums",
                "sums",
                "grad_vectors",
                "grad_table",
            )
        ),
    )


class EdgeSums:
    """The sums of :class:`cace_fast.kernels.edge_moments.EdgeSums` by the library, in float64.

    Parameters
    ----------
    spec, weights
        The representation and its tensors.

    Raises
    ------
    NotLoadedError
        On use, if the library is not here.
    """

    def __init__(self, spec: Representation, weights: Mapping[str, Tensor]) -> None:
        wide = {name: tensor.double() for name, tensor in weights.items()}
        self._table = radial_table(spec, wide).numpy()
        parents = np.array(shapes.parents(spec.l_max), np.int32).T
        self._parent, self._axis = (np.ascontiguousarray(row) for row in parents)
        self.n_b, self.n_a = spec.radial.n_rbf, spec.n_monomials
        kind, cutoff, p = shapes.radial_shape(spec)
        self._functions = _Functions(
            kind,
            cutoff,
            self.n_b,
            self.n_a,
            p,
            *(a.ctypes.data for a in (self._table, self._parent, self._axis)),
        )

    def forward(self, edges: Edges, rho: Tensor) -> None:
        """Write rho [n_b n_A, S], the inner sum of equation 11."""
        rho.copy_(torch.from_numpy(self._values(edges, None)).T)

    def jvp(self, edges: Edges, tangent: Tensor, out: Tensor) -> None:
        """Write the change of rho [n_b n_A, S] when vectors change by ``tangent`` [3, E].

        See ``docs/theory.md``, equation 11.
        """
        out.copy_(torch.from_numpy(self._values(edges, tangent)).T)

    def backward(self, edges: Edges, grad_rho: Tensor, grad_vectors: Tensor) -> None:
        """Write dE/dd [3, E] of dE/drho [n_b n_A, S] (equation 11)."""
        grad_vectors.copy_(torch.from_numpy(self._gradients(edges, grad_rho, None)[0]).T)

    def vjp_jvp(self, edges: Edges, tangent: Tensor, grad_rho: Tensor, out: Tensor) -> None:
        """Write the change of ``backward`` [3, E] along ``tangent`` [3, E] at a fixed dE/drho.

        See :meth:`cace_fast.kernels.edge_moments.EdgeSums.vjp_jvp`.
        """
        out.copy_(torch.from_numpy(self._gradients(edges, grad_rho, tangent)[0]).T)

    def by_table(self, edges: Edges, grad_rho: Tensor, tangent: Tensor | None) -> Tensor:
        """Return dE/da_n, dE/db_n [2 n_b] of dE/drho, or their change along ``tangent`` [3, E].

        See :meth:`cace_fast.kernels.edge_moments.EdgeSums.by_table`.
        """
        found = self._gradients(edges, grad_rho, tangent)[1].sum(0)
        return torch.from_numpy(found).to(grad_rho)

    def _values(self, edges: Edges, tangent: Tensor | None) -> Floats:
        sums = np.empty((len(edges.seg_atom), self.n_b * self.n_a))
        self._run(edges, {"tangent": _rows(tangent), "sums": sums})
        return sums

    def _gradients(
        self, edges: Edges, grad_rho: Tensor, tangent: Tensor | None
    ) -> tuple[Floats, Floats]:
        """Return dE/dd [E, 3] and dE/dtable of every segment [S, 2 n_b]."""
        vectors = np.empty((edges.vectors.shape[1], 3))
        table = np.empty((len(edges.seg_atom), 2 * self.n_b))
        given = {"tangent": _rows(tangent), "grad_sums": _rows(grad_rho)}
        self._run(edges, given | {"grad_vectors": vectors, "grad_table": table})
        return vectors, table

    def _run(self, edges: Edges, arrays: Mapping[str, Floats | None]) -> None:
        first = edges.seg_first.long().numpy()
        every: dict[str, NDArray[np.generic] | None] = {
            **arrays,
            "first": first,
            "vectors": _rows(edges.vectors),
        }
        places = {name: a.ctypes.data for name, a in every.items() if a is not None}
        function = library.library().cf_edge_sums_run
        given = _Sums(n_segments=len(edges.seg_atom), **places)
        code = function(byref(self._functions), byref(given), torch.get_num_threads())
        library.raise_for(code, "edge sums: out of memory")


def _rows(x: Tensor | None) -> Floats | None:
    """Return [components, lanes] as float64 [lanes, components] in C order."""
    return None if x is None else np.ascontiguousarray(x.detach().double().numpy().T)
