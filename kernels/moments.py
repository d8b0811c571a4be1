"""A basis: radial-weighted Cartesian moments, as :func:`cace_fast.reference.moments.moments`.

A[j, q, m, (a, b)] = h_r[b] sum_n (sum_e R_n f_c Y_m h_s[a]) W[n, q, (a, b)]. The operator takes
vectors [n_edges, 3] and returns [n, n_radial, n_A, C]; it makes no array of edges times features.
It has derivatives with respect to vectors and weights, and those of the first once more, which
training on forces needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cace_fast.kernels import _operators as shared
from cace_fast.kernels.cpu.edge_sums import EdgeSums
from cace_fast.kernels.edge_moments import EdgeMoments
from cace_fast.spec import Representation

if TYPE_CHECKING:
    from cace_fast.kernels.triton.host_moments import TritonMoments


def moments(
    vectors: Tensor,
    senders: Tensor,
    receivers: Tensor,
    species: Tensor,
    weights: Mapping[str, Tensor],
    spec: Representation,
    *,
    backend: str | None = None,
) -> Tensor:
    """Return the moments A of every atom (``docs/theory.md``, equation 11).

    Parameters
    ----------
    vectors
        d [n_edges, 3] in A, from sender to receiver; its dtype, float32 or float64, is that of the
        result.
    senders, receivers
        [n_edges] int64, in any order.
    species
        [n] int64, row of each atom's element in the embeddings.
    weights
        Tensors ``embedding.*``, ``radial.*``, ``mixing.*``.
    spec
        The representation.
    backend
        ``"cpu"`` or ``"triton"``; None for the best one of the device.

    Returns
    -------
    Tensor
        A [n, n_radial, n_A, C].

    Raises
    ------
    InputError
        For wrong shapes or dtypes, or a missing weight.
    BackendUnavailableError
        If no kernels, or not the ones named, serve the device.
    """
    shared.require_edges(vectors, senders, receivers, species)
    chosen = shared.select_backend(vectors.device, backend)
    names, text = shared.described(spec)
    tensors = shared.require_weights(weights, names)
    edges = (vectors.contiguous(), senders, receivers, species)
    out: Tensor = _moments(*edges, tensors, text, chosen)
    return out


Given = tuple[Tensor, Tensor, Tensor, Tensor]


def _on_device(given: Given, weights: list[Tensor], spec: str) -> TritonMoments:
    """Return the Triton kernels with their edges."""
    from cace_fast.kernels.triton.host_moments import TritonMoments

    return TritonMoments(given, *_representation(given, weights, spec))


def _of_edges(given: Given, weights: list[Tensor], spec: str, backend: str) -> EdgeMoments:
    """Return the backend's sums over these edges."""
    if backend == "triton":
        return _on_device(given, weights, spec)
    like, rep = _representation(given, weights, spec)
    return EdgeMoments(given, like, rep, EdgeSums(rep, like))


def _representation(
    given: Given, weights: list[Tensor], spec: str
) -> tuple[dict[str, Tensor], Representation]:
    """Return the tensors by name, constants in the dtype of the vectors; and the representation."""
    whole = shared.read(spec)
    like = {name: t.detach().to(given[0]) for name, t in shared.named(weights, whole).items()}
    return like, whole.representation


@torch.library.custom_op("cace_fast::moments", mutates_args=())
def _moments(
    vectors: Tensor,
    senders: Tensor,
    receivers: Tensor,
    species: Tensor,
    weights: list[Tensor],
    spec: str,
    backend: str,
) -> Tensor:
    if backend == "triton":
        return _on_device((vectors, senders, receivers, species), weights, spec).value()
    graph = shared.graph_of(vectors, senders, receivers, species)
    with shared.compiled(shared.edge_operations, spec, weights, vectors.dtype) as operations:
        found = operations.moments(graph)
    return torch.from_numpy(found).to(vectors.dtype)


@_moments.register_fake
def _(
    vectors: Tensor,
    senders: Tensor,
    receivers: Tensor,
    species: Tensor,
    weights: list[Tensor],
    spec: str,
    backend: str,
) -> Tensor:
    rep = shared.read(spec).representation
    return vectors.new_empty(species.shape[0], rep.n_radial, rep.n_monomials, rep.n_channels)


@torch.library.custom_op("cace_fast::moments_gradient", mutates_args=())
def _moments_gradient(
    grad_out: Tensor,
    vectors: Tensor,
    senders: Tensor,
    receivers: Tensor,
    species: Tensor,
    weights: list[Tensor],
    spec: str,
    backend: str,
) -> Tensor:
    if backend == "triton":
        given = (vectors, senders, receivers, species)
        return _on_device(given, weights, spec).gradient(grad_out)
    graph = shared.graph_of(vectors, senders, receivers, species)
    with shared.compiled(shared.edge_operations, spec, weights, vectors.dtype) as operations:
        found = operations.moments_gradient(graph, shared.array(grad_out))
    return torch.from_numpy(found).to(vectors.dtype)


@_moments_gradient.register_fake
def _(grad_out: Tensor, vectors: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(vectors)


@torch.library.custom_op("cace_fast::moments_jvps", mutates_args=())
def _moments_jvps(
    tangent: Tensor,
    grad_out: Tensor,
    vectors: Tensor,
    senders: Tensor,
    receivers: Tensor,
    species: Tensor,
    weights: list[Tensor],
    spec: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Return the change of A, and of dE/dd at a fixed dE/dA, when vectors change by ``tangent``."""
    edges = _of_edges((vectors, senders, receivers, species), weights, spec, backend)
    return edges.jvp(tangent), edges.vjp_jvp(tangent, grad_out)


@_moments_jvps.register_fake
def _(tangent: Tensor, grad_out: Tensor, vectors: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad_out), torch.empty_like(vectors)


@torch.library.custom_op("cace_fast::moments_by_weights", mutates_args=())
def _moments_by_weights(
    tangent: Tensor | None,
    grad_out: Tensor,
    vectors: Tensor,
    senders: Tensor,
    receivers: Tensor,
    species: Tensor,
    weights: list[Tensor],
    spec: str,
    backend: str,
) -> list[Tensor]:
    """Return dE/dweight of dE/dA; with ``tangent``, its change when vectors change so."""
    edges = _of_edges((vectors, senders, receivers, species), weights, spec, backend)
    found = edges.by_weights(grad_out, tangent)
    every = shared.named(weights, shared.read(spec)).items()
    # weights of messages do not enter A
    return [found[n].to(w) if n in found else torch.zeros_like(w) for n, w in every]


@_moments_by_weights.register_fake
def _(
    tangent: Tensor | None,
    grad_out: Tensor,
    vectors: Tensor,
    senders: Tensor,
    receivers: Tensor,
    species: Tensor,
    weights: list[Tensor],
    *rest: str,
) -> list[Tensor]:
    return [torch.empty_like(weight) for weight in weights]


def _weights_gradient(ctx: Any, tangent: Tensor | None, arguments: tuple[Any, ...]) -> list[Any]:
    """Return dE/dweight, or its change along ``tangent``, where a weight is trained."""
    *_, weights, _, _ = arguments
    wanted = ctx.needs_input_grad[-3]  # at the position of the weights
    if not any(wanted):
        return [None] * len(weights)
    found = _moments_by_weights(tangent, *arguments)
    return [grad if want else None for grad, want in zip(found, wanted, strict=True)]


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    arguments = shared.saved_inputs(ctx)
    by_vectors = None
    if ctx.needs_input_grad[0]:
        by_vectors = _moments_gradient(grad_out, *arguments)
    by_weights = _weights_gradient(ctx, None, (grad_out, *arguments))
    return shared.pad_grads(arguments, by_vectors, None, None, None, by_weights)


def _gradient_backward(ctx: Any, tangent: Tensor) -> tuple[Any, ...]:
    arguments = shared.saved_inputs(ctx)
    by_grad_out, by_vectors = _moments_jvps(tangent, *arguments)
    by_weights = _weights_gradient(ctx, tangent, arguments)
    return shared.pad_grads(arguments, by_grad_out, by_vectors, None, None, None, by_weights)


shared.differentiable(_moments, _backward)
shared.differentiable(_moments_gradient, _gradient_backward)
shared.differentiable(_moments_jvps, shared.no_higher_derivative("moments", "second"))
shared.differentiable(_moments_by_weights, shared.no_higher_derivative("moments", "second"))
