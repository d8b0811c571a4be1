"""A basis: radial-weighted Cartesian moments, as :func:`cace_fast.reference.moments.moments`.

A[j, q, m, (a, b)] = h_r[b] sum_n (sum_e R_n f_c Y_m h_s[a]) W[n, q, (a, b)]: [n_edges, 3] in,
[n, n_radial, n_A, C] out; nothing of the size of the edges times features is made. First
derivative with respect to the vectors only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cace_fast.kernels import _checks
from cace_fast.kernels.cpu.operations import Graph, Operations
from cace_fast.spec import ModelSpec, Representation, from_json, to_json
from cace_fast.weights import expected_shapes


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
        ``"cpu"``; None for the best one of the device.

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
    whole = ModelSpec(spec)
    tensors = _checks.require_constant(weights, list(expected_shapes(whole)))
    edges = (vectors.contiguous(), senders, receivers, species)
    out: Tensor = _moments(*edges, tensors, to_json(whole), chosen)
    return out


def operations_of(tensors: list[Tensor], spec: ModelSpec, dtype: torch.dtype) -> Operations:
    """Return the compiled operations of a specification with its tensors, in its order."""
    arrays = {
        name: tensor.detach().double().numpy()
        for name, tensor in zip(expected_shapes(spec), tensors, strict=True)
    }
    return Operations(spec, arrays, 64 if dtype == torch.float64 else 32)


def graph_of(vectors: Tensor, senders: Tensor, receivers: Tensor, species: Tensor) -> Graph:
    """Return the edges as arrays."""
    return Graph(array(vectors), senders.numpy(), receivers.numpy(), species.numpy())


def array(tensor: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a tensor as a float64 array in C order."""
    return np.ascontiguousarray(tensor.detach().double().numpy())


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
    graph = graph_of(vectors, senders, receivers, species)
    operations = operations_of(weights, from_json(spec), vectors.dtype)
    return torch.from_numpy(operations.moments_gradient(graph, array(grad_out))).to(vectors.dtype)


@_moments_gradient.register_fake
def _(grad_out: Tensor, vectors: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(vectors)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    vectors, senders, receivers, species, weights, ctx.spec, ctx.backend = inputs
    ctx.n_weights = len(weights)
    ctx.save_for_backward(vectors, senders, receivers, species, *weights)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    vectors, senders, receivers, species, *weights = ctx.saved_tensors
    edges = (vectors, senders, receivers, species)
    found = _moments_gradient(grad_out, *edges, list(weights), ctx.spec, ctx.backend)
    return found, None, None, None, [None] * ctx.n_weights, None, None


_moments.register_autograd(_backward, setup_context=_setup)
