"""Born charges of one crystal against the number of cells that describe it.

    python bench/born_charges.py ../shared/data/upstream/au2-mgo-lr/model.pth MgO 4.21

A rock-salt crystal of two elements, its conventional cell repeated; Z*_xx of an atom of the second
element, in e. `dephased` is the form that upstream has (docs/theory.md, equation 34a); the last
line is what difference quotients of the charges in the largest box give.
"""

from __future__ import annotations

import argparse

import numpy as np
from ase.build import bulk

import cace_fast


def differences(potential: cace_fast.Potential, atoms, atom: int, step: float = 1e-3) -> float:
    """Return Z*_xx of an atom by moving it: its charge, and where the others' charges appear."""
    charges = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions[atom, 0] += sign * step
        charges.append(potential.compute(moved, ("charges",))["charges"])
    slope = (charges[0] - charges[1]) / (2.0 * step)
    q = potential.compute(atoms, ("charges",))["charges"]
    away = atoms.get_distances(atom, range(len(atoms)), mic=True, vector=True)[:, 0]
    return float(q[atom] - q.mean() + slope @ away)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("formula")
    parser.add_argument("lattice", type=float)
    parser.add_argument("--repeats", type=int, nargs="+", default=[1, 2, 3, 5])
    options = parser.parse_args()
    local = cace_fast.load(options.model, dtype="float64", device="cpu")
    dephased = local.replace(born_charges="dephased")
    cell = bulk(options.formula, "rocksalt", a=options.lattice, cubic=True)
    print("repeats   dephased        local")
    for n in options.repeats:
        atoms = cell.repeat(n)
        atom = int(np.flatnonzero(atoms.numbers != atoms.numbers[0])[0])
        z = [p.compute(atoms, ("bec",))["bec"][atom, 0, 0] for p in (dephased, local)]
        print(f"{n:7d} {z[0]:10.4f} {z[1]:12.9f}")
    print(f"differences {differences(local, atoms, atom):19.6f}")


if __name__ == "__main__":
    main()
