"""The tile of each kernel by size and device: a table; programs do not time kernels.

A tile has BLOCK_SEG segments (or atoms) by BLOCK_EDGE lanes of their edges for each program of one
warp. More lanes for each segment fill a device when there are few segments; fewer waste less at
ends. The size that fills a device is proportional to its multiprocessors: limits are for `UNITS` of
them and scale (docs/developer/kernels.md).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch


class Tile(NamedTuple):
    """Rows of a program's tile, lanes for each row, and warps."""

    rows: int
    lanes: int
    warps: int = 1


UNITS = 132  # multiprocessors of the device that limits are stated for (H100)
TILES = ((1_360, Tile(2, 16)), (22_500, Tile(8, 4)), (2**62, Tile(16, 2)))
BLOCK = 128  # lanes of a program where one lane is one edge or one atom
BLOCK_WARPS = 4
SUM_BLOCK = 1024  # numbers that a program of the float64 sums takes at once


def tile(n_rows: int, units: int | None = None) -> Tile:
    """Return the tile for a number of segments or atoms, on a device of so many multiprocessors.

    The default is the current device.
    """
    return next(found for limit, found in TILES if below(n_rows, limit, units))


def below(n: int, limit: int, units: int | None = None) -> bool:
    """Return whether ``n`` is below a limit, which is for `UNITS` multiprocessors and scales."""
    return n * UNITS < limit * (current_units() if units is None else units)


def current_units() -> int:
    """Return the number of multiprocessors of the current GPU; `UNITS` where there is none."""
    return _units(torch.cuda.current_device()) if torch.cuda.is_initialized() else UNITS


@cache
def _units(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
