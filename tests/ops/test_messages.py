"""Message passing: the reference against the formula with the whole edge tensor."""

from __future__ import annotations

import pytest
import torch
from support import naive
from support.cases import EDGE_CASES, random_weights, with_step
from support.tolerances import assert_as_good, to_dtype, value_and_grads

from cace_fast.reference.messages import messages
from cace_fast.reference.model import features

VARIANTS = {
    "memory": (True, False, None),
    "ar": (False, True, None),
    "bchi shared": (False, False, (True, True)),
    "bchi per l": (False, False, (False, True)),
    "bchi per channel": (False, False, (True, False)),
    "bchi per l and channel": (False, False, (False, False)),
    "all": (True, True, (False, False)),
}


def call(function, edges, spec):
    fixed = {k: v for k, v in edges.items() if k != "vectors"}

    def run(a, b, vectors, **weights):
        return function(a, b, vectors, **fixed, weights=weights, spec=spec, step=0)

    return run


def inputs(name, spec):
    edges = EDGE_CASES[name]
    generator = torch.Generator().manual_seed(2)
    lead = (len(edges["species"]), spec.n_radial)
    a = torch.randn(
        *lead, spec.n_monomials, spec.n_channels, generator=generator, dtype=torch.float64
    )
    b = torch.randn(
        *lead, spec.n_invariants, spec.n_channels, generator=generator, dtype=torch.float64
    )
    return {"a": a, "b": 0.3 * b, "vectors": edges["vectors"], **random_weights(spec)}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_messages_equal_the_full_sum(variant, dtype):
    spec = with_step(*VARIANTS[variant], l_max=2)
    compare("63 edges", spec, dtype)


@pytest.mark.parametrize("name", EDGE_CASES)
def test_messages_on_awkward_edges(name):
    compare(name, with_step(*VARIANTS["all"]), torch.float32)


def compare(name, spec, dtype):
    tensors = inputs(name, spec)
    oracle = value_and_grads(call(naive.messages, EDGE_CASES[name], spec), tensors)
    low = to_dtype(tensors, dtype)
    floor = value_and_grads(call(naive.messages, EDGE_CASES[name], spec), low)
    got = value_and_grads(call(messages, EDGE_CASES[name], spec), low)
    # a gradient is a sum over radial functions, monomials and channels: a few hundred terms
    assert_as_good(got, oracle, floor, growth=4.0)


def test_second_derivatives():
    spec = with_step(*VARIANTS["all"], l_max=1, nu_max=2, k=1, n_radial=1, n_rbf=2)
    edges, tensors = EDGE_CASES["one edge"], inputs("one edge", spec)
    weights = {k: v for k, v in tensors.items() if k not in ("a", "b", "vectors")}
    leaves = [tensors[k].clone().requires_grad_(True) for k in ("a", "b", "vectors")]
    assert torch.autograd.gradgradcheck(
        lambda a, b, v: call(messages, edges, spec)(a, b, v, **weights), leaves
    )


def test_features_have_a_generation_for_each_step():
    from cace_fast.graph import AtomicGraph
    from cace_fast.spec import MessageStep, Representation

    one = with_step(*VARIANTS["all"], l_max=1, nu_max=2)
    two = Representation(**{**one.__dict__, "steps": (one.steps[0], MessageStep(memory=True))})
    positions = torch.tensor([[0.0, 0, 0], [0, 0, 1.1], [0, 1.4, 0.2]], dtype=torch.float64)
    graph = AtomicGraph(
        positions, torch.tensor([0, 1, 2]), torch.zeros(1, 3, 3, dtype=torch.float64),
        torch.zeros(1, 3, dtype=torch.bool), torch.zeros(3, dtype=torch.int64),
        torch.tensor([1, 2, 0, 2, 0, 1]), torch.tensor([0, 0, 1, 1, 2, 2]),
        torch.zeros(6, 3, dtype=torch.float64),
    )  # fmt: skip
    weights = random_weights(two)
    found = features(graph, weights, two)
    assert found.shape == (3, two.n_radial, two.n_invariants, two.n_channels, 3)
    torch.testing.assert_close(found[..., :2], features(graph, weights, one))
    assert not torch.equal(found[..., 1], found[..., 2])
