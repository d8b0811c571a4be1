"""Which tile a kernel runs with, by size: a table, so that every run of a model runs the same code.

BA segments (or atoms) by BE lanes of their edges for each program of one warp. More lanes for each
segment fill a device when there are few segments; fewer waste less at ends. ``docs/kernels.md`` has
the counts that the limits come from.
"""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """Rows of a program's tile, lanes for each row, and warps."""

    rows: int
    lanes: int
    warps: int = 1


TILES = ((2_000, Tile(2, 16)), (20_000, Tile(8, 4)), (2**31, Tile(16, 2)))
BLOCK = 128  # lanes of a program where one lane is one edge or one atom
BLOCK_WARPS = 4
SUM_BLOCK = 1024  # numbers that a program of the float64 sums takes at once


def tile(n_rows: int) -> Tile:
    """Return the tile for a number of segments or atoms."""
    return next(found for limit, found in TILES if n_rows < limit)
