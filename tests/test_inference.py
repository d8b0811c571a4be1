"""`forward` by a fast engine: the numbers of plain torch, and their derivatives."""

from __future__ import annotations

import copy
from functools import partial
from unittest import mock

import pytest
import torch
from ase import Atoms
from support import upstream_like as like
from support.dictionaries import dictionary
from support.tiny_models import tiny_potential, tiny_structure

from cace_fast import InputError, Potential, accelerate
from cace_fast.forward import Forward

MODELS = {"read-out": {}, "charges and messages": {"ewald_channels": 1, "steps": ("M+Ar+Bchi",)}}


@pytest.fixture(params=MODELS, ids=str)
def potential(request) -> Potential:
    tiny = tiny_potential(**MODELS[request.param])
    return Potential(tiny.spec, tiny.weights, dtype="float64", backend="cpu")


@pytest.fixture
def no_reference():
    """Plain torch computes no features."""
    with mock.patch("cace_fast.forward.model.features", side_effect=AssertionError):
        yield


def frames(spec) -> list[Atoms]:
    return [tiny_structure(spec, seed=seed) for seed in (1, 2)]


def data_of(potential: Potential) -> dict[str, torch.Tensor]:
    return dictionary(frames(potential.spec), potential.cutoff, torch.float64)


def by_reference(potential: Potential, data, **options) -> dict[str, torch.Tensor]:
    plain = Forward(potential.spec, potential.weights.to("cpu", torch.float64))
    return plain(data, **options)


@pytest.mark.parametrize("compute_stress", [True, False])
def test_numbers_need_no_plain_torch(potential, no_reference, compute_stress):
    data = data_of(potential)
    found = potential.forward(data, compute_stress=compute_stress)
    assert found
    assert not any(v.requires_grad for v in found.values())


def test_the_same_outputs_with_the_same_values(potential):
    data = data_of(potential)
    for stress in (True, False):
        found = potential.forward(data, compute_stress=stress)
        want = by_reference(potential, data, compute_stress=stress)
        assert found.keys() == want.keys()
        for key, value in want.items():
            assert found[key].dtype == value.dtype, key
            torch.testing.assert_close(found[key], value.detach(), rtol=1e-10, atol=1e-10)


def test_derivatives_are_those_of_plain_torch(potential):
    data = data_of(potential)
    leaves = [data["positions"].clone().requires_grad_() for _ in range(2)]
    ways = potential.forward, partial(by_reference, potential)
    for leaf, call in zip(leaves, ways, strict=True):
        out = call(data | {"positions": leaf})
        (slope,) = torch.autograd.grad(
            out[potential.program.energy_key].sum(), leaf, create_graph=True
        )
        slope.square().sum().backward()
        assert not out["CACE_forces"].requires_grad  # as before: those ask for training
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-9, atol=1e-10)
    assert leaves[0].grad.abs().max() > 0


def test_forces_are_differentiated_where_training_is_asked_for(potential):
    data = data_of(potential)
    data["positions"].requires_grad_()
    out = potential.forward(data, training=True)
    out["CACE_forces"].square().sum().backward()
    assert data["positions"].grad.abs().max() > 0


def water():
    return like.water_like(steps=[["M", "Ar", "B"]]).double()


def inputs() -> dict[str, torch.Tensor]:
    molecule = Atoms([8, 1, 6, 1], [[0, 0, 0], [1.1, 0.4, 0.1], [2.3, 2.1, 1.9], [0.6, 3.0, 2.6]])
    return dictionary([molecule], 4.5, torch.float64)


def test_modules_are_evaluated_by_the_engine_and_their_changes_seen(no_reference):
    module = accelerate(water())
    first = module(inputs())["CACE_energy"]
    assert first.requires_grad  # its parameters do
    with torch.no_grad():
        engines = module._held
        assert torch.equal(module(inputs())["CACE_energy"], first)
        assert module._held is engines
        for parameter in module.parameters():
            parameter.data.mul_(1.01)
        assert not torch.equal(module(inputs())["CACE_energy"], first)


def test_parameters_get_the_gradients_of_plain_torch():
    found = []
    for training in (False, True):
        module = accelerate(water())
        module(inputs(), training=training)["CACE_energy"].sum().backward()
        found.append({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert found[0]
    for name, gradient in found[1].items():
        torch.testing.assert_close(found[0][name], gradient, rtol=1e-9, atol=1e-9)


def test_modules_are_copied_without_their_engines():
    module = accelerate(water())
    want = module(inputs())["CACE_energy"]
    twin = copy.deepcopy(module)
    assert twin._held is None
    torch.testing.assert_close(twin(inputs())["CACE_energy"], want)


def test_refusals_are_those_of_plain_torch(potential):
    data = data_of(potential)
    data["positions"][0, 0] = torch.nan
    with pytest.raises(InputError, match="positions"):
        potential.forward(data)
