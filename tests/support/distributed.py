"""One process of a sum over k whose atoms lie on several."""

from __future__ import annotations

from cace_fast.kernels.cpu.interface import EwaldSpec
from cace_fast.kernels.cpu.long_range import EwaldSum

NUMBERS = (1.9, 0.8, 1.3, 0.4, 0.7, 1, 1, 2)  # with a field along z and a penalty
VACUUM = 9.0


def ewald(method):
    return EwaldSum(EwaldSpec(*NUMBERS), slab_vacuum=VACUUM, method=method, tolerance=1e-10)


def sums(q, r, cell, how):
    """Return what the atoms here put in; ``how`` is n_all, periodic and the method."""
    return ewald(how[2]).sums(q, r, cell, n_all=how[0], periodic=how[1])


def finish(total, q, r, cell, how):
    """Return energies, slopes and forces of the atoms here, and their part of the virial."""
    here = ewald(how[2])
    here.sums(q, r, cell, n_all=how[0], periodic=how[1])
    return here.finish(total, q, r)
