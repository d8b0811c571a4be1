"""Predicts the time of a step on GPUs that are not here, from counted instructions and bytes.

    python bench/roofline.py --write                      # all models and devices: CSV and figure
    python bench/roofline.py --draw                       # the figure alone, from the tables
    python bench/roofline.py water-mp0-sr --device H100   # one model: its kernels and their bounds

A step of a small crystal runs on the emulator, once for each tile of `configs.TILES`; counts grow
in proportion to the atoms, those of sums over k with their square. A new neighbour list every 20
steps is counted in the same way; an operation of torch is one launch. Everything printed here is a
**prediction** (docs/developer/roofline.md says what it leaves out).
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from gpu_emulator import Launch, roofline
from gpu_emulator.resources import Resources, Specialised, measure
from gpu_models import DENSITY, DL, SHAPES, Recording, TorchTraffic, record, tiles

from cace_fast.kernels.ewald_method import MOST_PAIRS_ON_GPU, n_k_vectors
from cace_fast.kernels.triton import configs
from cace_fast.kernels.triton.ewald_tables import RUN
from cace_fast.kernels.triton.host_ewald import UNROLL

SIZES = (96, 192, 768, 3_072, 12_288, 98_304, 786_432)
SMALL, LARGE = 192, (3_072, 98_304)  # of the table of all launches
DETAILED, COMPARED = "H100", "water-mp0-sr"  # the device and the model of the figure
# What goes as the square of the atoms: pairs of an atom and a vector k, and parts of their sums.
PAIRS = ("structure_factors", "potentials", "sum_factors", "sum_potentials")
REBUILD_EVERY = 20  # steps
SEGMENTS = 1.9  # of an atom: elements among its neighbours
PAGE = Path(__file__).resolve().parents[1] / "docs" / "developer"


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


def rows_of_atom(model: str, kernel: str) -> float:
    """Return how many rows of tiles an atom has in a kernel: most have segments."""
    shape = SHAPES[model]
    channels = shape.embedding**2
    rows: dict[str, float] = {
        "bchi_sum": channels, "bchi_backward": channels * (shape.l_max + 1),
        "memory_and_ar": channels * shape.radial,
    }  # fmt: skip
    return rows.get(kernel, min(SEGMENTS, shape.elements))


def tile_number(model: str, device: roofline.Device, n_atoms: int, kernel: str = "") -> int:
    """Return which entry of the table of tiles a kernel of a system runs with on a device."""
    tiles = [tile for _, tile in configs.TILES]
    rows = round(n_atoms * rows_of_atom(model, kernel))
    return tiles.index(configs.tile(rows, device.units))


def step(
    model: str, device: roofline.Device, n_atoms: int, number: int | None = None
) -> list[roofline.Cost]:
    """Predict every launch of a step, and a step's share of a new neighbour list.

    ``number`` is the entry of the table of tiles, by default the one that it says.
    """
    fixed = number is not None
    number = tile_number(model, device, n_atoms) if number is None else number
    held = recordings(model)[number]
    growth = n_atoms / held.n_atoms
    chosen = [
        recordings(model)[number if fixed else tile_number(model, device, n_atoms, x.name)]
        for x in held.launches
    ]
    launches = [of.launches[k] for k, of in enumerate(chosen)]
    assert [x.name for x in launches] == [x.name for x in held.launches]
    found = [needs(of.kernels[k], device.architecture) for k, of in enumerate(chosen)]
    growths = [growth**2 if x.name in PAIRS else growth for x in launches]
    costs = list(roofline.step(launches, found, device, growths))
    costs = [_in_turns(c, x, k, device, held.n_atoms, n_atoms) for c, x, k in zip(
        costs, launches, found, strict=True)]  # fmt: skip
    costs += _torch("torch operations", device, held.torch, growth)
    found = [needs(kernel, device.architecture) for kernel in held.list_kernels]
    growths = [growth] * len(held.list_launches)
    lists = list(roofline.step(held.list_launches, found, device, growths))
    lists += _torch("torch operations", device, held.list_torch, growth)
    return [*costs, *(_share(cost) for cost in lists)]


def sizes(model: str, wanted: Sequence[int] = SIZES) -> list[int]:
    """Return the sizes that a model is predicted for: where its long range is a direct sum.

    The mesh of larger systems is not counted.
    """
    if not SHAPES[model].charges:
        return list(wanted)
    return [n for n in wanted if n * _n_k(n) <= MOST_PAIRS_ON_GPU]


def _n_k(n: int) -> int:
    """Return how many vectors k a cubic system of n atoms has."""
    return n_k_vectors(np.eye(3) * (n / DENSITY) ** (1 / 3), DL)


def _in_turns(
    cost: roofline.Cost, launch: Launch, resources: Resources, device: roofline.Device,
    recorded: int, n: int,
) -> roofline.Cost:  # fmt: skip
    """Return the cost of a kernel whose programs go on longer in larger systems.

    Those of sums over a system do not become more, those of sums of parts do; a turn is what a
    program has under way at once.
    """
    if launch.name not in ("totals", "sum_virials", "sum_factors", "sum_potentials"):
        return cost
    alone = launch.name in ("totals", "sum_virials")
    terms = _n_k if launch.name in ("sum_virials", "sum_potentials") else int
    size = configs.SUM_BLOCK if alone else RUN * UNROLL
    turns = -(-terms(n) // size) / -(-terms(recorded) // size)
    growth = 1.0 if alone else n / recorded
    once = roofline.predict(launch, resources, device, growth, 0.0).bounds["waiting"]
    return roofline.Cost(cost.name, cost.bounds | {"waiting": once * turns}, cost.launch)


def _torch(
    name: str, device: roofline.Device, traffic: TorchTraffic, growth: float
) -> list[roofline.Cost]:
    """Return the cost of operations of torch, each of which is one launch."""
    moved = traffic.bytes * growth / device.memory_rate * 1e-6
    return [roofline.Cost(name, {"memory": moved}, traffic.calls * device.launch)]


def _share(cost: roofline.Cost) -> roofline.Cost:
    """Return what one step has of the cost of a new list."""
    bounds = {name: time / REBUILD_EVERY for name, time in cost.bounds.items()}
    return roofline.Cost(f"list: {cost.name}", bounds, cost.launch / REBUILD_EVERY)


def table(models: Sequence[str], devices: Sequence[roofline.Device]) -> list[dict[str, Any]]:
    """Return predicted times for all sizes."""
    rows = []
    for model in models:
        for device in devices:
            for n in sizes(model):
                costs = step(model, device, n)
                total = sum(cost.time for cost in costs)
                longest = max(costs, key=lambda cost: cost.time)
                rows.append({
                    "model": model, "device": device.name, "atoms": n,
                    "us/step": round(total, 1), "us/atom": float(f"{total / n:.3g}"),
                    "launches": len(costs), "longest": longest.name, "bound": longest.bound,
                })  # fmt: skip
    return rows


def bounds(models: Sequence[str], devices: Sequence[roofline.Device]) -> list[dict[str, Any]]:
    """Return what bounds every launch, in a small system and the largest of LARGE."""
    rows = []
    for model in models:
        for device in devices:
            for n in (SMALL, sizes(model, LARGE)[-1]):
                for number, cost in enumerate(step(model, device, n)):
                    rows.append({
                        "model": model, "device": device.name, "atoms": n, "launch": number,
                        "kernel": cost.name, "us": float(f"{cost.time:.3g}"), "bound": cost.bound,
                    })  # fmt: skip
    return rows


def _numbers(row: dict[str, str]) -> dict[str, Any]:
    kinds = {"atoms": int, "us/step": float, "us/atom": float, "launches": int, "launch": int,
             "us": float}  # fmt: skip
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


def draw(rows: list[dict[str, Any]], launches: list[dict[str, Any]], path: Path) -> None:
    """Draw one panel for each question: which model, which device, and what a step waits for."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (models, devices, bounds) = pyplot.subplots(1, 3, figsize=(15, 4.6))
    _lines(models, [r for r in rows if r["device"] == DETAILED], "model")
    models.set_title(f"Which model? All on one {DETAILED}")
    _lines(devices, [r for r in rows if r["model"] == COMPARED], "device")
    devices.set_title(f"Which device? All with {COMPARED}")
    _shares(bounds, launches)
    bounds.set_title(f"What bounds a step? {DETAILED}, largest size")
    figure.suptitle("Predicted, not measured: float32, one new neighbour list in 20 steps")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _lines(axis: Any, rows: list[dict[str, Any]], what: str) -> None:
    """Draw time against size, a line for each value of ``what``, named below the panel."""
    for value in dict.fromkeys(row[what] for row in rows):
        chosen = [row for row in rows if row[what] == value]
        x, y = [r["atoms"] for r in chosen], [r["us/atom"] for r in chosen]
        axis.loglog(x, y, "o-", markersize=3, label=value)
    axis.set_xlabel("atoms")
    axis.set_ylabel("us per atom and step")
    axis.grid(alpha=0.3)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=8, frameon=False)


def _shares(axis: Any, launches: list[dict[str, Any]]) -> None:
    """Draw the share of a step's time that each resource bounds, a bar for each model."""
    names = list(dict.fromkeys(row["model"] for row in launches))
    largest = {m: max(row["atoms"] for row in launches if row["model"] == m) for m in names}
    left = np.zeros(len(names))
    for bound in dict.fromkeys(row["bound"] for row in launches):
        time = [
            sum(
                row["us"]
                for row in launches
                if (row["model"], row["atoms"], row["bound"]) == (model, largest[model], bound)
            )
            for model in names
        ]
        whole = [
            sum(r["us"] for r in launches if (r["model"], r["atoms"]) == (m, largest[m]))
            for m in names
        ]
        share = 100 * np.divide(time, whole)
        axis.barh(names, share, left=left, label=bound)
        left += share
    axis.set_xlabel("% of the step")
    axis.set_xlim(0, 100)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, fontsize=8, frameon=False)


def main() -> None:
    """Print, or write, what the arguments ask for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(SHAPES))
    parser.add_argument("--device", choices=[d.name for d in roofline.DEVICES])
    parser.add_argument("--atoms", type=int, nargs="+", default=[192, 98_304])
    parser.add_argument("--write", action="store_true", help="docs/developer/roofline*.csv, .png")
    parser.add_argument("--draw", action="store_true", help="roofline.png of the tables that exist")
    options = parser.parse_args()
    devices = [d for d in roofline.DEVICES if options.device in (None, d.name)]
    if options.draw:
        draw(_held("roofline.csv"), _held("roofline_kernels.csv"), PAGE / "roofline.png")
        return
    if not options.write:
        for model in options.models:
            for device in devices:
                show(model, device, options.atoms)
        return
    rows = _kept("roofline.csv", table(options.models, devices))
    here = [d for d in devices if d.name == DETAILED]
    if here:
        _kept("roofline_kernels.csv", bounds(options.models, here))
    draw(rows, _held("roofline_kernels.csv"), PAGE / "roofline.png")


def _held(name: str) -> list[dict[str, Any]]:
    """Return the rows of a table of an earlier run."""
    with open(PAGE / name, newline="") as file:
        return [_numbers(row) for row in csv.DictReader(file)]


def _kept(name: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Write rows to a table in which those of other models and devices stay; return all."""
    path = PAGE / name
    if path.exists():
        done = {(row["model"], row["device"]) for row in rows}
        rows = rows + [r for r in _held(name) if (r["model"], r["device"]) not in done]
    rows.sort(key=lambda row: (row["model"], row["device"], row["atoms"], row.get("launch", 0)))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return rows


if __name__ == "__main__":
    main()
