"""Write the data files of the examples: copper, water, sodium chloride."""

from __future__ import annotations

import numpy as np
from ase.build import bulk, molecule
from ase.io.lammpsdata import write_lammps_data


def water(side: int):
    """Return side^3 molecules on a lattice of the density of water."""
    box = molecule("H2O")
    box.set_cell([3.105] * 3)
    box.pbc = True
    box.center()
    box = box.repeat(side)
    rng = np.random.default_rng(0)
    for k in range(0, len(box), 3):  # molecules in all directions, so that they melt at once
        turned = box[k : k + 3]
        turned.rotate(rng.uniform(0, 360), rng.normal(size=3), center="COM")
        box.positions[k : k + 3] = turned.positions
    return box


def main() -> None:
    """Write the files into this folder."""
    copper = bulk("Cu", cubic=True).repeat(5)
    salt = bulk("NaCl", "rocksalt", a=5.9, cubic=True).repeat(4)
    for name, atoms, elements in (
        ("copper", copper, ["Cu"]),
        ("water", water(6), ["H", "O"]),
        ("nacl", salt, ["Na", "Cl"]),
    ):
        style = "charge" if name == "nacl" else "atomic"
        write_lammps_data(f"{name}.data", atoms, specorder=elements, masses=True, atom_style=style)


if __name__ == "__main__":
    main()
