"""Steps of whole models, with every tile of the table, on the emulated GPUs of three makes.

Models of two shapes launch all kernels of the engine between them; ``tests/gpu/matrix`` says what
else differs from GPU to GPU.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gpu_emulator import emulate
from gpu_models import SHAPES, potential, specification, structure, tiles
from systems import random_weights

from cace_fast.kernels.triton import configs
from cace_fast.potential import Potential
from cace_fast.weights import Weights

ARCHITECTURES = ("sm_80", "sm_90", "sm_120")
TILES = range(len(configs.TILES))
PROPERTIES = ("energy", "forces", "stress")
MORE_ERROR = 6.0  # times that of plain torch in float32, as in tests/gpu/device
LEAST = 3e-6  # of the largest number: few atoms' energies are sums that happen to be exact
# The smallest and the largest systems take other kernels, not only other tiles.
QUICK = [
    *(("water-mp0-sr", architecture, tile) for architecture in ARCHITECTURES for tile in TILES),
    *(("licl-gaf3-lr0", architecture, TILES[-1]) for architecture in ("sm_80", "sm_120")),
]
REST = [
    (model, architecture, tile)
    for model in SHAPES
    for architecture in ARCHITECTURES
    for tile in TILES
    if (model, architecture, tile) not in QUICK
]


def check(model: str, architecture: str, tile: int) -> None:
    shape = SHAPES[model]
    spec, atoms = specification(shape), structure(shape, 1)
    weights = Weights(spec, random_weights(spec, torch.float64))
    usual, exact = (
        Potential(spec, weights, device="cpu", dtype=dtype, backend="reference").compute(
            atoms, PROPERTIES
        )
        for dtype in ("float32", "float64")
    )
    with emulate(architecture), tiles(tile):
        found = potential(shape).compute(atoms, PROPERTIES)
    for name in PROPERTIES:
        scale = np.abs(exact[name]).max()
        error, plain = (np.abs(x[name] - exact[name]).max() / scale for x in (found, usual))
        allowed = max(MORE_ERROR * plain, LEAST)
        assert error < allowed, f"{name}: {error:.1e}, allowed {allowed:.1e}"


@pytest.mark.parametrize(("model", "architecture", "tile"), QUICK)
def test_kernels_agree_on_every_gpu_with_every_tile(model, architecture, tile):
    check(model, architecture, tile)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "architecture", "tile"), REST)
def test_all_models_agree_on_every_gpu_with_every_tile(model, architecture, tile):
    check(model, architecture, tile)
