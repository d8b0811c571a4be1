"""A basis: radial-weighted Cartesian moments of the neighbourhood, ``docs/theory.md`` section 4.

The sum over neighbours is one sum of outer products: the receiver's factor h_r leaves the sum and
the radial mixing acts on its result, so no array of size [n_edges, n_rbf, n_A, C] is ever made.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

from cace_fast import tables
from cace_fast.reference.radial import cutoff_function, radial_basis
from cace_fast.spec import Representation

ROW = 16  # edges of one receiver in a row of the padded product: few enough to waste little


def moments(
    vectors: Tensor,
    senders: Tensor,
    receivers: Tensor,
    species: Tensor,
    weights: Mapping[str, Tensor],
    spec: Representation,
) -> Tensor:
    """Return the moments A of every atom (equation 11).

    Parameters
    ----------
    vectors
        d [n_edges, 3] in A, from sender to receiver; its dtype is that of the result.
    senders, receivers
        [n_edges] int64, ascending in the receiver.
    species
        [n] int64, row of each atom's element in the embeddings.
    weights
        Tensors ``embedding.*``, ``radial.*``, ``mixing.*``.
    spec
        The representation.

    Returns
    -------
    Tensor
        A [n, n_radial, n_A, C], channel c = a K + b with a from the sender, b from the receiver.
    """
    radial, monomials, _, _ = edge_basis(vectors, weights, spec)
    h_s = weights["embedding.sender"][species]
    sent = (radial[:, :, None] * h_s[senders][:, None, :]).flatten(1)
    rho = outer_sum(monomials, sent, receivers, species.shape[0])
    rho = rho.unflatten(2, (spec.radial.n_rbf, spec.n_embedding))
    h_r = receiver_embedding(weights, spec)[species]
    k = spec.n_embedding
    mixed = []
    for degree in range(spec.l_max + 1):
        w = weights[f"mixing.{degree}"].unflatten(2, (k, k))
        mixed.append(torch.einsum("jmna,nqab->jqmab", rho[:, monomial_slice(degree)], w))
    return (torch.cat(mixed, 2) * h_r[:, None, None, None, :]).flatten(3)


def edge_basis(
    vectors: Tensor, weights: Mapping[str, Tensor], spec: Representation
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return R_n f_c [n_edges, n_rbf], Y_m [n_edges, n_A], r [n_edges] in A and f_c [n_edges].

    ``vectors`` [n_edges, 3] are in A; results have their dtype (equations 3 to 10).
    """
    r = torch.linalg.vector_norm(vectors, dim=1)
    unit = vectors / (r + 1e-9)[:, None]  # 1e-9 as in the trained models
    f_c = cutoff_function(r, spec.cutoff_function)
    radial = radial_basis(r, weights, spec.radial, spec.cutoff_function.cutoff) * f_c[:, None]
    return radial, angular_basis(unit, spec.l_max), r, f_c


def angular_basis(unit: Tensor, l_max: int) -> Tensor:
    """Return the monomials Y_m [n_edges, n_A] of ``unit`` [n_edges, 3] (equation 10)."""
    powers = [torch.ones_like(unit)]
    for _ in range(l_max):
        powers.append(powers[-1] * unit)
    table = torch.stack(powers, 1)
    lx, ly, lz = _exponents(l_max, unit.device)
    return table[:, lx, 0] * table[:, ly, 1] * table[:, lz, 2]


def receiver_embedding(weights: Mapping[str, Tensor], spec: Representation) -> Tensor:
    """Return the embedding of receivers [n_z, K], the sender's when both are one (equation 2)."""
    return weights["embedding.sender" if spec.shared_embedding else "embedding.receiver"]


def monomial_slice(degree: int) -> slice:
    """Return where the monomials of ``degree`` stand in the A basis (equation 10)."""
    return slice(tables.offset(degree), tables.offset(degree + 1))


def outer_sum(left: Tensor, right: Tensor, receivers: Tensor, n_atoms: int) -> Tensor:
    """Return the sum over edges of each receiver of the outer product left (x) right (equation 11).

    Edges of one receiver are laid out in rows of at most ``ROW``, so that the sum is a batched
    matrix product whatever the number of neighbours: a hub atom just has more rows.

    Parameters
    ----------
    left, right
        [n_edges, p] and [n_edges, q], of one dtype.
    receivers
        [n_edges] int64, ascending.
    n_atoms
        Number of receivers.

    Returns
    -------
    Tensor
        [n_atoms, p, q]; zero for atoms without edges.
    """
    count = torch.bincount(receivers, minlength=n_atoms)
    n_rows = (count + ROW - 1) // ROW
    first_edge, first_row = count.cumsum(0) - count, n_rows.cumsum(0) - n_rows
    position = torch.arange(len(receivers), device=receivers.device) - first_edge[receivers]
    slot = first_row[receivers] * ROW + position
    total = int(n_rows.sum())
    owner = torch.repeat_interleave(torch.arange(n_atoms, device=receivers.device), n_rows)

    def padded(x: Tensor) -> Tensor:
        rows = x.new_zeros(total * ROW, x.shape[1]).index_copy(0, slot, x)
        return rows.reshape(total, ROW, x.shape[1])

    rows = torch.bmm(padded(left).transpose(1, 2), padded(right))
    return rows.new_zeros(n_atoms, *rows.shape[1:]).index_add(0, owner, rows)


@cache
@torch.inference_mode(False)  # cached, and used in differentiated code later
def _exponents(l_max: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    lx, ly, lz = torch.tensor(tables.monomials(l_max), device=device).T
    return lx, ly, lz
