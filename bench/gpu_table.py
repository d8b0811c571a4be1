"""What the kernels of every model need on every GPU: the table ``tests/gpu/matrix/table.csv``.

python bench/gpu_table.py            # compile all kernels for all targets and write the table
python bench/gpu_table.py --quick    # only what every change is tested with; prints it
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from gpu_emulator.resources import TARGETS, Specialised, measure
from gpu_models import MESHES, SHAPES, TRAINING, record, record_mesh, tiles, training_kernels

from cace_fast.kernels.triton import configs

TABLE = Path(__file__).resolve().parents[1] / "tests" / "gpu" / "matrix" / "table.csv"
# One model for every GPU, the others for one of each maker.
ALL_GPUS = ("water-mp0-sr", "training-l3-nu3")
FULL = [
    (model, target)
    for model in (*SHAPES, *TRAINING, *MESHES)
    for target in TARGETS
    if model in ALL_GPUS or target in ("sm_90", "gfx942")
]
QUICK = [
    ("water-mp0-sr", "sm_80"), ("water-mp0-sr", "sm_90"), ("water-mp0-sr", "gfx942"),
    ("licl-gaf3-lr0", "sm_90"), ("training-l3-nu3", "sm_90"),
    ("mesh-f32", "sm_90"), ("mesh-f64", "gfx942"),
]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One kernel of a model on one GPU; ``number`` tells kernels of one name apart."""

    model: str
    target: str
    kernel: str
    number: int
    warps: int
    registers: int
    spilled: int
    stack: int
    shared: int
    barriers: int
    fp64: int
    tf32: bool
    loop: int
    instructions: int


def key(row: Row) -> tuple[str, str, str, str]:
    """Return what names a row."""
    return row.model, row.target, row.kernel, str(row.number)


@cache
def kernels(model: str) -> tuple[Specialised, ...]:
    """Return the kernels of a model, each once; one model's with every tile, others' with the last.

    Tiles are the same for all models.
    """
    if model in TRAINING:
        return training_kernels(TRAINING[model])
    if model in MESHES:
        return record_mesh(MESHES[model])[2]
    found: dict[int, Specialised] = {}
    last = len(configs.TILES) - 1
    for number in range(last + 1) if model in ALL_GPUS else (last,):
        with tiles(number):
            recorded = record(SHAPES[model], 2)
            found |= {id(k.source): k for k in (*recorded.kernels, *recorded.list_kernels)}
    return tuple(found.values())


def rows(model: str, target: str) -> list[Row]:
    """Compile the kernels of a model for a GPU and return what they need."""
    return list(_rows(model, target))


def _rows(model: str, target: str) -> Iterator[Row]:
    count: dict[str, int] = {}
    for kernel in kernels(model):
        number = count[kernel.name] = count.get(kernel.name, -1) + 1
        needs = measure(kernel, target)
        yield Row(
            model, target, kernel.name, number, kernel.num_warps, needs.registers, needs.spilled,
            needs.stack, needs.shared, needs.count("barrier"), needs.count("fp64"), needs.tf32,
            sum(needs.loop.values()), needs.count(),
        )  # fmt: skip


def read() -> list[Row]:
    """Return the rows of the table."""
    with open(TABLE, newline="") as file:
        return [
            Row(**{f.name: _value(str(f.type), line[f.name]) for f in fields(Row)})
            for line in csv.DictReader(file)
        ]


def _value(kind: str, text: str) -> str | int | bool:
    return text if kind == "str" else text == "True" if kind == "bool" else int(text)


def main() -> None:
    """Write the table, or print a part of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", default=[], help="models or targets; rest: as it was")
    options = parser.parse_args()
    cases = QUICK if options.quick else FULL
    chosen = [case for case in cases if not options.only or set(case) & set(options.only)]
    for case in chosen:
        found = rows(*case)
        if options.quick:
            for row in found:
                print(*asdict(row).values())
            continue
        held = [row for row in read() if (row.model, row.target) in FULL] if TABLE.exists() else []
        write([*(row for row in held if (row.model, row.target) != case), *found])
        print(f"{' '.join(case)}: {len(found)} kernels")


def write(found: list[Row]) -> None:
    """Write the table."""
    with open(TABLE, "w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, sorted(found, key=lambda r: (r.model, r.target, r.kernel,
                                                                  r.number))))  # fmt: skip


if __name__ == "__main__":
    main()
