"""Constant pressure with both k sets: the conserved quantity, and the jumps of a sharp sphere.

python bench/pressure.py ../shared/data/upstream/water-mp0-lr --k-set sphere --output sphere.npz
python bench/pressure.py ../shared/data/upstream/water-mp0-lr --k-set frozen --output frozen.npz
python bench/pressure.py --plot sphere.npz frozen.npz --output docs/long_range_pressure.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import units
from ase.md.langevin import Langevin
from ase.md.nose_hoover_chain import IsotropicMTKNPT

import cace_fast
from cace_fast.reference.ewald import k_vectors
from cace_fast.spec import Ewald


def run(options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Return conserved quantity in eV, volume in A^3 and number of vectors k of each step."""
    folder = options.inputs[0]
    potential = cace_fast.load(folder / "model.pth", dtype="float64", k_set=options.k_set)
    (dl,) = (m.dl for s in potential.spec.submodels for m in s.modules if isinstance(m, Ewald))
    atoms = max(ase.io.read(folder / "structures.xyz", index=":"), key=len)
    atoms.calc = cace_fast.CACECalculator(potential, compute_stress=True)
    rng = np.random.default_rng(0)
    bath = {"temperature_K": 300.0, "friction": 0.05 / units.fs, "rng": rng}
    Langevin(atoms, 0.5 * units.fs, **bath).run(options.equilibrate)
    potential.long_range.reference_cell = None  # of the cell with which constant pressure begins
    dt = 0.5 * units.fs
    dynamics = IsotropicMTKNPT(
        atoms, dt, temperature_K=300.0, pressure_au=0.0, tdamp=200 * dt, pdamp=2000 * dt
    )
    rows = []
    for _ in range(options.steps):
        dynamics.run(1)
        n_k = len(k_vectors(torch.tensor(atoms.cell[:]), dl))
        rows.append((dynamics.get_conserved_energy(), atoms.get_volume(), n_k))
    columns = np.array(rows).T
    return dict(zip(("conserved", "volume", "n_k"), columns, strict=True)) | {"n": len(atoms)}


def jumps(found: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return changes of the conserved quantity in steps that change the sphere, and in others."""
    steps, changed = np.diff(found["conserved"]), np.diff(found["n_k"]) != 0
    return steps[changed], steps[~changed]


def report(name: str, found: dict[str, np.ndarray]) -> None:
    """Print what a run conserved."""
    n, own = int(found["n"]), found["conserved"]
    with_change, others = jumps(found)
    time = np.arange(len(own)) * 0.5e-3
    slope = np.polyfit(time, own, 1)[0] * 1e3 / n
    print(f"{name}: {len(own)} steps, {n} atoms, volume {found['volume'].min():.0f} to "
          f"{found['volume'].max():.0f} A^3")  # fmt: skip
    print(
        f"  conserved: range {1e3 * np.ptp(own) / n:.4f} meV/atom, drift {slope:+.4f} meV/atom/ps"
    )
    for what, values in (("where the sphere changed", with_change), ("elsewhere", others)):
        if len(values):
            rms, most = 1e3 * np.sqrt(np.mean(values**2)), 1e3 * np.abs(values).max()
            print(f"  step of it {what} ({len(values)}): rms {rms:.4f} meV, at most {most:.4f} meV")


def plot(paths: list[Path], output: Path) -> None:
    """Draw the conserved quantity and the volume of the runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(2, 1, sharex=True, figsize=(7.0, 4.6))
    for path in paths:
        found = dict(np.load(path))
        time = np.arange(len(found["conserved"])) * 0.5e-3
        own = 1e3 * (found["conserved"] - found["conserved"][0]) / int(found["n"])
        upper.plot(time, own, label=path.stem, lw=0.8)
        lower.plot(time, found["volume"], lw=0.8)
    upper.set_ylabel("conserved quantity,\nmeV/atom")
    lower.set_ylabel("volume, A$^3$")
    lower.set_xlabel("time, ps")
    upper.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(output, dpi=110)


def main() -> None:
    """Run or plot."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("inputs", nargs="+", type=Path, help="a folder, or runs to plot")
    parser.add_argument("--k-set", default="frozen", choices=("sphere", "frozen"))
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--equilibrate", type=int, default=1000)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--plot", action="store_true")
    options = parser.parse_args()
    if options.plot:
        plot(options.inputs, options.output)
        return
    found = run(options)
    np.savez(options.output, **found)
    report(options.k_set, found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
