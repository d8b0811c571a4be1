"""One process of a sum over k whose atoms lie on several."""

from __future__ import annotations

from cace_fast.kernels.cpu.library import EwaldSpec
from cace_fast.kernels.cpu.long_range import EwaldSum

NUMBERS = (1.9, 0.8, 1.3, 0.0, 0.0, 1, 1, 0)


def factors(q, r, cell):
    """Return S(k) of the atoms here."""
    return EwaldSum(EwaldSpec(*NUMBERS)).structure_factors(q, r, cell)


def finish(structure, q, r, cell):
    """Return energies, slopes and forces of the atoms here, and the virial of all."""
    return EwaldSum(EwaldSpec(*NUMBERS)).finish(structure, q, r, cell)
