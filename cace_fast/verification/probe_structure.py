"""Structures to verify on: made from the elements of a model, or completed for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cace_fast.errors import InputError
from cace_fast.spec import ModelSpec, Readout, taken_by, width_of

if TYPE_CHECKING:
    from ase import Atoms

MOST_ELEMENTS = 8  # a trial structure has a sample of the elements if there are more
APART = 1.6  # times the sum of covalent radii: no bonds, since random ones would be unphysical
LEAST = 1.5  # A; apart from bonds, light atoms are never closer in training data
CLOSEST, FARTHEST = 0.55, 0.8  # of the cutoff: the shortest distances of large atoms lie between
ROOM = 2.5  # volume over that of cubes of one atomic diameter: loose enough to be filled at random
TRIES = 4000


def trial_structure(spec: ModelSpec, n_atoms: int = 24, seed: int = 7) -> Atoms:
    """Return a periodic structure of the model's elements at sensible distances.

    See ``docs/user/first_run.md``.

    Atoms stand at random in a skewed cell, at distances in A that the model has probably seen.
    Further inputs of the model are filled with numbers that differ between atoms.

    Parameters
    ----------
    spec
        The model.
    n_atoms
        Number of atoms.
    seed
        The same seed gives the same structure.

    Raises
    ------
    InputError
        If the model has no element of the periodic table.
    """
    from ase import Atoms
    from ase.data import chemical_symbols, covalent_radii

    known = [z for z in spec.representation.elements if 0 < z < len(chemical_symbols)]
    if not known:
        raise InputError(
            "atoms", "a structure, as this model has no element of the periodic table", "nothing"
        )
    step = max(1, -(-len(known) // MOST_ELEMENTS))
    used = sorted(known)[::step]
    numbers = np.array([used[k % len(used)] for k in range(n_atoms)])
    radii = covalent_radii[numbers]
    bonds, cutoff = radii[:, None] + radii, spec.representation.cutoff
    reach = np.maximum(CLOSEST * cutoff, np.minimum(bonds, FARTHEST * cutoff))
    apart = np.minimum(np.maximum(APART * bonds, LEAST), reach)
    rng = np.random.default_rng(seed)
    skew = np.array([[1.0, 0.0, 0.0], [0.11, 0.97, 0.0], [-0.08, 0.06, 1.05]])
    size = (ROOM * float((apart.diagonal() ** 3).sum() / np.linalg.det(skew))) ** (1.0 / 3.0)
    while (positions := _packed(size * skew, apart, rng)) is None:
        size *= 1.05
    atoms = Atoms(numbers, positions=positions, cell=size * skew, pbc=True)
    return completed(atoms, spec, seed)


def completed(atoms: Atoms, spec: ModelSpec, seed: int = 7) -> Atoms:
    """Return a copy without calculator, with extra inputs as per-atom arrays [n, width].

    See ``docs/user/first_run.md``.

    Inputs that the structure has are kept; those that it lacks are drawn at random from -0.5 to
    0.5.
    """
    atoms = atoms.copy()
    atoms.calc = None
    rng = np.random.default_rng(seed)
    for name, width in _input_widths(spec).items():
        value = atoms.info.pop(name, atoms.arrays.get(name))
        if value is None:
            atoms.arrays[name] = rng.uniform(-0.5, 0.5, (len(atoms), width))
        elif len(np.atleast_1d(value)) != len(atoms):
            atoms.arrays[name] = np.tile(np.atleast_1d(value), (len(atoms), 1))
        else:
            atoms.arrays[name] = np.array(value)
    return atoms


def _packed(
    cell: NDArray[np.float64], apart: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64] | None:
    """Return random positions [n, 3] with distances of at least ``apart`` [n, n], or None."""
    grid = np.arange(-1, 2)
    images = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), -1).reshape(-1, 3) @ cell
    placed = np.zeros((0, 3))
    for _ in range(TRIES):
        candidate = rng.uniform(size=3) @ cell
        gaps = candidate - placed[:, None, :] + images
        distances = np.linalg.norm(gaps, axis=2).min(axis=1)
        if (distances >= apart[len(placed), : len(placed)]).all():
            placed = np.vstack([placed, candidate])
            if len(placed) == len(apart):
                return placed
    return None


def _input_widths(spec: ModelSpec) -> dict[str, int]:
    """Return how many numbers per atom each further input has."""
    widths: dict[str, int] = {}
    for sub in spec.submodels:
        for index, module in enumerate(sub.modules):
            if not isinstance(module, Readout):
                continue
            taken = taken_by(sub, index)
            own = [t.key for t in taken if t.kind == "input"]
            known = [width_of(sub, t, spec.representation.n_features) for t in taken]
            rest = module.mlp.widths[0] - sum(width or 0 for width in known)
            widths |= {key: max(1, rest // len(own)) for key in own}
    return widths
