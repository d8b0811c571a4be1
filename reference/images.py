"""Gradients of sums over atoms, weighted with where the atoms are; images resolved.

``docs/theory.md``, section 10: sum_j (r_j - r_i) dy_j/dr_i of values y_j of atoms, r_j - r_i along
the edges that join j to i. It does not depend on the cell that a crystal is described in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from cace_fast.graph import AtomicGraph
from cace_fast.reference.contraction import contraction
from cace_fast.reference.messages import messages
from cace_fast.reference.moments import moments
from cace_fast.spec import Representation


class _Images:
    """The senders of a graph as they stand beside receivers: one for each atom and shift.

    ``sender`` [m] is their atom, ``edge`` [n_edges] the image of each edge, and ``offset`` [m, 3]
    the S h that an edge adds to r_receiver - r_sender, in A.
    """

    def __init__(self, graph: AtomicGraph) -> None:
        rows = torch.cat([graph.senders[:, None], graph.shifts], 1)
        kinds, self.edge = torch.unique(rows, dim=0, return_inverse=True)
        self.sender = kinds[:, 0]
        cells = graph.cell.detach()[graph.batch[self.sender]]
        self.offset = torch.einsum("mk,mkx->mx", kinds[:, 1:].to(cells.dtype), cells)
        # of the backward pass of weight 1: what each crossing got; the others take it times S h
        self.first: dict[int, Tensor] = {}
        self.direction: int | None = None

    def of(self, values: Tensor, crossing: int) -> Tensor:
        """Return rows of ``values`` [n, ...] for the images; ``crossing`` counts such calls."""
        found: Tensor = _Crossing.apply(values, self, crossing)  # type: ignore[no-untyped-call]
        return found


class _Crossing(torch.autograd.Function):
    """From atoms to images, and back with the shift of each image put in."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, images: _Images, crossing: int) -> Tensor:
        ctx.images, ctx.crossing, ctx.n = images, crossing, len(values)
        return values[images.sender]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        images = ctx.images
        if images.direction is None:
            images.first[ctx.crossing] = grad
        else:
            shape = [-1] + [1] * (grad.dim() - 1)
            along = images.offset[:, images.direction].to(grad).reshape(shape)
            grad = grad + along * images.first[ctx.crossing]
        return grad.new_zeros(ctx.n, *grad.shape[1:]).index_add(0, images.sender, grad), None, None


def weighted_gradients(
    graph: AtomicGraph,
    weights: Mapping[str, Tensor],
    spec: Representation,
    values: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return F[i, a, b] = sum_j (r_j - r_i)_b dy_j/dr_ia [n, 3, 3], float64.

    One backward pass of weight 1 and three of weights r_jb. On its way from a receiver to an image
    of a sender, a gradient of the latter gains (S h)_b times that of the former. So r_j - r_i is
    that of the images that edges join, over any number of messages.

    Parameters
    ----------
    graph
        Systems with edges in canonical order; positions in A.
    weights, spec
        Tensors and representation of the model.
    values
        Gives y [n] of the invariants [n, n_radial, n_B, C, T].

    Returns
    -------
    Tensor
        In units of y.
    """
    with torch.enable_grad():
        positions = graph.positions.detach().clone().requires_grad_()
        images = _Images(graph)
        y = values(_features(positions, graph, images, weights, spec)).to(torch.float64)
        if not y.requires_grad:  # no edges
            return positions.new_zeros(graph.n_atoms, 3, 3).detach()
        (whole,) = torch.autograd.grad(y.sum(), positions, retain_graph=True)
        found = []
        for b in range(3):
            images.direction = b
            at = positions.detach()[:, b]
            (along,) = torch.autograd.grad((y * at).sum(), positions, retain_graph=b < 2)
            found.append(along - at[:, None] * whole)
    return torch.stack(found, 2)


def _features(
    positions: Tensor,
    graph: AtomicGraph,
    images: _Images,
    weights: Mapping[str, Tensor],
    spec: Representation,
) -> Tensor:
    """Return the invariants as :func:`cace_fast.reference.model.features`, through the images."""
    n = graph.n_atoms
    vectors = positions[graph.receivers] + images.offset[images.edge]
    vectors = vectors - images.of(positions, 0)[images.edge]
    species = torch.cat([graph.species, graph.species[images.sender]])
    vectors = vectors.to(weights["embedding.sender"].dtype)
    edges = (vectors, n + images.edge, graph.receivers, species, weights, spec)
    a = moments(*edges)[:n]
    b = contraction(a, spec.l_max, spec.nu_max)
    generations = [b]
    for step in range(len(spec.steps)):
        a_of_all = torch.cat([a, images.of(a, 1 + 2 * step)])
        b_of_all = torch.cat([b, images.of(b, 2 + 2 * step)])
        a = messages(a_of_all, b_of_all, *edges, step)[:n]
        b = contraction(a, spec.l_max, spec.nu_max)
        generations.append(b)
    return torch.stack(generations, -1)
