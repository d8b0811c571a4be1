"""A basis: radial-weighted Cartesian moments, as :func:`cace_fast.reference.moments.moments`.

A[j, q, m, (a, b)] = h_r[b] sum_n (sum_e R_n f_c Y_m h_s[a]) W[n, q, (a, b)]: [n_edges, 3] in,
[n, n_radial, n_A, C] out; nothing of the size of the edges times features is made. Derivatives are
those with respect to the vectors: the first by either backend, the second by ``"triton"`` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cace_fast.errors import PropertyNotImplementedError
from cace_fast.kernels import _checks
from cace_fast.kernels.cpu.operations import Graph, Operations
from cace_fast.spec import ModelSpec, Representation, from_json

if TYPE_CHECKING:
    from cace_fast.kernels.triton.host_moments import EdgeMoments


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
        d [n_edges, 3] in A, from sender to receiver; its dtype is that of the result.
    senders, receivers
        [n_edges] int64, in any order.
    species
        [n] int64, row of each atom's element in the embeddings.
    weights
        Tensors ``embedding.*``, ``radial.*``, ``mixing.*``; constants.
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
        For wrong shapes or dtypes, or weights that require gradients.
    BackendUnavailableError
        If no kernels, or not the ones named, serve the device.
    """
    _checks.require_edges(vectors, senders, receivers, species)
    chosen = _checks.select_backend(vectors.device, backend)
    names, text = _checks.described(spec)
    tensors = _checks.require_constant(weights, names)
    edges = (vectors.contiguous(), senders, receivers, species)
    out: Tensor = _moments(*edges, tensors, text, chosen)
    return out


def operations_of(tensors: list[Tensor], spec: ModelSpec, dtype: torch.dtype) -> Operations:
    """Return the compiled operations of a specification with its tensors, in its order."""
    arrays = {
        name: tensor.detach().double().numpy()
        for name, tensor in _checks.named(tensors, spec).items()
    }
    return Operations(spec, arrays, 64 if dtype == torch.float64 else 32)


def graph_of(vectors: Tensor, senders: Tensor, receivers: Tensor, species: Tensor) -> Graph:
    """Return the edges as arrays."""
    return Graph(array(vectors), senders.numpy(), receivers.numpy(), species.numpy())


def array(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a tensor as a float64 array in C order."""
    return np.ascontiguousarray(tensor.detach().double().numpy())


def _on_device(
    vectors: Tensor,
    senders: Tensor,
    receivers: Tensor,
    species: Tensor,
    weights: list[Tensor],
    spec: str,
) -> EdgeMoments:
    """Return the Triton kernels with their edges."""
    from cace_fast.kernels.triton.host_moments import EdgeMoments

    whole = from_json(spec)
    named = _checks.named(weights, whole)
    return EdgeMoments(vectors, senders, receivers, species, named, whole.representation)


def _require_triton(backend: str) -> None:
    if backend != "triton":
        raise PropertyNotImplementedError(
            f"moments: second derivatives exist with backend 'triton' and in cace_fast.reference, "
            f"not with {backend!r}"
        )


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
        return _on_device(vectors, senders, receivers, species, weights, spec).value()
    graph = graph_of(vectors, senders, receivers, species)
    out = operations_of(weights, from_json(spec), vectors.dtype).moments(graph)
    return torch.from_numpy(out).to(vectors.dtype)


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
    rep = from_json(spec).representation
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
        edges = _on_device(vectors, senders, receivers, species, weights, spec)
        return edges.gradient(grad_out)
    graph = graph_of(vectors, senders, receivers, species)
    operations = operations_of(weights, from_json(spec), vectors.dtype)
    return torch.from_numpy(operations.moments_gradient(graph, array(grad_out))).to(vectors.dtype)


@_moments_gradient.register_fake
def _(grad_out: Tensor, vectors: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(vectors)


@torch.library.custom_op("cace_fast::moments_rates", mutates_args=())
def _moments_rates(
    along: Tensor,
    grad_out: Tensor,
    vectors: Tensor,
    senders: Tensor,
    receivers: Tensor,
    species: Tensor,
    weights: list[Tensor],
    spec: str,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Return the change of A, and of dE/dd at a fixed dE/dA, when vectors change by ``along``."""
    _require_triton(backend)
    edges = _on_device(vectors, senders, receivers, species, weights, spec)
    return edges.rate(along), edges.gradient_rate(along, grad_out)


@_moments_rates.register_fake
def _(along: Tensor, grad_out: Tensor, vectors: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad_out), torch.empty_like(vectors)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, weights, ctx.spec, ctx.backend = inputs
    ctx.n_tensors, ctx.n_weights = len(tensors), len(weights)
    ctx.save_for_backward(*tensors, *weights)


def _saved(ctx: Any) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    tensors = ctx.saved_tensors
    return tensors[: ctx.n_tensors], list(tensors[ctx.n_tensors :])


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    edges, weights = _saved(ctx)
    found = _moments_gradient(grad_out, *edges, weights, ctx.spec, ctx.backend)
    return found, None, None, None, [None] * ctx.n_weights, None, None


def _gradient_backward(ctx: Any, along: Tensor) -> tuple[Any, ...]:
    tensors, weights = _saved(ctx)
    by_grad_out, by_vectors = _moments_rates(along, *tensors, weights, ctx.spec, ctx.backend)
    return by_grad_out, by_vectors, None, None, None, [None] * ctx.n_weights, None, None


_moments.register_autograd(_backward, setup_context=_setup)
_moments_gradient.register_autograd(_gradient_backward, setup_context=_setup)
