"""Physics of the compiled engine: both precisions, single, batched and through ASE."""

from __future__ import annotations

from support import golden
from support.physics import PhysicsTests, structures

from cace_fast import CACECalculator, Potential

NAMES = ("energy", "forces", "virials")


class TestFloat64(PhysicsTests):
    potential = None

    @classmethod
    def setup_class(cls):
        cls.potential = Potential(*golden.model(), dtype="float64", backend="cpu")

    def evaluate(self, atoms):
        return self.potential.compute(atoms, NAMES)


class TestFloat32(PhysicsTests):
    energy_tolerance = 3e-6
    force_tolerance = 1e-5
    strain_step = 5e-3
    drift_per_atom = 5e-5

    @classmethod
    def setup_class(cls):
        cls.potential = Potential(*golden.model(), dtype="float32", backend="cpu")

    def evaluate(self, atoms):
        return self.potential.compute(atoms, NAMES)


class TestInBatches(TestFloat64):
    """Every structure is evaluated between two others, in one call."""

    def evaluate(self, atoms):
        others = structures()
        return self.potential.compute([others["molecule"], atoms, others["crystal"]], NAMES)[1]


class TestThroughAse(PhysicsTests):
    """One calculator for all structures in turn: its list must never be that of another."""

    @classmethod
    def setup_class(cls):
        cls.calculator = CACECalculator(
            Potential(*golden.model(), dtype="float64", backend="cpu"), skin=0.7
        )

    def evaluate(self, atoms):
        self.calculator.calculate(atoms, ["energy", "forces"])
        return dict(self.calculator.results)
