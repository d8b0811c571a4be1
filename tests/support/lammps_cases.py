"""Small models for runs in LAMMPS: short range, messages, charges."""

from __future__ import annotations

import numpy as np

from cace_fast import Potential
from support.lammps import in_lammps_frame
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights

KINDS = {
    "short range": {},
    "messages": {"steps": ("M+Ar+Bchi",), "l_max": 3},
    "two steps": {"steps": ("Bchi", "M+Ar")},
    "charges": {"ewald_channels": 1},
    "everything": {"steps": ("M+Ar+Bchi",), "ewald_channels": 2},
}


def tiny(kind: str, seed: int = 0):
    """Return a small model of random weights, and a structure for it in the frame of LAMMPS."""
    spec = tiny_spec(**KINDS[kind])
    atoms = tiny_structure(spec, 3, spacing=2.2)
    rng = np.random.default_rng(seed)
    atoms.positions += rng.normal(scale=0.05, size=(len(atoms), 3))
    return Potential(spec, tiny_weights(spec), dtype="float64"), in_lammps_frame(atoms)
