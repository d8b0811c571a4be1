"""Slabs with charges: what depends on the vacuum, and what other treatments give.

    python bench/slab.py ../shared/data/upstream/interface-mp0-lr --frame 1
    python bench/slab.py ../shared/data/upstream/au2-mgo-lr --frame 1

Each row is one treatment of one recorded structure, whose cell is cut to the height of its atoms
and whose third direction is not periodic, in float64: energy, largest difference of a force and of
an in-plane component of the stress (times the volume) from those of the widest vacuum.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

import cace_fast

VACUUMS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0)


def film(folder: Path, frame: int) -> Atoms:
    """Return a recorded structure as a slab in a cell as high as its atoms."""
    atoms = ase.io.read(folder / "structures.xyz", index=frame)
    bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=(True, True, False))
    for key in ("charge_states", "molecular_index"):
        if key in atoms.arrays:
            bare.arrays[key] = atoms.arrays[key]
    bare.positions[:, 2] -= bare.positions[:, 2].min()
    bare.cell[2] = (0.0, 0.0, np.ptp(bare.positions[:, 2]) + 1e-6)
    return bare


def boxed(atoms: Atoms, period: float) -> Atoms:
    """Return the atoms in a cell of this height that is periodic in all directions."""
    found = atoms.copy()
    found.pbc = True
    found.cell[2] = (0.0, 0.0, period)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--frame", type=int, default=0)
    options = parser.parse_args()
    path = options.model / "model.pth"
    plain = cace_fast.load(path, dtype="float64")
    atoms = film(options.model, options.frame)
    asked = ("energy", "forces", "virials", "latent_charges")
    height = atoms.cell[2, 2]
    rows = {}
    for vacuum in VACUUMS:
        own = plain.replace(slab_vacuum=vacuum).compute(atoms, asked)
        rows[f"slab_vacuum={vacuum:g}"] = own
    rows["box alone, 20 A of vacuum"] = plain.compute(boxed(atoms, height + 20.0), asked)
    rows["box alone, 80 A of vacuum"] = plain.compute(boxed(atoms, height + 80.0), asked)
    for lift in (0.0, 5.0):  # upstream's cell: 5 cutoffs times the largest coordinate + 1
        moved = atoms.copy()
        moved.positions[:, 2] += lift
        period = 5.0 * plain.cutoff * (np.abs(moved.positions).max() + 1.0)
        name = f"upstream's cell ({period:.0f} A), atoms from z = {lift:g} A"
        rows[name] = plain.compute(boxed(moved, period), asked)
    best = rows[f"slab_vacuum={VACUUMS[-1]:g}"]
    total = np.round(best["latent_charges"].sum(0) / 90.0474**0.5, 3)
    print(f"{options.model.name}, {atoms.get_chemical_formula()}, height {height:.2f} A, {total} e")
    for name, found in rows.items():
        force = np.abs(found["forces"] - best["forces"]).max()
        strain = np.abs((found["virials"] - best["virials"])[:2, :2]).max()
        print(f"| {name} | {found['energy']:.6f} | {force:.1e} | {strain:.1e} |")


if __name__ == "__main__":
    main()
