"""Energy conservation: a short run of velocity Verlet."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .checks import Subject
from .limits import largest
from .report import Check

TEMPERATURE = 300.0  # K
TIMESTEP, TIMESTEP_LIGHT = 0.5, 0.25  # fs; the second with atoms lighter than 3 u
LARGEST_KICK = 2e-3  # A that an acceleration moves an atom within a step
LOST = 0.02  # of the energy exchanged between kinetic and potential


REFINEMENTS = 2  # times that a run which exceeds the limit is repeated with a quarter of the step


def check_dynamics(subject: Subject, steps: int = 100) -> Iterator[Check]:
    """Run ``steps`` steps at constant energy, and compare the drift with the exchanged energy.

    Wrong forces do work that differs from the change of the energy in proportion to the exchanged
    energy, whatever the structure and however short the steps; the integrator's own error falls
    with the square of the step (``docs/theory.md``, equation 25).
    """
    from ase import units

    masses = subject.atoms.get_masses()[:, None]
    forces = subject.compute(subject.atoms)["forces"]
    step = units.fs * (TIMESTEP_LIGHT if masses.min() < 3.0 else TIMESTEP)
    kick = float((np.abs(forces) / masses).max())
    dt = min(step, (LARGEST_KICK / kick) ** 0.5) if kick else step
    for refinement in range(REFINEMENTS + 1):
        drift, exchanged = _run(subject, dt, steps)
        limit = LOST * exchanged + 4.0 * subject.limits.energy
        if drift <= limit or refinement == REFINEMENTS:
            break
        dt *= 0.25
    name = f"NVE, {steps} steps of {dt / units.fs:.2g} fs: energy drift"
    yield Check(name, drift, limit, "eV/atom")


def _run(subject: Subject, dt: float, steps: int) -> tuple[float, float]:
    """Return in eV/atom the drift of the total energy and the range of the kinetic energy."""
    from ase import units

    atoms = subject.atoms.copy()
    masses, n = atoms.get_masses()[:, None], len(atoms)
    rng = np.random.default_rng(3)
    velocities = np.sqrt(units.kB * TEMPERATURE / masses) * rng.standard_normal((n, 3))
    velocities -= (masses * velocities).sum(0) / masses.sum()
    found = subject.compute(atoms)
    potential, kinetic = [], []
    for number in range(steps + 1):
        if not np.isfinite(found["forces"]).all():
            return np.nan, 0.0
        if number:
            velocities = velocities + 0.5 * dt * found["forces"] / masses
            atoms.positions += dt * velocities
            found = subject.compute(atoms)
            velocities = velocities + 0.5 * dt * found["forces"] / masses
        potential.append(found["energy"])
        kinetic.append(float(0.5 * (masses * velocities**2).sum()))
    total = (np.array(potential) - potential[0]) + np.array(kinetic)
    return largest(total - total[0]) / n, (max(kinetic) - min(kinetic)) / n
