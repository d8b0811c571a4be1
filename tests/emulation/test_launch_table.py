"""The table of tiles: a function of a device's multiprocessors and a number of rows alone."""

from __future__ import annotations

import pytest
import torch
from gpu_emulator.roofline import DEVICES

from cace_fast.kernels.triton import configs
from cace_fast.kernels.triton.configs import TILES, UNITS, below, current_units, tile

# Rows at which the H100 of the prediction changes its tile, and the other devices theirs.
CHANGES = {
    "A100": (1_113, 18_410), "H100": (1_360, 22_500), "L40S": (1_464, 24_205),
    "RTX 4090": (1_319, 21_819), "MI300X": (3_133, 51_819),
}  # fmt: skip


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d.name)
def test_tiles_of_every_device(device) -> None:
    first, second = CHANGES[device.name]
    few, some, many = (found for _, found in TILES)
    for rows, expected in [
        (1, few), (first - 1, few), (first, some), (second - 1, some), (second, many),
        (10**9, many),
    ]:  # fmt: skip
        assert tile(rows, device.units) == expected, rows


def test_every_tile_is_one_warp_and_there_is_one_for_any_device() -> None:
    assert all(t.rows * t.lanes == 32 * t.warps for _, t in TILES)
    for units in (1, 7, 20, 1_000):
        rows = [tile(n, units).rows for n in (0, 1, 10, 10**3, 10**5, 10**8)]
        assert rows == sorted(rows)


def test_limits_scale_with_the_multiprocessors() -> None:
    assert below(99, 100, UNITS)
    assert not below(100, 100, UNITS)
    assert below(199, 100, 2 * UNITS)
    assert not below(50, 100, UNITS // 2)


def test_the_current_device_decides_where_none_is_named(monkeypatch) -> None:
    assert current_units() == UNITS or torch.cuda.is_initialized()
    monkeypatch.setattr(configs, "current_units", lambda: 10 * UNITS)
    assert tile(5_000) == TILES[0][1]
    assert tile(5_000, UNITS) == TILES[1][1]
