"""Moments of edges in any order: what the public operator of ``backend="triton"`` computes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cace_fast.kernels.triton.host_contraction import Contraction
from cace_fast.kernels.triton.launch import Moments, edges_of
from cace_fast.spec import Representation


class EdgeMoments:
    """Moments of one set of edges, their gradient, and the rates of both.

    Parameters
    ----------
    vectors
        d [n_edges, 3]; its device and dtype are those of the work.
    senders, receivers, species
        [n_edges], [n_edges], [n] int64.
    weights, spec
        The representation and its tensors.
    """

    def __init__(
        self,
        vectors: Tensor,
        senders: Tensor,
        receivers: Tensor,
        species: Tensor,
        weights: Mapping[str, Tensor],
        spec: Representation,
    ) -> None:
        self.spec, self.like, self.species = spec, vectors, species.int()
        self.edges, self.order = edges_of(vectors.detach(), senders, receivers, species)
        tensors = {name: t.detach().to(vectors) for name, t in weights.items()}
        self.moments, self.mixing = Moments(spec, tensors), Contraction(spec, tensors)

    def value(self) -> Tensor:
        """Return A [n, R, n_A, C]."""
        rho = self._rho()
        self.moments.forward(self.edges, rho)
        return self._mixed(rho)

    def gradient(self, grad_out: Tensor) -> Tensor:
        """Return dE/dd [n_edges, 3] of dE/dA."""
        out = self._vectors()
        self.moments.backward(self.edges, self._grad_rho(grad_out), out)
        return self._unsorted(out)

    def rate(self, along: Tensor) -> Tensor:
        """Return the change of A when vectors change by ``along`` [n_edges, 3]."""
        rho = self._rho()
        self.moments.rate(self.edges, self._sorted(along), rho)
        return self._mixed(rho)

    def gradient_rate(self, along: Tensor, grad_out: Tensor) -> Tensor:
        """Return the change of :meth:`gradient` when vectors change by ``along``."""
        out, grad_rho = self._vectors(), self._grad_rho(grad_out)
        self.moments.backward_rate(self.edges, self._sorted(along), grad_rho, out)
        return self._unsorted(out)

    def _rho(self) -> Tensor:
        rows = self.spec.radial.n_rbf * self.spec.n_monomials
        return self.like.new_empty(rows, len(self.edges.seg_atom))

    def _components(self) -> tuple[int, int, int]:
        return self.spec.n_radial, self.spec.n_monomials, self.spec.n_channels

    def _mixed(self, rho: Tensor) -> Tensor:
        shape, n = self._components(), len(self.species)
        a = self.like.new_empty(shape[0] * shape[1] * shape[2], n)
        self.mixing.forward(rho, self.edges, self.species, None, a)
        return a.reshape(*shape, n).movedim(3, 0).contiguous()

    def _grad_rho(self, grad_out: Tensor) -> Tensor:
        rho = self._rho()
        grad_a = grad_out.detach().movedim(0, 3).reshape(-1, len(self.species)).contiguous()
        self.mixing.backward(rho, self.edges, self.species, None, grad_a, rho)
        return rho

    def _vectors(self) -> Tensor:
        return self.like.new_empty(3, len(self.like))

    def _sorted(self, along: Tensor) -> Tensor:
        return along.detach()[self.order].T.contiguous()

    def _unsorted(self, found: Tensor) -> Tensor:
        out = torch.empty_like(self.like)
        out[self.order] = found.T
        return out
