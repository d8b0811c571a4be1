"""Born charges of the compiled engine, and derivatives of charges behind the C interface."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights
from support.tolerances import assert_as_good

from cace_fast import Potential
from cace_fast.errors import CaceFastError, PropertyNotImplementedError
from cace_fast.kernels.cpu import evaluator
from cace_fast.spec import FixedCharge, ModelSpec
from cace_fast.weights import Weights

NAMES = ("energy", "forces", "virials", "bec")
MODELS = {
    "one generation": {},
    "memory, Ar, Bchi": {"steps": ("M+Ar+Bchi",)},
    "two steps": {"steps": ("Bchi", "M+Ar"), "l_max": 3},
    "weighted": {"ewald": {"norm_factor": 3.0}},
}


def made(name: str) -> tuple[ModelSpec, Weights]:
    spec = tiny_spec(ewald_channels=1, **MODELS[name])
    return spec, tiny_weights(spec)


def potential(model: tuple[ModelSpec, Weights], dtype="float64", backend="cpu") -> Potential:
    return Potential(*model, dtype=dtype, backend=backend, slab_vacuum=9.0)


def frames(spec: ModelSpec):
    """Open and periodic systems, a slab, and an atom alone."""
    box = tiny_structure(spec, 2)
    slab = tiny_structure(spec, 2, seed=5)
    slab.pbc = (True, False, True)
    return [box, tiny_structure(spec, 2, pbc=False, seed=3), slab, box[:1]]


@pytest.mark.parametrize("name", MODELS)
def test_born_charges_are_those_of_the_reference(name):
    model = made(name)
    given = frames(model[0])
    exact = potential(model, backend="reference").compute(given, NAMES)
    for got, want in zip(potential(model).compute(given, NAMES), exact, strict=True):
        for key in NAMES:
            np.testing.assert_allclose(got[key], want[key], rtol=0, atol=1e-11, err_msg=key)
    single, floor = (
        potential(model, "float32", backend).compute(given, ("bec",))
        for backend in ("cpu", "reference")
    )
    for rows in zip(single, exact, floor, strict=True):
        tensors = [{"bec": torch.from_numpy(row["bec"]).float()} for row in rows]
        tensors[1] = {"bec": torch.from_numpy(rows[1]["bec"])}
        assert_as_good(*tensors)
    assert max(np.abs(row["bec"]).max() for row in exact) > 0.01


def test_what_follows_born_charges_is_what_it_was():
    """Born charges rewind the engine and leave energies out, for that call alone."""
    model = made("memory, Ar, Bchi")
    box, atoms = frames(model[0])[0], frames(model[0])[2]
    want = {key: potential(model).compute(box, (key,))[key] for key in ("forces", "virials")}
    own = potential(model)
    for _ in range(2):
        own.compute(atoms, ("bec",))
        found = own.compute(box, NAMES)
        for key, value in want.items():
            np.testing.assert_array_equal(found[key], value)
        np.testing.assert_array_equal(own.compute(box, ("forces",))["forces"], want["forces"])


def test_threads_change_no_bit_of_born_charges():
    model, before = made("memory, Ar, Bchi"), torch.get_num_threads()
    found = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        found.append(potential(model).compute(frames(model[0])[0], ("bec",))["bec"])
    torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_fixed_charges_do_not_depend_on_positions():
    spec, weights = made("one generation")
    modules = list(spec.submodels[0].modules)
    modules[1] = FixedCharge("q", ((8, -0.8), (1, 0.4)))
    fixed = replace(spec, submodels=(replace(spec.submodels[0], modules=tuple(modules)),))
    tensors = {k: t for k, t in weights.items() if not k.startswith("outputs.0.1.")}
    model = fixed, Weights(fixed, tensors)
    got, want = (
        potential(model, backend=name).compute(frames(fixed)[0], ("bec",))["bec"]
        for name in ("cpu", "reference")
    )
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-13)
    off = got - np.einsum("iaa->ia", got)[:, :, None] * np.eye(3)
    assert not off.any()
    assert np.ptp(got[:, 0, 0]) > 0.01


def test_several_channels_have_no_born_charges():
    spec = tiny_spec(ewald_channels=2)
    own = potential((spec, tiny_weights(spec)))
    with pytest.raises(PropertyNotImplementedError, match="bec: a model with one charge channel"):
        own.compute(frames(spec)[0], ("bec",))
    assert np.isfinite(own.compute(frames(spec)[0])["energy"])  # the engine goes on


def test_charges_have_to_be_known_before_their_derivatives():
    spec, weights = made("one generation")
    engine = potential((spec, weights))._engine
    assert isinstance(engine._evaluator, evaluator.Evaluator)
    with pytest.raises(CaceFastError, match="their gradients come after cf_step_run"):
        engine._evaluator.charge_gradients(np.zeros((1, 0, 1)))
