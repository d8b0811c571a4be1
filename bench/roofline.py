"""Predicts the time of a step on GPUs that are not here, from counted instructions and bytes.

    python bench/roofline.py --write                      # all models and devices: CSV and figure
    python bench/roofline.py water-mp0-sr --device H100   # one model: its kernels and their bounds

A step of a small crystal runs on the emulator, once for each tile of `configs.TILES`; counts grow
in proportion to the atoms. The neighbour list is counted as torch runs it: one kernel for each
operation. Everything printed here is a **prediction** (docs/kernels.md says what it leaves out).
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_models import SHAPES, Recording, TorchTraffic, record, structure, tiles

from cace_fast.kernels.emulation import roofline
from cace_fast.kernels.emulation.resources import Resources, Specialised, measure
from cace_fast.kernels.triton import configs

SIZES = (96, 192, 768, 3_072, 12_288, 98_304, 786_432)
REBUILD_EVERY = 20  # steps
SKIN = 1.0
SEGMENTS = 1.9  # of an atom: elements among its neighbours
PAGE = Path(__file__).resolve().parents[1] / "docs"


@cache
def list_cost(model: str) -> tuple[float, float]:
    """Return the operations of a search for neighbours, and its bytes for each atom."""
    from cace_fast.device_neighbors import device_neighbor_list
    from cace_fast.engine.device_edges import sort_edges
    from cace_fast.graph import AtomicGraph

    shape = SHAPES[model]
    atoms = structure(shape, 5)
    cell = torch.tensor(np.asarray(atoms.cell), dtype=torch.float64)[None]
    pbc = torch.ones(1, 3, dtype=torch.bool)
    positions = torch.tensor(atoms.positions)
    batch = torch.zeros(len(atoms), dtype=torch.long)
    species = torch.tensor(atoms.numbers) - 1
    with TorchTraffic() as traffic:
        pairs = device_neighbor_list(positions, cell, pbc, shape.cutoff + SKIN, batch)
        graph = AtomicGraph(
            positions, species, cell, pbc, batch, pairs.senders, pairs.receivers, pairs.shifts
        )
        sort_edges(graph, shape.elements)
    return float(traffic.calls), traffic.bytes / len(atoms)


@cache
def recordings(model: str) -> tuple[Recording, ...]:
    """Return a step of the model with each entry of the table of tiles."""
    found = []
    for number in range(len(configs.TILES)):
        with tiles(number):
            found.append(record(SHAPES[model]))
    return tuple(found)


_needs: dict[tuple[int, str], Resources] = {}


def needs(kernel: Specialised, architecture: str) -> Resources:
    """Return the resources of a kernel; each is measured once."""
    key = id(kernel), architecture
    if key not in _needs:
        _needs[key] = measure(kernel, architecture)
    return _needs[key]


def step(model: str, device: roofline.Device, n_atoms: int) -> list[roofline.Cost]:
    """Predict every launch of a step, and a step's share of a new neighbour list."""
    segments = n_atoms * min(SEGMENTS, SHAPES[model].elements)
    number = next(k for k, (limit, _) in enumerate(configs.TILES) if segments < limit)
    held = recordings(model)[number]
    found = [needs(kernel, device.architecture) for kernel in held.kernels]
    costs = list(roofline.step(held.launches, found, device, n_atoms / held.n_atoms))
    calls, size = list_cost(model)
    costs.append(_torch("neighbour list", device, calls, size * n_atoms, REBUILD_EVERY))
    if held.torch.calls:
        moved = held.torch.bytes * n_atoms / held.n_atoms
        costs.append(_torch("torch operations", device, held.torch.calls, moved, 1))
    return costs


def _torch(
    name: str, device: roofline.Device, calls: float, moved: float, every: int
) -> roofline.Cost:
    """Return the cost of operations of torch that move so many bytes, once in so many steps."""
    bounds = {"memory": moved / device.memory_rate * 1e-6 / every}
    return roofline.Cost(name, bounds, calls * device.launch / every)


def table(models: Sequence[str], devices: Sequence[roofline.Device]) -> list[dict[str, Any]]:
    """Return predicted times for all sizes."""
    rows = []
    for model in models:
        for device in devices:
            for n in SIZES:
                costs = step(model, device, n)
                total = sum(cost.time for cost in costs)
                longest = max(costs, key=lambda cost: cost.time)
                rows.append({
                    "model": model, "device": device.name, "atoms": n,
                    "us/step": round(total, 1), "us/atom": float(f"{total / n:.3g}"),
                    "launches": len(costs), "longest": longest.name, "bound": longest.bound,
                })  # fmt: skip
    return rows


def _numbers(row: dict[str, str]) -> dict[str, Any]:
    kinds = {"atoms": int, "us/step": float, "us/atom": float, "launches": int}
    return {key: kinds.get(key, str)(value) for key, value in row.items()}


def show(model: str, device: roofline.Device, sizes: Sequence[int]) -> None:
    """Print the launches of a step, the longest first."""
    for n in sizes:
        costs = step(model, device, n)
        total = sum(cost.time for cost in costs)
        print(f"\n{model} on {device.name}, {n} atoms: predicted {total:.1f} us per step, "
              f"{total / n:.4f} us per atom")  # fmt: skip
        for cost in sorted(costs, key=lambda c: -c.time):
            most = sorted(cost.bounds.items(), key=lambda x: -x[1])[:3]
            terms = ", ".join(f"{name} {time:.2f}" for name, time in most)
            print(f"  {cost.time:9.2f} us  {cost.name:<22} {cost.bound:<11} ({terms})")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw predicted times against the number of atoms."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    devices = list(dict.fromkeys(row["device"] for row in rows))
    figure, axes = pyplot.subplots(1, len(devices), figsize=(3.2 * len(devices), 3.4), sharey=True)
    for axis, device in zip(np.atleast_1d(axes), devices, strict=True):
        for model in dict.fromkeys(row["model"] for row in rows):
            chosen = [r for r in rows if r["model"] == model and r["device"] == device]
            axis.loglog([r["atoms"] for r in chosen], [r["us/atom"] for r in chosen], label=model)
        axis.set_title(f"{device} (prediction)", fontsize=9)
        axis.set_xlabel("atoms")
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("us per atom and step")
    np.atleast_1d(axes)[0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print, or write, what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(SHAPES))
    parser.add_argument("--device", choices=[d.name for d in roofline.DEVICES])
    parser.add_argument("--atoms", type=int, nargs="+", default=[192, 98_304])
    parser.add_argument("--write", action="store_true", help="docs/roofline.csv and .png")
    options = parser.parse_args()
    devices = [d for d in roofline.DEVICES if options.device in (None, d.name)]
    if not options.write:
        for model in options.models:
            for device in devices:
                show(model, device, options.atoms)
        return
    rows = table(options.models, devices)
    path = PAGE / "roofline.csv"
    if path.exists():  # keep what other runs found
        with open(path, newline="") as file:
            held = list(csv.DictReader(file))
        done = {(row["model"], row["device"]) for row in rows}
        rows += [_numbers(row) for row in held if (row["model"], row["device"]) not in done]
    rows.sort(key=lambda row: (row["model"], row["device"], row["atoms"]))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, PAGE / "roofline.png")


if __name__ == "__main__":
    main()
