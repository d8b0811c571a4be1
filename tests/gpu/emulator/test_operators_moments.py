"""The public operator of moments on compiled kernels: what torch demands of an operator."""

from __future__ import annotations

import pytest
import torch
from support.cases import EDGE_CASES, random_weights, representation
from support.edges import relative

from cace_fast.kernels import moments as operators
from cace_fast.kernels.emulation import emulate
from cace_fast.reference.moments import moments as reference_moments
from cace_fast.spec import ModelSpec, to_json

REP = representation(n_rbf=2, l_max=1)
NAMES = ("vectors", "senders", "receivers", "species")


def case(name: str = "63 edges") -> list[torch.Tensor]:
    edges = EDGE_CASES[name]
    order = torch.argsort(edges["receivers"], stable=True)
    tensors = [edges[key] if key == "species" else edges[key][order] for key in NAMES]
    return [tensors[0].float(), *tensors[1:]]


WEIGHTS = {name: w.float() for name, w in random_weights(REP).items()}


def energy(vectors: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    a = operators.moments(vectors, *rest, WEIGHTS, REP, backend="triton")
    return (a * a).sum()


def test_values_and_forces_in_float32() -> None:
    vectors, *rest = case("400 edges")
    wide = vectors.double().requires_grad_(True)
    weights = {name: w.double() for name, w in WEIGHTS.items()}
    expected = reference_moments(wide, *rest, weights, REP)
    (slope,) = torch.autograd.grad((expected**2).sum(), wide)
    with emulate("sm_90"):
        found = operators.moments(vectors, *rest, WEIGHTS, REP, backend="triton")
        leaf = vectors.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(energy(leaf, *rest), leaf)
    assert relative(found, expected.detach()) < 2e-6
    assert relative(grad, slope) < 4e-6


@pytest.mark.parametrize("name", ["none", "63 edges"])
def test_operators_pass_torchs_own_checks(name: str) -> None:
    vectors, *rest = case(name)
    vectors.requires_grad_(True)
    tail = (list(WEIGHTS.values()), to_json(ModelSpec(REP)), "triton")
    grad = torch.ones(len(rest[2]), REP.n_radial, REP.n_monomials, REP.n_channels)
    with emulate("sm_90"):
        torch.library.opcheck(operators._moments, (vectors, *rest, *tail))
        leaves = (grad.requires_grad_(True), vectors, *rest, *tail)
        torch.library.opcheck(operators._moments_gradient, leaves)


def test_compiles_whole_with_gradients() -> None:
    vectors, *rest = case()
    with emulate("sm_90"):
        compiled = torch.compile(energy, fullgraph=True, backend="aot_eager")
        found = []
        for function in (energy, compiled):
            leaf = vectors.clone().requires_grad_(True)
            value = function(leaf, *rest)
            found.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-5)
    assert torch.allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


def test_exports_with_any_number_of_edges() -> None:
    class Model(torch.nn.Module):
        def forward(self, *edges: torch.Tensor) -> torch.Tensor:
            return operators.moments(*edges, WEIGHTS, REP, backend="triton")

    edge, atom = torch.export.Dim("edge"), torch.export.Dim("atom")
    shapes = ({0: edge}, {0: edge}, {0: edge}, {0: atom})
    with emulate("sm_90"):
        exported = torch.export.export(Model(), tuple(case()), dynamic_shapes=(shapes,))
        other = case("400 edges")
        found = exported.module()(*other)
        expected = operators.moments(*other, WEIGHTS, REP, backend="triton")
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
