"""Physics of the potential in both precisions, single and batched."""

from __future__ import annotations

import numpy as np
import pytest
from support import golden
from support.physics import PhysicsTests, structures

from cace_fast import Potential

NAMES = ("energy", "forces", "virials")


class TestFloat64(PhysicsTests):
    potential = Potential(*golden.model(), dtype="float64", backend="reference")

    def evaluate(self, atoms):
        return self.potential.compute(atoms, NAMES)


class TestFloat32(PhysicsTests):
    potential = Potential(*golden.model(), dtype="float32", backend="reference")
    energy_tolerance = 3e-6
    force_tolerance = 1e-5
    strain_step = 5e-3
    drift_per_atom = 5e-5

    def evaluate(self, atoms):
        return self.potential.compute(atoms, NAMES)


class TestInBatches(PhysicsTests):
    """Every structure is evaluated between two others, in one batch."""

    potential = Potential(*golden.model(), dtype="float64", backend="reference")

    def evaluate(self, atoms):
        others = structures()
        return self.potential.compute([others["molecule"], atoms, others["crystal"]], NAMES)[1]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_batch_equals_singles(dtype, monkeypatch):
    potential = Potential(*golden.model(), dtype=dtype, backend="reference")
    frames = list(structures().values())
    names = (*NAMES, "energies", "latent_charges")
    singles = [potential.compute(atoms, names) for atoms in frames]
    for edges in (10**9, 60):  # all in one batch; then several batches
        monkeypatch.setattr("cace_fast.evaluation.BATCH_EDGES", edges)
        for one, many in zip(singles, potential.compute(frames, names), strict=True):
            for name in names:
                scale = max(1.0, np.abs(one[name]).max())
                tolerance = (1e-13 if dtype == "float64" else 2e-6) * scale
                np.testing.assert_allclose(many[name], one[name], rtol=0, atol=tolerance)
