"""The guard finds each planted bug, and nothing in kernels that are right."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from gpu_emulator.guard import watch
from triton.runtime.errors import InterpreterError

N, B = 60, 16


def planted(name: str):
    spec = importlib.util.spec_from_file_location("planted", Path(__file__).with_name("planted.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def launch(name: str) -> torch.Tensor:
    x, out = torch.arange(float(N)), torch.full((N,), -5.0)
    planted(name)[(-(-N // B),)](x, out, N, B=B)
    return out


def test_right_kernels_pass():
    with watch() as guard:
        assert torch.equal(launch("right"), torch.arange(float(N)) + 1)
        assert guard.unwritten("out") == 0
        assert guard.unwritten("x") == N
        launch("adds_only")
        assert guard.unwritten("out") == 0


def test_a_barrier_orders_what_a_program_does():
    x, out = torch.arange(64.0), torch.zeros(64)
    with watch():
        planted("barrier_before_reading")[(4,)](x, out, 64, B=B)
    assert torch.equal(out, x.reshape(4, B).flip(1).reshape(-1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("load_without_mask", r"program \(3, 0, 0\): load out of bounds: element 60 of 'x'"),
        ("store_without_mask", r"store out of bounds: element 60 of 'out', which has 60"),
        ("index_before_the_start", r"program \(0, 0, 0\): load out of bounds: element -1 of 'x'"),
        ("lanes_share_an_address", "race: lanes of one store to 'out' share an address"),
        ("programs_share_an_address", "race: 'out' is stored by two programs"),
        ("reads_what_another_writes", "race: 'out' is (loaded, another|stored, another)"),
        ("writes_what_another_read", "race: 'x' is stored, another program loads it"),
        ("reads_its_own_store", "'out' is loaded after a store, without a barrier"),
        ("adds_and_stores", "race: 'out' is (stored and updated|updated atomically and stored)"),
        ("asserts", "too many lanes"),
    ],
)
def test_planted_bugs_are_found(name, message):
    with watch(), pytest.raises(InterpreterError, match=message):
        launch(name)


def test_what_a_mask_leaves_is_nan():
    with watch():
        out = launch("forgets_what_a_mask_leaves")
    assert out[: N - N % B].isfinite().all()
    assert out[N - N % B :].isnan().all()


def test_elements_that_nobody_writes_are_counted():
    with watch() as guard:
        launch("forgets_the_last")
        assert guard.unwritten("out") == 1
        with pytest.raises(KeyError, match="no array 'y'"):
            guard.unwritten("y")


def test_the_interpreter_is_as_before_afterwards():
    with watch(), pytest.raises(InterpreterError):
        launch("asserts")
    assert torch.equal(launch("asserts"), torch.arange(float(N)))  # ignored without the guard
