"""Moments of edges in any order, with the derivatives that training needs.

A is linear in rho, the sums over the edges of each segment (docs/developer/kernels.md), and in
every weight of the mixing and the embeddings. So derivatives with respect to these are sums of
products over atoms, in plain torch on either backend; each backend has its own derivatives of rho
(:class:`EdgeSums`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from cace_fast import tables
from cace_fast.kernels.edges import Edges, by_radial_weights, edges_of
from cace_fast.spec import Representation


class EdgeSums(Protocol):
    """rho [n_b n_A, S] of edges, and its derivatives (``docs/developer/kernels.md``).

    Arrays are component-major, in the dtype of the vectors; results are written in place.
    """

    def forward(self, edges: Edges, rho: Tensor) -> None:
        """Write rho [n_b n_A, S], the inner sum of equation 11."""

    def backward(self, edges: Edges, grad_rho: Tensor, grad_vectors: Tensor) -> None:
        """Write dE/dd [3, E] of dE/drho [n_b n_A, S] (equation 11)."""

    def jvp(self, edges: Edges, tangent: Tensor, out: Tensor) -> None:
        """Write the change of rho [n_b n_A, S] when vectors change by ``tangent`` [3, E].

        See ``docs/theory.md``, equation 11.
        """

    def vjp_jvp(self, edges: Edges, tangent: Tensor, grad_rho: Tensor, out: Tensor) -> None:
        """Write the change of ``backward`` [3, E] along ``tangent`` [3, E] at a fixed dE/drho.

        It is a derivative of equation 11.
        """

    def by_table(self, edges: Edges, grad_rho: Tensor, tangent: Tensor | None) -> Tensor:
        """Return dE/da_n, dE/db_n [2 n_b] of dE/drho [n_b n_A, S], or their change.

        a_n and b_n are the parameters of the radial functions (:func:`.edges.radial_table`); the
        change is along ``tangent`` [3, E].
        """


class EdgeMoments:
    """Moments of one set of edges: their jvp, and derivatives with respect to weights.

    See ``docs/theory.md``, equation 11.

    Parameters
    ----------
    given
        Vectors d [n_edges, 3] in A, senders, receivers [n_edges], species [n]; device and dtype
        of the work are those of the vectors.
    weights, spec
        The representation and its tensors, in that dtype.
    sums
        The backend's sums over edges.
    """

    def __init__(
        self,
        given: tuple[Tensor, Tensor, Tensor, Tensor],
        weights: Mapping[str, Tensor],
        spec: Representation,
        sums: EdgeSums,
    ) -> None:
        vectors, senders, receivers, species = given
        self.spec, self.like, self.weights, self.sums = spec, vectors, weights, sums
        self.species = species
        self.edges, self.order = edges_of(vectors.detach(), senders, receivers, species)
        self.sender, self.receiver = embeddings(spec, weights)

    def jvp(self, tangent: Tensor) -> Tensor:
        """Return the change of A [n, R, n_A, C] when vectors change by ``tangent`` [n_edges, 3].

        It is a derivative of equation 11.
        """
        return self._mixed(self._rho(tangent))

    def vjp_jvp(self, tangent: Tensor, grad_out: Tensor) -> Tensor:
        """Return the change of dE/dd [n_edges, 3] along ``tangent`` at a fixed dE/dA (equation 11).

        ``tangent`` [n_edges, 3] is the change of the vectors, ``grad_out`` [n, R, n_A, C] is dE/dA.
        """
        out, grad_rho = self._vectors(), self._grad_rho(grad_out)
        self.sums.vjp_jvp(self.edges, self._sorted(tangent), grad_rho, out)
        return self._unsorted(out)

    def by_weights(self, grad_out: Tensor, tangent: Tensor | None) -> dict[str, Tensor]:
        """Return dE/dweight of dE/dA [n, R, n_A, C] for embeddings, radial functions and mixing.

        With ``tangent`` [n_edges, 3] it is the change when vectors change by it, dE/dA fixed.
        Names and shapes are those of the weights (``docs/developer/training.md``).
        """
        spec, k = self.spec, self.spec.n_embedding
        rho = self._rho(tangent).view(spec.radial.n_rbf, spec.n_monomials, -1)
        sent = self._embedded(rho)
        h_r = self.receiver[self.species]
        grad = grad_out.detach().unflatten(3, (k, k))
        scaled = grad * h_r[:, None, None, None, :]
        found, by_sent = {}, torch.empty_like(sent)
        by_receiver = torch.zeros_like(h_r)
        for degree, rows in _degrees(spec):
            w, own = self._mixing(degree), sent[:, rows]
            found[f"mixing.{degree}"] = torch.einsum(
                "nmaj,jqmab->nqab", own, scaled[:, :, rows]
            ).flatten(2)
            mixed = torch.einsum("nmaj,nqab->jqmab", own, w)
            by_receiver += (mixed * grad[:, :, rows]).sum((1, 2, 3))
            by_sent[:, rows] = torch.einsum("jqmab,nqab->nmaj", scaled[:, :, rows], w)
        atom = self.edges.seg_atom.long()
        by_sender = (rho[:, :, None] * by_sent[..., atom]).sum((0, 1)).T
        found |= self._by_embeddings(by_sender, by_receiver)
        by_table = self.sums.by_table(
            self.edges, self._spread(by_sent), None if tangent is None else self._sorted(tangent)
        )
        return found | by_radial_weights(spec, self.weights, by_table)

    def _by_embeddings(self, by_sender: Tensor, by_receiver: Tensor) -> dict[str, Tensor]:
        """Return dE/dh of both embeddings, of dE/dh [S, K] and [n, K] where they are used."""
        n = len(self.sender)
        sender = _by_species(by_sender, self.edges.seg_species, n)
        receiver = _by_species(by_receiver, self.species, n)
        if self.spec.shared_embedding:
            return {"embedding.sender": sender + receiver}
        return {"embedding.sender": sender, "embedding.receiver": receiver}

    def _rho(self, tangent: Tensor | None = None) -> Tensor:
        """Return rho [n_b n_A, S], or its change along ``tangent``."""
        rows = self.spec.radial.n_rbf * self.spec.n_monomials
        rho = self.like.new_empty(rows, len(self.edges.seg_atom))
        if tangent is None:
            self.sums.forward(self.edges, rho)
        else:
            self.sums.jvp(self.edges, self._sorted(tangent), rho)
        return rho

    def _embedded(self, rho: Tensor) -> Tensor:
        """Return sum_s h_s[s, a] rho_s [n_b, n_A, K, n] of rho [n_b, n_A, S]."""
        first, n_seg = self.edges.atom_first.long(), rho.shape[2]
        sums = rho.new_zeros(*rho.shape[:2], self.spec.n_embedding, len(self.species))
        # one segment of every atom at a time: a scatter on a GPU has no fixed order
        most = int(first.diff().max()) if len(self.species) else 0
        for step in range(most):
            segment = first[:-1] + step
            inside = segment < first[1:]
            segment = segment.clamp(max=n_seg - 1)
            h = self.sender[self.edges.seg_species[segment].long()] * inside[:, None]
            sums += rho[:, :, None, segment] * h.T
        return sums

    def _mixed(self, rho: Tensor) -> Tensor:
        """Return A [n, R, n_A, C] of rho [n_b n_A, S]."""
        spec = self.spec
        sent = self._embedded(rho.view(spec.radial.n_rbf, spec.n_monomials, -1))
        parts = [
            torch.einsum("nmaj,nqab->jqmab", sent[:, rows], self._mixing(degree))
            for degree, rows in _degrees(spec)
        ]
        h_r = self.receiver[self.species]
        return (torch.cat(parts, 2) * h_r[:, None, None, None, :]).flatten(3)

    def _mixing(self, degree: int) -> Tensor:
        k = self.spec.n_embedding
        return torch.unflatten(self.weights[f"mixing.{degree}"], 2, (k, k))

    def _grad_rho(self, grad_out: Tensor) -> Tensor:
        """Return dE/drho [n_b n_A, S] of dE/dA."""
        k = self.spec.n_embedding
        h_r = self.receiver[self.species]
        scaled = grad_out.detach().unflatten(3, (k, k)) * h_r[:, None, None, None, :]
        parts = [
            torch.einsum("jqmab,nqab->nmaj", scaled[:, :, rows], self._mixing(degree))
            for degree, rows in _degrees(self.spec)
        ]
        return self._spread(torch.cat(parts, 1))

    def _spread(self, by_sent: Tensor) -> Tensor:
        """Return dE/drho [n_b n_A, S] of dE/d(sum_s h_s rho_s) [n_b, n_A, K, n]."""
        h = self.sender[self.edges.seg_species.long()]
        found = (by_sent[..., self.edges.seg_atom.long()] * h.T).sum(2)
        return found.flatten(0, 1).contiguous()

    def _vectors(self) -> Tensor:
        return self.like.new_empty(3, len(self.like))

    def _sorted(self, tangent: Tensor) -> Tensor:
        return tangent.detach()[self.order].T.contiguous()

    def _unsorted(self, found: Tensor) -> Tensor:
        out = torch.empty_like(self.like)
        out[self.order] = found.T
        return out


def embeddings(spec: Representation, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the embeddings of senders and receivers [n_z, K] (``docs/theory.md``, equation 2)."""
    sender = weights["embedding.sender"].contiguous()
    shared = spec.shared_embedding
    return sender, sender if shared else weights["embedding.receiver"].contiguous()


def _degrees(spec: Representation) -> list[tuple[int, slice]]:
    """Return every degree with the slice of its monomials."""
    return [(d, slice(tables.offset(d), tables.offset(d + 1))) for d in range(spec.l_max + 1)]


def _by_species(rows: Tensor, species: Tensor, n: int) -> Tensor:
    """Return the sums of rows [.., K] over each species, [n, K], in a fixed order."""
    of = species.long()[:, None] == torch.arange(n, device=rows.device)
    return of.to(rows).T @ rows
