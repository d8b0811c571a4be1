"""Time of a whole evaluation, energy and forces, on each backend: one call from positions.

``steps.py`` times dynamics with real models; here is the synthetic one of the other benches, so
that it runs anywhere.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk
from systems import CUTOFF, REPEATS, random_weights, specification

from cace_fast import Potential
from cace_fast.engine import VerletList
from cace_fast.kernels.cpu import library
from cace_fast.spec import MLP, ModelSpec, Readout, SubModel
from cace_fast.weights import Weights


def model(messages: bool) -> ModelSpec:
    """Return the usual model with or without its message passing step."""
    spec = specification()
    if messages:
        return spec
    rep = replace(spec.representation, steps=())
    head = Readout("energy", MLP((rep.n_features, 32, 16, 1)))
    return ModelSpec(rep, (SubModel((head,)),))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("messages", [False, True], ids=["plain", "messages"])
def test_evaluation(benchmark, messages: bool, backend: str, dtype: str):
    spec = model(messages)
    weights = Weights(spec, random_weights(spec, torch.float64))
    potential = Potential(spec, weights, dtype=dtype, backend=backend)
    atoms = bulk("H", "fcc", a=40.0 ** (1 / 3), cubic=True) * REPEATS
    atoms.numbers[::2] = 8
    atoms.rattle(0.15, seed=1)
    kept = VerletList(CUTOFF, 1.0, in_order=not potential.sorts_pairs)

    def run() -> np.ndarray:
        return potential.evaluate([atoms], ("energy", "forces"), edges=kept)[0]["forces"]

    assert np.isfinite(run()).all()
    benchmark(run)
    median = benchmark.stats.stats.median if benchmark.stats else float("nan")
    peak = library.peak(32 if dtype == "float32" else 64)
    benchmark.extra_info |= {
        "atoms": len(atoms),
        "us_per_atom": 1e6 * median / len(atoms),
        "mflop_per_atom": 1e-6 * median * peak / len(atoms),
        "path": potential.backend_note,
    }
