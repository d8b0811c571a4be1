"""A basis: the reference against the formula with the whole edge tensor."""

from __future__ import annotations

import math

import pytest
import torch
from support import naive
from support.cases import EDGE_CASES, random_weights, representation
from support.tolerances import assert_as_good, to_dtype, value_and_grads

from cace_fast.reference import moments as ref
from cace_fast.reference import radial
from cace_fast.spec import CutoffFunction, RadialBasis

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])


def call(function, edges, spec):
    """The operation with vectors and weights as differentiable inputs."""
    fixed = {k: v for k, v in edges.items() if k != "vectors"}

    def run(vectors, **weights):
        return function(vectors, **fixed, weights=weights, spec=spec)

    return run


@DTYPES
@pytest.mark.parametrize("shared", [False, True], ids=["two embeddings", "one embedding"])
@pytest.mark.parametrize("name", EDGE_CASES)
def test_moments_equal_the_full_sum(name, shared, dtype):
    spec = representation(shared=shared)
    tensors = {"vectors": EDGE_CASES[name]["vectors"], **random_weights(spec)}
    oracle = value_and_grads(call(naive.moments, EDGE_CASES[name], spec), tensors)
    low = to_dtype(tensors, dtype)
    floor = value_and_grads(call(naive.moments, EDGE_CASES[name], spec), low)
    got = value_and_grads(call(ref.moments, EDGE_CASES[name], spec), low)
    assert_as_good(got, oracle, floor)


@pytest.mark.parametrize(("l_max", "k", "n_rbf"), [(0, 1, 1), (2, 3, 6), (4, 4, 8), (6, 1, 2)])
def test_moments_of_every_shape(l_max, k, n_rbf):
    spec = representation(l_max=l_max, nu_max=1, k=k, n_rbf=n_rbf, n_radial=5)
    tensors = {"vectors": EDGE_CASES["63 edges"]["vectors"], **random_weights(spec)}
    oracle = value_and_grads(call(naive.moments, EDGE_CASES["63 edges"], spec), tensors)
    got = value_and_grads(call(ref.moments, EDGE_CASES["63 edges"], spec), tensors)
    assert got["value"].shape == (5, 5, spec.n_monomials, k * k)
    # one frequency: a sum over all edges that nearly cancels, of a cutoff in its expanded form
    assert_as_good(got, oracle, oracle, growth=64.0)


def test_second_derivatives():
    spec = representation(l_max=2, k=1, n_radial=2)
    edges, weights = EDGE_CASES["one edge"], random_weights(spec)
    leaf = edges["vectors"].clone().requires_grad_(True)
    assert torch.autograd.gradgradcheck(
        lambda v: call(ref.moments, edges, spec)(v, **weights), (leaf,)
    )


def test_monomials_in_the_stated_order():
    u = torch.tensor([[2.0, 3.0, 5.0]], dtype=torch.float64)
    values = ref.angular_basis(u, 3)[0].tolist()
    # degree by degree, descending in the exponents: 000 | 100 010 001 | 200 110 ...
    assert values[:10] == [1, 2, 3, 5, 4, 6, 10, 9, 15, 25]
    assert values[10:] == [8, 12, 20, 18, 30, 50, 27, 45, 75, 125]


@pytest.mark.parametrize("n_edges", [0, 1, ref.ROW - 1, ref.ROW, ref.ROW + 1, 5 * ref.ROW])
def test_outer_sum_at_row_boundaries(n_edges):
    generator = torch.Generator().manual_seed(n_edges)
    left = torch.randn(n_edges, 4, generator=generator, dtype=torch.float64)
    right = torch.randn(n_edges, 3, generator=generator, dtype=torch.float64)
    receivers = torch.full((n_edges,), 2)
    got = ref.outer_sum(left, right, receivers, 4)
    assert got.shape == (4, 4, 3)
    torch.testing.assert_close(got[2], left.T @ right, rtol=1e-13, atol=1e-13)
    assert not got[[0, 1, 3]].any()


R = torch.linspace(0.3, 4.2, 40, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("bessel", lambda r, w: 0.7 * math.sin(w[0] * r) / r),
        ("gaussian", lambda r, w: math.exp(-((r - w[0]) ** 2) / (2 * w[1] ** 2))),
        ("exponential", lambda r, w: 0.7 * math.exp(-r / w[0])),
    ],
)
def test_radial_basis(kind, formula):
    names = {
        "bessel": ["frequencies"],
        "gaussian": ["offsets", "widths"],
        "exponential": ["ranges"],
    }[kind]
    weights = {
        f"radial.{n}": torch.tensor([0.9, 1.7], dtype=torch.float64) + k
        for k, n in enumerate(names)
    }
    got = radial.radial_basis(R, weights, RadialBasis(kind, 2, 0.7), 5.0)
    for column in range(2):
        w = [weights[f"radial.{n}"][column].item() for n in names]
        expected = torch.tensor([formula(r, w) for r in R.tolist()], dtype=torch.float64)
        torch.testing.assert_close(got[:, column], expected, rtol=1e-14, atol=1e-15)


def _g(z):
    return math.exp(-1 / z) if z > 0 else 0.0


CUTOFFS = {
    "polynomial": lambda x, r: 1 - 21 * x**5 + 35 * x**6 - 15 * x**7,
    "cosine": lambda x, r: 0.5 * (1 + math.cos(math.pi * x)),
    "mollifier": lambda x, r: math.exp(1 - 1 / (1 - x * x)) if r + 1e-7 < 3.5 else 0.0,
    "switch": lambda x, r: _g(1 - (r - 2) / 1.5) / (_g((r - 2) / 1.5) + _g(1 - (r - 2) / 1.5)),
}


def test_chebyshev_functions_are_cosines_of_multiples():
    r = R[R < 5.0]
    got = radial.radial_basis(r, {}, RadialBasis("chebyshev", 5), 5.0)
    angle = torch.arccos(2.0 * r / 5.0 - 1.0)
    expected = torch.cos(angle[:, None] * torch.arange(5))
    torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-14)
    assert radial.radial_basis(r, {}, RadialBasis("chebyshev", 1), 5.0).tolist() == [[1.0]] * len(r)


@pytest.mark.parametrize("p", [2.0, 5.0, 6.0, 5.5])
def test_polynomial_cutoff_of_every_p(p):
    x = R / 4.3
    high = p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    expanded = 1 - (p + 1) * (p + 2) / 2 * x**p + high
    got = radial.cutoff_function(R, CutoffFunction("polynomial", 4.3, p=p))
    torch.testing.assert_close(got, expanded, rtol=0, atol=2e-14)
    if p == int(p):
        low = radial.cutoff_function(R.float(), CutoffFunction("polynomial", 4.3, p=p))
        torch.testing.assert_close(low.double(), got, rtol=0, atol=5e-7)


@pytest.mark.parametrize("kind", CUTOFFS)
def test_cutoff_function(kind):
    spec = CutoffFunction(kind, 3.5, p=5.0, switch_on=2.0)
    r = torch.cat([R, torch.tensor([3.5 - 1e-8, 3.5, 3.5 + 1e-12], dtype=torch.float64)])
    r = r.requires_grad_(True)
    got = radial.cutoff_function(r, spec)
    expected = [CUTOFFS[kind](x / 3.5, x) if x < 3.5 else 0.0 for x in r.tolist()]
    torch.testing.assert_close(
        got, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14
    )
    (slope,) = torch.autograd.grad(got.sum(), r)
    assert torch.isfinite(slope).all()
    assert not slope[-2:].any()
    assert slope[-3].abs() < 1e-6
