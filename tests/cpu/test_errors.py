"""Errors of the compiled engine: argument, expectation and value arrive as parts, per thread."""

from __future__ import annotations

import ctypes
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.tiny_models import tiny_spec, tiny_weights

from cace_fast import InputError
from cace_fast.errors import CaceFastError
from cace_fast.kernels.cpu import evaluator, library
from cace_fast.spec import to_json


def made(**changes):
    """Return a model in the library, from tensors of which some are replaced."""
    spec = tiny_spec()
    tensors = {k: t.numpy().astype(np.float64) for k, t in tiny_weights(spec).items()} | changes
    return evaluator.Evaluator(to_json(spec), tensors, [], [], 64)


def structures(species, positions=None):
    n = len(species)
    return evaluator.Structures(
        species=np.array(species, dtype=np.int32),
        positions=np.arange(3.0 * n).reshape(n, 3) if positions is None else positions,
        first_atom=np.array([0, n], dtype=np.int32),
        cells=np.zeros((1, 3, 3)),
        periodic=np.zeros(1, dtype=np.int32),
    )


def no_pairs():
    return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int64)


def parts(error):
    return error.argument, error.expected, error.got


def test_parts_of_a_wrong_species():
    engine = made()
    with pytest.raises(InputError) as caught:
        engine.features(structures([0, 5]), no_pairs(), 1)
    assert parts(caught.value) == ("species", "-1 to 1", "5 for atom 1")
    assert str(caught.value) == "species: expected -1 to 1, got 5 for atom 1."


def test_parts_of_wrong_pairs():
    engine = made()
    one = np.zeros(1, np.int64)
    with pytest.raises(InputError) as caught:
        engine.features(structures([0, 1]), (one + 7, one, np.zeros((1, 3), np.int64)), 1)
    assert parts(caught.value) == ("pairs", "numbers of atoms", "others in pair 0")
    engine.features(structures([0, 1]), no_pairs(), 1)
    with pytest.raises(InputError) as caught:
        engine.features(structures([0, 1, 1]), None, 1)
    assert parts(caught.value) == ("pairs", "a list of 3 atoms", "one of 2; call cf_step_pairs")


def test_parts_of_a_wrong_model():
    with pytest.raises(InputError) as caught:
        made(**{"mixing.0": np.zeros(3)})
    assert parts(caught.value) == ("tensor 'mixing.0'", "48 numbers", "3")
    with pytest.raises(InputError) as caught:
        evaluator.Evaluator("{", {}, [], [], 64)
    assert caught.value.argument == "specification"
    assert caught.value.got.startswith("JSON: ")


def test_an_error_without_parts_is_not_given_those_of_another():
    with pytest.raises(InputError):
        made(**{"mixing.0": np.zeros(3)})
    engine = made()  # has succeeded: nothing is left of it
    with pytest.raises(CaceFastError, match=r"^the CPU engine failed \(1\): something else$"):
        library.raise_for(library.INVALID, "something else")
    assert engine.query("n_radial") == 3


def test_threads_get_their_own_parts():
    barrier = threading.Barrier(4)

    def work(species):
        engine = made()
        for _ in range(50):
            barrier.wait()
            with pytest.raises(InputError) as caught:
                engine.features(structures([species]), no_pairs(), 1)
            assert caught.value.got == f"{species} for atom 0"

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, (11, 12, 13, 14)))


def test_no_parts_beyond_three():
    function = library.library().cf_invalid
    assert function.restype is ctypes.c_char_p
    assert [function(part) for part in (-1, 3)] == [b"", b""]
