"""Which way of summing over k is cheaper: directly, or by Fourier transforms."""

from __future__ import annotations

from math import log10, pi

import numpy as np

from cace_fast.errors import InputError

METHODS = ("auto", "direct", "nufft")

# Times in us on one core of 118 GFlop/s in float32 (AVX-512); their ratios decide, and vary little.
OF_PAIR = (0.85e-3, 0.30e-3)  # of an atom and a vector k, and more for each channel
OF_CALL = 250.0  # of each transform, whatever its size
OF_ATOM = (0.7, 0.11)  # of an atom in each transform, and more for each digit
MOST_PAIRS_ON_GPU = 3e8  # of an atom and a vector k; a prediction, docs/developer/kernels.md
TIGHTEST = 1e-12  # relative accuracy of forces that transforms can promise


def n_k_vectors(cell: np.ndarray, dl: float) -> float:
    """Return about how many vectors k a cell [3, 3] has, one of each pair +-k."""
    return 2.0 * pi / 3.0 * abs(float(np.linalg.det(cell))) / dl**3


def predicted_costs(
    n_atoms: int, n_q: int, cell: np.ndarray, dl: float, tolerance: float
) -> dict[str, float]:
    """Return the time in us that each method would take on one core of the author's machine.

    Parameters
    ----------
    n_atoms, n_q
        Atoms and charge channels.
    cell
        The cell [3, 3] in A that chooses the vectors k.
    dl
        Resolution of the Ewald module in A.
    tolerance
        Relative accuracy of forces.
    """
    pair = OF_PAIR[0] + OF_PAIR[1] * n_q
    transforms = 5 * (n_q // 2) + 3 * (n_q % 2)
    atom = OF_ATOM[0] + OF_ATOM[1] * max(1.0, -log10(tolerance))
    return {
        "direct": n_atoms * (0.4 + pair * n_k_vectors(cell, dl)),
        "nufft": transforms * (OF_CALL + atom * n_atoms),
    }


def choose(
    method: str, n_atoms: int, n_q: int, cell: np.ndarray, dl: float, tolerance: float
) -> str:
    """Return ``"direct"`` or ``"nufft"``: the method named, or the cheaper one for ``"auto"``.

    Raises
    ------
    InputError
        If there is no such method, or transforms cannot be as accurate.
    """
    if method not in METHODS:
        raise InputError("long_range", f"one of {', '.join(METHODS)}", repr(method))
    if method == "nufft" and tolerance < TIGHTEST:
        raise InputError(
            "long_range_tolerance",
            f"at least {TIGHTEST:g} for long_range='nufft'",
            tolerance,
            "Use long_range='direct', which has no error of its own.",
        )
    if method != "auto":
        return method
    if tolerance < TIGHTEST:
        return "direct"
    costs = predicted_costs(n_atoms, n_q, cell, dl, tolerance)
    return min(costs, key=lambda name: costs[name])


def crossover(n_q: int, dl: float, tolerance: float, density: float = 0.1) -> int:
    """Return from about how many atoms on ``"auto"`` transforms, at a density in atoms/A^3."""
    few, many = 1, 1 << 40
    while many - few > 1:
        n = (few + many) // 2
        cell = np.eye(3) * (n / density) ** (1.0 / 3.0)
        if choose("auto", n, n_q, cell, dl, tolerance) == "nufft":
            many = n
        else:
            few = n
    return many
