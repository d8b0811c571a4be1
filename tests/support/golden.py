"""The synthetic model of the specification's golden numbers, and those numbers."""

from __future__ import annotations

import math

import ase
import numpy as np
import torch

from cace_fast.spec import (
    MLP,
    Add,
    Bchi,
    CutoffFunction,
    Ewald,
    Forces,
    MessageStep,
    ModelSpec,
    RadialBasis,
    Readout,
    Representation,
    SubModel,
)
from cace_fast.weights import Weights

CUTOFF = 3.5
CELL = np.array([[4.2, 0, 0], [0.7, 3.9, 0], [-0.5, 0.6, 4.4]])
POSITIONS = [(0.1, 0.2, 0.3), (1.0, 0.4, 0.1), (2.3, 2.1, 1.9), (0.6, 3.0, 2.6), (3.1, 1.0, 3.5)]

EXPECTED = {
    "periodic": {
        "edges": 48,
        "features": [(16.524798586715, 8.009559647778), (-0.567320111292, 0.810664959843)],
        "feat0": [0.099051124293, 0.096650316804, 0.016431365385, 0.103879921847, 0.009721085886,
                  -0.008618345610, -0.001191321018],
        "feat1": [-0.028759275741, 0.007169848124, 0.000300028068, 0.039524019893, 0.000003728993,
                  0.000081703937, 0.000000593931],
        "E": -0.407239770246,
        "q": [-0.052863322359, -0.189156898622],
        "ewald": -0.036199413813,
        "forces": [0.631413589600, -0.111914749023, 0.366513003258],
        "ewald forces": [0.046679680423, -0.003694465311, 0.040499807616],
        "stress": [0.003208391906, 0.021990519645, 0.019184257672, 0.001924425737,
                   -0.012861054644, 0.003909016596],
        "ewald stress": [0.000511774057, 0.000335480517, -0.000266779337, 0.000157550731,
                         -0.000215918581, 0.000312240066],
    },
    "open": {
        "edges": 12,
        "features": [(7.440838089414, 4.088580810067), (1.015730356333, 0.328093202311)],
        "feat0": [0.123973540594, 0.019341703153, 0.002470912747, 0.027418943910, -0.000961412750,
                  0.001144700695, -0.000056899700],
        "feat1": [-0.043708903328, 0.006549988855, 0.000110275243, 0.006895174723, -0.000068596465,
                  -0.000070317833, 0.000000736419],
        "E": 0.123950766505,
        "q": [-0.052930907142, 0.021228182862],
        "ewald": -0.003165724730,
        "forces": [0.537500542694, 0.114765073140, -0.126221191154],
        "ewald forces": [-0.001013750197, -0.000002450911, 0.000462573559],
    },
}  # fmt: skip


def _waves(t: int, shape: tuple[int, ...], a: float) -> torch.Tensor:
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return (a * torch.sin(1 + 0.7 * k + 1.3 * t)).reshape(shape)


def tensors() -> dict[str, torch.Tensor]:
    """Every tensor of the golden model, by rule."""
    k = torch.arange(4, dtype=torch.float64)
    found = {
        "embedding.sender": _waves(0, (3, 2), 1),
        "embedding.receiver": _waves(1, (3, 2), 1),
        "radial.frequencies": math.pi * (1 + k) / CUTOFF + 0.01 * torch.sin(1 + k),
        "messages.0.bchi.layers.0.weight": _waves(19, (16, 84), 0.5),
        "messages.0.bchi.layers.0.bias": _waves(20, (16,), 0.1),
        "outputs.0.0.linear.weight": _waves(27, (1, 168), 0.3),
        "outputs.0.0.linear.bias": _waves(28, (1,), 0.1),
        "outputs.0.1.linear.weight": _waves(32, (2, 168), 0.3),
    }
    for degree in range(4):
        found[f"mixing.{degree}"] = _waves(3 + degree, (4, 3, 4), 1)
        found[f"messages.0.memory.{degree}"] = _waves(7 + degree, (3, 4), 0.5)
        found[f"messages.0.ar.prefactor.{degree}"] = _waves(11 + degree, (3, 4), 0.5)
        found[f"messages.0.ar.inverse_range.{degree}"] = (
            1 + _waves(15 + degree, (3, 4), 0.1)
        ) / CUTOFF
    for layer, (out, into, a) in enumerate([(5, 168, 0.5), (3, 5, 0.6), (1, 3, 0.6)]):
        found[f"outputs.0.0.layers.{layer}.weight"] = _waves(21 + 2 * layer, (out, into), a)
        found[f"outputs.0.0.layers.{layer}.bias"] = _waves(22 + 2 * layer, (out,), 0.2)
    for layer, (out, into, a) in enumerate([(4, 168, 0.5), (3, 4, 0.6), (2, 3, 0.6)]):
        found[f"outputs.0.1.layers.{layer}.weight"] = _waves(29 + layer, (out, into), a)
    return found


def model() -> tuple[ModelSpec, Weights]:
    """The golden model; its energies are "E" and "ewald", their sum "total"."""
    bchi = Bchi(False, False, MLP((84, 16)))
    representation = Representation(
        (8, 1, 6), 2, False, CUTOFF, RadialBasis("bessel", 4, math.sqrt(2 / CUTOFF)),
        CutoffFunction("polynomial", CUTOFF, 5.0), 3, 3, 4, (MessageStep(True, True, bchi),),
        1 / math.sqrt(6),
    )  # fmt: skip
    modules = (
        Readout("E", MLP((168, 5, 3, 1))),
        Readout("tot_q", MLP((168, 4, 3, 2), bias=False), per_atom_key="q"),
        Ewald("q", "ewald", 1.5, 0.9, remove_self_interaction=True),
        Add(("E", "ewald"), "total"),
        Forces("total", "forces", calc_stress=True),
    )
    spec = ModelSpec(representation, (SubModel(modules, strain=True),))
    return spec, Weights(spec, tensors())


def atoms(kind: str) -> ase.Atoms:
    """The golden structure, "periodic" or "open"."""
    pbc = kind == "periodic"
    return ase.Atoms([8, 1, 6, 1, 8], POSITIONS, cell=CELL if pbc else None, pbc=pbc)
