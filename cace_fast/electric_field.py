"""Electric fields as functions of time.

A field f adds Z* f to the forces, and -f.P to the energy of an open system (``docs/theory.md``,
section 10). :class:`cace_fast.CACECalculator` applies it; :class:`cace_fast.FieldWork` adds up the
work that it does along a run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, exp, isfinite, pi, radians
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cace_fast.errors import InputError

Vector = NDArray[np.float64]
FieldOfTime = Callable[[float], ArrayLike]


@dataclass(frozen=True)
class OscillatingField:
    """A field A cos(2 pi nu (t - t0) + phase) exp(-(t - t0)^2/(2 width^2)), or a part of that.

    ``docs/user/electric_fields.md`` has examples.

    Attributes
    ----------
    amplitude
        A: three numbers in V/A.
    frequency
        nu in THz; 0 for a field that does not oscillate.
    phase
        In degrees.
    pulse
        t0 and width in fs; None for a field without beginning or end, whose t0 is 0.

    Raises
    ------
    InputError
        For numbers that are not finite, or a width that is not above 0.
    """

    amplitude: tuple[float, ...]
    frequency: float = 0.0
    phase: float = 0.0
    pulse: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        vector_of("amplitude", self.amplitude)
        for name in ("frequency", "phase"):
            if not isfinite(getattr(self, name)):
                raise InputError(name, "a finite number", getattr(self, name))
        if self.pulse is not None:
            good = len(self.pulse) == 2 and all(map(isfinite, self.pulse)) and self.pulse[1] > 0
            if not good:
                raise InputError("pulse", "a time and a width above 0, in fs", self.pulse)

    def __call__(self, time: float) -> Vector:
        """Return the field [3] in V/A at a time in fs."""
        centre, width = self.pulse or (0.0, float("inf"))
        since = time - centre
        wave = cos(2e-3 * pi * self.frequency * since + radians(self.phase))
        return np.array(self.amplitude) * (wave * exp(-0.5 * (since / width) ** 2))


def vector_of(name: str, value: object) -> Vector:
    """Return a field in V/A as an array [3] float64 (``docs/user/electric_fields.md``).

    Raises
    ------
    InputError
        If it is not three finite numbers; the message calls it ``name``.
    """
    try:
        vector = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        vector = np.empty(0)
    if vector.shape != (3,) or not np.isfinite(vector).all():
        raise InputError(name, "three finite numbers", value)
    return vector


def add_field(found: dict[str, Any], field: ArrayLike) -> None:
    """Add a field [3] in V/A to results of a potential, in place (``docs/theory.md``, section 10).

    ``found`` holds ``bec`` [n, 3, 3] in e, and ``dipole`` [3] in e A where the structure is open.
    ``energy``, ``energies`` and ``forces`` change where they are there. Born charges are made
    neutral first.

    Raises
    ------
    InputError
        If the field is not three finite numbers.
    """
    vector = vector_of("field", field)
    if "dipole" in found:
        add_field_energy(found, -float(found["dipole"] @ vector), len(found["bec"]))
    if "forces" in found:
        found["forces"] = found["forces"] + neutral(found["bec"]) @ vector


def add_field_energy(found: dict[str, Any], energy: float, n_atoms: int) -> None:
    """Add the ``energy`` of a field, -f.P, in place: to ``energies`` in equal shares.

    See ``docs/theory.md``, section 10.
    """
    for name, share in (("energy", 1), ("free_energy", 1), ("energies", n_atoms)):
        if name in found:
            found[name] = found[name] + energy / share


def neutral(born: Vector) -> Vector:
    """Return Born charges [n, 3, 3] in e without their mean over the atoms.

    See ``docs/theory.md``, section 10.
    """
    return np.asarray(born - born.mean(axis=0))
