"""One message passing step: memory, Ar and Bchi, ``docs/theory.md`` section 6."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cace_fast.reference.moments import edge_basis, monomial_slice, outer_sum, receiver_embedding
from cace_fast.reference.readout import mlp
from cace_fast.spec import Bchi, Representation


def messages(
    a: Tensor,
    b: Tensor,
    vectors: Tensor,
    senders: Tensor,
    receivers: Tensor,
    species: Tensor,
    weights: Mapping[str, Tensor],
    spec: Representation,
    step: int = 0,
) -> Tensor:
    """Return the moments of the next generation (equation 21).

    Parameters
    ----------
    a, b
        A [n, n_radial, n_A, C] and B [n, n_radial, n_B, C] of the generation before.
    vectors, senders, receivers, species, weights, spec
        As in :func:`cace_fast.reference.moments.moments`; ``weights`` also ``messages.<step>.*``.
    step
        Which message passing step, from 0.

    Returns
    -------
    Tensor
        A [n, n_radial, n_A, C]: s (ar + bc) + mem, a missing part being zero.
    """
    parts = spec.steps[step]
    prefix = f"messages.{step}"
    radial, monomials, r, f_c = edge_basis(vectors, weights, spec)
    received = torch.zeros_like(a)
    if parts.ar:
        received = received + _ar(a, r, f_c, senders, receivers, weights, prefix, spec.l_max)
    if parts.bchi is not None:
        w = bchi_weights(b, weights, parts.bchi, spec, step)
        received = received + _bchi(
            w, radial, monomials, senders, receivers, species, weights, spec
        )
    out = spec.mp_norm_factor * received
    if parts.memory:
        out = out + a * _by_monomial(weights, f"{prefix}.memory", spec.l_max)
    return out


def bchi_weights(
    b: Tensor, weights: Mapping[str, Tensor], bchi: Bchi, spec: Representation, step: int = 0
) -> Tensor:
    """Return the factors w [n, n_l, n_c] of the edges of each sender (equation 19).

    n_l is 1 where degrees share them, n_c is 1 where channels do.

    Parameters
    ----------
    b
        B [n, n_radial, n_B, C] of the generation before.
    weights
        Tensors ``messages.<step>.bchi.*``.
    bchi, spec
        The network, and the representation that has it.
    step
        Which message passing step, from 0.
    """
    n_l = 1 if bchi.shared_l else spec.l_max + 1
    n_c = 1 if bchi.shared_channels else spec.n_channels
    w = mlp(b.flatten(1), weights, bchi.mlp, f"messages.{step}.bchi")
    return w.reshape(len(w), n_l, n_c)


def _ar(
    a: Tensor,
    r: Tensor,
    f_c: Tensor,
    senders: Tensor,
    receivers: Tensor,
    weights: Mapping[str, Tensor],
    prefix: str,
    l_max: int,
) -> Tensor:
    """Sum A of the senders times P exp(-r V) f_c, one degree at a time (equation 18)."""
    summed = []
    for degree in range(l_max + 1):
        p = weights[f"{prefix}.ar.prefactor.{degree}"]
        v = weights[f"{prefix}.ar.inverse_range.{degree}"]
        decay = torch.exp(-r[:, None, None] * v) * f_c[:, None, None]
        block = a[:, :, monomial_slice(degree)]
        sent = block[senders] * decay[:, :, None, :]
        summed.append(p[:, None, :] * torch.zeros_like(block).index_add(0, receivers, sent))
    return torch.cat(summed, 2)


def _bchi(
    w: Tensor,
    radial: Tensor,
    monomials: Tensor,
    senders: Tensor,
    receivers: Tensor,
    species: Tensor,
    weights: Mapping[str, Tensor],
    spec: Representation,
) -> Tensor:
    """Sum phi times the sender's weight, mixed as in the moments (equation 20).

    As there, h_r leaves the sum: what an edge carries is R_n f_c h_s[a] w, at most n_rbf C numbers
    for each degree.
    """
    k, n_atoms = spec.n_embedding, species.shape[0]
    h_s = weights["embedding.sender"][species]
    h_r = receiver_embedding(weights, spec)[species]
    mixed = []
    for degree in range(spec.l_max + 1):
        block = w[:, min(degree, w.shape[1] - 1)]
        if block.shape[1] == 1:  # shared over channels: one K-vector for each sender
            sender = (h_s * block)[:, :, None]
        else:
            sender = h_s[:, :, None] * block.unflatten(1, (k, k))
        sent = radial[:, :, None] * sender.flatten(1)[senders][:, None, :]
        rho = outer_sum(monomials[:, monomial_slice(degree)], sent.flatten(1), receivers, n_atoms)
        rho = rho.unflatten(2, (spec.radial.n_rbf, k, -1))
        mixing = weights[f"mixing.{degree}"].unflatten(2, (k, k))
        equation = "jmna,nqab->jqmab" if rho.shape[4] == 1 else "jmnab,nqab->jqmab"
        mixed.append(torch.einsum(equation, rho.squeeze(4) if rho.shape[4] == 1 else rho, mixing))
    return (torch.cat(mixed, 2) * h_r[:, None, None, None, :]).flatten(3)


def _by_monomial(weights: Mapping[str, Tensor], prefix: str, l_max: int) -> Tensor:
    """Return weights given per degree as [n_radial, n_A, C]."""
    return torch.cat(
        [
            weights[f"{prefix}.{degree}"][:, None, :].expand(
                -1, (degree + 1) * (degree + 2) // 2, -1
            )
            for degree in range(l_max + 1)
        ],
        1,
    )
