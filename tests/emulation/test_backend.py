"""Messages about Triton when a backend is chosen: what is missing, and how to get it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from gpu_emulator import emulate

from cace_fast.engine import choose_backend
from cace_fast.errors import BackendUnavailableError
from cace_fast.kernels import backend


@pytest.fixture(autouse=True)
def _ask_again():
    backend._triton.cache_clear()
    yield
    backend._triton.cache_clear()


def pretend(monkeypatch, **there):
    """Pretend a machine: platform, package, CUDA version of torch, device, its capability."""
    monkeypatch.setattr(sys, "platform", there.get("platform", "linux"))
    found = object() if there.get("package", True) else None
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(torch.version, "cuda", there.get("cuda", "13.0"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there.get("device", True))
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda: there.get("capability", (9, 0))
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")


@pytest.mark.parametrize(
    ("there", "reason", "remedy"),
    [
        ({"platform": "darwin"}, "run on Linux alone", "backend='reference'"),
        ({"package": False}, "the package triton is not installed", "pip install triton"),
        ({"cuda": None}, "this torch is built for the CPU alone", "pytorch.org/get-started"),
        ({"device": False}, "torch finds no GPU", "nvidia-smi"),
        ({"capability": (7, 0)}, "compute capability 7.0, and 7.5 is the lowest", "'reference'"),
    ],
)
def test_what_is_missing_is_named_with_its_remedy(monkeypatch, there, reason, remedy):
    pretend(monkeypatch, **there)
    with pytest.raises(BackendUnavailableError) as error:
        choose_backend("triton", "cuda")
    assert reason in str(error.value)
    assert remedy in str(error.value)
    assert choose_backend("auto", "cuda") == "reference"


def test_a_gpu_is_used_and_named(monkeypatch):
    pretend(monkeypatch)
    monkeypatch.setattr(backend, "version", lambda name: "3.7.1")
    assert choose_backend("auto", "cuda") == "triton"
    assert backend.states()[0].detail == "triton 3.7.1 on NVIDIA H100"


def test_emulation_serves_the_cpu_and_is_never_chosen_by_itself():
    with emulate("sm_80"):
        assert choose_backend("triton", "cpu") == "triton"
        assert choose_backend("auto", "cpu") != "triton"
        state = next(s for s in backend.states() if s.name == "triton")
        assert state.detail == "emulated sm_80, for tests"
    with pytest.raises(BackendUnavailableError):
        choose_backend("triton", "cpu")


@pytest.mark.parametrize(
    ("name", "value", "detail"),
    [
        ("CACE_FAST_EMULATE", "sm_90", "emulated sm_90, for tests"),
        ("TRITON_INTERPRET", "1", "interpreted, for tests"),
    ],
)
def test_the_environment_starts_a_stand_in(monkeypatch, name, value, detail):
    monkeypatch.setenv(name, value)
    code = "from cace_fast.kernels.backend import states; print(states()[-1].detail)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == detail


def test_the_environment_cannot_name_another_architecture(monkeypatch):
    monkeypatch.setenv("CACE_FAST_EMULATE", "sm_42")
    code = "from cace_fast.kernels.backend import states; states()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "architecture: expected one of sm_75" in done.stderr


def test_a_variable_without_an_emulator_says_how_to_get_one(monkeypatch):
    monkeypatch.setitem(sys.modules, backend.EMULATOR, None)
    assert backend.emulated() is None  # users never notice that there is none
    monkeypatch.setenv(backend.EMULATE, "sm_90")
    with pytest.raises(BackendUnavailableError, match=r"not installed.*pip install -e tools"):
        backend.emulated()


def test_the_package_does_not_import_the_emulator():
    code = """
import sys
import cace_fast, cace_fast.cli, cace_fast.engine.triton
cace_fast.load("copper-emt", device="cpu")
assert not any("emulat" in name for name in sys.modules), sorted(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
