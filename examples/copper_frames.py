"""Structures of copper, labelled by ASE's EMT: what the shipped potential is fitted to.

Crystals from 300 to 1 900 K at several volumes, with and without vacancies; liquid; surfaces;
clusters; stretched, sheared and compressed crystals; pairs of atoms pushed together; dimers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from ase import Atoms, units
from ase.build import bulk, fcc100, fcc110, fcc111
from ase.calculators.emt import EMT
from ase.cluster import Icosahedron
from ase.md.langevin import Langevin
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

T = TypeVar("T")
Floats = NDArray[np.float64]
MELTING = 3500.0  # K, hot enough to lose the crystal within a picosecond


@dataclass(frozen=True)
class Frame:
    """One structure: energy in eV, forces in eV/A, virial -dE/dstrain in eV where periodic."""

    kind: str
    atoms: Atoms
    energy: float
    forces: Floats
    virial: Floats | None


@dataclass(frozen=True)
class Size:
    """How much of everything there is; temperatures in K, lattice constants in A."""

    temperatures: tuple[float, ...]
    lattice_constants: tuple[float, ...]
    liquid: tuple[float, ...]
    per_run: int  # frames of one run of dynamics
    steps: int  # of 4 fs between two of them
    copies: int  # of everything that is not a run


FULL = Size(
    temperatures=(300, 700, 1100, 1500, 1900),
    lattice_constants=(3.45, 3.55, 3.62, 3.7, 3.8),
    liquid=(1300, 1600, 2000),
    per_run=2,
    steps=60,
    copies=16,
)
HELD_OUT = Size(
    temperatures=(450, 900, 1300, 1700),
    lattice_constants=(3.5, 3.58, 3.66, 3.75),
    liquid=(1400, 1800),
    per_run=2,
    steps=60,
    copies=9,
)
TINY = Size((900,), (3.6, 3.7), (), 1, 10, 1)


def frames(size: Size, seed: int) -> list[Frame]:
    """Return labelled frames; the same seed gives the same frames."""
    rng = np.random.default_rng(seed)
    return [labelled(kind, atoms) for kind, atoms in watched(_structures(size, rng), "frames")]


def watched(items: Iterable[T], what: str) -> Iterator[T]:
    """Yield ``items`` while a terminal shows how far that got."""
    yield from track(items, what, transient=True, disable=not Console().is_terminal)


def labelled(kind: str, atoms: Atoms) -> Frame:
    """Return a frame with what EMT says about it."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    energy, forces = float(atoms.get_potential_energy()), np.array(atoms.get_forces())
    virial = -atoms.get_stress(voigt=False) * atoms.get_volume() if atoms.pbc.all() else None
    atoms.calc = None
    return Frame(kind, atoms, energy, forces, virial)


def run(
    atoms: Atoms, temperature: float, n: int, steps: int, rng: np.random.Generator
) -> Iterator[Atoms]:
    """Yield ``n`` structures of a run of Langevin dynamics with EMT, ``steps`` of 4 fs apart."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    # twice the temperature, for half of it goes into the potential energy
    spread = np.sqrt(2.0 * units.kB * temperature * atoms.get_masses())
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * spread[:, None])
    dynamics = Langevin(
        atoms,
        4 * units.fs,
        temperature_K=temperature,
        friction=0.02 / units.fs,
        fixcm=False,
        rng=rng,
    )
    for _ in range(n):
        dynamics.run(steps)
        yield Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def _structures(size: Size, rng: np.random.Generator) -> Iterator[tuple[str, Atoms]]:
    for kind, made in (
        ("crystal", _crystals(size, rng)),
        ("stretched", _stretched(size)),
        ("vacancies", _vacancies(size, rng)),
        ("liquid", _liquids(size, rng)),
        ("surface", _surfaces(size, rng)),
        ("cluster", _clusters(size, rng)),
        ("strained", _strained(size, rng)),
        ("compressed", _compressed(size, rng)),
        ("short contact", _short_contacts(size, rng)),
        ("dimer", _dimers(size)),
    ):
        for atoms in made:
            yield kind, atoms


def _box(a: float) -> Atoms:
    return bulk("Cu", "fcc", a=a, cubic=True) * (2, 2, 2)


def _crystals(size: Size, rng: np.random.Generator) -> Iterator[Atoms]:
    for temperature in size.temperatures:
        for a in size.lattice_constants:
            yield from run(_box(a), temperature, size.per_run, size.steps, rng)


def _stretched(size: Size) -> Iterator[Atoms]:
    for a in np.linspace(3.0, 5.6, size.copies):
        yield bulk("Cu", "fcc", a=a, cubic=True)


def _vacancies(size: Size, rng: np.random.Generator) -> Iterator[Atoms]:
    for temperature in size.temperatures:
        for missing in (1, 2):
            atoms = _box(3.65)
            del atoms[rng.choice(len(atoms), missing, replace=False)]
            yield from run(atoms, temperature, size.per_run, size.steps, rng)


def _liquids(size: Size, rng: np.random.Generator) -> Iterator[Atoms]:
    for a in (3.7, 3.85):
        for temperature in size.liquid:
            (melt,) = run(_box(a), MELTING, 1, 4 * size.steps, rng)
            yield from run(melt, temperature, 2 * size.per_run, 3 * size.steps, rng)


def _surfaces(size: Size, rng: np.random.Generator) -> Iterator[Atoms]:
    for temperature in size.temperatures:
        for surface, layers in ((fcc111, 4), (fcc100, 5), (fcc110, 6)):
            slab = surface("Cu", (2, 2, layers), a=3.62, vacuum=6.0)
            slab.pbc = True
            yield from run(slab, temperature, size.per_run, size.steps, rng)


def _clusters(size: Size, rng: np.random.Generator) -> Iterator[Atoms]:
    for temperature in size.temperatures:
        cluster = Atoms(
            Icosahedron("Cu", 2, latticeconstant=3.6)
        )  # a plain Atoms copies and pickles
        yield from run(cluster, min(temperature, 1200), size.per_run, size.steps, rng)


def _strained(size: Size, rng: np.random.Generator) -> Iterator[Atoms]:
    for _ in range(size.copies):
        atoms = bulk("Cu", "fcc", a=3.6, cubic=True) * (2, 1, 1)
        strain = np.eye(3) + 0.06 * rng.standard_normal((3, 3))
        atoms.set_cell(atoms.cell[:] @ strain, scale_atoms=True)
        yield _rattled(atoms, 0.08, rng)


def _compressed(size: Size, rng: np.random.Generator) -> Iterator[Atoms]:
    for _ in range(size.copies):
        yield _rattled(_box(rng.uniform(3.1, 3.4)), 0.12, rng)


def _short_contacts(size: Size, rng: np.random.Generator) -> Iterator[Atoms]:
    for _ in range(size.copies):
        atoms = _rattled(_box(3.65), 0.1, rng)
        nearest = int(np.argsort(atoms.get_distances(0, range(len(atoms)), mic=True))[1])
        atoms.set_distance(0, nearest, rng.uniform(1.5, 2.1), fix=0.5, mic=True)
        yield atoms


def _dimers(size: Size) -> Iterable[Atoms]:
    for r in np.linspace(1.3, 5.8, 2 * size.copies):
        yield Atoms("Cu2", [[0.0, 0.0, 0.0], [r, 0.0, 0.0]])


def _rattled(atoms: Atoms, spread: float, rng: np.random.Generator) -> Atoms:
    atoms.positions += spread * rng.standard_normal((len(atoms), 3))
    return atoms
