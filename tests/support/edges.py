"""Edges and sums over them by plain torch, for tests of the kernels of moments and forces."""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from cace_fast.kernels.edges import Edges, edges_of
from cace_fast.reference.moments import edge_basis
from cace_fast.spec import CutoffFunction, RadialBasis, Representation

CUTOFF = 5.0


def radial_representation(
    kind: str = "bessel", cutoff: str = "polynomial", *, l_max: int = 2, n_rbf: int = 3,
    p: float = 6.0,
) -> Representation:  # fmt: skip
    """Return a representation of three elements with the given radial part."""
    return Representation(
        (1, 6, 8), 2, False, CUTOFF, RadialBasis(kind, n_rbf, prefactor=0.7),
        CutoffFunction(cutoff, CUTOFF, p=p, switch_on=2.0, eps=1e-3), 2, l_max, 2,
    )  # fmt: skip


def radial_weights(rep: Representation, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the tensors that the radial part needs; frequencies are no multiples of one."""
    n = rep.radial.n_rbf
    steps = torch.arange(1, n + 1, dtype=torch.float64)
    uneven = 1.0 + 0.05 * torch.sin(3.0 * steps)
    tensors = {
        "embedding.sender": torch.zeros(rep.n_elements, rep.n_embedding),
        "radial.frequencies": steps * pi / CUTOFF * uneven,
        "radial.offsets": steps * CUTOFF / n,
        "radial.widths": 0.6 * uneven,
        "radial.ranges": 1.0 + uneven,
    }
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


def some_edges(n: int, mean: int, dtype: torch.dtype) -> tuple[Edges, Tensor]:
    """Return edges of ``n`` atoms, some beyond the cutoff, none at atom 3; and vectors [E, 3]."""
    generator = torch.Generator().manual_seed(7)
    receivers = torch.randint(0, n, (n * mean,), generator=generator)
    receivers = receivers[receivers != 3]
    senders = torch.randint(0, n, (len(receivers),), generator=generator)
    species = torch.randint(0, 3, (n,), generator=generator)
    d = torch.randn(len(receivers), 3, generator=generator, dtype=torch.float64)
    r = 0.8 + (CUTOFF - 0.6) * torch.rand(len(receivers), 1, generator=generator).double()
    vectors = (d / d.norm(dim=1, keepdim=True) * r).to(dtype)
    edges, order = edges_of(vectors, senders, receivers, species)
    return edges, vectors[order]


def segment_of(edges: Edges) -> Tensor:
    """Return the segment of every edge."""
    return torch.repeat_interleave(edges.seg_first.diff())


def rho_of(
    vectors: Tensor, edges: Edges, weights: dict[str, Tensor], rep: Representation
) -> Tensor:
    """Return rho [n_b n_A, S] by the reference's radial functions and monomials."""
    radial, monomials, _, _ = edge_basis(vectors, weights, rep)
    each = radial[:, :, None] * monomials[:, None, :]
    sums = each.new_zeros(len(edges.seg_atom), *each.shape[1:])
    return sums.index_add(0, segment_of(edges), each).flatten(1).T


def relative(found: Tensor, expected: Tensor) -> float:
    """Return the largest error in units of the largest number."""
    return float((found.double().cpu() - expected).abs().max() / expected.abs().max())
