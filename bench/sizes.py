"""Cost of a step against the number of atoms, for one model or several; table and picture.

    python bench/sizes.py ../shared/data/upstream/water-mp0-sr --plot docs/user/cpu_sizes.png

Water at 300 K: three molecules without a cell, and copies of one box that Langevin dynamics has
brought to 300 K. Rebuilds of the list are included; thread counts alternate in one process.
"""

from __future__ import annotations

import argparse
import gc
import resource
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from steps import structure

from cace_fast import CACECalculator
from cace_fast.kernels.cpu import library

SIZES = (9, 192, 1_536, 12_288, 98_304, 1_000_000)


def heat(atoms: Atoms, rng: np.random.Generator) -> None:
    """Draw velocities of 300 K."""
    speed = np.sqrt(units.kB * 300.0 / atoms.get_masses())[:, None]
    atoms.set_velocities(speed * rng.normal(size=(len(atoms), 3)))


def boxes(folder: Path, sizes: list[int], calc: CACECalculator):
    """Yield a structure of each size with velocities of 300 K."""
    base = structure(folder, None)
    rng = np.random.default_rng(0)
    base.calc = calc
    heat(base, rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ASE's, about the centre of mass
        Langevin(base, 0.5 * units.fs, temperature_K=300.0, friction=0.1 / units.fs, rng=rng).run(
            1500
        )
    base.calc = None
    for size in sizes:
        if size < len(base):
            atoms = Atoms()
            for k in range(size // 3):
                one = molecule("H2O")
                one.translate([3.0 * (k % 2), 3.0 * (k // 2 % 2), 3.0 * (k // 4)])
                atoms += one
        else:
            times = np.ones(3, dtype=int)
            while len(base) * times.prod() < size:
                times[np.argmin(base.cell.lengths() * times)] += 1
            atoms = base.repeat(times)
        heat(atoms, rng)
        yield atoms


def seconds(dynamics: VelocityVerlet, steps: int) -> float:
    """Return the time of some steps."""
    start = time.perf_counter()
    dynamics.run(steps)
    return time.perf_counter() - start


def measure(atoms: Atoms, calc: CACECalculator, threads: list[int], rounds: int) -> list[float]:
    """Return us per atom and step for each number of threads, the median of ``rounds``.

    A round is as long as a list is kept, a whole number of times, and begins with a new one.
    """
    atoms.calc = calc
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    calc.reset_neighbors()
    dynamics.run(2)
    steps = 0
    builds = calc._list.n_builds
    while calc._list.n_builds == builds and steps < 200:  # to where a list has just been built
        dynamics.run(1)
        steps += 1
    cycle = max(steps, 4)
    loops = max(1, round(20_000 / len(atoms) / cycle))
    found: list[list[float]] = [[] for _ in threads]
    for _ in range(rounds):
        for row, n in zip(found, threads, strict=True):
            torch.set_num_threads(n)
            for _ in range(2):  # with these threads, so that the search has its memory
                calc.reset_neighbors()
                dynamics.run(1)
            calc.reset_neighbors()  # so that every round has one new list for each cycle
            row.append(1e6 * seconds(dynamics, cycle * loops) / (cycle * loops * len(atoms)))
    return [float(np.median(row)) for row in found]


def plot(path: Path, rows: list[tuple[int, list[float]]], threads: list[int], title: str) -> None:
    """Draw time per atom against the number of atoms."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for k, n in enumerate(threads):
        axes.loglog([r[0] for r in rows], [r[1][k] for r in rows], "o-", label=f"{n} threads"
                    if n > 1 else "1 thread")  # fmt: skip
    axes.set(xlabel="atoms", ylabel="us per atom and step", title=title)
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure all sizes, print a table, draw the first model's."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", type=Path, help="folders: model.pth, structures.xyz")
    parser.add_argument("--atoms", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    first = CACECalculator(options.models[0] / "model.pth", "cpu")
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = library.peak(32)
    print(f"float32, {library.isa()}, {peak / 1e9:.0f} GFlop/s on one core")
    times = "".join(f"{f'us/atom x{n}':>14}" for n in options.threads)
    print(f"{'atoms':>8}  {'model':<20}{times}{'ratio':>8}{'Mflop added':>13}{'kB/atom':>9}")
    rows = []
    for atoms in boxes(options.models[0], options.atoms, first):
        for folder in options.models:
            rounds = options.rounds if len(atoms) < 5e5 else 1
            calc = CACECalculator(folder / "model.pth", "cpu")
            us = measure(atoms.copy(), calc, options.threads, rounds)
            del calc
            gc.collect()  # its buffers go before those of the next come
            if folder == options.models[0]:
                rows.append((len(atoms), us))
            added = 1e-12 * (us[0] - rows[-1][1][0]) * peak
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - loaded
            print(f"{len(atoms):>8}  {folder.name:<20}" + "".join(f"{u:>14.3g}" for u in us)
                  + f"{us[0] / us[-1]:>8.2f}{added:>13.2f}{1.024 * memory / len(atoms):>9.3g}",
                  flush=True)  # fmt: skip
    if options.plot:
        title = f"{options.models[0].name}, float32, {library.isa()}, {peak / 1e9:.0f} GFlop/s"
        plot(options.plot, rows, options.threads, title)


if __name__ == "__main__":
    main()
