"""Cost of molecular dynamics through the ASE calculator, against the machine's own peak.

    python bench/steps.py ../shared/data/upstream/water-mp0-sr --atoms 1536
    python bench/steps.py ../shared/data/upstream/* --backend cpu reference --steps 20

Every row is one model: the mean over ASE's velocity Verlet at 300 K and 0.5 fs, list rebuilds
included, on one thread. The cost is time per atom times the multiply-add peak of one core, both
measured here (1 Mflop at 100 GFlop/s is 10 us), so that machines can be compared.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import ase.io
import numpy as np
import torch
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet

from cace_fast import CACECalculator
from cace_fast.kernels.cpu import library


@dataclass(frozen=True)
class Row:
    """Times in us per atom and step."""

    model: str
    backend: str
    dtype: str
    atoms: int
    threads: int
    us_per_atom: float
    mflop_per_atom: float
    lists: float  # share of the searches for neighbours
    evaluation: float  # share of the engine, the sorting of new lists included
    builds: int
    engine_bytes_per_atom: float


def structure(folder: Path, n_atoms: int | None) -> Atoms:
    """Return the largest recorded structure, repeated to about ``n_atoms`` atoms."""
    frames = ase.io.read(folder / "structures.xyz", index=":")
    periodic = [a for a in frames if a.pbc.all()] or frames
    atoms = max(periodic, key=len)
    while n_atoms is not None and len(atoms) < n_atoms and atoms.pbc.all():
        shortest = int(np.argmin(atoms.cell.lengths()))
        times = [1, 1, 1]
        times[shortest] = 2
        atoms = atoms.repeat(times)
    return atoms


class Timed:
    """A function whose calls are timed."""

    def __init__(self, function) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments, **options):
        """Call the function."""
        start = time.perf_counter()
        try:
            return self.function(*arguments, **options)
        finally:
            self.seconds += time.perf_counter() - start


def measure(folder: Path, atoms: Atoms, options: argparse.Namespace, backend: str) -> Row:
    """Return one row."""
    calc = CACECalculator(
        folder / "model.pth", "cpu", default_dtype=options.dtype, backend=backend,
        skin=options.skin,
    )  # fmt: skip
    atoms = atoms.copy()
    rng = np.random.default_rng(0)
    speed = np.sqrt(units.kB * 300.0 / atoms.get_masses())[:, None]
    atoms.set_velocities(speed * rng.normal(size=(len(atoms), 3)))
    atoms.calc = calc
    # recorded structures are not in equilibrium, and hot atoms ask for more searches
    bath = {"temperature_K": 300.0, "friction": 0.1 / units.fs, "rng": rng}
    Langevin(atoms, 0.5 * units.fs, **bath).run(options.equilibrate)
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    dynamics.run(2)
    engine, verlet = calc.potential._engine, calc._list
    evaluate, search = Timed(engine.evaluate), Timed(verlet)
    engine.evaluate, calc._list = evaluate, search
    builds, start = verlet.n_builds, time.perf_counter()
    dynamics.run(options.steps)
    took = time.perf_counter() - start
    us = 1e6 * took / options.steps / len(atoms)
    return Row(
        folder.name, calc.potential.backend, options.dtype, len(atoms), torch.get_num_threads(),
        us, us * library.peak(32 if options.dtype == "float32" else 64) / 1e12,
        search.seconds / took, evaluate.seconds / took, verlet.n_builds - builds,
        getattr(engine, "n_bytes", 0) / len(atoms),
    )  # fmt: skip


def main() -> None:
    """Measure every model named and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", type=Path, help="folders: model.pth, structures.xyz")
    parser.add_argument("--atoms", type=int, help="repeat periodic structures to this many")
    parser.add_argument("--backend", nargs="+", default=["cpu"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--equilibrate", type=int, default=1000, help="steps of Langevin before")
    parser.add_argument("--skin", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peak, bandwidth = library.peak(32) / 1e9, library.bandwidth() / 1e9
    print(f"{library.isa()}, one core: {peak:.0f} GFlop/s in float32, {bandwidth:.1f} GB/s copied")
    print(f"{'model':<26}{'backend':<10}{'atoms':>7}{'us/atom':>9}{'Mflop/atom':>11}"
          f"{'list':>6}{'engine':>8}{'builds':>7}{'B/atom':>8}")  # fmt: skip
    rows = []
    for folder in options.models:
        if not (folder / "model.pth").exists():
            continue
        atoms = structure(folder, options.atoms)
        for backend in options.backend:
            row = measure(folder, atoms, options, backend)
            rows.append(asdict(row))
            print(f"{row.model:<26}{row.backend:<10}{row.atoms:>7}{row.us_per_atom:>9.2f}"
                  f"{row.mflop_per_atom:>11.2f}{row.lists:>6.0%}{row.evaluation:>8.0%}"
                  f"{row.builds:>7}{row.engine_bytes_per_atom:>8.0f}", flush=True)  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
