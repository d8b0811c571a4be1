"""Operators of the compiled kernels against the reference: values, gradients, opcheck, refusals."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from support.cases import EDGE_CASES, random_weights, representation, with_step
from support.tolerances import assert_as_good, to_dtype, value_and_grads

from cace_fast import kernels, reference, tables
from cace_fast.errors import BackendUnavailableError, InputError
from cace_fast.kernels import contraction as kernel_contraction
from cace_fast.kernels import ewald as kernel_ewald
from cace_fast.kernels import messages as kernel_messages
from cace_fast.kernels import moments as kernel_moments
from cace_fast.kernels import readout as kernel_readout
from cace_fast.kernels._operators import select_backend
from cace_fast.kernels.cpu import library
from cace_fast.reference import contraction as ref_contraction
from cace_fast.reference import ewald as ref_ewald
from cace_fast.reference import messages as ref_messages
from cace_fast.reference import moments as ref_moments
from cace_fast.reference import readout as ref_readout
from cace_fast.spec import MLP, Ewald, Readout
from cace_fast.weights import mlp_shapes

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])


@pytest.fixture(autouse=True, scope="module")
def _library():
    try:
        library.library()
    except library.NotLoadedError as error:
        pytest.skip(f"no compiled kernels here ({error}); tests/cpu fails where that is a fault")


def judge(ours, theirs, tensors, dtype, growth=1.0):
    """One rule for every operation: as accurate as plain torch in the same precision."""
    low = to_dtype(tensors, dtype)
    got = value_and_grads(ours, low)
    assert got["value"].dtype == theirs(**low).dtype
    assert_as_good(got, value_and_grads(theirs, tensors), value_and_grads(theirs, low),
                   growth=growth)  # fmt: skip


def with_weights(function, weights, **fixed):
    """The operation with weights as constants, in the dtype of its first tensor."""

    def run(**tensors):
        like = next(iter(tensors.values()))
        return function(
            **tensors, weights={k: w.to(like.dtype) for k, w in weights.items()}, **fixed
        )

    return run


@DTYPES
@pytest.mark.parametrize("shared", [False, True], ids=["two embeddings", "one embedding"])
@pytest.mark.parametrize("name", EDGE_CASES)
def test_moments(name, shared, dtype):
    spec, edges = representation(shared=shared), dict(EDGE_CASES[name])
    vectors = edges.pop("vectors")
    ours, theirs = (
        with_weights(module.moments, random_weights(spec), spec=spec, **edges)
        for module in (kernel_moments, ref_moments)
    )
    judge(ours, theirs, {"vectors": vectors}, dtype, growth=2.0)


@pytest.mark.parametrize(("l_max", "k", "n_rbf"), [(0, 1, 1), (2, 3, 6), (4, 4, 8), (6, 1, 2)])
def test_moments_of_every_shape(l_max, k, n_rbf):
    spec = representation(l_max=l_max, nu_max=1, k=k, n_rbf=n_rbf, n_radial=5)
    edges = dict(EDGE_CASES["63 edges"])
    vectors = edges.pop("vectors")
    ours, theirs = (
        with_weights(module.moments, random_weights(spec), spec=spec, **edges)
        for module in (kernel_moments, ref_moments)
    )
    judge(ours, theirs, {"vectors": vectors}, torch.float64, growth=2.0)


def test_moments_take_edges_in_any_order():
    spec, edges = representation(), EDGE_CASES["400 edges"]
    order = torch.randperm(400, generator=torch.Generator().manual_seed(1))
    mixed = {k: v[order] if k != "species" else v for k, v in edges.items()}
    weights = random_weights(spec)
    a, b = (
        value_and_grads(
            lambda vectors, e=e: kernel_moments.moments(
                vectors, e["senders"], e["receivers"], e["species"], weights, spec
            ),
            {"vectors": e["vectors"]},
        )
        for e in (edges, mixed)
    )
    torch.testing.assert_close(b["value"], a["value"], rtol=1e-13, atol=1e-12)
    torch.testing.assert_close(b["d/dvectors"], a["d/dvectors"][order], rtol=1e-12, atol=1e-11)


@DTYPES
@pytest.mark.parametrize(
    ("l_max", "nu_max"),
    [
        (0, 4),
        (1, 2),
        (2, 2),
        (2, 3),
        (3, 2),
        (3, 3),
        (3, 4),
        (4, 2),
        (4, 3),
        (4, 4),
        (6, 3),
        (6, 4),
    ],
)
def test_contraction(l_max, nu_max, dtype):
    generator = torch.Generator().manual_seed(l_max)
    shape = (37, 2, tables.n_monomials(l_max), 3)  # blocks of lanes and a rest
    a = torch.randn(shape, generator=generator, dtype=torch.float64)
    judge(
        lambda a: kernel_contraction.contraction(a, l_max, nu_max),
        lambda a: ref_contraction.contraction(a, l_max, nu_max),
        {"a": a},
        dtype,
        growth=2.0,
    )


VARIANTS = {
    "memory": (True, False, None),
    "ar": (False, True, None),
    "bchi shared": (False, False, (True, True)),
    "bchi per l": (False, False, (False, True)),
    "bchi per channel": (False, False, (True, False)),
    "bchi per l and channel": (False, False, (False, False)),
    "all": (True, True, (False, False)),
}


@DTYPES
@pytest.mark.parametrize("name", ["none", "400 edges", "hub atom"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_messages(variant, name, dtype):
    spec, edges = with_step(*VARIANTS[variant]), dict(EDGE_CASES[name])
    generator = torch.Generator().manual_seed(2)
    n = len(edges["species"])
    sizes = ((spec.n_monomials, 1.0), (spec.n_invariants, 0.3))
    a, b = (
        scale * torch.randn(
            n, spec.n_radial, m, spec.n_channels, generator=generator, dtype=torch.float64
        )
        for m, scale in sizes
    )  # fmt: skip
    tensors = {"a": a, "b": b, "vectors": edges.pop("vectors")}
    ours, theirs = (
        with_weights(module.messages, random_weights(spec), spec=spec, **edges)
        for module in (kernel_messages, ref_messages)
    )
    judge(ours, theirs, tensors, dtype, growth=2.0)


NETWORKS = {
    activation: MLP((21, 6, 5, 3), activation=activation)
    for activation in ("silu", "relu", "tanh", "sigmoid", "elu", "gelu", "softplus", "mish")
} | {
    "residual": MLP((21, 6, 6, 3), residual=True),
    "batch norm": MLP((21, 6, 5, 3), batch_norm=True),
    "residual and batch norm": MLP((21, 6, 5, 3), residual=True, batch_norm=True),
    "one layer": MLP((21, 3)),
    "no bias": MLP((21, 6, 3), bias=False),
}


def read_out(name, linear):
    """A read-out with seeded tensors under another prefix than the operator's."""
    module = Readout("E", NETWORKS[name], linear=linear)
    mlp = module.mlp
    shapes = mlp_shapes(mlp, "outputs.4.2")
    if linear:
        alone = MLP((21, 3, 1), bias=mlp.bias, batch_norm=mlp.batch_norm)
        first = mlp_shapes(alone, "x")
        shapes |= {
            f"outputs.4.2.linear.{n.removeprefix('x.layers.0.')}": s
            for n, s in first.items()
            if n.startswith("x.layers.0.")
        }
    generator = torch.Generator().manual_seed(4)
    weights = {}
    for key, shape in shapes.items():
        draw = torch.randn(shape, generator=generator, dtype=torch.float64)
        weights[key] = draw.abs() + 0.5 if key.endswith("variance") else draw
    return module, weights


@DTYPES
@pytest.mark.parametrize("linear", [False, True], ids=["", "with linear"])
@pytest.mark.parametrize("name", NETWORKS)
def test_readout(name, linear, dtype):
    module, weights = read_out(name, linear)
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(37, 21, generator=generator, dtype=torch.float64)
    ours, theirs = (
        with_weights(m.readout, weights, spec=module, prefix="outputs.4.2")
        for m in (kernel_readout, ref_readout)
    )
    judge(ours, theirs, {"features": x}, dtype, growth=2.0)


CELLS = {
    "triclinic": [[5.0, 0, 0], [1.7, 4.4, 0], [-2.1, 0.9, 6.1]],
    "left-handed": [[1.7, 4.4, 0], [5.0, 0, 0], [-2.1, 0.9, 6.1]],
    "elongated": [[3.0, 0, 0], [0, 3.5, 0], [0, 0, 40.0]],
    "open": [[0.0] * 3] * 3,
}


@pytest.mark.parametrize("removed", [False, True], ids=["self kept", "self removed"])
@pytest.mark.parametrize("exponent", [1, 6])
@pytest.mark.parametrize("part", ["energies", "potential"])
@pytest.mark.parametrize("name", CELLS)
def test_ewald(name, part, exponent, removed):
    if name == "open" and exponent == 6:
        pytest.skip("an open system has no sum of exponent 6")
    rng = np.random.default_rng(0)
    spec = Ewald("q", "e", 1.9, 0.8, exponent, removed, norm_factor=1.3)
    tensors = {
        "charges": torch.tensor(rng.normal(size=(9, 3))),
        "positions": torch.tensor(rng.uniform(-3.0, 6.0, (9, 3))),
        "cell": torch.tensor(CELLS[name], dtype=torch.float64),
    }

    def run(module):
        options = {"spec": spec, "periodic": name != "open"}
        return lambda **t: getattr(module.ewald(**t, **options), part)

    judge(run(kernel_ewald), run(ref_ewald), tensors, torch.float64, growth=32.0)  # recurrences


@pytest.mark.parametrize("n_q", [1, 2, 4, 7])
def test_ewald_of_any_number_of_channels(n_q):
    rng = np.random.default_rng(n_q)
    cell = torch.tensor(CELLS["triclinic"], dtype=torch.float64)
    tensors = {
        "charges": torch.tensor(rng.normal(size=(300, n_q))),
        "positions": torch.tensor(rng.uniform(-3.0, 6.0, (300, 3))),
    }
    spec = Ewald("q", "e", 1.5, 0.8)
    ours, theirs = (
        lambda charges, positions, m=m: (
            m.ewald(charges, positions, cell, spec, periodic=True).energies
        )
        for m in (kernel_ewald, ref_ewald)
    )
    judge(ours, theirs, tensors, torch.float64, growth=32.0)


@DTYPES
def test_the_order_of_edges_changes_no_bit(dtype):
    spec = with_step(True, True, (False, False))
    weights = {name: w.to(dtype) for name, w in random_weights(spec).items()}
    edges, generator = EDGE_CASES["400 edges"], torch.Generator().manual_seed(3)
    n = len(edges["species"])
    # one edge of each pair of atoms: of several the first given comes first in the sums
    _, pairs = np.unique((edges["receivers"] * n + edges["senders"]).numpy(), return_index=True)
    edges = {name: x if name == "species" else x[pairs] for name, x in edges.items()}
    vectors = edges.pop("vectors").to(dtype)
    a, b = (
        torch.randn(n, spec.n_radial, m, spec.n_channels, generator=generator).to(dtype)
        for m in (spec.n_monomials, spec.n_invariants)
    )

    def run(order):
        given = {name: x if name == "species" else x[order] for name, x in edges.items()}
        found = []
        for operation, inputs in (
            (kernel_moments.moments, ()), (kernel_messages.messages, (a, b))
        ):  # fmt: skip
            d = vectors[order].requires_grad_(True)
            value = operation(*inputs, d, **given, weights=weights, spec=spec)
            (slope,) = torch.autograd.grad(value.sin().sum(), d)
            found += [value.detach(), torch.empty_like(slope).index_copy_(0, order, slope)]
        return found

    want = run(torch.arange(len(pairs)))
    assert all(x.abs().sum() > 0 for x in want)
    for _ in range(3):
        got = run(torch.randperm(len(pairs), generator=generator))
        assert all(map(torch.equal, got, want))


def test_refusals():
    spec, edges = representation(), EDGE_CASES["one edge"]
    weights = random_weights(spec)

    def call(weights=weights, backend=None, **changed):
        return kernel_moments.moments(
            **(edges | changed), weights=weights, spec=spec, backend=backend
        )

    expected = r"vectors: expected a float32 or float64 tensor of shape \[any, 3\], got float64 "
    with pytest.raises(InputError, match=expected + r"\[1, 2\]"):
        call(vectors=edges["vectors"][:, :2])
    with pytest.raises(InputError, match=r"senders: expected a int64 tensor of shape \[1\]"):
        call(senders=edges["senders"].to(torch.int32))
    with pytest.raises(InputError, match=r"weights\['mixing.1'\]: .* got nothing"):
        call(weights={k: w for k, w in weights.items() if k != "mixing.1"})
    with pytest.raises(InputError, match="backend: expected one of triton, cpu, got 'fortran'"):
        call(backend="fortran")
    with pytest.raises(BackendUnavailableError, match="'triton' is not available"):
        call(backend="triton")
    with pytest.raises(BackendUnavailableError, match=r"does not serve the device|no such kernels"):
        select_backend(torch.device("meta"), "cpu")
    a = torch.zeros(2, 1, 4, 1)
    with pytest.raises(InputError, match="l_max: expected an integer up to 6, got 7"):
        kernel_contraction.contraction(a, 7, 2)
    with pytest.raises(InputError, match=r"a: expected .* of shape \[any, any, 10, any\]"):
        kernel_contraction.contraction(a, 2, 2)
    with pytest.raises(InputError, match="step: expected one of the 0 steps"):
        kernel_messages.messages(a, a, **edges, weights=weights, spec=spec)
    one = torch.zeros(1, 3)
    with pytest.raises(InputError, match="pbc: expected a periodic system"):
        kernel_ewald.ewald(
            one[:, :1], one, torch.eye(3), Ewald("q", "e", 2.0, 1.0, 6), periodic=False
        )
    with pytest.raises(InputError, match="cell: expected three independent lattice vectors"):
        kernel_ewald.ewald(
            one[:, :1], one, torch.zeros(3, 3), Ewald("q", "e", 2.0, 1.0), periodic=True
        )


def test_both_homes_have_the_same_operations():
    for name in ("moments", "contraction", "messages", "readout", "ewald"):
        ours = __import__(f"{kernels.__name__}.{name}", fromlist=[name])
        theirs = __import__(f"{reference.__name__}.{name}", fromlist=[name])
        mine, other = (list(inspect.signature(getattr(m, name)).parameters) for m in (ours, theirs))
        assert mine == [*other, "backend"]


def test_weights_are_constants_to_messages_and_read_outs():
    module, weights = read_out("silu", linear=False)
    name = "outputs.4.2.layers.0.weight"
    leaf = weights | {name: weights[name].clone().requires_grad_(True)}
    x = torch.ones(2, 21, dtype=torch.float64)
    with pytest.raises(InputError, match=r"Use cace_fast\.reference for gradients"):
        kernel_readout.readout(x, leaf, module, "outputs.4.2")
    spec, edges = with_step(True, False, None), EDGE_CASES["one edge"]
    own = random_weights(spec)
    own["mixing.0"].requires_grad_(True)
    a = torch.zeros(2, spec.n_radial, spec.n_monomials, spec.n_channels, dtype=torch.float64)
    b = torch.zeros(2, spec.n_radial, spec.n_invariants, spec.n_channels, dtype=torch.float64)
    with pytest.raises(InputError, match=r"weights\['mixing.0'\].*Use cace_fast\.reference"):
        kernel_messages.messages(a, b, **edges, weights=own, spec=spec)
