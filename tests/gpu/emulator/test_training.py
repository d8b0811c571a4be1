"""Operators as training uses them, on compiled kernels in float32 against float64."""

from __future__ import annotations

import pytest
import torch
from support.cases import random_weights, representation
from support.edges import radial_representation, radial_weights, relative
from support.tolerances import to_dtype
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
from cace_fast.spec import ModelSpec, Representation
from cace_fast.weights import expected_shapes

F32 = torch.float32


def judge(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare; forces and their derivatives are sums that cancel, so each has its own allowance."""
    for name, want in expected.items():
        allowed = 2e-6 if name == "value" else 1e-5 if name.startswith("d/d") else 4e-5
        assert relative(found[name].cpu(), want) < allowed, name


def on(device: torch.device, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def judge_moments(rep: Representation, weights: dict[str, Tensor], device: torch.device) -> None:
    case = sorted_case("400 edges")
    low = to_dtype({"vectors": case["vectors"], **weights}, F32)
    wide = {name: t.double() for name, t in low.items()}
    expected = derivatives(moments_of(reference_moments, case, rep), wide)
    ours = moments_of(moments, on(device, case), rep, backend="triton")
    judge(derivatives(ours, on(device, low)), expected)


@pytest.mark.parametrize("shared", [False, True], ids=["two embeddings", "one embedding"])
def test_moments_by_everything(shared: bool, device: torch.device) -> None:
    rep = representation(l_max=2, n_rbf=2, shared=shared)
    judge_moments(rep, random_weights(rep), device)


@pytest.mark.parametrize("kind", ["gaussian", "exponential", "chebyshev"])
def test_radial_functions_by_their_numbers(kind: str, device: torch.device) -> None:
    rep = radial_representation(kind, l_max=1, n_rbf=2)
    radial, weights = radial_weights(rep, torch.float64), {}
    for k, (name, shape) in enumerate(expected_shapes(ModelSpec(rep)).items()):
        own = name.startswith("radial")
        weights[name] = radial[name] if own else wave(torch.empty(shape).double(), k)
    judge_moments(rep, weights, device)


@pytest.mark.parametrize(("l_max", "nu_max"), [(2, 2), (3, 3), (4, 4)])
def test_second_derivatives_of_contraction(l_max: int, nu_max: int, device: torch.device) -> None:
    a = wave(torch.empty(37, 2, tables.n_monomials(l_max), 1), 0.3)
    found = derivatives(
        lambda a: contraction(a, l_max, nu_max, backend="triton"), {"a": a.to(device)}
    )
    judge(found, derivatives(lambda a: reference_contraction(a, l_max, nu_max), {"a": a.double()}))


def test_a_model_is_trained(device: torch.device) -> None:
    rep = representation(l_max=2, nu_max=3, n_rbf=2, n_radial=1)
    n_features = tables.n_features(2, 3) * rep.n_channels
    edges = [t.to(device) for t in to_dtype(sorted_case("400 edges"), F32).values()]
    a, b = Moments(rep, backend="triton"), Contraction(2, 3, backend="triton")
    found = train(Model(a, b, n_features).to(device), edges, steps=4)
    plain = Model(PlainMoments(rep).double(), PlainContraction(2, 3), n_features)
    expected = train(plain, list(to_dtype(sorted_case("400 edges"), torch.float64).values()), 4)
    assert expected == sorted(expected, reverse=True)
    assert found == pytest.approx(expected, rel=1e-5)
