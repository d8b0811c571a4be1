"""One message passing step, as :func:`cace_fast.reference.messages.messages`.

The operator takes A and B of a generation and returns A of the next one. It has first derivatives,
with respect to A, B and the vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cace_fast.errors import InputError
from cace_fast.kernels import _operators as shared
from cace_fast.spec import Representation

if TYPE_CHECKING:
    from cace_fast.kernels.triton.operators import Step


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
    *,
    backend: str | None = None,
) -> Tensor:
    """Return the moments of the next generation (``docs/theory.md``, equation 21).

    Parameters
    ----------
    a, b
        A [n, n_radial, n_A, C] and B [n, n_radial, n_B, C] of the generation before.
    vectors, senders, receivers, species, weights, spec
        As in :func:`cace_fast.kernels.moments.moments`; ``weights`` also ``messages.*``.
    step
        Which message passing step, from 0.
    backend
        ``"cpu"`` or ``"triton"``; None for the best one of the device.

    Returns
    -------
    Tensor
        A [n, n_radial, n_A, C].

    Raises
    ------
    InputError
        For wrong shapes or dtypes, a step that is not there, or weights that require gradients.
    BackendUnavailableError
        If no kernels, or not the ones named, serve the device.
    """
    shared.require_edges(vectors, senders, receivers, species)
    if not 0 <= step < len(spec.steps):
        raise InputError("step", f"one of the {len(spec.steps)} steps of the specification", step)
    n, r, c = species.shape[0], spec.n_radial, spec.n_channels
    for name, tensor, rows in zip(("a", "b"), (a, b), spec.derive(_rows), strict=True):
        shared.require(name, tensor, (n, r, rows, c), (vectors.dtype,))
    chosen = shared.select_backend(vectors.device, backend)
    names, text = shared.described(spec)
    tensors = shared.require_constant(weights, names)
    edges = (vectors.contiguous(), senders, receivers, species)
    inputs = (a.contiguous(), b.contiguous(), *edges)
    out: Tensor = _messages(*inputs, tensors, text, step, chosen)
    return out


def _rows(spec: Representation) -> tuple[int, int]:
    """Return the numbers of monomials and invariants."""
    return spec.n_monomials, spec.n_invariants


def _on_device(
    edges: tuple[Tensor, Tensor, Tensor, Tensor], weights: list[Tensor], text: str, step: int
) -> Step:
    """Return the Triton kernels with their edges."""
    from cace_fast.kernels.triton.operators import Step

    whole = shared.read(text)
    return Step(edges, shared.named(weights, whole), whole.representation, step)


@torch.library.custom_op("cace_fast::messages", mutates_args=())
def _messages(
    a: Tensor,
    b: Tensor,
    vectors: Tensor,
    senders: Tensor,
    receivers: Tensor,
    species: Tensor,
    weights: list[Tensor],
    spec: str,
    step: int,
    backend: str,
) -> Tensor:
    if backend == "triton":
        edges = (vectors, senders, receivers, species)
        return _on_device(edges, weights, spec, step).value(a, b)
    graph = shared.graph_of(vectors, senders, receivers, species)
    with shared.compiled(shared.edge_operations, spec, weights, vectors.dtype) as operations:
        found = operations.messages(graph, shared.array(a), shared.array(b), step)
    return torch.from_numpy(found).to(vectors.dtype)


@_messages.register_fake
def _(a: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(a)


@torch.library.custom_op("cace_fast::messages_gradient", mutates_args=())
def _messages_gradient(
    grad_out: Tensor,
    a: Tensor,
    b: Tensor,
    vectors: Tensor,
    senders: Tensor,
    receivers: Tensor,
    species: Tensor,
    weights: list[Tensor],
    spec: str,
    step: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    if backend == "triton":
        edges = (vectors, senders, receivers, species)
        return _on_device(edges, weights, spec, step).gradient(a, b, grad_out)
    graph = shared.graph_of(vectors, senders, receivers, species)
    with shared.compiled(shared.edge_operations, spec, weights, vectors.dtype) as operations:
        found = operations.messages_gradient(
            graph, shared.array(a), shared.array(b), step, shared.array(grad_out)
        )
    grad_a, grad_b, grad_vectors = (torch.from_numpy(x).to(vectors.dtype) for x in found)
    return grad_a, grad_b, grad_vectors


@_messages_gradient.register_fake
def _(
    grad_out: Tensor, a: Tensor, b: Tensor, vectors: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(a), torch.empty_like(b), torch.empty_like(vectors)


shared.differentiable_once(_messages, _messages_gradient, "messages")
