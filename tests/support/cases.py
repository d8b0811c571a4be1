"""Inputs of the operations: specifications, weights, and difficult edges."""

from __future__ import annotations

import math

import torch

from cace_fast.spec import (
    MLP,
    Bchi,
    CutoffFunction,
    MessageStep,
    ModelSpec,
    RadialBasis,
    Representation,
)
from cace_fast.weights import expected_shapes


def representation(
    l_max=3, nu_max=3, k=2, n_rbf=4, n_radial=3, shared=False, steps=(), n_elements=3
):
    return Representation(
        tuple(range(1, n_elements + 1)), k, shared, 3.5,
        RadialBasis("bessel", n_rbf, math.sqrt(2 / 3.5)), CutoffFunction("polynomial", 3.5, 5.0),
        n_radial, l_max, nu_max, steps, 0.4,
    )  # fmt: skip


def with_step(memory, ar, bchi, **options):
    """A representation with one message passing step; ``bchi`` is (shared_l, shared_channels)."""
    base = representation(**options)
    network = None
    if bchi is not None:
        width = base.n_radial * base.n_invariants * base.n_channels
        probe = Bchi(*bchi, MLP((width, 1)))
        network = Bchi(*bchi, MLP((width, 5, base.n_bchi_weights(probe)), activation="tanh"))
    return representation(steps=(MessageStep(memory, ar, network),), **options)


def random_weights(spec, seed=3):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in expected_shapes(ModelSpec(spec)).items():
        tensors[name] = 0.6 * torch.randn(shape, generator=generator, dtype=torch.float64)
    tensors["radial.frequencies"] = (
        math.pi / 3.5 * torch.arange(1, spec.radial.n_rbf + 1, dtype=torch.float64) + 0.01
    )
    return tensors


def _random_edges(n_atoms, n_edges, generator, hub=False):
    receivers = torch.randint(n_atoms, (n_edges,), generator=generator)
    receivers = torch.zeros_like(receivers) + 1 if hub else receivers.sort().values
    senders = torch.randint(n_atoms, (n_edges,), generator=generator)
    vectors = torch.randn(n_edges, 3, generator=generator, dtype=torch.float64)
    length = 0.7 + 2.7 * torch.rand(n_edges, 1, generator=generator, dtype=torch.float64)
    vectors = vectors / vectors.norm(dim=1, keepdim=True) * length
    return vectors, senders, receivers


def _make(n_atoms, n_edges, scale=1.0, hub=False, strided=False):
    generator = torch.Generator().manual_seed(7 * n_edges + n_atoms)
    vectors, senders, receivers = _random_edges(n_atoms, n_edges, generator, hub)
    vectors = vectors * scale
    if strided:
        vectors = torch.cat([vectors, vectors], 1)[:, ::2][:, [0, 2, 1]].T.contiguous().T
    species = torch.randint(3, (n_atoms,), generator=generator)
    return {"vectors": vectors, "senders": senders, "receivers": receivers, "species": species}


EDGE_CASES = {
    "none": _make(3, 0),
    "one edge": _make(2, 1),
    "63 edges": _make(5, 63),
    "400 edges": _make(9, 400),
    "all beyond the cutoff": _make(4, 20, scale=6.0),
    "hub atom": _make(30, 90, hub=True),
    "not contiguous": _make(6, 50, strided=True),
}
