"""Structures that several test modules use."""

from __future__ import annotations

import numpy as np
from ase import Atoms


def water(pbc):
    """Two water molecules, in a triclinic cell or free."""
    positions = [
        [0, 0, 0],
        [0.96, 0, 0],
        [-0.24, 0.93, 0],
        [2.6, 0.3, 0.5],
        [3.1, 1.1, 0.4],
        [3.2, -0.4, 0.9],
    ]
    cell = np.array([[5.1, 0, 0], [0.8, 4.9, 0], [-0.6, 1.0, 5.3]])
    return Atoms([8, 1, 1, 8, 1, 1], positions, cell=cell if pbc else None, pbc=pbc)
