"""Phonons of copper with the shipped potential: exact second derivatives against displacements.

``potential.hessian`` gives the second derivatives of the energy of a supercell, from which the
force constants follow without a step size. ASE's ``Phonons`` moves atoms instead, here once with
the same potential and once with EMT, which the potential was fitted to.

    python examples/phonons_copper.py --out phonons.png
"""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.dft.kpoints import BandPath
from ase.phonons import Phonons
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import cace_fast

LATTICE_CONSTANT = 3.59  # A, where the pressure vanishes
DISPLACEMENT = 0.01  # A, of ASE's finite differences
THZ_PER_EV = units._e / units._hplanck * 1e-12
POINTS = {
    "G": (0.0, 0.0, 0.0),
    "X": (0.5, 0.0, 0.5),
    "L": (0.5, 0.5, 0.5),
}  # all in every even supercell
PATH = "GXWKGL"

Floats = NDArray[np.float64]


def force_constants(potential: cace_fast.Potential, cell: Atoms, n: int) -> Floats:
    """Return the second derivatives [n^3, 3, 3] between one atom and each copy of it, eV/A^2."""
    return potential.hessian(cell * (n, n, n))[0].transpose(1, 0, 2)


def frequencies(constants: Floats, cell: Atoms, n: int, q: Floats) -> Floats:
    """Return the frequencies [n_q, 3] in THz at wave vectors ``q`` [n_q, 3] in reciprocal cells.

    A copy that has several nearest images in the periodic supercell is shared among them, which
    changes nothing at wave vectors that fit the supercell and is smooth between them.
    """
    copies = np.array(list(product(range(n), repeat=3)))
    wraps = n * np.array(list(product((-1, 0, 1), repeat=3)))
    images = copies[:, None, :] + wraps[None, :, :]
    lengths = np.linalg.norm(images @ cell.cell[:], axis=2)
    nearest = lengths < lengths.min(axis=1, keepdims=True) + 1e-6
    share = nearest / nearest.sum(axis=1, keepdims=True)
    phases = (share * np.exp(2j * np.pi * np.einsum("qx,rwx->qrw", q, images))).sum(axis=2)
    dynamical = np.einsum("qr,rxy->qxy", phases, constants) / cell.get_masses()[0]
    squares = np.linalg.eigvalsh(0.5 * (dynamical + dynamical.conj().transpose(0, 2, 1)))
    omega = np.sign(squares) * np.sqrt(np.abs(squares) * units._e / units._amu) * 1e10
    return omega / (2e12 * np.pi)


def displaced(calculator: Calculator, cell: Atoms, n: int) -> Phonons:
    """Return ASE's phonons, from forces on atoms moved by ``DISPLACEMENT``."""
    with tempfile.TemporaryDirectory() as folder:
        phonons = Phonons(cell, calculator, (n, n, n), name=f"{folder}/phonons", delta=DISPLACEMENT)
        phonons.run()
        phonons.read(acoustic=True)
    return phonons


def bands(phonons: Phonons, q: Floats) -> Floats:
    """Return ASE's frequencies [n_q, 3] in THz."""
    return np.sort(THZ_PER_EV * phonons.band_structure(q, verbose=False), axis=1)


def show(rows: dict[str, dict[str, Floats]], console: Console) -> None:
    """Print the frequencies at points of high symmetry."""
    table = Table("wave vector", title="frequencies in THz")
    for name in next(iter(rows.values())):
        table.add_column(name, justify="right")
    for point, columns in rows.items():
        cells = (
            "  ".join(f"{round(f, 3) + 0.0:.3f}" for f in column) for column in columns.values()
        )
        table.add_row(point, *cells)
    console.print(table)


def draw(path: BandPath, curves: dict[str, Floats], density: Floats, out: Path) -> None:
    """Save the dispersion along a path and the density of states."""
    figure = Figure(figsize=(9.5, 5.0), dpi=130, layout="constrained")
    figure.suptitle("Phonons of copper with the CACE potential copper-emt", fontsize=14)
    left, right = figure.subplots(1, 2, width_ratios=(3, 1), sharey=True)
    x, ticks, labels = path.get_linear_kpoint_axis()
    styles = (
        {"color": "#c2571a", "lw": 2.0},
        {"color": "#222222", "lw": 0.0, "marker": "o", "ms": 3.5, "mfc": "none", "markevery": 4},
        {"color": "#3b78b5", "lw": 1.2, "ls": "--"},
    )
    for (name, curve), style in zip(curves.items(), styles, strict=True):
        lines = left.plot(x, curve, **style)
        lines[0].set_label(name)
    left.set_xticks(ticks, ["Γ" if label == "G" else label for label in labels])
    left.set(
        title="How fast waves in the crystal vibrate", xlabel="wave vector",
        ylabel="frequency (THz)", xlim=(x[0], x[-1]), ylim=(0.0, None),
    )  # fmt: skip
    for tick in ticks:
        left.axvline(tick, color="#bbbbbb", lw=0.8, zorder=0)
    left.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.46, 0.0))
    right.hist(density.ravel(), bins=40, orientation="horizontal", color="#c2571a", alpha=0.7)
    right.set(title="Density of states", xlabel="modes", xticks=[])
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def main(
    out: Annotated[Path, typer.Option(help="where to save the picture")] = Path(
        "demo-output/phonons_copper.png"
    ),
    quick: Annotated[bool, typer.Option(help="a supercell of 8 atoms instead of 64")] = False,
) -> None:
    """Compute phonons of copper from exact second derivatives and by displacements."""
    console = Console()
    n, cell = (2 if quick else 4), bulk("Cu", "fcc", a=LATTICE_CONSTANT)
    potential = cace_fast.load("copper-emt", dtype="float64")
    console.print(f"supercell of {n**3} atoms, {potential}")
    constants = force_constants(potential, cell, n)
    ours, emt = (displaced(c, cell, n) for c in (cace_fast.CACECalculator(potential), EMT()))
    rows = {}
    for name, point in POINTS.items():
        q = np.array([point])
        rows[name] = {
            "Hessian": frequencies(constants, cell, n, q)[0],
            "displaced atoms": bands(ours, q)[0],
            "EMT": bands(emt, q)[0],
        }
    show(rows, console)
    worst = max(np.abs(r["Hessian"] - r["displaced atoms"]).max() for r in rows.values())
    console.print(
        f"Hessian and displacements of {DISPLACEMENT} A differ by at most {worst:.4f} THz"
    )
    path = cell.cell.bandpath(PATH, npoints=121)
    curves = {
        "CACE, exact second derivatives": frequencies(constants, cell, n, path.kpts),
        "CACE, displaced atoms (ASE)": bands(ours, path.kpts),
        "EMT, displaced atoms (ASE)": bands(emt, path.kpts),
    }
    mesh = (np.array(list(product(range(20), repeat=3))) + 0.5) / 20.0
    draw(path, curves, frequencies(constants, cell, n, mesh), out)
    console.print(f"picture: {out}")


if __name__ == "__main__":
    typer.run(main)
