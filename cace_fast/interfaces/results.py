"""Results of a potential under ASE's names and in the units that a calculator reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from cace_fast.properties import CHARGE_UNIT


def in_units(
    found: Mapping[str, Any],
    units: tuple[float, float, float],
    isolated: NDArray[np.float64] | None = None,
) -> dict[str, Any]:
    """Return ASE's results for those of a potential (``docs/conventions.md``, "Results").

    Parameters
    ----------
    found
        ``energy``, ``energies`` [n], ``forces`` [n, 3], and of ``stress`` [3, 3], ``charges`` [n]
        and ``dipole`` [3] what there is, in the units of the model.
    units
        eV, A and e per unit of energy, length and internal charge.
    isolated
        Energies of isolated atoms [n] in the units of the model, which are added; or None.

    Returns
    -------
    dict
        ``energy``, ``free_energy``, ``energies`` and ``forces``; ``stress`` in Voigt's order
        (xx yy zz yz xz xy), ``charges`` and ``dipole`` as in ``found``.
    """
    energy_unit, length_unit, charge_unit = units
    energy, energies = found["energy"], found["energies"]
    if isolated is not None:
        energy, energies = energy + float(isolated.sum()), energies + isolated
    results: dict[str, Any] = {
        "energy": energy * energy_unit,
        "free_energy": energy * energy_unit,
        "energies": energies * energy_unit,
        "forces": found["forces"] * (energy_unit / length_unit),
    }
    if "stress" in found:
        stress = found["stress"] * energy_unit / length_unit**3
        results["stress"] = full_3x3_to_voigt_6_stress(stress)
    if "charges" in found:
        results["charges"] = found["charges"] / CHARGE_UNIT * charge_unit
    if "dipole" in found:
        results["dipole"] = found["dipole"]
    return results
