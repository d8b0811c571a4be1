"""Single operations of the C interface: refusals, and the state after them."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref

import numpy as np
import pytest
from support.cases import EDGE_CASES, random_weights, with_step

from cace_fast.errors import InputError
from cace_fast.kernels.cpu import interface, library
from cace_fast.kernels.cpu.library import Handle, address
from cace_fast.kernels.cpu.operations import EdgeOperations, Graph, Network
from cace_fast.spec import MLP, ModelSpec, Readout, readout_from_json, readout_to_json, to_json

SPEC = ModelSpec(with_step(True, True, (False, False)))
TENSORS = {name: tensor.numpy() for name, tensor in random_weights(SPEC.representation).items()}
MODULE = Readout("E", MLP((40, 30, 2)), linear=False)
CF_ORDER = 5


def graph(**changes):
    return Graph(**{name: x.numpy() for name, x in EDGE_CASES["400 edges"].items()} | changes)


def network_tensors():
    rng = np.random.default_rng(0)
    shapes = {"weight": ((30, 40), (2, 30)), "bias": ((30,), (2,))}
    return {
        f"layers.{k}.{kind}": rng.normal(size=shapes[kind][k]) for kind in shapes for k in (0, 1)
    }


def parts(error):
    return error.argument, error.expected, error.got


@pytest.mark.parametrize(
    ("l_max", "nu_max", "precision", "want"),
    [
        (7, 2, 64, ("l_max", "0 to 6", "7")),
        (-1, 2, 64, ("l_max", "0 to 6", "-1")),
        (2, 0, 64, ("nu_max", "1 to 4", "0")),
        (2, 5, 64, ("nu_max", "1 to 4", "5")),
        (2, 2, 16, ("precision", "32 or 64", "16")),
    ],
)
def test_a_contraction_that_is_none_is_refused(l_max, nu_max, precision, want):
    lib, x = library.library(), np.zeros(1)
    for name, n_arrays in (("cf_contraction", 2), ("cf_contraction_gradient", 3)):
        code = getattr(lib, name)(l_max, nu_max, precision, 0, 1, *[address(x)] * n_arrays)
        with pytest.raises(InputError) as caught:
            library.raise_for(code, "")
        assert parts(caught.value) == want
        code = getattr(lib, name)(2, 2, 64, 1, -1, *[address(x)] * n_arrays)
        with pytest.raises(InputError, match="n, n_channels: expected 0 or more, got -1"):
            library.raise_for(code, "")


def test_a_network_without_all_of_its_tensors_is_refused():
    whole = network_tensors()
    for wrong in (
        {k: w for k, w in whole.items() if k != "layers.1.weight"},
        whole | {"layers.1.weight": np.zeros(59)},
    ):
        with pytest.raises(InputError, match=r"readout\.layers\.1\.weight': missing or of another"):
            Network(MODULE, wrong, 64)
    with pytest.raises(InputError) as caught:
        Network(MODULE, whole, 8)
    assert parts(caught.value) == ("precision", "32 or 64", "8")


def test_the_text_of_a_readout():
    assert readout_from_json(readout_to_json(MODULE)) == MODULE


def test_threads_share_a_network():
    network, rng = Network(MODULE, network_tensors(), 64), np.random.default_rng(1)
    inputs = [rng.normal(size=(200, 40)) for _ in range(8)]
    slopes = rng.normal(size=(200, 2))

    def run(x):
        return network.run(x), network.gradient(x, slopes)

    want = [run(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for got, expected in zip(pool.map(run, inputs), want, strict=True):
                assert all(map(np.array_equal, got, expected))


def test_edges_of_atoms_that_do_not_exist_are_refused():
    operations, given = EdgeOperations(SPEC, TENSORS, 64), graph()
    n = len(given.species)
    for name, atom in (("senders", n), ("senders", -1), ("receivers", n), ("receivers", -1)):
        wrong = getattr(given, name).copy()
        wrong[7] = atom
        with pytest.raises(InputError) as caught:
            operations.moments(graph(**{name: wrong}))
        want = ("senders, receivers", f"atoms from 0 to {n - 1}", "others in edge 7")
        assert parts(caught.value) == want
    with pytest.raises(InputError) as caught:  # beyond 32 bits, where it must not wrap
        operations.moments(graph(species=np.where(np.arange(n) == 3, 2**32, given.species)))
    assert parts(caught.value) == ("species", "0 to 2", f"{2**32} for atom 3")


def test_a_step_that_the_model_does_not_have_is_refused():
    operations, given = EdgeOperations(SPEC, TENSORS, 64), graph()
    a = np.zeros_like(operations.moments(given))
    for step in (-1, len(SPEC.representation.steps)):
        with pytest.raises(InputError) as caught:
            operations.messages(given, a, a, step)
        assert parts(caught.value) == ("step", "one of 1, from 0", str(step))


def test_an_operation_leaves_no_step_open():
    lib, given = library.library(), graph()
    state = Handle("state", Handle.of_tensors("model", to_json(SPEC), TENSORS, 0, None), 64)
    rep = SPEC.representation
    a = np.empty((len(given.species), rep.n_radial, rep.n_monomials, rep.n_channels))
    edges = interface.EdgesC(len(given.senders), len(given.species), *map(address, given))
    assert lib.cf_moments(state, byref(edges), address(a)) == 0
    assert lib.cf_forward(state, 0) == CF_ORDER
    assert lib.cf_rewind(state, 0) == CF_ORDER


def test_what_a_handle_was_made_of_lives_as_long_as_it():
    model = Handle.of_tensors("model", to_json(SPEC), TENSORS, 0, None)
    state, alive = Handle("state", model, 64), weakref.ref(model)
    del model
    gc.collect()
    assert alive() is not None
    del state
    gc.collect()
    assert alive() is None
