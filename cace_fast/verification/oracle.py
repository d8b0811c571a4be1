"""The float64 reference to compare with, and derivatives by differences of energies."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cace_fast.engine import ReferenceEngine
from cace_fast.graph import ModelOutput, join
from cace_fast.min_dist import MinDist
from cace_fast.reference.ewald import k_vectors
from cace_fast.spec import ModelSpec, energy_program
from cace_fast.structures import extra_inputs, graph_of
from cace_fast.weights import Weights

if TYPE_CHECKING:
    from ase import Atoms

Floats = NDArray[np.float64]
Energies = Callable[[Sequence["Atoms"]], Floats]
Move = Callable[[float], "Atoms"]

# sum over w E(x + s h) / h is dE/dx up to h^4
STENCIL = ((-2.0, 1.0 / 12.0), (-1.0, -2.0 / 3.0), (1.0, 2.0 / 3.0), (2.0, -1.0 / 12.0))
STRAIN_STEPS = (5e-4, 1e-4, 2e-5)


class Verifiable(Protocol):
    """The part of :class:`cace_fast.Potential` that :func:`verify` uses."""

    @property
    def spec(self) -> ModelSpec:
        """The architecture of the model (``docs/user/first_run.md``)."""

    @property
    def weights(self) -> Weights:
        """The tensors in the precision of the file (``docs/user/first_run.md``)."""

    @property
    def dtype(self) -> torch.dtype:
        """The working precision (``docs/user/first_run.md``)."""

    @property
    def energy_key(self) -> str | None:
        """Key of the reported energy; None for the total (``docs/user/first_run.md``)."""

    @property
    def output_index(self) -> int | None:
        """Which energy of a read-out that gives several; None if there is one.

        See ``docs/user/first_run.md``.
        """

    def evaluate(
        self, frames: Sequence[Atoms], properties: Sequence[str], *, min_dist: MinDist = ...
    ) -> list[dict[str, Any]]:
        """Return the properties of each frame; see :meth:`cace_fast.Potential.evaluate`."""

    def features(self, atoms: Atoms) -> NDArray[Any]:
        """Return the invariants; see :meth:`cace_fast.Potential.features`."""


class Oracle:
    """The model of a potential evaluated by the reference in float64 on the CPU.

    See ``docs/theory.md``.

    Parameters
    ----------
    potential
        Whose specification and weights to take.

    Raises
    ------
    UnsupportedModelError
        If the energy is ambiguous.
    """

    def __init__(self, potential: Verifiable) -> None:
        spec = potential.spec
        program = energy_program(spec, potential.energy_key, potential.output_index)
        tensors = potential.weights.to("cpu", torch.float64)
        self.spec = spec
        self.ewalds = [term.ewald for term in program.terms]
        self._isolated = dict(program.isolated)
        self._engine = ReferenceEngine(spec, tensors, program)

    def output(self, atoms: Atoms, wanted: Sequence[str] = ()) -> ModelOutput:
        """Return results of the reference for one structure, without atomic energies.

        See :meth:`cace_fast.engine.protocol.Engine.evaluate` for units and errors.
        """
        return self._engine.evaluate(self._graph(atoms), wanted)

    def energies(self, frames: Sequence[Atoms]) -> Floats:
        """Return the energy of each frame [n_frames] in eV, atomic energies included.

        See ``docs/theory.md``, equation 24.
        """
        found = [float(self._engine.evaluate(self._graph(atoms)).energy) for atoms in frames]
        isolated = [sum(self._isolated.get(int(z), 0.0) for z in a.numbers) for a in frames]
        return np.asarray(np.array(found) + np.array(isolated), dtype=np.float64)

    def features(self, atoms: Atoms) -> Floats:
        """Return the invariants [n, n_radial, n_B, C, T] float64 of one structure (equation 21)."""
        return np.asarray(self._engine.features(self._graph(atoms)).numpy())

    def _graph(self, atoms: Atoms) -> Any:
        rep = self.spec.representation
        return join([graph_of(atoms, rep, inputs=extra_inputs(self.spec))])


def derivatives(energies: Energies, moves: Sequence[Move], step: float) -> Floats:
    """Return dE/ds [n_moves] for structures ``move(s)``, by differences of fourth order.

    ``energies`` gives eV for frames; ``step`` is that of s (``docs/theory.md``, equation 25).
    """
    frames = [move(offset * step) for move in moves for offset, _ in STENCIL]
    values = energies(frames).reshape(len(moves), len(STENCIL))
    weights = np.array([weight for _, weight in STENCIL])
    # one energy is subtracted so that a large constant costs no digits
    return np.asarray((values - values[:, :1]) @ weights / step)


def displaced(atoms: Atoms, direction: Floats) -> Move:
    """Return a function of s: the structure moved by s times ``direction`` [n, 3] in A.

    See ``docs/user/first_run.md``.
    """

    def move(size: float) -> Atoms:
        moved: Atoms = atoms.copy()
        moved.positions += size * direction
        return moved

    return move


def strained(atoms: Atoms, strain: Floats) -> Move:
    """Return a function of s: the structure strained by s times ``strain`` [3, 3] (equation 25)."""

    def move(size: float) -> Atoms:
        moved: Atoms = atoms.copy()
        deformation = np.eye(3) + size * strain
        moved.set_cell(atoms.cell[:] @ deformation)
        moved.positions = atoms.positions @ deformation
        return moved

    return move


def directions(forces: Floats, count: int, seed: int = 11) -> Floats:
    """Return directions [k, n, 3]: random ones, that of the forces, and single coordinates.

    See ``docs/user/first_run.md``.

    ``forces`` [n, 3] are in eV/A; the same ``seed`` gives the same directions.
    """
    rng = np.random.default_rng(seed)
    n = len(forces)
    found = [rng.standard_normal((n, 3)) for _ in range(count)]
    if forces.any() and np.isfinite(forces).all():
        found.append(forces / np.abs(forces).max())
    for atom in rng.choice(n, min(count, n), replace=False):
        single = np.zeros((n, 3))
        single[atom, rng.integers(3)] = 1.0
        found.append(single)
    return np.array(found)


def strains() -> list[Floats]:
    """Return the six independent symmetric strains, [3, 3] each, in Voigt's order (equation 25)."""
    found = []
    for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)):
        strain = np.zeros((3, 3))
        strain[a, b] += 0.5
        strain[b, a] += 0.5
        found.append(strain)
    return found


def strain_step(atoms: Atoms, resolutions: Collection[float]) -> float | None:
    """Return a step for strain differences; None if the energy jumps within the smallest.

    ``resolutions`` are the dl of the model's Ewald sums in A. Where a vector k crosses the sphere,
    the energy jumps, and differences across the jump say nothing about the derivative
    (``docs/theory.md``, section 9).
    """
    if not resolutions or not np.all(atoms.pbc):
        return STRAIN_STEPS[0]
    for step in STRAIN_STEPS:
        cells = [atoms.cell[:]] + [
            strained(atoms, strain)(offset * step).cell[:]
            for strain in strains()
            for offset, _ in STENCIL
        ]
        if all(len({_k_set(cell, dl) for cell in cells}) == 1 for dl in resolutions):
            return step
    return None


def _k_set(cell: Floats, dl: float) -> frozenset[tuple[int, ...]]:
    rows = k_vectors(torch.from_numpy(np.array(cell, dtype=np.float64)), dl).to(torch.int64)
    return frozenset(tuple(row) for row in rows.tolist())
