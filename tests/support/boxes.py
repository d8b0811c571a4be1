"""Cells, periodicities and atoms that neighbour lists on a device are tested with."""

from __future__ import annotations

import numpy as np

CELLS = {
    "cubic": np.diag([11.0, 12.0, 13.0]),
    "triclinic": np.array([[9.0, 0.0, 0.0], [3.0, 8.0, 0.0], [-2.0, 2.5, 7.5]]),
    "small": np.array([[3.1, 0.0, 0.0], [1.4, 2.9, 0.0], [0.3, -0.8, 3.3]]),
    "flat": np.diag([2.5, 20.0, 6.0]),
    "left-handed": np.array([[0.0, 6.0, 0.0], [7.0, 0.0, 0.0], [0.5, 0.5, 8.0]]),
}
PBC = {
    "ppp": (True,) * 3,
    "ppo": (True, True, False),
    "opo": (False, True, False),
    "ooo": (False,) * 3,
}


def places(n: int, cell: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return atoms in and around a cell: some lie several cells away."""
    rng = np.random.default_rng(seed)
    inside = rng.random((n, 3)) * 1.2
    return (inside + rng.integers(-2, 3, (n, 3)) * (rng.random((n, 1)) < 0.3)) @ cell
