"""Speed of two checkouts side by side: the same models, evaluated in turns.

    python bench/alternate.py ../before . ../shared/data/upstream/{water-mp0-sr,cacefit-water}

Each checkout has its own process and environment (.venv), which the two take turns in, so that
what else the machine does meets both. A turn is `Potential.evaluate` with forces and virials of
the model's largest structure, repeated to at least ``--atoms``, at positions that move by less
than the skin of a kept list. Processor time is what counts; printed are medians and quartiles of
the time of a step, and of the ratio of the two in a turn.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

WORKER = """
import json, sys, time
import numpy as np
import torch
import ase.io
torch.set_num_threads(1)
import cace_fast
from cace_fast.engine import VerletList

def structure(folder, n_atoms):
    frames = ase.io.read(folder + "/structures.xyz", index=":")
    atoms = max([a for a in frames if a.pbc.all()] or frames, key=len)
    while len(atoms) < n_atoms and atoms.pbc.all():
        times = [1, 1, 1]
        times[int(np.argmin(atoms.cell.lengths()))] = 2
        atoms = atoms.repeat(times)
    return atoms

def prepared(folder, n_atoms, dtype):
    model = cace_fast.load(folder + "/model.pth", dtype=dtype, device="cpu", backend="cpu")
    atoms = structure(folder, n_atoms)
    kept = VerletList(model.cutoff, 0.5, in_order=False)
    return model, atoms, kept, atoms.positions.copy()

def step(work, k):
    model, atoms, kept, start = work
    atoms.positions = start + 0.01 * np.sin(k + np.arange(start.size).reshape(start.shape))
    model.evaluate([atoms], ("energy", "forces", "virials"), edges=kept)

works = {}
for line in sys.stdin:
    folder, n_atoms, dtype, seconds = json.loads(line)
    key = (folder, dtype)
    if key not in works:
        works[key] = prepared(folder, n_atoms, dtype)
        for k in range(3):
            step(works[key], k)
    n, begun = 0, time.process_time()
    while time.process_time() - begun < seconds or n < 3:
        step(works[key], n)
        n += 1
    spent = (time.process_time() - begun) / n
    print(json.dumps([spent, len(works[key][1])]), flush=True)
"""


class Worker:
    """A process of one checkout."""

    def __init__(self, checkout: Path) -> None:
        self.process = subprocess.Popen(
            [str(checkout / ".venv/bin/python"), "-c", WORKER],
            cwd=checkout, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def turn(self, *task: object) -> tuple[float, int]:
        """Return the processor time of a step in s, and the number of atoms."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(task), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit("a worker has ended; see above")
        spent, n_atoms = json.loads(line)
        return spent, n_atoms


def shown(values: list[float], scale: float = 1.0) -> str:
    """Return median and quartiles."""
    low, middle, high = np.percentile(np.array(values) * scale, [25, 50, 75])
    return f"{middle:8.3f} ({low:.3f} .. {high:.3f})"


def main() -> None:
    """Take turns and print one line for each model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--atoms", type=int, default=192)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.4, help="of each turn")
    given = parser.parse_args()
    workers = [Worker(given.before.absolute()), Worker(given.after.absolute())]
    print(f"{'model':26} {'atoms':>6}  {'before, ms':26} {'after, ms':26} after/before")
    for folder in given.models:
        task = (str(folder.absolute()), given.atoms, given.dtype)
        for worker in workers:
            worker.turn(*task, 0.0)
        times: list[list[float]] = [[], []]
        for number in range(given.rounds):
            for which in (0, 1) if number % 2 else (1, 0):
                spent, n_atoms = workers[which].turn(*task, given.seconds)
                times[which].append(spent)
        ratios = [after / before for before, after in zip(*times, strict=True)]
        columns = f"{shown(times[0], 1e3):26} {shown(times[1], 1e3):26} {shown(ratios)}"
        print(f"{folder.name:26} {n_atoms:6}  {columns}", flush=True)


if __name__ == "__main__":
    main()
