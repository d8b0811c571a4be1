"""What every backend and every interface must satisfy, whatever the model.

A test module inherits :class:`PhysicsTests` and provides ``evaluate(atoms) -> dict`` with
``energy`` (float, eV), ``forces`` [n, 3] and ``virials`` [3, 3] (or ``stress``), and the numbers
``energy_tolerance`` and ``force_tolerance`` that its precision allows.
"""

from __future__ import annotations

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.md.verlet import VelocityVerlet

from support import golden


def rotation(seed=0):
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def structures():
    """A crystal, a left-handed crystal, a molecule, and a cell smaller than the cutoff."""
    crystal = golden.atoms("periodic")
    left = golden.atoms("periodic")
    left.set_cell(np.asarray(left.cell)[[1, 0, 2]])
    small = Atoms([8, 1], [[0, 0, 0], [1.1, 1.2, 0.9]], cell=[2.2, 2.3, 2.1], pbc=True)
    return {
        "crystal": crystal,
        "left-handed": left,
        "molecule": golden.atoms("open"),
        "small cell": small,
    }


class FromFunction(Calculator):
    """An ASE calculator over an evaluation function, for molecular dynamics in tests."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012

    def __init__(self, evaluate):
        super().__init__()
        self.evaluate = evaluate

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        found = self.evaluate(self.atoms)
        self.results = {"energy": found["energy"], "forces": found["forces"]}


class PhysicsTests:
    energy_tolerance = 1e-10
    force_tolerance = 1e-10
    strain_step = 1e-4
    drift_per_atom = 2e-5

    def evaluate(self, atoms):
        raise NotImplementedError

    def compare(self, atoms, other, forces=lambda f: f, factor=1.0):
        a, b = self.evaluate(atoms), self.evaluate(other)
        scale = max(1.0, abs(a["energy"]))
        assert abs(factor * a["energy"] - b["energy"]) < factor * self.energy_tolerance * scale
        size = max(1.0, np.abs(a["forces"]).max())
        np.testing.assert_allclose(
            b["forces"], forces(a["forces"]), rtol=0, atol=self.force_tolerance * size
        )
        return a, b

    def test_rotation(self):
        turn = rotation()
        for atoms in structures().values():
            turned = atoms.copy()
            turned.set_cell(np.asarray(atoms.cell) @ turn.T)
            turned.positions = atoms.positions @ turn.T
            a, b = self.compare(atoms, turned, lambda f: f @ turn.T)
            if "virials" in a:
                np.testing.assert_allclose(
                    b["virials"],
                    turn @ a["virials"] @ turn.T,
                    rtol=0,
                    atol=20 * self.force_tolerance * max(1.0, np.abs(a["virials"]).max()),
                )

    def test_translation(self):
        for atoms in structures().values():
            moved = atoms.copy()
            moved.positions += [0.371, -2.2, 5.013]
            self.compare(atoms, moved)

    def test_permutation(self):
        for atoms in structures().values():
            order = np.random.default_rng(3).permutation(len(atoms))
            self.compare(atoms, atoms[order], lambda f, order=order: f[order])

    def test_wrapping(self):
        for atoms in structures().values():
            if not atoms.pbc.any():
                continue
            moved = atoms.copy()
            moved.positions[0] += 2 * atoms.cell[0] - atoms.cell[2]
            moved.positions[-1] -= 3 * atoms.cell[1]
            self.compare(atoms, moved)

    def test_extensivity(self):
        for atoms in structures().values():
            if atoms.pbc.all():
                self.compare(
                    atoms, atoms.repeat((2, 1, 2)), lambda f: np.tile(f, (4, 1)), factor=4.0
                )

    def test_sum_of_forces(self):
        for atoms in structures().values():
            forces = self.evaluate(atoms)["forces"]
            size = max(1.0, np.abs(forces).max())
            assert np.abs(forces.sum(0)).max() < 10 * self.force_tolerance * size

    def test_far_atoms_do_not_interact(self):
        """Two molecules beyond the cutoff: forces of each as if alone (short range aside)."""
        atoms = golden.atoms("open")
        pair = atoms + atoms.copy()
        pair.positions[len(atoms) :] += [0.0, 0.0, 400.0]
        one, two = self.evaluate(atoms), self.evaluate(pair)
        # the pair sum of charges falls off as 1/r: 400 A leave a few 1e-4 of it
        assert abs(2 * one["energy"] - two["energy"]) < 1e-3
        np.testing.assert_allclose(two["forces"][: len(atoms)], one["forces"], atol=1e-3)

    def test_smooth_at_the_cutoff(self):
        """An atom that crosses the cutoff changes energy and force without a jump."""
        atoms = Atoms([8, 1, 6], [[0, 0, 0], [0, 0, 1.1], [0, 1.2, 0]])
        energies, forces = [], []
        for step in (-2, -1, 1, 2):
            atoms.positions[2, 1] = golden.CUTOFF + step * 1e-4
            found = self.evaluate(atoms)
            energies.append(found["energy"])
            forces.append(found["forces"])
        inside = energies[1] - energies[0]
        across = (energies[2] - energies[1]) / 2
        assert abs(across - inside) < 1e-6 + 4 * self.energy_tolerance
        jump = np.abs(forces[2] - forces[1]).max()
        assert jump < 1e-4 + 10 * self.force_tolerance

    def test_forces_by_differences(self):
        for atoms in structures().values():
            found = self.evaluate(atoms)
            for atom, axis in ((0, 0), (1, 2)):
                difference = self.slope(lambda x, a=atoms, i=atom, k=axis: displaced(a, i, k, x))
                assert abs(found["forces"][atom, axis] + difference) < self.slope_tolerance(atoms)

    def test_virials_by_strain(self):
        for atoms in structures().values():
            found = self.evaluate(atoms)
            if "virials" not in found:
                continue
            for i, k in ((0, 0), (1, 2)):
                difference = self.slope(lambda x, a=atoms, i=i, k=k: strained(a, i, k, x))
                assert abs(found["virials"][i, k] + difference) < self.slope_tolerance(atoms)

    def slope(self, moved):
        h = self.strain_step
        high, low = (self.evaluate(moved(s * h))["energy"] for s in (1, -1))
        high2, low2 = (self.evaluate(moved(s * 2 * h))["energy"] for s in (1, -1))
        return (8 * (high - low) - (high2 - low2)) / (12 * h)

    def slope_tolerance(self, atoms):
        size = max(1.0, abs(self.evaluate(atoms)["energy"]))
        return 2e-7 + 10 * self.energy_tolerance * size / self.strain_step

    def test_energy_is_conserved(self):
        atoms = golden.atoms("periodic")
        velocities = np.random.default_rng(0).normal(0.0, 0.02, (len(atoms), 3))
        atoms.set_velocities(velocities)
        atoms.calc = FromFunction(self.evaluate)
        dynamics = VelocityVerlet(atoms, timestep=0.05 * units.fs)
        energies = []
        for _ in range(40):
            dynamics.run(2)
            energies.append(atoms.get_total_energy() / len(atoms))
        assert np.ptp(energies) < self.drift_per_atom
        assert np.abs(atoms.positions - golden.atoms("periodic").positions).max() > 1e-3


def displaced(atoms, atom, axis, x):
    moved = atoms.copy()
    moved.positions[atom, axis] += x
    return moved


def strained(atoms, i, k, x):
    eps = np.zeros((3, 3))
    eps[i, k] += 0.5 * x
    eps[k, i] += 0.5 * x
    moved = atoms.copy()
    moved.set_cell(np.asarray(atoms.cell) @ (np.eye(3) + eps))
    moved.positions = atoms.positions @ (np.eye(3) + eps)
    return moved
