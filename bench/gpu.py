"""Times whole steps and every kernel on the GPU of this machine, beside plain torch and prediction.

    python bench/gpu.py --folder DIR              # tables and a figure, 5 minutes at most
    python bench/gpu.py --models water-mp0-sr --atoms 192 98304
    python bench/gpu.py --check                   # only say whether a GPU can run them

Needs no network. Every part is a process of its own, with a limit of its own, and writes rows as it
gets them: one that fails loses nothing of the others. Kernels are compiled first, for all
models at once. A step is one of a system that stays on the device, a new list every 20 steps
included; times are medians with events around. Under ``CACE_FAST_EMULATE`` everything runs on the
emulator, as a rehearsal: its times mean nothing.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from gpu_models import SHAPES
from gpu_parts import Moving, compiled_forces, gpu, kernel_rows, plain_row, step_row

from cace_fast.errors import CaceFastError

MODELS = tuple(SHAPES)[:5]
SIZES = (108, 500, 4_000, 32_000, 108_000, 1_000_188)
COMPILED = (108, 4_000, 32_000)  # every tile of the table
PLAIN_LIMIT = 8_000  # atoms: plain torch keeps features of every edge
PROFILED = (108, 4_000, 108_000)
SECONDS = {"compile": 120.0, "steps": 60.0, "plain": 90.0}  # at most, of one process
COLUMNS = {
    "steps": (
        "model", "device", "atoms", "us/step", "us/atom", "predicted us/atom", "kept us", "list us",
        "bytes/atom", "first s", "note",
    ),
    "kernels": ("model", "device", "atoms", "kernel", "calls", "us", "share", "predicted us"),
    "plain": ("model", "device", "atoms", "eager us/atom", "compiled us/atom", "first s", "note"),
}  # fmt: skip


class Table:
    """A CSV file that has every row as soon as it is added."""

    def __init__(self, folder: Path, name: str, model: str) -> None:
        self.path, self.columns = folder / f"gpu_{name}.csv", COLUMNS[name]
        self.first = {"model": model, "device": gpu()[1]}
        if not self.path.exists():
            self._write("w", lambda writer: writer.writeheader())

    def add(self, row: dict[str, Any], show: bool = True) -> None:
        """Add a row; numbers are written with four digits."""
        row = {key: f"{v:.4g}" if isinstance(v, float) else v for key, v in row.items()}
        self._write("a", lambda writer: writer.writerow(self.first | row))
        if show:
            print(self.first["model"], *(f"{k} {v}" for k, v in row.items() if v != ""), flush=True)

    def _write(self, mode: str, act: Callable[[Any], object]) -> None:
        with open(self.path, mode, newline="") as file:
            act(csv.DictWriter(file, self.columns, lineterminator="\n"))


def run_part(part: str, name: str, sizes: Sequence[int], folder: Path) -> None:
    """Do one part of the work for one model, in this process; what fails is a row's note."""
    shape, failed = SHAPES[name], ""
    if part == "compile":
        for n in sizes:
            Moving(shape, n)
        return
    table = Table(folder, part, name)
    kernels = Table(folder, "kernels", name) if part == "steps" else None
    forces = compiled_forces(shape) if part == "plain" else None
    for n in sizes:
        try:
            if forces is not None:
                table.add(plain_row(shape, n, forces))
                continue
            row, moving = step_row(shape, n, name)
            table.add(row)
            if kernels is not None and n in PROFILED:
                for found in kernel_rows(moving, name):
                    kernels.add(found, show=False)
        except (RuntimeError, CaceFastError) as error:
            failed = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            table.add({"atoms": n, "note": failed})
            if "illegal" in failed:  # nothing runs in this process any more
                break
    if failed:
        sys.exit(f"{part} {name}: {failed}")


def draw(folder: Path) -> None:
    """Draw measured and predicted times against the number of atoms."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = {
        "gpu_steps": {"us/atom": "o-", "predicted us/atom": "--"},
        "gpu_plain": {"eager us/atom": "x:", "compiled us/atom": "+:"},
    }
    figure, axis = pyplot.subplots(figsize=(8, 5))
    colors: dict[str, str] = {}
    for file_name, styles in columns.items():
        if not (path := folder / f"{file_name}.csv").exists():
            continue
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        for model in dict.fromkeys(row["model"] for row in rows):
            color = colors.setdefault(model, f"C{len(colors)}")
            for column, style in styles.items():
                found = [(int(r["atoms"]), float(r[column]))
                         for r in rows if r["model"] == model and r[column]]  # fmt: skip
                if found:
                    label = f"{model}: {column}"
                    axis.loglog(*zip(*found, strict=True), style, color=color, label=label)
    axis.set_xlabel("atoms")
    axis.set_ylabel("us per atom and step")
    axis.set_title(gpu()[1])
    if colors:
        axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(folder / "gpu_steps.png", dpi=120)


def _start(part: str, name: str, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    sizes = {"compile": COMPILED, "plain": options.atoms}.get(part, options.atoms)
    most = PLAIN_LIMIT if part == "plain" else max(options.atoms)
    chosen = [str(n) for n in sizes if n <= most]
    command = [sys.executable, __file__, "--part", part, "--models", name, "--folder",
               str(options.folder), "--atoms", *chosen]  # fmt: skip
    return subprocess.Popen(command) if chosen else subprocess.Popen(["true"])


def _finish(part: str, name: str, process: subprocess.Popen[bytes], seconds: float) -> str:
    """Wait for a part; return what went wrong with it."""
    try:
        code = process.wait(max(seconds, 1.0))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"{part} {name}: stopped after {seconds:.0f} s"
    return f"{part} {name}: exit status {code}" if code else ""


def run_all(options: argparse.Namespace) -> int:
    """Run every part in a process of its own; return how many failed."""
    end, failed = time.monotonic() + 60.0 * options.minutes, []
    options.folder.mkdir(parents=True, exist_ok=True)
    for old in options.folder.glob("gpu_*"):
        old.unlink()
    cores = len(os.sched_getaffinity(0))
    for k in range(0, len(options.models), cores):
        at_once = [
            (name, _start("compile", name, options)) for name in options.models[k : k + cores]
        ]
        until = time.monotonic() + SECONDS["compile"] * options.patience
        failed += [_finish("compile", *x, min(until, end) - time.monotonic()) for x in at_once]
    print(f"compiled after {time.monotonic() - end + 60 * options.minutes:.0f} s", flush=True)
    for part, names in (("steps", options.models), ("plain", options.models[:1])):
        for name in names:
            left = min(SECONDS[part] * options.patience, end - time.monotonic())
            if left < 1.0:
                failed.append(f"{part} {name}: no time left")
                continue
            failed.append(_finish(part, name, _start(part, name, options), left))
    draw(options.folder)
    failed = [line for line in failed if line]
    print(*failed, f"tables and figure in {options.folder}", sep="\n")
    return len(failed)


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(MODELS))
    parser.add_argument("--atoms", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--minutes", type=float, default=5.0, help="for everything")
    parser.add_argument("--patience", type=float, default=1.0, help="times the limit of each part")
    parser.add_argument("--check", action="store_true", help="only say whether there is a GPU")
    parser.add_argument("--part", choices=["compile", "steps", "plain"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        _, name = gpu()
    except CaceFastError as error:
        sys.exit(f"gpu: {error} Nothing was run.")
    if options.part:
        run_part(options.part, options.models[0], options.atoms, options.folder)
        return
    print(f"{name}, torch {torch.__version__}")
    if not options.check:
        sys.exit(min(run_all(options), 1))


if __name__ == "__main__":
    main()
