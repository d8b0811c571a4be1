"""The window of the mesh: its width for each accuracy, its polynomials, and its transform.

The window is the exponential of a semicircle (Barnett, Magland, af Klinteberg, SIAM J. Sci. Comput.
41, C479 (2019)), phi(z) = exp(beta (sqrt(1 - z^2) - 1)) for |z| <= 1, z in half widths. Triton's
kernels and plain torch take it from here, ``kernels/cpu/generate.py`` prints it for C++. This file
takes nothing but the standard library: a build has nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from math import cos, exp, fsum, pi, sin, sqrt
from typing import NamedTuple

NODES = 40  # of the quadrature of the transform, on half of the window
MORE_TERMS = {"float32": 3, "float64": 5}  # degree of the polynomials beyond the width


class Window(NamedTuple):
    """A window.

    Attributes
    ----------
    error
        Largest error of forces in float64, relative to max(max |F|, F0); ``docs/theory.md``,
        "The mesh".
    width
        In grid points.
    oversampling
        Grid points for each mode -m .. m along an axis, at least.
    """

    error: float
    width: int
    oversampling: float

    @property
    def beta(self) -> float:
        """Return the exponent, a little below where the transform's main lobe meets its alias."""
        return 0.97 * pi * self.width * (1.0 - 0.5 / self.oversampling)

    def value(self, z: float) -> float:
        """Return phi(z), z in half widths."""
        inside = 1.0 - z * z
        return exp(self.beta * (sqrt(inside) - 1.0)) if inside >= 0.0 else 0.0

    def slope(self, z: float) -> float:
        """Return dphi/dz; finite where the window ends, at |z| = 1."""
        inside = max(1.0 - z * z, 1e-12)
        return -self.beta * z / sqrt(inside) * self.value(z)


# From the cheapest to the finest; errors are twice what bench/long_range_errors.py measures.
WINDOWS = (
    Window(1.4e-1, 5, 1.5),
    Window(1.2e-2, 6, 1.5),
    Window(2e-3, 7, 1.5),
    Window(3e-4, 8, 1.5),
    Window(4e-5, 9, 1.5),
    Window(6e-6, 10, 1.5),
    Window(6e-7, 11, 1.5),
    Window(1e-7, 12, 1.5),
    Window(1e-8, 13, 1.5),
    Window(1.5e-9, 14, 1.5),
    Window(2e-10, 15, 1.5),
    Window(2.5e-11, 16, 1.5),
    Window(1e-12, 16, 2.0),
)
SINGLE_ERROR = 7e-7  # of forces, by the rounding of grids in float32
# Charges without correlation make potentials whose longest waves dwarf forces, the more so in long
# boxes; errors grow with them.
WAVES = 4  # the longest ones, along each axis
CUBE_WAVES = 16.2  # their sum in a cube of 1 A
USUAL_AMPLITUDE = 80.0  # up to which SINGLE_ERROR holds; ewald_method.Waves
USUAL_ELONGATION, MOST_GROWTH = 2.0, 10.0  # up to which the errors above hold; what they grow to

# What sums cost, in us on one core of 118 GFlop/s in float32 (AVX-512); their ratios decide.
DIRECT_ATOM = 0.4
DIRECT_PAIR = (0.85e-3, 0.30e-3)  # an atom and a vector k, and more for each channel
MESH_CALL = 300.0
MESH_ATOM = 0.15
MESH_STENCIL = (4.5e-3, 9e-3)  # an atom and a row of its stencil: in float32, in float64
MESH_POINT = (0.014, 0.026)  # a point of the grid
# Memory in bytes.
DIRECT_VECTOR = (16.0, 32.0)  # a vector k, and more for each channel
MESH_POINT_BYTES = (28.0, 56.0)  # a point of the grid and a channel
# What is refused: more than 4 GB or a minute, unless so many atoms of a liquid take it.
MOST_BYTES, MOST_SECONDS = 4e9, 60.0
ATOM_BYTES, ATOM_SECONDS = 4e3, 6e-5


def polynomials(window: Window, degree: int) -> tuple[list[list[float]], list[list[float]]]:
    """Return coefficients [degree + 1][width] of the window at an atom's points, and of its slope.

    Point j lies (x + 1)/2 - width/2 + j grid points after the atom, x in [-1, 1); the slope is the
    derivative by the atom's own coordinate in grid points.
    """
    half = 0.5 * window.width

    def fitted(function: Callable[[float], float]) -> list[list[float]]:
        points = [
            _fit(lambda x, j=j: function((0.5 * (x + 1.0) + j) / half - 1.0), degree)  # type: ignore[misc]
            for j in range(window.width)
        ]
        return [list(row) for row in zip(*points, strict=True)]

    # the distance of a point falls as the atom moves on
    return fitted(window.value), fitted(lambda z: -window.slope(z) / half)


def quadrature(window: Window) -> list[tuple[float, float]]:
    """Return x_i and w_i: the window's transform at wave number k is sum_i w_i cos(k x_i).

    x in grid points, k in radians for each. With z = sin t the integrand is an entire function.
    """
    half = 0.5 * window.width
    found = []
    for x, w in _legendre(2 * NODES):
        t = 0.5 * pi * x
        if t > 0.0:  # the window is even
            weight = 2.0 * w * 0.5 * pi * half * cos(t) * window.value(sin(t))
            found.append((half * sin(t), weight))
    return found


def _fit(function: Callable[[float], float], degree: int) -> list[float]:
    """Return the coefficients of a polynomial on [-1, 1], by Chebyshev interpolation."""
    n = 4 * (degree + 1)
    angles = [pi * (i + 0.5) / n for i in range(n)]
    values = [function(cos(t)) for t in angles]
    previous, current = [1.0] + [0.0] * degree, [0.0, 1.0] + [0.0] * (degree - 1)
    total = [0.0] * (degree + 1)
    for k in range(degree + 1):
        scale = (1.0 if k == 0 else 2.0) / n
        a = scale * fsum(v * cos(k * t) for v, t in zip(values, angles, strict=True))
        total = [s + a * p for s, p in zip(total, previous, strict=True)]
        following = [2.0 * p for p in [0.0, *current[:-1]]]
        following = [f - p for f, p in zip(following, previous, strict=True)]
        previous, current = current, following
    return total


def _legendre(n: int) -> list[tuple[float, float]]:
    """Return nodes and weights of Gauss and Legendre on [-1, 1]."""
    found = []
    for i in range(n):
        x = cos(pi * (i + 0.75) / (n + 0.5))
        for _ in range(20):
            p, before = 1.0, 0.0
            for k in range(1, n + 1):
                p, before = ((2 * k - 1) * x * p - (k - 1) * before) / k, p
            slope = n * (x * p - before) / (x * x - 1.0)
            x -= p / slope
        found.append((x, 2.0 / ((1.0 - x * x) * slope * slope)))
    return found
