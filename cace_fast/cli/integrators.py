"""Settings of a run of molecular dynamics, and ASE's integrator for them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from cace_fast.errors import InputError, PropertyNotImplementedError

if TYPE_CHECKING:
    from ase import Atoms
    from ase.md.md import MolecularDynamics


class Ensemble(StrEnum):
    """Thermodynamic ensembles by the names of ``--ensemble``.

    See ``docs/user/molecular_dynamics.md``.
    """

    nve = "nve"
    nvt = "nvt"
    npt = "npt"


@dataclass(frozen=True)
class Settings:
    """Settings of a run, which a continued run must share (``docs/user/molecular_dynamics.md``).

    Attributes
    ----------
    ensemble
        nve (velocity Verlet), nvt (Langevin) or npt (isotropic Martyna-Tobias-Klein).
    temperature, pressure, timestep, friction
        In K, GPa, fs and 1/fs.
    traj_every, log_every
        Steps between frames and lines.
    seed
        Of the random numbers: first momenta and Langevin noise.
    model, precision, structure
        Hash of the model; dtype, backend and device; hash of the structure.
    threads
        Number of threads of torch.
    k_set, slab_vacuum
        Which vectors k a long-range sum takes, and the vacuum of slabs in A.
    field
        The electric field, as text; None without one.
    """

    ensemble: str
    temperature: float
    pressure: float
    timestep: float
    friction: float
    traj_every: int
    log_every: int
    seed: int
    model: str
    precision: str
    structure: str
    threads: int
    k_set: str
    slab_vacuum: float | None = None
    field: str | None = None


def integrator(atoms: Atoms, settings: Settings, random: np.random.Generator) -> MolecularDynamics:
    """Return ASE's integrator for an ensemble (``docs/user/molecular_dynamics.md``).

    Raises
    ------
    InputError
        If no atom can move.
    PropertyNotImplementedError
        For constant pressure of a structure that is not periodic in all directions, or has fixed
        atoms.
    """
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.nose_hoover_chain import IsotropicMTKNPT
    from ase.md.verlet import VelocityVerlet

    if atoms.get_number_of_degrees_of_freedom() < 1:
        raise InputError("STRUCTURE", "atoms that can move", "all of them fixed")
    dt = settings.timestep * units.fs
    if settings.ensemble == Ensemble.nve:
        return VelocityVerlet(atoms, dt)
    if settings.ensemble == Ensemble.nvt:
        friction = settings.friction / units.fs
        return Langevin(
            atoms,
            dt,
            temperature_K=settings.temperature,
            friction=friction,
            fixcm=False,
            rng=random,
        )
    if not np.all(atoms.pbc):
        raise PropertyNotImplementedError(
            "--ensemble npt: needs a structure that is periodic in three directions, this one has "
            f"pbc {np.asarray(atoms.pbc).tolist()}. Use nvt, or give it a periodic cell."
        )
    if atoms.constraints:
        raise PropertyNotImplementedError(
            "--ensemble npt: needs atoms that are all free, this structure has fixed ones. Use "
            "nvt, or take the constraints away."
        )
    return IsotropicMTKNPT(
        atoms,
        dt,
        temperature_K=settings.temperature,
        pressure_au=settings.pressure * units.GPa,
        tdamp=100.0 * dt,
        pdamp=1000.0 * dt,
    )


def draw_momenta(atoms: Atoms, temperature: float, random: np.random.Generator) -> None:
    """Draw momenta from the Maxwell-Boltzmann distribution at ``temperature`` in K.

    If there are several atoms and none is fixed, the centre of mass is at rest, and the momenta are
    scaled so that the temperature stays (``docs/user/molecular_dynamics.md``).
    """
    from ase import units

    masses = atoms.get_masses()[:, None]
    momenta = np.sqrt(masses * units.kB * temperature) * random.standard_normal((len(atoms), 3))
    if len(atoms) > 1 and not atoms.constraints:
        momenta -= masses * momenta.sum(axis=0) / masses.sum()
        momenta *= np.sqrt(len(atoms) / (len(atoms) - 1))
    atoms.set_momenta(momenta)
