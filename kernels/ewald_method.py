"""How the sum over k of a system is made: directly or by a mesh, with which window and grid.

The same rule stands in ``kernels/cpu/csrc/ewald_method.cpp``; both take their numbers from
:mod:`cace_fast.kernels.window`.
"""

from __future__ import annotations

from math import ceil, inf, pi, sqrt
from typing import NamedTuple

import numpy as np
import torch

from cace_fast.errors import InputError
from cace_fast.kernels import window as numbers
from cace_fast.kernels.kspace import require_cell
from cace_fast.kernels.window import WINDOWS, Window

METHODS = ("auto", "direct", "mesh")
TIGHTEST = WINDOWS[-1].error  # of tolerances that a mesh keeps
MOST_PAIRS_ON_GPU = 3e8  # of an atom and a vector k: direct sums there; a prediction


class Sphere(NamedTuple):
    """Which vectors k are summed over, |k| < 2 pi/dl, and the width sigma of the charges; in A."""

    dl: float
    sigma: float


class MeshPlan(NamedTuple):
    """A mesh.

    Attributes
    ----------
    window
        What spreads and gathers.
    dtype
        Of the grid: float32 or float64.
    size
        Points along each lattice vector.
    modes
        m: the sphere lies within the modes -m .. m of each axis.
    """

    window: Window
    dtype: torch.dtype
    size: tuple[int, int, int]
    modes: tuple[int, int, int]


class Choice(NamedTuple):
    """What sums a system, None for the direct sum, and its predicted bytes and seconds."""

    plan: MeshPlan | None
    n_bytes: float
    seconds: float

    @property
    def method(self) -> str:
        """Return ``"direct"`` or ``"mesh"``."""
        return "direct" if self.plan is None else "mesh"


def n_k_vectors(cell: np.ndarray, dl: float) -> float:
    """Return about how many vectors k a cell [3, 3] in A has, one of each pair +-k."""
    return 2.0 * pi / 3.0 * abs(float(np.linalg.det(cell))) / dl**3


class Growth(NamedTuple):
    """How many times errors of a mesh are those of a usual box: by its window, by rounding."""

    window: float
    rounding: float


def growth(n: int, cell: np.ndarray, sphere: Sphere) -> Growth:
    """Return how the longest waves of charges without correlation make errors grow.

    Parameters
    ----------
    n
        Atoms.
    cell
        [3, 3] in A.
    sphere
        Resolution and width of the charges.
    """
    axis = np.arange(-numbers.WAVES, numbers.WAVES + 1)
    modes = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    k2 = ((2.0 * pi * modes @ np.linalg.inv(cell).T) ** 2).sum(1)
    volume = abs(float(np.linalg.det(cell)))
    waves = (2.0 * pi) ** 4 / volume * float((1.0 / k2[k2 > 0.0] ** 2).sum())
    elongation = sqrt(waves / (numbers.CUBE_WAVES * volume ** (1.0 / 3.0)))
    amplitude = 2.0 * pi / sphere.dl * sphere.sigma**2 * sqrt(n / volume * waves)
    return Growth(
        min(numbers.MOST_GROWTH, max(1.0, elongation / numbers.USUAL_ELONGATION)),
        max(1.0, amplitude / numbers.USUAL_AMPLITUDE),
    )


def mesh_plan(
    n: int, cell: np.ndarray, k_cell: np.ndarray, sphere: Sphere, tolerance: float
) -> MeshPlan:
    """Return the cheapest mesh that keeps a tolerance, the finest if none does.

    Parameters
    ----------
    n
        Atoms.
    cell, k_cell
        The cell [3, 3] in A, and that whose sphere chooses the integer vectors.
    sphere
        Resolution and width of the charges.
    tolerance
        Error of forces relative to max(max |F|, F0).
    """
    grown = growth(n, cell, sphere)
    window = next((w for w in WINDOWS if w.error * grown.window <= tolerance), WINDOWS[-1])
    single = numbers.SINGLE_ERROR * grown.rounding <= tolerance
    dtype = torch.float32 if single else torch.float64
    m1, m2, m3 = (max(1, int(x / sphere.dl)) for x in np.linalg.norm(k_cell, axis=1))
    a, b, c = (
        _smooth(max(ceil(window.oversampling * (2 * m + 1)), window.width)) for m in (m1, m2, m3)
    )
    return MeshPlan(window, dtype, (a, b, c), (m1, m2, m3))


def choose(
    method: str,
    tolerance: float,
    n: int,
    n_q: int,
    cell: np.ndarray,
    sphere: Sphere,
    k_cell: np.ndarray | None = None,
) -> Choice:
    """Return how a periodic system is summed: as the method says, or the cheaper way for "auto".

    Parameters
    ----------
    method, tolerance
        One of METHODS, and the error of forces by a mesh relative to max(max |F|, F0).
    n, n_q
        Atoms and charge channels.
    cell, k_cell
        The cell [3, 3] in A, and that whose sphere chooses the integer vectors k; by default the
        same.
    sphere
        Resolution and width of the charges.

    Raises
    ------
    InputError
        If there is no such method, a mesh cannot be as accurate, or its cell is singular.
    """
    require_method(method, tolerance)
    of = cell if k_cell is None else k_cell
    direct = _direct(n, n_q, n_k_vectors(of, sphere.dl))
    cheap = method == "auto" and direct.seconds * 1e6 <= numbers.MESH_CALL
    if method == "direct" or cheap or np.linalg.norm(of, axis=1).max() / sphere.dl > 1e6:
        return direct
    for vectors in (cell, of):
        require_cell(torch.from_numpy(np.ascontiguousarray(vectors)))
    finest = TIGHTEST * growth(n, cell, sphere).window
    if method == "auto" and finest > tolerance:
        return direct
    require_method(method, tolerance, finest)
    mesh = _mesh(n, n_q, mesh_plan(n, cell, of, sphere, tolerance))
    return mesh if method == "mesh" or mesh.seconds < direct.seconds else direct


def require_method(method: str, tolerance: float, finest: float = TIGHTEST) -> None:
    """Raise InputError unless there is such a method, and a mesh can be so accurate.

    Parameters
    ----------
    method, tolerance
        As for :func:`choose`.
    finest
        What a mesh keeps: TIGHTEST, and more in long boxes.
    """
    if method not in METHODS:
        raise InputError("long_range", f"one of {', '.join(METHODS)}", repr(method))
    if method == "mesh" and tolerance < finest:
        raise InputError(
            "long_range_tolerance",
            f"at least {finest:.2g} for long_range='mesh'",
            tolerance,
            "Use long_range='direct', which has no error of its own.",
        )


def require_size(choice: Choice, n: int, volume: float) -> None:
    """Raise InputError if a sum takes more memory or time than n atoms of a liquid would.

    Parameters
    ----------
    choice
        From :func:`choose`.
    n, volume
        Atoms, and the volume of their box in A^3, for the message.
    """
    most_bytes = max(numbers.MOST_BYTES, numbers.ATOM_BYTES * n)
    most_seconds = max(numbers.MOST_SECONDS, numbers.ATOM_SECONDS * n)
    if choice.n_bytes <= most_bytes and choice.seconds <= most_seconds:
        return
    raise InputError(
        "cell",
        f"a box whose long range takes at most {most_bytes / 1e9:.3g} GB and {most_seconds:.3g} s",
        f"about {choice.n_bytes / 1e9:.3g} GB and {choice.seconds:.3g} s, for {volume:.3g} A^3",
        "A molecule or cluster is open: set pbc=False; else take a smaller cell.",
    )


def crossover(n_q: int, sphere: Sphere, tolerance: float, density: float = 0.1) -> float:
    """Return from about how many atoms on "auto" takes a mesh, at a density in atoms/A^3."""
    few, many = 1, 1 << 30
    while many - few > 1:
        n = (few + many) // 2
        cell = np.eye(3) * (n / density) ** (1.0 / 3.0)
        if choose("auto", tolerance, n, n_q, cell, sphere).plan is not None:
            many = n
        else:
            few = n
    return many if many < 1 << 30 else inf


def _direct(n: int, n_q: int, n_k: float) -> Choice:
    pair = numbers.DIRECT_PAIR[0] + numbers.DIRECT_PAIR[1] * n_q
    vector = numbers.DIRECT_VECTOR[0] + numbers.DIRECT_VECTOR[1] * n_q
    return Choice(None, vector * n_k, 1e-6 * n * (numbers.DIRECT_ATOM + pair * n_k))


def _mesh(n: int, n_q: int, plan: MeshPlan) -> Choice:
    which = 0 if plan.dtype == torch.float32 else 1
    points = float(n_q * plan.size[0] * plan.size[1] * plan.size[2])
    stencil = numbers.MESH_STENCIL[which] * n_q * plan.window.width**2
    cost = (
        numbers.MESH_CALL + numbers.MESH_POINT[which] * points + n * (numbers.MESH_ATOM + stencil)
    )
    return Choice(plan, numbers.MESH_POINT_BYTES[which] * points, 1e-6 * cost)


def _smooth(least: int) -> int:
    """Return the smallest number from ``least`` on whose prime factors are 2, 3, 5 and 7."""
    number = least
    while True:
        rest = number
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return number
        number += 1
