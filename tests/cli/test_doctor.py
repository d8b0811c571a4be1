"""`cace-fast doctor`."""

from __future__ import annotations

import json

import pytest
import torch
from support.command import cace_fast as run
from support.command import succeed
from support.tiny_models import tiny_potential

import cace_fast


def test_what_is_here(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = json.loads(succeed("doctor", "--json").stdout)
    assert found["versions"]["cace-fast"] == cace_fast.__version__
    assert found["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert "MISSING" not in found["versions"].values()
    assert found["machine"]["threads of torch"] == torch.get_num_threads()
    assert found["devices"]["cpu"] == "available"
    assert found["backends"]["reference"].startswith("available")
    assert found["environment"]["OMP_NUM_THREADS"] == "3"
    assert "model" not in found


def test_backends_that_cannot_run_say_why_and_what_to_do(monkeypatch):
    from cace_fast.kernels import backend

    states = (backend.BackendState("cpu", "no compiler was there", "Install one."),)
    monkeypatch.setattr(backend, "states", lambda: states)
    found = json.loads(succeed("doctor", "--json").stdout)
    assert found["backends"]["cpu"] == "no: no compiler was there. Install one."
    assert found["backends"]["auto on cpu"] == "reference"


def test_what_a_model_would_use(tmp_path):
    tiny_potential(steps=("M",)).save(tmp_path / "m.safetensors")
    options = ("--default-dtype", "float64", "--backend", "reference")
    text = succeed("doctor", tmp_path / "m.safetensors", *options).stdout
    assert "cutoff 4 A, backend 'reference' on " in text
    assert "message passing steps  1" in text
    assert "float64" in text


def test_a_gpu_is_asked_for_where_there_is_none():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    result = run("doctor", "--gpu")
    assert result.exit_code == 3
    assert "backend: 'triton' is not available here" in result.stderr


@pytest.mark.parametrize("words", [(), ("copper-emt",)])
def test_a_device_that_is_not_here_is_told(words):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    result = run("doctor", *words, "--device", "cuda")
    assert result.exit_code == 3
    assert "device: expected a device that this machine has, got 'cuda'" in result.stderr
