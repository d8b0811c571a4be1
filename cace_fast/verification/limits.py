"""How large a deviation may be, by working precision and the size of the results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cace_fast.graph import ModelOutput

# For float64 more than its rounding, 2^-53, because the order of sums may differ.
EPSILON = {torch.float32: 2.0**-24, torch.float64: 2.0**-46}
GROWTH = 200.0  # roundings of a number in the network, by experience with real models
DIFFERENCES = 1e-6  # relative error of float64 differences of energies, kinks of cutoffs included


@dataclass(frozen=True)
class Limits:
    """Allowed deviations for one structure (``docs/user/dtype.md``).

    Attributes
    ----------
    energy
        eV per atom.
    forces
        eV/A.
    virials
        eV.
    charges
        Internal units.
    features
        Relative to the largest.
    """

    energy: float
    forces: float
    virials: float
    charges: float
    features: float


def limits_for(dtype: torch.dtype, reference: ModelOutput) -> Limits:
    """Return the limits for a precision, scaled by the results of the reference.

    See ``docs/user/dtype.md``.
    """
    unit = GROWTH * EPSILON[dtype]
    per_atom = 1.0 + largest(reference.energies)
    force, virial = 1.0 + largest(reference.forces), 1.0 + largest(reference.virials)
    return Limits(
        energy=0.2 * unit * per_atom,
        forces=2.0 * unit * force,
        virials=2.0 * unit * (virial + len(reference.energies)),
        charges=2.0 * unit * (1.0 + largest(reference.latent_charges)),
        features=2.0 * unit,
    )


def largest(values: torch.Tensor | NDArray[Any] | None) -> float:
    """Return the largest absolute value; NaN if there is a NaN, 0 if there are no values.

    See ``docs/user/first_run.md``.
    """
    if values is None:
        return 0.0
    array = np.asarray(values, dtype=np.float64)
    return float(np.abs(array).max(initial=0.0))
