"""Resources of the kernels of every model on every GPU, against the table in this folder.

``make gpu-table`` wrote ``table.csv``; a few registers and instructions more are allowed, and this
file says what must never happen.
"""

from __future__ import annotations

import pytest
from gpu_table import FULL, QUICK, Row, key, read, rows

# Registers that another release of Triton may take more, and instructions (relative).
REGISTERS, INSTRUCTIONS = 8, 0.05
# Kernels of positions, cells, energies and meshes: the only float64 arithmetic there is.
WIDE = {
    "totals", "split_positions", "place_atoms", "near_pairs", "split_atoms",
    "integer_turns", "sum_factors", "sum_potentials", "sum_virials", "spread",
    "gather",
}  # fmt: skip
HELD = {key(row): row for row in read()}


@pytest.fixture(scope="module", params=QUICK, ids=" ".join)
def quick(request) -> list[Row]:
    return rows(*request.param)


@pytest.fixture(scope="module", params=[c for c in FULL if c not in QUICK], ids=" ".join)
def full(request) -> list[Row]:
    return rows(*request.param)


def check(found: list[Row]) -> None:
    assert found
    problems = []
    for row in found:
        held = HELD.get(key(row))
        where = " ".join(key(row))
        if held is None:
            problems.append(f"{where}: not in the table; run 'make gpu-table'")
            continue
        if row.tf32 or row.fp64 > held.fp64:
            problems.append(f"{where}: tf32 {row.tf32}, {row.fp64} float64 instructions")
        for name in ("spilled", "stack", "shared", "barriers"):
            if getattr(row, name) > getattr(held, name):
                problems.append(f"{where}: {name} {getattr(row, name)}, was {getattr(held, name)}")
        if row.registers > held.registers + REGISTERS:
            problems.append(f"{where}: {row.registers} registers, were {held.registers}")
        for name in ("loop", "instructions"):
            got, before = getattr(row, name), getattr(held, name)
            if got > before * (1 + INSTRUCTIONS) + 8:
                problems.append(f"{where}: {name} {got}, was {before}")
    assert problems == []


def test_the_usual_models_keep_their_budgets(quick):
    check(quick)


@pytest.mark.slow
def test_all_models_keep_their_budgets(full):
    check(full)


def test_the_table_allows_nothing_that_must_not_be():
    assert HELD
    for name, row in HELD.items():
        assert not row.tf32, name
        assert row.spilled == row.stack == 0, f"{name}: registers do not suffice"
        if row.kernel not in WIDE:
            assert row.fp64 == 0, f"{name}: float64 outside the sums of energies and positions"


def test_the_table_holds_every_model_and_target():
    held = {(row.model, row.target) for row in HELD.values()}
    assert held == {(model, target) for model, target in FULL}
