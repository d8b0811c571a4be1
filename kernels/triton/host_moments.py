"""Moments of edges in any order, for the public operator of ``backend="triton"``."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from cace_fast.kernels.edge_moments import EdgeMoments
from cace_fast.kernels.triton.host_contraction import Contraction
from cace_fast.kernels.triton.launch import Moments
from cace_fast.spec import Representation


class TritonMoments(EdgeMoments):
    """Moments of one set of edges, mixed by the kernels of the engine."""

    def __init__(
        self,
        given: tuple[Tensor, Tensor, Tensor, Tensor],
        weights: Mapping[str, Tensor],
        spec: Representation,
    ) -> None:
        super().__init__(given, weights, spec, Moments(spec, weights))
        self.mixing = Contraction(spec, weights)
        self.numbers = self.species.int()

    def value(self) -> Tensor:
        """Return A [n, R, n_A, C]."""
        return self._mixed(self._rho())

    def gradient(self, grad_out: Tensor) -> Tensor:
        """Return dE/dd [n_edges, 3] of dE/dA."""
        out = self._vectors()
        self.sums.backward(self.edges, self._grad_rho(grad_out), out)
        return self._unsorted(out)

    def _mixed(self, rho: Tensor) -> Tensor:
        spec, n = self.spec, len(self.species)
        shape = (spec.n_radial, spec.n_monomials, spec.n_channels)
        a = self.like.new_empty(shape[0] * shape[1] * shape[2], n)
        self.mixing.forward(rho, self.edges, self.numbers, None, a)
        return a.reshape(*shape, n).movedim(3, 0).contiguous()

    def _grad_rho(self, grad_out: Tensor) -> Tensor:
        rows = self.spec.radial.n_rbf * self.spec.n_monomials
        rho = self.like.new_empty(rows, len(self.edges.seg_atom))
        grad_a = grad_out.detach().movedim(0, 3).reshape(-1, len(self.species)).contiguous()
        self.mixing.backward(rho, self.edges, self.numbers, None, grad_a, rho)
        return rho
