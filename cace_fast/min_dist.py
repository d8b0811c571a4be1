"""How close two atoms may come: by default a share of the sum of their covalent radii."""

from __future__ import annotations

from functools import lru_cache
from math import inf

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .tables import CLOSEST_SHARE, COVALENT_RADII

AUTO = "auto"
MinDist = float | str | None  # A, "auto", or any distance
REMEDY = "Mend the structure, or allow it by min_dist=None or a smaller number."


def check_min_dist(min_dist: MinDist) -> None:
    """Raise InputError unless ``min_dist`` is a length in A, "auto" or None.

    See ``docs/user/errors.md``.
    """
    if min_dist is None or (isinstance(min_dist, str) and min_dist == AUTO):
        return
    good = isinstance(min_dist, int | float | np.number) and not isinstance(min_dist, bool)
    if not (good and 0.0 <= float(min_dist) < inf):
        raise InputError("min_dist", 'a length of at least 0 A, "auto" or None', repr(min_dist))


def half_distances(elements: tuple[int, ...], min_dist: MinDist) -> NDArray[np.float64] | None:
    """Return half the shortest allowed distance [n_elements] in A; None if any is allowed.

    ``docs/user/errors.md`` has the limits.

    Parameters
    ----------
    elements
        Atomic numbers.
    min_dist
        One distance in A for all pairs, or "auto": 0.35 times the covalent radius of each element.

    Raises
    ------
    InputError
        As for :func:`check_min_dist`.
    """
    check_min_dist(min_dist)
    if min_dist is None:
        return None
    return _shares(elements) if isinstance(min_dist, str) else np.full(len(elements), min_dist / 2)


@lru_cache(maxsize=64)
def _shares(elements: tuple[int, ...]) -> NDArray[np.float64]:
    return np.array([CLOSEST_SHARE * covalent_radius(z) for z in elements])


def covalent_radius(number: int) -> float:
    """Return the covalent radius of an element in A; 0.2 for a number without an element.

    The table and its source are in ``cace_fast.tables``.
    """
    return COVALENT_RADII[number if 0 < number < len(COVALENT_RADII) else 0]


def too_close(pair: tuple[int, int], distance: float, limit: float) -> InputError:
    """Return the error of two atoms, or of an atom and its image, at ``distance`` in A.

    ``limit`` in A is the distance that they need (``docs/user/errors.md``).
    """
    i, j = sorted(pair)
    who = f"atoms {i} and {j}" if i != j else f"atom {i} and its own image"
    expected, got = f"atoms at least {limit:.3g} A apart", f"{who} at {distance:.6f} A"
    return InputError("positions", expected, got, REMEDY)
