"""The public operator of moments by the interpreted kernels: values and both derivatives."""

from __future__ import annotations

import pytest
import torch
from support.cases import EDGE_CASES, random_weights, representation
from torch import Tensor

from cace_fast.kernels.moments import moments
from cace_fast.reference.moments import moments as reference_moments


def sorted_case(name: str) -> dict[str, Tensor]:
    """Return the edges of a case ascending in the receiver, as the reference needs them."""
    case = dict(EDGE_CASES[name])
    order = torch.argsort(case["receivers"], stable=True)
    return {key: case[key][order] if key != "species" else case[key] for key in case}


def derivatives(function, case: dict[str, Tensor], rep, weights) -> list[Tensor]:
    """Return A, its gradient along a fixed direction, and the gradient of that."""
    leaf = case["vectors"].clone().requires_grad_(True)
    rest = (case["senders"], case["receivers"], case["species"], weights, rep)
    a = function(leaf, *rest)
    wave = torch.sin(torch.arange(a.numel(), dtype=a.dtype)).reshape(a.shape).requires_grad_(True)
    (grad,) = torch.autograd.grad((a * wave).sum(), leaf, create_graph=True)
    wave_2 = torch.cos(torch.arange(grad.numel(), dtype=a.dtype)).reshape(grad.shape)
    second = torch.autograd.grad((grad * wave_2).sum(), (leaf, wave))
    return [a.detach(), grad.detach(), *second]


@pytest.mark.parametrize("name", EDGE_CASES)
@pytest.mark.parametrize("options", [{"l_max": 2}, {"l_max": 1, "k": 3, "shared": True}], ids=str)
def test_value_and_derivatives_are_those_of_the_reference(name: str, options: dict) -> None:
    rep, case = representation(n_rbf=2, **options), sorted_case(name)
    weights = random_weights(rep)

    def triton(*args):
        return moments(*args, backend="triton")

    found = derivatives(triton, case, rep, weights)
    expected = derivatives(reference_moments, case, rep, weights)
    for got, want in zip(found, expected, strict=True):
        assert got.shape == want.shape
        scale = float(want.abs().max()) if want.numel() else 1.0
        assert torch.allclose(got, want, rtol=0.0, atol=1e-12 * max(scale, 1.0))
