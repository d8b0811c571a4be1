"""Constant pressure with both k sets: jumps of the energy, and the quantity that is conserved.

python bench/pressure.py WATER_FOLDER --k-set sphere --output water-sphere.npz
python bench/pressure.py crystal --k-set frozen --output crystal-frozen.npz
python bench/pressure.py --plot water-*.npz crystal-*.npz \\
    --output docs/developer/long_range_pressure.png

A folder holds model.pth and structures.xyz, of which the largest periodic structure is taken, and
relaxed first: recorded structures may be rattled, and molecules that break find holes of a model.
"crystal" is that of examples/infrared.py, its dl set such that a Bragg peak lies on the sphere.
The pressure is 0, and for the crystal what it has at constant volume, so that it breathes about
that with the peak within the sphere and without.
"""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.optimize import FIRE

import cace_fast
from cace_fast.cli.integrators import draw_momenta
from cace_fast.reference.ewald import k_vectors
from cace_fast.spec import Ewald

EXAMPLE = Path(__file__).parents[1] / "examples" / "infrared.py"
SPACING = 4.2 / 3**0.5  # of the planes (111) of the crystal, A
STEP = 0.5  # fs
KEPT = ("conserved", "volume", "pressure", "energy_jump", "pressure_jump")


def prepared(name: str) -> tuple[cace_fast.Potential, Atoms]:
    """Return the potential, in float64, and the structure of a name or folder."""
    if name == "crystal":
        atoms = bulk("MgO", "rocksalt", a=4.2, cubic=True) * (2, 2, 2)
        potential = runpy.run_path(str(EXAMPLE))["make_potential"](dl=SPACING)
        return potential, atoms
    folder = Path(name)
    frames = (a for a in ase.io.iread(folder / "structures.xyz") if a.pbc.all())
    return cace_fast.load(folder / "model.pth", dtype="float64"), max(frames, key=len)


def pressure_of(atoms: Atoms) -> float:
    """Return the pressure in GPa, kinetic part included."""
    return float(-atoms.get_stress(include_ideal_gas=True)[:3].mean() / units.GPa)


def energy_and_pressure(
    potential: cace_fast.Potential, atoms: Atoms, cell: np.ndarray
) -> np.ndarray:
    """Return energy in eV and pressure without kinetic part in GPa over the vectors k of a cell."""
    potential.long_range.reference_cell = cell
    found = potential.compute(atoms, ("energy", "stress"))
    return np.array([found["energy"], -found["stress"].trace() / 3 / units.GPa])


def run(options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Return what :data:`KEPT` names, of each step, and the number of atoms.

    Equal runs up to constant pressure: the sum over the sphere heats both, of which the frozen one
    takes the vectors k where constant pressure begins.
    """
    potential, atoms = prepared(options.inputs[0])
    (dl,) = (m.dl for s in potential.spec.submodels for m in s.modules if isinstance(m, Ewald))
    probe = potential.replace(k_set="frozen")  # sums over the vectors of any cell it is given
    atoms.calc = cace_fast.CACECalculator(potential, compute_stress=True)
    dt = STEP * units.fs
    bath = {"temperature_K": 300.0, "friction": 0.05 / units.fs, "fixcm": False}
    FIRE(atoms, logfile=None).run(fmax=0.1, steps=300)
    draw_momenta(atoms, 300.0, np.random.default_rng(1))
    heat = Langevin(atoms, dt, rng=np.random.default_rng(0), **bath)
    heat.run(options.equilibrate)
    pressures: list[float] = []
    heat.attach(lambda: pressures.append(pressure_of(atoms)), interval=5)
    heat.run(options.equilibrate)
    target = float(np.mean(pressures)) if options.inputs[0] == "crystal" else 0.0
    print(f"{options.k_set}: at {target:.3f} GPa")
    potential = potential.replace(k_set=options.k_set)
    atoms.calc = cace_fast.CACECalculator(potential, compute_stress=True)
    dynamics = IsotropicMTKNPT(
        atoms, dt, temperature_K=300.0, pressure_au=target * units.GPa, tdamp=100 * dt,
        pdamp=1000 * dt,
    )  # fmt: skip
    rows, cell, n_k = [], np.array(atoms.cell[:]), 0
    for number in range(options.steps):
        dynamics.run(1)
        before, cell = cell, np.array(atoms.cell[:])
        n_before, n_k = n_k, len(k_vectors(torch.tensor(cell), dl))
        jump = np.zeros(2)
        if number and n_k != n_before:
            jump = np.subtract(*(energy_and_pressure(probe, atoms, c) for c in (cell, before)))
        own = (dynamics.get_conserved_energy(), atoms.get_volume(), pressure_of(atoms))
        rows.append((*own, *jump))
    return dict(zip(KEPT, np.array(rows).T, strict=True)) | {"n": np.array(len(atoms))}


def report(k_set: str, found: dict[str, np.ndarray]) -> None:
    """Print jumps, and what was conserved with and without them."""
    n, volume = int(found["n"]), found["volume"]
    changed = found["energy_jump"] != 0
    print(
        f"{k_set}: {len(volume)} steps, {n} atoms, volume {volume.min():.0f} to "
        f"{volume.max():.0f} A^3, pressure {found['pressure'].mean():+.3f} GPa"
    )
    print(f"  the sphere of the cell changed in {changed.sum()} steps")
    if changed.any():
        energy, pressure = 1e3 * found["energy_jump"][changed], found["pressure_jump"][changed]
        print(
            f"  jump of the energy: rms {np.sqrt(np.mean(energy**2)):.3f} meV of the whole box, at "
            f"most {np.abs(energy).max():.3f}; of the pressure: rms "
            f"{np.sqrt(np.mean(pressure**2)):.1e} GPa"
        )
    with_jumps = found["conserved"]
    rest = with_jumps - np.cumsum(found["energy_jump"])
    for what, values in (("conserved quantity", with_jumps), ("the same less all jumps", rest)):
        if what == "conserved quantity" or k_set == "sphere":
            slope = np.polyfit(np.arange(len(values)) * STEP * 1e-3, values, 1)[0]
            print(
                f"  {what}: range {1e3 * np.ptp(values) / n:.4f}, end "
                f"{1e3 * (values[-1] - values[0]) / n:+.4f} meV/atom, drift "
                f"{1e3 * slope / n:+.4f} meV/atom/ps"
            )


def plot(paths: list[Path], output: Path) -> None:
    """Draw conserved quantity and volume of the runs, a column for each system."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    systems = list(dict.fromkeys(path.stem.rpartition("-")[0] for path in paths))
    size = {"sharex": True, "squeeze": False, "figsize": (4.2 * len(systems), 4.6)}
    figure, axes = pyplot.subplots(2, len(systems), **size)
    for path in paths:
        system, _, k_set = path.stem.rpartition("-")
        upper, lower = axes[:, systems.index(system)]
        found = dict(np.load(path))
        time = np.arange(len(found["conserved"])) * STEP * 1e-3
        own = 1e3 * (found["conserved"] - found["conserved"][0]) / int(found["n"])
        upper.plot(time, own, label=k_set, lw=0.8)
        lower.plot(time, found["volume"], lw=0.8)
        upper.set_title(system, fontsize="medium")
        lower.set_xlabel("time, ps")
    axes[0, 0].set_ylabel("conserved quantity, meV/atom")
    axes[1, 0].set_ylabel("volume, A$^3$")
    lines = axes[0, -1].get_legend_handles_labels()
    figure.legend(*lines, frameon=False, loc="lower center", ncols=len(paths))
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(output, dpi=110)


def main() -> None:
    """Run or plot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("inputs", nargs="+", help="crystal, a folder, or runs to plot")
    parser.add_argument("--k-set", default="frozen", choices=("sphere", "frozen"))
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--equilibrate", type=int, default=2000)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--plot", action="store_true")
    options = parser.parse_args()
    if options.plot:
        plot([Path(name) for name in options.inputs], options.output)
        return
    found = run(options)
    np.savez(options.output, **found)
    report(options.k_set, found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
