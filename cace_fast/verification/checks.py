"""The checks: each is a function that yields rows of the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cace_fast.graph import ModelOutput

from .limits import DIFFERENCES, Limits, largest, limits_for
from .oracle import (
    Floats,
    Oracle,
    Verifiable,
    derivatives,
    directions,
    displaced,
    strain_step,
    strained,
    strains,
)
from .report import Check, skip

if TYPE_CHECKING:
    from ase import Atoms

FIELD = "the model has an external field"
DISPLACEMENT, FAR = 5e-5, 0.02  # A, of each coordinate
CUTOFF_STEP = 1e-5  # of the cutoff: how far on either side of it energies and forces are compared
CUTOFF_JUMP = 1e-3  # eV/A, or relative to forces above 1 eV/A
MOST_PAIRS = 12


@dataclass(frozen=True)
class Subject:
    """A potential on a structure, the results of the reference, and the limits of deviations.

    See ``docs/user/first_run.md``.
    """

    potential: Verifiable
    oracle: Oracle
    atoms: Atoms
    reference: ModelOutput
    limits: Limits

    @classmethod
    def of(cls, potential: Verifiable, atoms: Atoms) -> Subject:
        """Return the subject of a potential with a read-out (``docs/user/first_run.md``).

        Raises
        ------
        InputError
            For a structure that the model does not cover.
        """
        oracle = Oracle(potential)
        wanted = ["forces", "virials"]
        if len(oracle.ewalds) == 1:  # only then are charges defined
            wanted.append("latent_charges")
        reference = oracle.output(atoms, wanted)
        return cls(potential, oracle, atoms, reference, limits_for(potential.dtype, reference))

    def compute(self, atoms: Atoms, *properties: str) -> dict[str, Any]:
        """Return properties of one structure, by default energy in eV and forces [n, 3] in eV/A.

        See :meth:`cace_fast.Potential.compute`.
        """
        asked = properties or ("energy", "forces")
        return self.potential.evaluate([atoms], asked, min_dist=None)[0]

    def energies(self, frames: Sequence[Atoms]) -> Floats:
        """Return the energy of each frame [n_frames] in eV by the potential.

        See ``docs/user/first_run.md``.
        """
        found = self.potential.evaluate(frames, ("energy",), min_dist=None)
        return np.array([result["energy"] for result in found])

    @property
    def field(self) -> bool:
        """Whether an external field breaks the symmetries of space.

        See ``docs/theory.md``, section 9.
        """
        return any(module.external_field is not None for module in self.oracle.ewalds)


def compare_features(potential: Verifiable, oracle: Oracle, atoms: Atoms, limit: float) -> Check:
    """Compare the descriptor with the reference (``docs/theory.md``, equation 21)."""
    expected = oracle.features(atoms)
    deviation = largest(potential.features(atoms) - expected) / (largest(expected) or 1.0)
    return Check("features = float64 reference", deviation, limit, "relative")


def compare_reference(subject: Subject) -> Iterator[Check]:
    """Compare features, energies, forces, virials and charges with the float64 reference.

    See ``docs/user/first_run.md``.
    """
    limits, reference, atoms = subject.limits, subject.reference, subject.atoms
    yield compare_features(subject.potential, subject.oracle, atoms, limits.features)
    asked = ["energy", "energies", "forces", "virials"]
    charged = reference.latent_charges is not None
    found = subject.compute(atoms, *asked, *(["latent_charges"] if charged else []))
    n = len(atoms)
    energy = abs(found["energy"] - subject.oracle.energies([atoms])[0]) / n
    yield Check("energy = float64 reference", energy, limits.energy, "eV/atom")
    total = abs(found["energies"].sum() - found["energy"]) / n
    yield Check("energies of atoms sum to the energy", total, limits.energy, "eV/atom")
    for name, unit, limit in (
        ("forces", "eV/A", limits.forces),
        ("virials", "eV", limits.virials),
        ("latent_charges", "internal", limits.charges),
    ):
        title = f"{name.replace('_', ' ')} = float64 reference"
        if name in found:
            expected = np.asarray(getattr(reference, name), dtype=np.float64)
            deviation = largest(found[name] - expected.reshape(found[name].shape))
            yield Check(title, deviation, limit, unit)
        else:
            yield skip(title, "the energy has no Ewald term, or several")


def compare_forces(subject: Subject, count: int = 4) -> Iterator[Check]:
    """Compare forces with differences of the reference's energy (``docs/theory.md``, equation 25).

    Energies of moved atoms are compared too. ``count`` random directions are taken.
    """
    atoms, limits, oracle = subject.atoms, subject.limits, subject.oracle
    forces = subject.compute(atoms)["forces"]
    ways = directions(forces, count)
    moves = [displaced(atoms, way) for way in ways]
    lengths = np.sqrt((ways**2).sum((1, 2)))
    slopes = derivatives(oracle.energies, moves, DISPLACEMENT)
    deviation = largest(((forces * ways).sum((1, 2)) + slopes) / lengths)
    allowed = limits.forces + DIFFERENCES * (1.0 + largest(subject.reference.forces))
    yield Check("forces = -dE/dr of the float64 energy", deviation, allowed, "eV/A")
    # differences of this energy would be lost in its rounding; equal energies have equal slopes
    frames = [move(size) for move in moves for size in (-FAR, FAR)]
    deviations = np.abs(subject.energies(frames) - oracle.energies(frames)) / len(atoms)
    name = "energy of moved atoms = float64 reference"
    yield Check(name, largest(deviations), 2.0 * limits.energy, "eV/atom")


def compare_strain(subject: Subject) -> Iterator[Check]:
    """Compare virials and stress with strain differences of the reference's energy.

    See ``docs/theory.md``, equation 25.
    """
    atoms, names = subject.atoms, ("virials = -dE/dstrain", "stress = dE/dstrain / V")
    step = strain_step(atoms, {module.dl for module in subject.oracle.ewalds})
    if step is None:
        for name in names:
            yield skip(name, "k vectors lie on the edge of their sphere; take another cell")
        return
    slopes = derivatives(subject.oracle.energies, [strained(atoms, s) for s in strains()], step)
    slope = np.array([slopes[[0, 5, 4]], slopes[[5, 1, 3]], slopes[[4, 3, 2]]])
    limit = subject.limits.virials + 10 * DIFFERENCES * (1.0 + largest(subject.reference.virials))
    virials = subject.compute(atoms, "virials")["virials"]
    yield Check(names[0], largest(virials + slope), limit, "eV")
    if not np.all(atoms.pbc):
        yield skip(names[1], "the structure is not periodic in all directions")
        return
    volume = atoms.get_volume()
    stress = subject.compute(atoms, "stress")["stress"]
    yield Check(names[1], largest(stress - slope / volume), limit / volume, "eV/A^3")


def check_symmetries(subject: Subject) -> Iterator[Check]:
    """Check sum of forces, translation, rotation, permutation and lattice shifts (section 8)."""
    base, atoms = subject.compute(subject.atoms, "energy", "forces", "virials"), subject.atoms
    rng = np.random.default_rng(5)
    order = rng.permutation(len(atoms))
    yield from _same(subject, "permutation", base, atoms[order], base["forces"][order])
    if subject.field:
        for name in ("sum of forces", "translation", "rotation", "lattice shifts of atoms"):
            yield skip(name, FIELD)
        return
    total = largest(base["forces"].sum(0)) / np.sqrt(len(atoms))
    yield Check("sum of forces / sqrt(n)", total, subject.limits.forces, "eV/A")
    moved = displaced(atoms, np.ones((len(atoms), 1)) * rng.uniform(-9.0, 9.0, 3))(1.0)
    yield from _same(subject, "translation", base, moved, base["forces"])
    rotation = random_rotation(rng)
    turned = atoms.copy()
    turned.set_cell(atoms.cell[:] @ rotation)
    turned.positions = atoms.positions @ rotation
    yield from _same(subject, "rotation", base, turned, base["forces"] @ rotation)
    virials = subject.compute(turned, "virials")["virials"]
    deviation = largest(virials - rotation.T @ base["virials"] @ rotation)
    yield Check("rotation: virials", deviation, 2.0 * subject.limits.virials, "eV")
    if not np.any(atoms.pbc):
        yield skip("lattice shifts of atoms", "the structure is not periodic")
        return
    shifts = rng.integers(-2, 3, (len(atoms), 3)) * np.asarray(atoms.pbc)
    moved = displaced(atoms, shifts @ atoms.cell[:])(1.0)
    yield from _same(subject, "lattice shifts of atoms", base, moved, base["forces"])


def check_batching(subject: Subject) -> Iterator[Check]:
    """Check that structures evaluated together have the results that they have one by one.

    See ``docs/user/first_run.md``.
    """
    atoms = subject.atoms
    half = atoms[: max(1, len(atoms) // 2)]
    stretched = displaced(atoms, 0.01 * np.random.default_rng(6).standard_normal((len(atoms), 3)))
    frames = [half, atoms, atoms[:1], stretched(1.0)]
    together = subject.potential.evaluate(frames, ("energy", "forces", "virials"), min_dist=None)
    alone = [subject.compute(frame, "energy", "forces", "virials") for frame in frames]
    pairs = list(zip(together, alone, strict=True))
    limits = subject.limits
    n = [len(frame) for frame in frames]
    energy = [abs(t["energy"] - a["energy"]) / k for (t, a), k in zip(pairs, n, strict=True)]
    # a part of a structure may have larger energies and forces than the whole
    size = max(1.0, *(abs(a["energy"]) / k for a, k in zip(alone, n, strict=True)))
    name = "batch = single: energy"
    yield Check(name, largest(np.array(energy)), limits.energy * size, "eV/atom")
    for name, limit, unit in (("forces", limits.forces, "eV/A"), ("virials", limits.virials, "eV")):
        size = max(1.0, *(largest(a[name]) / (1.0 + largest(alone[1][name])) for a in alone))
        deviation = largest(np.array([largest(t[name] - a[name]) for t, a in pairs]))
        yield Check(f"batch = single: {name}", deviation, limit * size, unit)


def check_cutoff(subject: Subject) -> Iterator[Check]:
    """Check that energy and forces are smooth where a pair of atoms crosses the cutoff.

    See ``docs/theory.md``, section 2.
    """
    cutoff = subject.potential.spec.representation.cutoff
    numbers = np.unique(subject.atoms.numbers)
    pairs = [(a, b) for k, a in enumerate(numbers) for b in numbers[k:]][:MOST_PAIRS]
    if subject.field:
        yield skip("cutoff: jump of the energy", FIELD)
        yield skip("cutoff: jump of forces", FIELD)
        return
    jumps, kinks, scale = [], [], 1.0
    for pair in pairs:
        frames = [
            _trimer(subject.atoms, pair, cutoff * (1.0 + side * CUTOFF_STEP), cutoff)
            for side in (-2, -1, 1, 2)
        ]
        found = [subject.compute(frame) for frame in frames]
        far_in, near_in, near_out, far_out = (result["forces"] for result in found)
        # the work on the way is not a jump, and neither is the slope of the forces on either side
        work = 0.5 * (near_in + near_out) * (frames[2].positions - frames[1].positions)
        jumps.append(abs(found[2]["energy"] - found[1]["energy"] + work.sum()) / 3.0)
        kinks.append(largest((2.0 * near_out - far_out) - (2.0 * near_in - far_in)))
        scale = max(scale, largest(near_in), abs(found[1]["energy"]) / 3.0)
    energy = scale * (2.0 * subject.limits.energy + CUTOFF_JUMP * CUTOFF_STEP * cutoff)
    yield Check("cutoff: jump of the energy", largest(np.array(jumps)), energy, "eV/atom")
    force = scale * (6.0 * subject.limits.forces + CUTOFF_JUMP)
    yield Check("cutoff: jump of forces", largest(np.array(kinks)), force, "eV/A")


def random_rotation(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a random proper rotation [3, 3] float64 (``docs/user/first_run.md``)."""
    q, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    return np.asarray(q * np.linalg.det(q))


def _same(
    subject: Subject, name: str, base: dict[str, Any], atoms: Atoms, forces: Floats
) -> Iterator[Check]:
    """Compare energy and forces of a structure that has to be equivalent to the first."""
    found, limits = subject.compute(atoms), subject.limits
    energy = abs(found["energy"] - base["energy"]) / len(atoms)
    yield Check(f"{name}: energy", energy, 2.0 * limits.energy, "eV/atom")
    deviation = largest(found["forces"] - forces)
    yield Check(f"{name}: forces", deviation, 2.0 * limits.forces, "eV/A")


def _trimer(like: Atoms, pair: tuple[int, int], distance: float, cutoff: float) -> Atoms:
    """Return two atoms at ``distance`` and a third near both, with further inputs of ``like``."""
    rows = [int(np.flatnonzero(like.numbers == z)[0]) for z in (*pair, pair[0])]
    atoms = like[rows]
    atoms.positions = [(0.0, 0.0, 0.0), (distance, 0.0, 0.0), (0.5 * cutoff, 0.45 * cutoff, 0.0)]
    atoms.pbc = like.pbc
    if np.any(like.pbc):
        atoms.set_cell(3.1 * cutoff * np.eye(3))
    return atoms
