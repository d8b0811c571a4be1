"""Derivatives by weights, second derivatives, and a model that is trained with them, on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support.cases import EDGE_CASES, random_weights, representation
from support.edges import CUTOFF, radial_representation, radial_weights
from support.markdown import blocks
from support.paths import REPOSITORY
from support.tolerances import assert_as_good, to_dtype
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

from cace_fast import tables
from cace_fast.errors import InputError, PropertyNotImplementedError
from cace_fast.kernels.contraction import contraction
from cace_fast.kernels.moments import moments
from cace_fast.nn import Contraction, Moments
from cace_fast.reference.contraction import contraction as reference_contraction
from cace_fast.reference.moments import moments as reference_moments
from cace_fast.spec import ModelSpec
from cace_fast.weights import expected_shapes

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
RADIALS = [
    ("bessel", "polynomial", 6.0),
    ("gaussian", "cosine", 6.0),
    ("exponential", "mollifier", 6.0),
    ("chebyshev", "polynomial", 6.0),
    ("bessel", "switch", 6.0),
    ("gaussian", "polynomial", 2.5),
]


def judge_moments(rep, weights, name, dtype):
    case = sorted_case(name)
    leaves = {"vectors": case["vectors"], **weights}
    ours, theirs = moments_of(moments, case, rep), moments_of(reference_moments, case, rep)
    low = to_dtype(leaves, dtype)
    assert_as_good(
        derivatives(ours, low), derivatives(theirs, leaves), derivatives(theirs, low), growth=4.0
    )


@DTYPES
@pytest.mark.parametrize("shared", [False, True], ids=["two embeddings", "one embedding"])
@pytest.mark.parametrize("name", EDGE_CASES)
def test_moments_by_everything(name, shared, dtype):
    rep = representation(shared=shared)
    judge_moments(rep, random_weights(rep), name, dtype)


@pytest.mark.parametrize(("kind", "cutoff", "p"), RADIALS)
def test_moments_of_every_radial_function(kind, cutoff, p):
    rep = radial_representation(kind, cutoff, p=p)
    shapes = expected_shapes(ModelSpec(rep))
    weights = {
        name: wave(torch.empty(shape, dtype=torch.float64), k)
        for k, (name, shape) in enumerate(shapes.items())
    }
    radial = radial_weights(rep, torch.float64)
    weights |= {name: radial[name] for name in shapes if name.startswith("radial")}
    judge_moments(rep, weights, "400 edges", torch.float64)


@pytest.mark.parametrize(
    ("cutoff", "length"),
    [("switch", 2.0005), ("switch", CUTOFF - 5e-4), ("mollifier", CUTOFF - 0.1)],
)
def test_edges_where_a_cutoff_function_is_flat(cutoff, length):
    rep, case = radial_representation("gaussian", cutoff), sorted_case("63 edges")
    rep = replace(rep, cutoff_function=replace(rep.cutoff_function, eps=0.2))
    vectors = case["vectors"]
    case["vectors"] = vectors * (length / vectors.norm(dim=1, keepdim=True))
    shapes = expected_shapes(ModelSpec(rep))
    radial = radial_weights(rep, torch.float64)
    weights = {
        name: radial.get(name, wave(torch.empty(shape, dtype=torch.float64), k))
        for k, (name, shape) in enumerate(shapes.items())
    }
    leaves = {"vectors": case["vectors"], **weights}
    found = derivatives(moments_of(moments, case, rep), leaves)
    expected = derivatives(moments_of(reference_moments, case, rep), leaves)
    assert all(torch.isfinite(x).all() for x in expected.values())
    assert_as_good(found, expected, expected)


@pytest.mark.parametrize("l_max", [0, 1, 4, 6])
def test_moments_of_other_degrees(l_max):
    rep = representation(l_max=l_max, nu_max=1, k=3, n_rbf=2)
    judge_moments(rep, random_weights(rep), "63 edges", torch.float64)


def test_threads_change_nothing():
    rep, case = representation(), sorted_case("400 edges")
    leaves = {"vectors": case["vectors"], **random_weights(rep)}
    function, before = moments_of(moments, case, rep), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 4):  # 27 segments: no multiple of 4
            torch.set_num_threads(threads)
            found.append(derivatives(function, leaves))
    finally:
        torch.set_num_threads(before)
    for name in ("value", "dF/dradial.frequencies"):
        assert torch.equal(found[0][name], found[1][name]), name


@DTYPES
@pytest.mark.parametrize("n", [0, 1, 37])
@pytest.mark.parametrize(
    ("l_max", "nu_max"), [(0, 1), (1, 2), (2, 3), (3, 3), (3, 4), (4, 3), (6, 4)]
)
def test_second_derivatives_of_contraction(l_max, nu_max, n, dtype):
    a = wave(torch.empty(n, 2, tables.n_monomials(l_max), 3, dtype=torch.float64), 0.3)
    low = to_dtype({"a": a}, dtype)

    def ours(a):
        return contraction(a, l_max, nu_max)

    def theirs(a):
        return reference_contraction(a, l_max, nu_max)

    assert_as_good(
        derivatives(ours, low), derivatives(theirs, {"a": a}), derivatives(theirs, low), growth=4.0
    )


def test_blocks_of_lanes_join(monkeypatch):
    a = wave(torch.empty(11, 2, 10, 3, dtype=torch.float64))
    whole = derivatives(lambda a: contraction(a, 2, 3), {"a": a})
    monkeypatch.setattr("cace_fast.kernels.contraction.BLOCK", 7)
    parts = derivatives(lambda a: contraction(a, 2, 3), {"a": a})
    for name, want in whole.items():
        torch.testing.assert_close(parts[name], want, rtol=1e-14, atol=1e-14)


def test_third_derivatives_are_refused_by_name():
    rep, case = representation(l_max=1, n_rbf=2), sorted_case("one edge")
    weights = {name: w.requires_grad_(True) for name, w in random_weights(rep).items()}
    vectors = case["vectors"].clone().requires_grad_(True)
    a = moments_of(moments, case, rep)(vectors, **weights)
    (slope,) = torch.autograd.grad((a * a).sum(), vectors, create_graph=True)
    (second,) = torch.autograd.grad((slope**3).sum(), vectors, create_graph=True)
    text = r"moments: this operator has second derivatives at most .*reference\.moments for higher"
    with pytest.raises(PropertyNotImplementedError, match=text):
        torch.autograd.grad(second.sum(), vectors)
    name = "mixing.0"
    (by_weight,) = torch.autograd.grad((a * a).sum(), weights[name], create_graph=True)
    with pytest.raises(PropertyNotImplementedError, match=text):
        torch.autograd.grad((by_weight**2).sum(), weights[name])
    b = torch.ones(2, 1, 4, 1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(contraction(b, 1, 2).pow(2).sum(), b, create_graph=True)
    (second,) = torch.autograd.grad((slope**2).sum(), b, create_graph=True)
    with pytest.raises(PropertyNotImplementedError, match=r"contraction: .* second derivatives"):
        torch.autograd.grad((second**2).sum(), b)


REP = representation(l_max=2, nu_max=3, k=2, n_rbf=3, n_radial=2)
N_FEATURES = REP.n_radial * tables.n_features(2, 3) * REP.n_channels


@pytest.mark.parametrize(
    ("weights", "rate", "falls"), [(None, 0.02, 0.1), (random_weights(REP), 0.2, 0.05)],
    ids=["random", "given"],
)  # fmt: skip
def test_training_goes_as_with_the_reference(weights, rate, falls):
    edges = list(sorted_case("400 edges").values())
    losses = []
    for first, second in ((Moments, Contraction), (PlainMoments, PlainContraction)):
        a = first(REP, weights, dtype=torch.float64)
        losses.append(train(Model(a, second(2, 3), N_FEATURES), edges, steps=8, rate=rate))
    found, expected = losses
    assert expected == sorted(expected, reverse=True)
    assert expected[-1] < (1.0 - falls) * expected[0]
    assert found == pytest.approx(expected, rel=1e-10)


def test_training_in_float32_and_with_the_kernels_of_every_part():
    edges = [t.float() if t.is_floating_point() else t for t in sorted_case("400 edges").values()]
    model = Model(Moments(REP), Contraction(2, 3), N_FEATURES)
    losses = train(model, edges, steps=8)
    assert losses[-1] < 0.9 * losses[0]
    moved = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    assert moved == [name for name, _ in model.named_parameters()]


def test_names_are_those_of_files():
    module = Moments(REP, seed=3)
    assert list(dict(module.named_parameters())) == list(expected_shapes(ModelSpec(REP)))
    again = Moments(REP, dict(module.named_parameters()))
    assert all(
        torch.equal(x, y) for x, y in zip(module.parameters(), again.parameters(), strict=True)
    )
    assert not torch.equal(module.mixing["0"], Moments(REP, seed=4).mixing["0"])
    assert "3 elements, l_max=2, cutoff=3.5 A" in str(module)
    assert "l_max=2, nu_max=3" in str(Contraction(2, 3))
    with pytest.raises(InputError, match=r"weights\['mixing.1'\]: .* got nothing"):
        Moments(REP, {k: w for k, w in random_weights(REP).items() if k != "mixing.1"})
    with pytest.raises(InputError, match=r"weights\['mixing.2'\]: expected a tensor of shape"):
        Moments(REP, random_weights(REP) | {"mixing.2": torch.ones(2)})


def test_random_weights_leave_torchs_generator_alone():
    before = torch.random.get_rng_state()
    Moments(REP)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_model_compiles_whole_and_exports_with_any_number_of_edges():
    model = Model(Moments(REP, dtype=torch.float64), Contraction(2, 3), N_FEATURES)
    small, large = (list(sorted_case(name).values()) for name in ("63 edges", "400 edges"))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for function in (model, compiled):
        function(*large).sum().backward()
    slopes = [p.grad / 2 for p in model.parameters()]
    model.zero_grad()
    model(*large).sum().backward()
    for p, twice in zip(model.parameters(), slopes, strict=True):
        torch.testing.assert_close(p.grad, twice)
    edge, atom = torch.export.Dim("edge"), torch.export.Dim("atom")
    shapes = ({0: edge}, ({0: edge}, {0: edge}, {0: atom}))
    exported = torch.export.export(model, tuple(small), dynamic_shapes=shapes)
    torch.testing.assert_close(exported.module()(*large), model(*large))


def test_the_page_on_training_runs():
    page = (REPOSITORY / "docs" / "developer" / "training.md").read_text()
    (code,) = [block.code for block in blocks(page) if block.info[:1] == ("python",)]
    names = {"__name__": "page"}
    with torch.random.fork_rng():
        exec(code, names)
    assert all(p.grad is not None for p in names["model"].parameters())
