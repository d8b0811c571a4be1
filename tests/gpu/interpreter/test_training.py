"""Derivatives for training by the interpreted kernels, in float64 under the guard."""

from __future__ import annotations

import pytest
import torch
from gpu_emulator.guard import watch
from support.cases import EDGE_CASES, random_weights, representation
from support.edges import radial_representation, radial_weights
from support.training import (
    Model,
    PlainContraction,
    PlainMoments,
    derivatives,
    moments_of,
    sorted_case,
    train,
    wave,
)
from torch import Tensor

from cace_fast import tables
from cace_fast.kernels.contraction import contraction
from cace_fast.kernels.moments import moments
from cace_fast.nn import Contraction, Moments
from cace_fast.reference.contraction import contraction as reference_contraction
from cace_fast.reference.moments import moments as reference_moments
from cace_fast.spec import ModelSpec
from cace_fast.weights import expected_shapes

RADIALS = [
    ("bessel", "polynomial", 6.0),
    ("gaussian", "cosine", 6.0),
    ("exponential", "mollifier", 6.0),
    ("chebyshev", "polynomial", 6.0),
]


def judge(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        assert found[name].shape == want.shape, name
        scale = float(want.abs().max()) if want.numel() else 1.0
        assert torch.allclose(found[name], want, rtol=0.0, atol=1e-12 * max(scale, 1.0)), name


FEW = {"l_max": 1, "k": 3, "shared": True}


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, FEW) for name in EDGE_CASES if name != "400 edges"), ("63 edges", {"l_max": 2})],
)
def test_moments_by_everything(name: str, options: dict) -> None:
    rep, case = representation(n_rbf=2, **options), sorted_case(name)
    leaves = {"vectors": case["vectors"], **random_weights(rep)}
    with watch():
        found = derivatives(moments_of(moments, case, rep, backend="triton"), leaves)
    judge(found, derivatives(moments_of(reference_moments, case, rep), leaves))


@pytest.mark.parametrize(("kind", "cutoff", "p"), RADIALS)
def test_radial_functions_by_their_numbers(kind: str, cutoff: str, p: float) -> None:
    rep, case = radial_representation(kind, cutoff, p=p, l_max=1), sorted_case("63 edges")
    radial = radial_weights(rep, torch.float64)
    leaves = {"vectors": case["vectors"]}
    for k, (name, shape) in enumerate(expected_shapes(ModelSpec(rep)).items()):
        leaves[name] = radial.get(name, torch.zeros(0))
        if not name.startswith("radial"):
            leaves[name] = wave(torch.empty(shape, dtype=torch.float64), k)
    with watch():
        found = derivatives(moments_of(moments, case, rep, backend="triton"), leaves)
    judge(found, derivatives(moments_of(reference_moments, case, rep), leaves))


@pytest.mark.parametrize(("l_max", "nu_max", "n"), [(0, 1, 37), (2, 3, 0), (3, 3, 1), (4, 4, 33)])
def test_second_derivatives_of_contraction(l_max: int, nu_max: int, n: int) -> None:
    a = wave(torch.empty(n, 2, tables.n_monomials(l_max), 1, dtype=torch.float64), 0.3)
    with watch():
        found = derivatives(lambda a: contraction(a, l_max, nu_max, backend="triton"), {"a": a})
    judge(found, derivatives(lambda a: reference_contraction(a, l_max, nu_max), {"a": a}))


def test_training_goes_as_with_the_reference() -> None:
    rep = representation(l_max=2, nu_max=3, n_rbf=2, n_radial=1)
    n_features = tables.n_features(2, 3) * rep.n_channels
    edges, wide = list(sorted_case("63 edges").values()), torch.float64
    with watch():
        a, b = Moments(rep, backend="triton", dtype=wide), Contraction(2, 3, backend="triton")
        found = train(Model(a, b, n_features), edges, steps=3)
    plain = Model(PlainMoments(rep, dtype=wide), PlainContraction(2, 3), n_features)
    expected = train(plain, edges, steps=3)
    assert expected == sorted(expected, reverse=True)
    assert found == pytest.approx(expected, rel=1e-10)
