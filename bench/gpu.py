"""Times whole steps and every kernel on the GPU of this machine, beside plain torch and prediction.

    python bench/gpu.py                   # CSV and figure in bench/results
    python bench/gpu.py --models water-mp0-sr --atoms 192 98304
    python bench/gpu.py --check           # only say whether there is a GPU that can run them

Without a GPU it stops and says what is missing. It needs no network and takes a few minutes; what a
step costs is the median over repeats with CUDA events around each, after a warm-up.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from gpu_models import DENSITY, SHAPES, Shape, specification
from systems import random_weights

from cace_fast.engine import choose_backend
from cace_fast.errors import BackendUnavailableError
from cace_fast.potential import Potential
from cace_fast.weights import Weights

SIZES = (108, 500, 4_000, 32_000, 108_000, 1_000_188)
PLAIN_LIMIT = 8_000  # atoms: plain torch keeps features of every edge
REPEATS, WARM = 10, 3
TIME_LIMIT = 420.0  # seconds for everything
FOLDER = Path(__file__).resolve().parent / "results"


def structure(shape: Shape, n_atoms: int) -> Atoms:
    """Return a rattled crystal of at least ``n_atoms`` atoms."""
    n_cells = int(np.ceil((n_atoms / 4) ** (1 / 3) - 1e-9))
    atoms = bulk("Cu", "fcc", a=(4 / DENSITY) ** (1 / 3), cubic=True).repeat(n_cells)
    atoms.rattle(0.15, seed=1)
    atoms.numbers = np.random.default_rng(2).integers(1, shape.elements + 1, len(atoms))
    return atoms


def model(shape: Shape, backend: str) -> Potential:
    """Return a potential with random weights on the GPU."""
    spec = specification(shape)
    weights = Weights(spec, random_weights(spec, torch.float64))
    return Potential(spec, weights, device="cuda", dtype="float32", backend=backend)


def median_time(work: Callable[[], object]) -> float:
    """Return the median time of some work on the device in us."""
    for _ in range(WARM):
        work()
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return float(np.median(times))


def step_time(potential: Potential, atoms: Atoms) -> tuple[float, float]:
    """Return us of a step with the list kept, and bytes on the device for each atom."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    evaluate = lambda: potential.compute(atoms, ("energy", "forces"))  # noqa: E731
    taken = median_time(evaluate)
    return taken, (torch.cuda.max_memory_allocated() - before) / len(atoms)


def shares(potential: Potential, atoms: Atoms) -> list[tuple[str, float, int]]:
    """Return name, us and calls of every kernel of a step, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    potential.compute(atoms, ("energy", "forces"))
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        potential.compute(atoms, ("energy", "forces"))
        torch.cuda.synchronize()
    rows = [(e.key, float(e.self_device_time_total), int(e.count)) for e in found.key_averages()]
    return sorted(rows, key=lambda row: -row[1])


def predicted(name: str, n_atoms: int) -> float | str:
    """Return what ``docs/roofline.csv`` says of this GPU in us per atom, or nothing."""
    path = Path(__file__).resolve().parents[1] / "docs" / "roofline.csv"
    if not path.exists():
        return ""
    here = torch.cuda.get_device_name()
    with open(path, newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["model"] == name and r["device"] in here]
    if not rows:
        return ""
    nearest = min(rows, key=lambda r: abs(np.log(int(r["atoms"]) / n_atoms)))
    return float(nearest["us/atom"])


def measure(name: str, sizes: Sequence[int], until: float) -> list[dict[str, Any]]:
    """Return a row for each number of atoms; what does not fit is said in it."""
    shape, rows = SHAPES[name], []
    fast, plain = model(shape, "triton"), model(shape, "reference")
    for n in sizes:
        if time.monotonic() > until:
            print(f"{name}: no time left for {n} atoms", file=sys.stderr)
            break
        atoms = structure(shape, n)
        row: dict[str, Any] = {"model": name, "device": torch.cuda.get_device_name()}
        row["atoms"] = len(atoms)
        try:
            taken, size = step_time(fast, atoms)
            row |= {"us/step": round(taken, 1), "us/atom": taken / len(atoms), "bytes/atom": size}
            if n <= PLAIN_LIMIT:
                row["reference us/atom"] = step_time(plain, atoms)[0] / len(atoms)
            row["predicted us/atom"] = predicted(name, len(atoms))
        except (torch.OutOfMemoryError, RuntimeError) as error:
            row["note"] = str(error).splitlines()[0]
        rows.append(row)
        print(*(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()))
    return rows


def write(rows: list[dict[str, Any]], kernels: list[dict[str, Any]]) -> None:
    """Write the tables and a figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    FOLDER.mkdir(exist_ok=True)
    for name, table in (("gpu_steps", rows), ("gpu_kernels", kernels)):
        if not table:
            continue
        with open(FOLDER / f"{name}.csv", "w", newline="") as file:
            columns = list(dict.fromkeys(key for row in table for key in row))
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    figure, axis = pyplot.subplots(figsize=(6, 4))
    for model_name in dict.fromkeys(row["model"] for row in rows):
        for column, style in (("us/atom", "o-"), ("reference us/atom", "x:"),
                              ("predicted us/atom", "--")):  # fmt: skip
            found = [(r["atoms"], r[column]) for r in rows
                     if r["model"] == model_name and isinstance(r.get(column), float)]  # fmt: skip
            if found:
                axis.loglog(*zip(*found, strict=True), style, label=f"{model_name}: {column}")
    axis.set_xlabel("atoms")
    axis.set_ylabel("us per atom and step")
    axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(FOLDER / "gpu_steps.png", dpi=120)


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES)[:5])
    parser.add_argument("--atoms", type=int, nargs="+", default=SIZES)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    try:
        choose_backend("triton", "cuda")
    except BackendUnavailableError as error:
        sys.exit(f"gpu: {error.reason}. {error.remedy} Nothing was measured.")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    if options.check:
        return
    until, rows, kernels = time.monotonic() + TIME_LIMIT, [], []
    for name in options.models:
        rows += measure(name, options.atoms, until)
        atoms = structure(SHAPES[name], 4_000)
        kernels += [
            {"model": name, "atoms": len(atoms), "kernel": kernel, "us": us, "calls": calls}
            for kernel, us, calls in shares(model(SHAPES[name], "triton"), atoms)
        ]
    write(rows, kernels)


if __name__ == "__main__":
    main()
