"""B basis: the reference against the product tables, the worked example, and rotations."""

from __future__ import annotations

import pytest
import torch
from support import naive
from support.cases import EDGE_CASES, random_weights, representation
from support.tolerances import assert_as_good, to_dtype, value_and_grads

from cace_fast import tables
from cace_fast.reference.contraction import contraction
from cace_fast.reference.moments import moments


def random_a(l_max, n=3):
    generator = torch.Generator().manual_seed(l_max)
    shape = (n, 2, tables.n_monomials(l_max), 3)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize(
    ("l_max", "nu_max"), [(0, 4), (1, 2), (2, 2), (2, 3), (3, 3), (3, 4), (4, 3), (4, 4), (6, 3)]
)
def test_contraction_equals_the_tables(l_max, nu_max, dtype):
    a = random_a(l_max)
    oracle = value_and_grads(lambda a: naive.contraction(a, l_max, nu_max), {"a": a})
    low = to_dtype({"a": a}, dtype)
    floor = value_and_grads(lambda a: naive.contraction(a, l_max, nu_max), low)
    got = value_and_grads(lambda a: contraction(a, l_max, nu_max), low)
    assert_as_good(got, oracle, floor)


@pytest.mark.slow
@pytest.mark.parametrize("l_max", [5, 6])
def test_contraction_of_the_largest_orders(l_max):
    a = random_a(l_max, n=1)
    oracle = naive.contraction(a, l_max, 4)
    torch.testing.assert_close(contraction(a, l_max, 4), oracle, rtol=1e-11, atol=1e-10)


def test_no_atoms():
    assert contraction(random_a(3)[:0], 3, 3).shape == (0, 2, 6, 3)


def test_second_derivatives():
    a = random_a(2, n=1)[:, :1, :, :1].clone().requires_grad_(True)
    assert torch.autograd.gradgradcheck(lambda x: contraction(x, 2, 4), (a,))


@pytest.mark.parametrize(("l_max", "nu_max"), [(2, 2), (4, 3), (4, 4), (6, 4)])
def test_invariant_under_rotation_and_inversion(l_max, nu_max):
    spec = representation(l_max=l_max, nu_max=nu_max, k=1)
    weights, edges = random_weights(spec), EDGE_CASES["63 edges"]
    generator = torch.Generator().manual_seed(1)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    before, after = (
        contraction(moments(**(edges | {"vectors": v}), weights=weights, spec=spec), l_max, nu_max)
        for v in (edges["vectors"], -edges["vectors"] @ q)
    )
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9 * before.abs().max().item())
