"""One process of a sum over k whose atoms lie on several processes."""

from __future__ import annotations

import torch

from cace_fast.kernels.cpu.library import EwaldSpec
from cace_fast.kernels.cpu.long_range import EwaldSum
from cace_fast.slab import planar_moments, planar_terms, slab_of

NUMBERS = (1.9, 0.8, 1.3, 0.0, 0.0, 1, 1, 0)


def factors(q, r, cell):
    """Return S(k) of the atoms here."""
    return EwaldSum(EwaldSpec(*NUMBERS)).structure_factors(q, r, cell)


def finish(structure, q, r, cell):
    """Return energies, slopes and forces of the atoms here, and the virial of all."""
    return EwaldSum(EwaldSpec(*NUMBERS)).finish(structure, q, r, cell)


def slab_factors(q, r, cell, vacuum, origin):
    """Return S(k) of the atoms here in the box of the slab, and their planar moments."""
    slab = slab_of(torch.from_numpy(cell), 2, vacuum)
    z = torch.from_numpy(r) @ slab.normal - origin
    moments = planar_moments(torch.from_numpy(q), z)
    return factors(q, r, slab.cell.numpy().copy()), moments.numpy()


def slab_finish(structure, moments, q, r, cell, vacuum, origin):
    """Return the same as :func:`finish`, the virial that of the box, and the sum of F z here."""
    slab, norm = slab_of(torch.from_numpy(cell), 2, vacuum), NUMBERS[2]
    energies, slopes, forces, virial = finish(structure, q, r, slab.cell.numpy().copy())
    z = torch.from_numpy(r) @ slab.normal - origin
    lean = z.numpy() @ forces
    potential, pull = planar_terms(
        torch.from_numpy(q), z, slab, NUMBERS[1], torch.from_numpy(moments)
    )
    more = norm * potential.numpy()
    return energies + 0.5 * q * more, slopes + more, forces + norm * pull.numpy(), virial, lean
