"""The mixing of rho into A and its contraction in plain torch, for tests of the fused kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from cace_fast.kernels.edges import Edges
from cace_fast.reference.contraction import contraction
from cace_fast.reference.moments import monomial_slice, receiver_embedding
from cace_fast.spec import Representation


def mixed(
    rho: Tensor, edges: Edges, species: Tensor, weights: dict[str, Tensor], spec: Representation
) -> Tensor:
    """Return A [n, R, n_A, C] of rho [n_b n_A, S]."""
    k, shape = spec.n_embedding, (spec.radial.n_rbf, spec.n_monomials, len(edges.seg_atom))
    sent = weights["embedding.sender"][edges.seg_species.long()]
    each = torch.einsum("nms,sa->snma", rho.view(shape), sent)
    sums = rho.new_zeros(len(species), *each.shape[1:]).index_add(0, edges.seg_atom.long(), each)
    h_r = receiver_embedding(weights, spec)[species]
    parts = []
    for degree in range(spec.l_max + 1):
        w = weights[f"mixing.{degree}"].unflatten(2, (k, k))
        own = sums[:, :, monomial_slice(degree)]
        parts.append(torch.einsum("jnma,nqab,jb->jqmab", own, w, h_r))
    return torch.cat(parts, 2).flatten(3)


def components(x: Tensor) -> Tensor:
    """Return [n, R, m, C] as [R m C, n]."""
    return x.detach().permute(1, 2, 3, 0).reshape(x.shape[1:].numel(), len(x)).contiguous()


def chain(
    rho: Tensor, edges: Edges, species: Tensor, weights: dict[str, Tensor], spec: Representation
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return A, B, seeded dE/dA and dE/dB, all component-major, and dE/drho of both."""
    leaf = rho.clone().requires_grad_(True)
    a = mixed(leaf, edges, species, weights, spec)
    b = contraction(a, spec.l_max, spec.nu_max)
    generator = torch.Generator().manual_seed(5)
    by_a, by_b = (torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in (a, b))
    (grad,) = torch.autograd.grad((a * by_a).sum() + (b * by_b).sum(), leaf)
    return components(a), components(b), components(by_a), components(by_b), grad.contiguous()
