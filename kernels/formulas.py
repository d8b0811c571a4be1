"""Radial and cutoff functions and g(k), with derivatives: the one text of all fast kernels.

Each function here is a formula (``docs/theory.md``). It runs on floats as it stands, Triton
compiles it (``kernels/triton/_formulas.py``), ``kernels/cpu/generate.py`` prints it as C++, and
``kspace`` runs it on tensors. So a formula is plain Python of few words: assignments, arithmetic,
comparisons and ``&``, the functions below, ``for`` over ``range``, and an ``if`` of whole numbers
that returns. This file imports the standard library alone: a build has nothing else. The
reference has its own text.

In radial and cutoff functions ``r``, ``inverse`` = 1/r and ``x`` = r/r_c are vectors of edges;
everything else is the same for every edge: ``n`` counts radial functions, ``p`` is the polynomial's
power, ``scale`` is 1/r_c, and ``a``, ``b``, ``g`` are those of ``edges.radial_table``. Lengths are
in A.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from math import erfc, exp, log, sqrt
from typing import NamedTuple

PI = math.pi
PI2 = math.pi**2
SQRT_PI = math.sqrt(math.pi)
SQRT_HALF = math.sqrt(0.5)
SPHERE = 1.0 - 1e-6  # k^2 below this fraction of k_max^2: vectors on the sphere are always out

Numbers = tuple[float, ...]


def sincospi(x: float) -> tuple[float, float]:
    """Return sin(pi x) and cos(pi x) (``docs/theory.md``, section 2)."""
    return math.sin(PI * x), math.cos(PI * x)


def sincos_product(w: float, r: float) -> tuple[float, float]:
    """Return sin(w r) and cos(w r) (``docs/theory.md``, section 2)."""
    return math.sin(w * r), math.cos(w * r)


def where(condition: bool, x: float, y: float) -> float:
    """Return ``x`` where the condition holds, ``y`` elsewhere (``docs/theory.md``, section 2)."""
    return x if condition else y


def minimum(x: float, y: float) -> float:
    """Return the smaller of two numbers (``docs/theory.md``, section 2)."""
    return min(x, y)


class Parameter(NamedTuple):
    """A column of ``edges.radial_table``: a tensor of the model, or its inverse.

    See ``docs/theory.md``, section 2.
    """

    tensor: str
    inverse: bool = False


class Basis(NamedTuple):
    """A radial basis: its function, and the tensors of a and b, None for 0 (equations 3 to 5a).

    ``function`` returns R_n, dR/dr, d2R/dr2, dR/da, d2R/dadr, dR/db, d2R/dbdr.
    """

    function: Callable[[int, float, float, float, float, float, float], Numbers]
    a: Parameter | None = None
    b: Parameter | None = None


def bessel(n: int, r: float, inverse: float, scale: float, a: float, b: float, g: float) -> Numbers:
    """Return a Bessel function and its derivatives (equation 3), a = w.

    The argument is w r, not pi (w/pi) r: frequencies of files are float32 numbers, and rounded
    again they would be wrong by the same factor for all pairs.
    """
    s, c = sincos_product(a, r)
    f = s * (g * inverse)
    f_r = (c * (a * g) - f) * inverse
    f_rr = -a * a * f - 2.0 * f_r * inverse
    f_a = c * g
    f_ar = -s * (a * g)
    zero = r * 0.0
    return f, f_r, f_rr, f_a, f_ar, zero, zero


def gaussian(
    n: int, r: float, inverse: float, scale: float, a: float, b: float, g: float
) -> Numbers:
    """Return a Gaussian and its derivatives (equation 4), a = mu, b = 1/s."""
    z = (r - a) * b
    f = exp(-0.5 * z * z)
    f_r = -f * z * b
    f_rr = f * (z * z - 1.0) * b * b
    f_a = f * z * b
    f_ar = f * (1.0 - z * z) * b * b
    f_b = -f * z * (r - a)
    f_br = f * z * (z * z - 2.0)
    return f, f_r, f_rr, f_a, f_ar, f_b, f_br


def exponential(
    n: int, r: float, inverse: float, scale: float, a: float, b: float, g: float
) -> Numbers:
    """Return an exponential and its derivatives (equation 5), a = 1/r0."""
    f = g * exp(-r * a)
    f_r = -f * a
    f_rr = f * a * a
    f_a = -r * f
    f_ar = (a * r - 1.0) * f
    zero = r * 0.0
    return f, f_r, f_rr, f_a, f_ar, zero, zero


def chebyshev(
    n: int, r: float, inverse: float, scale: float, a: float, b: float, g: float
) -> Numbers:
    """Return T_n of y = 2r/r_c - 1 and its derivatives (equation 5a).

    The recursion begins with T_(-1) = T_1.
    """
    y = minimum(2.0 * r * scale - 1.0, 1.0)  # beyond the cutoff it must not overflow
    zero = r * 0.0
    one = zero + 1.0
    f_before, f = y, one
    f_y_before, f_y = one, zero
    f_yy_before, f_yy = zero, zero
    for _k in range(n):
        f_yy_before, f_yy = f_yy, 4.0 * f_y + 2.0 * y * f_yy - f_yy_before
        f_y_before, f_y = f_y, 2.0 * f + 2.0 * y * f_y - f_y_before
        f_before, f = f, 2.0 * y * f - f_before
    y_r = 2.0 * scale
    return f, f_y * y_r, f_yy * y_r * y_r, zero, zero, zero, zero


def polynomial(r: float, x: float, scale: float, radius: float, extra: float, p: int) -> Numbers:
    """Return f_c and two derivatives (equation 6) for integer p, with positive terms only."""
    x = minimum(x, 1.0)
    rest = 1.0 - x
    series = x * 0.0 + p * (p + 1.0) / 2.0
    for k in range(p - 1):
        series = series * x + (p - 1.0 - k) * (p - k) / 2.0
    f = rest * rest * rest * series
    low = scale * (-p * (p + 1.0) * (p + 2.0) / 2.0) * rest + x * 0.0
    if p == 1:
        return f, low * rest, -2.0 * low * scale
    for _k in range(p - 2):
        low = low * x
    return f, low * x * rest, ((p - 1.0) * rest - 2.0 * x) * low * scale


def cosine(r: float, x: float, scale: float, radius: float, extra: float, p: int) -> Numbers:
    """Return f_c and two derivatives (equation 7)."""
    inside = r < radius
    s, c = sincospi(where(inside, x, 0.5))
    zero = r * 0.0
    f = where(inside, 0.5 * (1.0 + c), zero)
    f_r = where(inside, -0.5 * PI * s * scale, zero)
    return f, f_r, where(inside, -0.5 * PI2 * c * scale * scale, zero)


def mollifier(r: float, x: float, scale: float, radius: float, extra: float, p: int) -> Numbers:
    """Return f_c and two derivatives (equation 8); ``extra`` is eps."""
    inside = (r + extra) < radius
    x = where(inside, x, 0.0)
    q = 1.0 / (1.0 - x * x)
    e = exp(1.0 - q)
    zero = r * 0.0
    f_r = where(inside, -2.0 * x * q * q * e * scale, zero)
    bend = (4.0 * x * x * q * q * q * q - 2.0 * q * q - 8.0 * x * x * q * q * q) * e
    return where(inside, e, zero), f_r, where(inside, bend * scale * scale, zero)


def smooth_switch(r: float, x: float, scale: float, radius: float, extra: float, p: int) -> Numbers:
    """Return f_c and two derivatives (equation 9); ``extra`` is r_on.

    f_c is 1/(1 + e^z) with z = 1/(1-y) - 1/y.
    """
    width = 1.0 / (radius - extra)
    y = (r - extra) / (radius - extra)
    between = (y > 0.0) & (y < 1.0)
    inner = where(between, y, 0.5)
    a = 1.0 / (1.0 - inner)
    b = 1.0 / inner
    z = a - b
    e = exp(-abs(z))
    small = e / (1.0 + e)
    large = 1.0 / (1.0 + e)
    slope = (a * a + b * b) * width
    product = small * large  # f (1 - f)
    bend = 2.0 * (a * a * a - b * b * b) * width * width
    flat = between & (e > 0.0)  # where e^-|z| underflows the tails are flat
    zero = r * 0.0
    tilt = where(z > 0.0, large - small, small - large)  # 1 - 2 f
    f = where(between, where(z > 0.0, small, large), where(y <= 0.0, zero + 1.0, zero))
    f_r = where(flat, -product * slope, zero)
    return f, f_r, where(flat, product * (tilt * slope * slope - bend), zero)


def real_polynomial(
    r: float, x: float, scale: float, radius: float, extra: float, p: float
) -> Numbers:
    """Return f_c and two derivatives (equation 6) for any p."""
    inside = r < radius
    x = where(inside, x, 0.5)
    x = where(x > 0.0, x, 0.5)
    a = (p + 1.0) * (p + 2.0) / 2.0
    b = p * (p + 2.0)
    c = p * (p + 1.0) / 2.0
    power = exp((p - 2.0) * log(x))
    zero = r * 0.0
    f = 1.0 - power * x * x * (a - x * (b - c * x))
    f_r = -power * x * (a * p - x * (b * (p + 1.0) - c * (p + 2.0) * x)) * scale
    bend = a * p * (p - 1.0) - x * (b * (p + 1.0) * p - c * (p + 2.0) * (p + 1.0) * x)
    f_rr = -power * bend * scale * scale
    return where(inside, f, zero), where(inside, f_r, zero), where(inside, f_rr, zero)


def coulomb(k2: float, sigma: float) -> Numbers:
    """Return g and dg/dk^2 of k^2 in 1/A^2 (equation 26, exponent 1); ``sigma`` is in A."""
    half = 0.5 * sigma * sigma
    g = exp(-half * k2) / k2
    return g, -g * (half + 1.0 / k2)


def dispersion(k2: float, sigma: float) -> Numbers:
    """Return g and dg/dk^2 of k^2 in 1/A^2 (equation 26, exponent 6); ``sigma`` is in A."""
    k = sqrt(k2)
    b = sigma * k * SQRT_HALF
    bell = exp(-b * b)
    bracket = SQRT_PI * erfc(b) + (0.5 / (b * b * b) - 1.0 / b) * bell
    # d bracket / db = -1.5 exp(-b^2) / b^4
    bend = 0.75 * k2 * (sigma * SQRT_HALF) * bell / (b * b * b * b)
    return -k * k2 * bracket, bend - 1.5 * k * bracket


# Kernels select a function by its index here; files and specifications by its name.
BASES = {
    "bessel": Basis(bessel, Parameter("frequencies")),
    "gaussian": Basis(gaussian, Parameter("offsets"), Parameter("widths", inverse=True)),
    "exponential": Basis(exponential, Parameter("ranges", inverse=True)),
    "chebyshev": Basis(chebyshev),
}
CUTOFFS: dict[str, Callable[[float, float, float, float, float, int], Numbers]] = {
    "polynomial": polynomial,
    "cosine": cosine,
    "mollifier": mollifier,
    "switch": smooth_switch,
    "real polynomial": real_polynomial,
}
KERNELS = {1: coulomb, 6: dispersion}  # by exponent
