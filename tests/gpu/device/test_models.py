"""Whole models on the device, real or emulated, against the reference in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gpu_models import SHAPES, Shape, specification, structure
from support.tiny_models import tiny_spec, tiny_weights
from systems import random_weights

from cace_fast.potential import Potential
from cace_fast.weights import Weights

# One of every family: none, Bchi, memory + Ar + Bchi, charges (one, four), 25 and 94 elements.
FAMILIES = ["water-mp0-sr", "water-mp1-lr", "licl-gaf3-lr0", "cacefit-hea25", "alchemical-rep"]
MORE = [name for name in SHAPES if name not in FAMILIES]
PROPERTIES = ("energy", "forces", "stress")
MORE_ERROR = 6.0  # times that of plain torch in float32


def pair(name: str, device: torch.device) -> tuple[Potential, Potential, Potential]:
    """Return a model on the device, and in plain torch in float32 and float64."""
    spec = specification(SHAPES[name])
    weights = Weights(spec, random_weights(spec, torch.float64))
    fast = Potential(spec, weights, device=device, dtype="float32", backend="triton")
    plain = [
        Potential(spec, weights, device="cpu", dtype=dtype, backend="reference")
        for dtype in ("float32", "float64")
    ]
    return fast, plain[0], plain[1]


def agrees(name: str, device: torch.device) -> None:
    fast, single, double = pair(name, device)
    atoms = structure(SHAPES[name], 2)
    got, usual, exact = (p.compute(atoms, PROPERTIES) for p in (fast, single, double))
    for key in PROPERTIES:
        scale = np.abs(exact[key]).max()
        error = np.abs(got[key] - exact[key]).max() / scale
        allowed = MORE_ERROR * np.abs(usual[key] - exact[key]).max() / scale + 1e-6
        assert error < allowed, f"{key}: {error:.1e}, allowed {allowed:.1e}"


@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_every_family_agree_with_the_reference(name, device):
    agrees(name, device)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_other_models_agree_too(name, device):
    agrees(name, device)


def small(device: torch.device, **options: object) -> Potential:
    spec = tiny_spec(**options)
    return Potential(spec, tiny_weights(spec), device=device, dtype="float32", backend="triton")


def test_the_same_structure_gives_the_same_bits(device):
    model = small(device)
    atoms = structure(Shape(), 2)
    atoms.numbers = np.where(atoms.numbers == 1, 1, 8)
    first, other = model.compute(atoms, PROPERTIES), atoms.copy()
    other.rattle(0.2, seed=5)
    model.compute(other, PROPERTIES)
    again = model.compute(atoms, PROPERTIES)
    for key in PROPERTIES:
        np.testing.assert_array_equal(first[key], again[key])


def test_systems_of_one_batch_do_not_see_each_other(device):
    model = small(device)
    frames = [structure(Shape(), n) for n in (1, 2)]
    for atoms in frames:
        atoms.numbers = np.where(atoms.numbers == 1, 1, 8)
    together = model.compute(frames, PROPERTIES)
    for atoms, found in zip(frames, together, strict=True):
        alone = model.compute(atoms, PROPERTIES)
        np.testing.assert_allclose(found["forces"], alone["forces"], atol=2e-5)
        np.testing.assert_allclose(found["energy"], alone["energy"], rtol=2e-6)
