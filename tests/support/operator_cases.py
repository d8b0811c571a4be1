"""Cases of the public operators: contraction, read-out, messages, long range.

Each case is a function of named float64 tensors in two forms, with kernels and of the reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cace_fast import tables
from cace_fast.kernels import contraction as kernel_contraction
from cace_fast.kernels import ewald as kernel_ewald
from cace_fast.kernels import messages as kernel_messages
from cace_fast.kernels import readout as kernel_readout
from cace_fast.reference import contraction as ref_contraction
from cace_fast.reference import ewald as ref_ewald
from cace_fast.reference import messages as ref_messages
from cace_fast.reference import readout as ref_readout
from cace_fast.spec import MLP, Ewald, Readout
from cace_fast.weights import mlp_shapes

from .cases import EDGE_CASES, random_weights, with_step


class Case(NamedTuple):
    """``kernels(backend)`` and ``reference`` are functions of the named ``tensors``."""

    kernels: Callable[[str], Callable[..., Tensor]]
    reference: Callable[..., Tensor]
    tensors: dict[str, Tensor]


def normal(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def contraction(l_max, nu_max, n=37, n_radial=2, channels=3):
    return Case(
        lambda backend: lambda a: kernel_contraction.contraction(a, l_max, nu_max, backend=backend),
        lambda a: ref_contraction.contraction(a, l_max, nu_max),
        {"a": normal((n, n_radial, tables.n_monomials(l_max), channels), l_max)},
    )


NETWORKS = {
    activation: MLP((21, 6, 5, 3), activation=activation)
    for activation in ("silu", "relu", "tanh", "sigmoid", "elu", "gelu", "softplus", "mish")
} | {
    "batch norm": MLP((21, 6, 5, 3), batch_norm=True),
    "one layer": MLP((21, 3)),
    "no bias": MLP((21, 6, 3), bias=False),
    "wide": MLP((70, 9, 2)),
}
DEEP_NETWORKS = {
    "residual": MLP((21, 6, 6, 3), residual=True, activation="tanh"),
    "two residual blocks": MLP((12, 8, 6, 6, 6, 2), residual=True),
    "residual and batch norm": MLP((21, 6, 5, 3), residual=True, batch_norm=True),
    "residual of equal widths and batch norm": MLP((9, 9, 9, 1), residual=True, batch_norm=True),
    "four layers": MLP((21, 7, 6, 5, 3)),
    "one after the other": MLP((21, 6, 70, 3)),  # too large for all layers in one launch
}


def network_weights(mlp, prefix, linear, seed=4):
    """Return seeded tensors of a network and the linear read-out beside it."""
    shapes = mlp_shapes(mlp, prefix)
    if linear:
        beside = MLP((mlp.widths[0], mlp.widths[-1], 1), bias=mlp.bias, batch_norm=mlp.batch_norm)
        begin = "x.layers.0."
        shapes |= {
            f"{prefix}.linear.{name.removeprefix(begin)}": shape
            for name, shape in mlp_shapes(beside, "x").items()
            if name.startswith(begin)
        }
    weights = {}
    for number, (name, shape) in enumerate(shapes.items()):
        draw = normal(shape, 100 * seed + number)
        positive = name.endswith("variance")
        weights[name] = draw.abs() + 0.5 if positive else draw / shape[-1] ** 0.5
    return weights


def readout(name, linear, n=37):
    mlp = (NETWORKS | DEEP_NETWORKS)[name]
    module, weights = (
        Readout("E", mlp, linear=linear),
        network_weights(mlp, "outputs.4.2", linear),
    )

    def call(function, **options):
        def run(features):
            own = {key: w.to(features.dtype) for key, w in weights.items()}
            return function(features, own, module, "outputs.4.2", **options)

        return run

    return Case(
        lambda backend: call(kernel_readout.readout, backend=backend),
        call(ref_readout.readout),
        {"features": normal((n, mlp.widths[0]), 5)},
    )


STEPS = {
    "memory": (True, False, None),
    "ar": (False, True, None),
    "bchi shared": (False, False, (True, True)),
    "bchi per l": (False, False, (False, True)),
    "bchi per channel": (False, False, (True, False)),
    "bchi per l and channel": (False, False, (False, False)),
    "all": (True, True, (False, False)),
}


def messages(step, edges, **options):
    spec, case = with_step(*STEPS[step], **options), dict(EDGE_CASES[edges])
    n, weights = len(case["species"]), random_weights(spec)
    order = torch.argsort(case["receivers"], stable=True)
    case |= {key: case[key][order] for key in ("vectors", "senders", "receivers")}
    vectors = case.pop("vectors")

    def call(function, **more):
        def run(a, b, vectors):
            own = {key: w.to(a.dtype) for key, w in weights.items()}
            return function(a, b, vectors, **case, weights=own, spec=spec, **more)

        return run

    return Case(
        lambda backend: call(kernel_messages.messages, backend=backend),
        call(ref_messages.messages),
        {
            "a": normal((n, spec.n_radial, spec.n_monomials, spec.n_channels), 2),
            "b": 0.3 * normal((n, spec.n_radial, spec.n_invariants, spec.n_channels), 3),
            "vectors": vectors,
        },
    )


CELLS = {
    "triclinic": [[5.0, 0, 0], [1.7, 4.4, 0], [-2.1, 0.9, 6.1]],
    "left-handed": [[1.7, 4.4, 0], [5.0, 0, 0], [-2.1, 0.9, 6.1]],
    "elongated": [[3.0, 0, 0], [0, 3.5, 0], [0, 0, 40.0]],
    "open": [[0.0] * 3] * 3,
}


def ewald(cell, part="energies", n=9, n_q=3, exponent=1, removed=False):
    module = Ewald("q", "e", 1.9, 0.8, exponent, removed, norm_factor=1.3)

    def call(function, **more):
        def run(**tensors):
            periodic = cell != "open"
            return getattr(function(**tensors, spec=module, periodic=periodic, **more), part)

        return run

    direct = kernel_ewald.EwaldOptions(method="direct")
    return Case(
        lambda backend: call(kernel_ewald.ewald, how=direct, backend=backend),
        call(ref_ewald.ewald),
        {
            "charges": normal((n, n_q), 6),
            "positions": 3.0 * normal((n, 3), 7),
            "cell": torch.tensor(CELLS[cell], dtype=torch.float64),
        },
    )
