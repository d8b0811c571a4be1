"""The contraction fused with the mixing that makes A, in float64 under interpreter and guard."""

from __future__ import annotations

import pytest
import torch
from gpu_emulator.guard import watch
from support.cases import EDGE_CASES, random_weights, representation
from support.edges import relative
from support.mixing import chain

from cace_fast.kernels.edges import edges_of
from cace_fast.kernels.triton import host_contraction
from cace_fast.kernels.triton.host_contraction import Contraction

SHAPES = {
    "l 2, nu 2, 4 channels at once": {"l_max": 2, "nu_max": 2, "k": 4, "n_rbf": 2},
    "l 3, nu 3, K 1": {"l_max": 3, "nu_max": 3, "k": 1, "n_rbf": 3},
    "l 4, nu 3, one embedding": {"l_max": 4, "nu_max": 3, "k": 2, "n_rbf": 2, "shared": True},
    "l 2, nu 4, K 5": {"l_max": 2, "nu_max": 4, "k": 5, "n_rbf": 1},
    "l 6 in parts": {"l_max": 6, "nu_max": 3, "k": 1, "n_rbf": 2, "n_radial": 1},
    "94 elements": {"l_max": 1, "nu_max": 2, "k": 2, "n_rbf": 2, "n_elements": 94},
}


def judge(name: str, **options: int) -> None:
    spec, case = representation(**({"n_radial": 2} | options)), EDGE_CASES[name]
    weights, species = random_weights(spec), case["species"] * (spec.n_elements // 3)
    edges, _ = edges_of(case["vectors"], case["senders"], case["receivers"], species)
    generator = torch.Generator().manual_seed(1)
    rho = torch.randn(
        spec.radial.n_rbf * spec.n_monomials, len(edges.seg_atom), generator=generator,
        dtype=torch.float64,
    )  # fmt: skip
    a, b, grad_a, grad_b, grad = chain(rho, edges, species, weights, spec)
    kernels, numbers = Contraction(spec, weights), species.int()
    got_a, got_b, got = (torch.full_like(x, torch.nan) for x in (a, b, grad))
    with watch() as guard:
        kernels.forward(rho, edges, numbers, got_b, got_a)
        kernels.backward(rho, edges, numbers, grad_b, grad_a.clone(), got, add=True)
        if rho.numel():
            assert guard.unwritten("grad_rho") == 0
    for found, want in ((got_a, a), (got_b, b), (got, grad)):
        assert found.numel() == 0 or torch.isfinite(found).all()
        assert found.numel() == 0 or not want.any() or relative(found, want) < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape(shape: str) -> None:
    judge("63 edges", **SHAPES[shape])


@pytest.mark.parametrize("name", EDGE_CASES)
def test_awkward_edges(name: str) -> None:
    judge(name, l_max=2, nu_max=3, k=2, n_rbf=2)


def test_gradient_of_b_alone_and_of_a_alone_add_up() -> None:
    spec, case = representation(l_max=2, n_rbf=2, n_radial=2), EDGE_CASES["63 edges"]
    weights, species = random_weights(spec), case["species"]
    edges, _ = edges_of(case["vectors"], case["senders"], case["receivers"], species)
    rho = torch.ones(spec.radial.n_rbf * spec.n_monomials, len(edges.seg_atom)).double()
    _, _, grad_a, grad_b, both = chain(rho, edges, species, weights, spec)
    kernels, numbers = Contraction(spec, weights), species.int()
    of_a, of_b = torch.empty_like(rho), torch.empty_like(rho)
    kernels.backward(rho, edges, numbers, None, grad_a, of_a)
    kernels.backward(rho, edges, numbers, grad_b, torch.full_like(grad_a, torch.nan), of_b)
    assert relative(of_a + of_b, both) < 1e-12


def test_shapes_are_split_where_registers_end() -> None:
    assert [host_contraction.channels_at_once(5, degree) for degree in (2, 3, 4)] == [5, 5, 1]
    assert host_contraction.channels_at_once(4, 4) == 2
    assert host_contraction.monomial_parts(5) == ((0, 56),)
    assert host_contraction.monomial_parts(6) == ((0, 42), (42, 84))
