"""Whole steps of LAMMPS with pair_style cace beside ASE's, and ranks beside one rank.

    python bench/lammps_steps.py ../shared/data/upstream/water-mp0-sr --atoms 1536 24000 --ranks 1 2

Water at 300 K, copies of one box; rounds alternate between ASE and every number of ranks, and the
median and the least of them are printed. Lists are built where atoms move, in both: the skin is
1 A in LAMMPS, and ASE's calculator chooses its own. Needs ``pip install '.[lammps]'`` and
``cace-fast lammps build``.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch
from ase import units
from ase.md.verlet import VelocityVerlet
from sizes import boxes

from cace_fast import CACECalculator, load
from cace_fast.interfaces.lammps import plugin_path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from support.lammps import Lammps, in_lammps_frame, script, write_data

PS = 1e-12 * units.s
LOOP = re.compile(r"Loop time of ([\d.e+-]+) on")


def prepared(folder: Path, atoms, work: Path):
    """Write the model and the structure; return the atoms in the frame of LAMMPS, and elements."""
    potential = load(str(folder / "model.pth"), dtype="float64")
    potential.save(work / "model.safetensors")
    velocities = atoms.get_velocities()
    turned = in_lammps_frame(atoms)  # boxes of water are not turned by it
    turned.set_velocities(velocities)
    elements = [z for z in potential.spec.representation.elements if z in set(atoms.numbers)]
    write_data(work / "in.data", turned, elements, velocities * PS)
    return turned, elements


def lammps_ms(lammps: Lammps, text: str, ranks: int, steps: int) -> float:
    """Return ms a step of a run after some steps to settle."""
    done = lammps.run(text + f"fix 1 all nve\nrun 5\nrun {steps}\n", ranks, timeout=3000)
    if done.code:
        raise SystemExit(done.text)
    if "timing yes" in text:
        print(done.text[done.text.index("pair_style cace, ms") :].split("\n\n")[0])
    return 1e3 * float(LOOP.findall(done.text)[-1]) / steps


def ase_ms(atoms, calc: CACECalculator, steps: int) -> float:
    """Return ms a step of the same by ASE."""
    own = atoms.copy()
    own.calc = calc
    calc.reset_neighbors()
    dynamics = VelocityVerlet(own, 0.5 * units.fs)
    dynamics.run(5)
    start = time.perf_counter()
    dynamics.run(steps)
    return 1e3 * (time.perf_counter() - start) / steps


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", type=Path, help="folders: model.pth, structures.xyz")
    parser.add_argument("--atoms", nargs="+", type=int, default=[1536, 24000])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="by default as many as take some seconds")
    parser.add_argument("--style", default="", help="more keywords of pair_style cace")
    parser.add_argument("--no-ase", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("build/lammps_steps"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for folder in options.models:
        options.work.mkdir(parents=True, exist_ok=True)
        calc = CACECalculator(folder / "model.pth", "cpu")
        lammps = Lammps(options.work.resolve(), plugin_path())
        for box in boxes(folder, options.atoms, calc):
            atoms, elements = prepared(folder, box, lammps.folder)
            text = script(lammps.folder / "model.safetensors", elements,
                          style=f"cace {options.style}")  # fmt: skip
            steps = options.steps or max(20, 200_000 // len(atoms))
            found: dict[str, list[float]] = {}
            for _ in range(options.rounds):
                if not options.no_ase:
                    found.setdefault("ASE", []).append(ase_ms(atoms, calc, steps))
                for ranks in options.ranks:
                    ms = lammps_ms(lammps, text, ranks, steps)
                    found.setdefault(f"ranks {ranks}", []).append(ms)
            line = f"{folder.name:<18}{len(atoms):>8} atoms, {steps} steps, ms a step (least):"
            for name, values in found.items():
                line += f"  {name} {np.median(values):.2f} ({min(values):.2f})"
            print(line, flush=True)


if __name__ == "__main__":
    main()
