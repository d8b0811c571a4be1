"""Device code that several kernels share: look-ups, radial functions, cutoffs, monomials.

float32 throughout, with sines by polynomials after an own range reduction: the library's bring a
stack. In float64 are the long range's operator and the interpreter's runs.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def get(table, *path):
    """Return an entry of a nested constexpr tuple; chained indexing is not constexpr in Triton."""
    for step in path:
        table = table[step]
    return table


@triton.constexpr_function
def length(table, *path):
    """Return the length of a (nested) constexpr tuple."""
    for step in path:
        table = table[step]
    return len(table)


@triton.jit
def zeros(COUNT: tl.constexpr, ROWS: tl.constexpr, LANES: tl.constexpr, like):
    """Return COUNT sums [ROWS, LANES] that are still zero, in the dtype of ``like``."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (tl.zeros((ROWS, LANES), like.dtype.element_ty),)
    return out


@triton.jit
def wide_rows(row, first, BA: tl.constexpr, BE: tl.constexpr):
    """Return the rows of a tile as [BA, BE], opaque to the compiler's analysis of strides.

    It adds min(first, 0) = 0: else data would go through shared memory for stores along rows.
    """
    return (row + tl.minimum(first, 0))[:, None] + tl.zeros((BA, BE), tl.int32)


@triton.jit
def sincospi(turns):
    """Return sin(pi x), cos(pi x) of x = ``turns``, |x| < 2^21 in float32."""
    if turns.dtype == tl.float64:
        return _sincospi_double(turns)
    else:
        # adding and taking away 1.5 2^23 rounds to an integer: x - 2 k is exact and in [-1, 1]
        even = tl.fma(turns, 0.5, 12582912.0) - 12582912.0
        return _sincospi_reduced(tl.fma(even, -2.0, turns))


@triton.jit
def sincospi_product(a, r):
    """Return sin(pi a r), cos(pi a r): in float32 the product is not rounded before reduction."""
    if r.dtype == tl.float64:
        return sincospi(a * r)
    else:
        even = tl.fma(0.5 * a, r, 12582912.0) - 12582912.0
        return _sincospi_reduced(tl.fma(a, r, -2.0 * even))


@triton.jit
def _sincospi_reduced(u):
    """Return sin and cos of pi u, |u| <= 1: Chebyshev fits of sin/(u (1-u^2)) and cos/(1-4u^2).

    Dividing by the zeros makes them exact there; errors are below 3e-7.
    """
    w = u * u
    s = tl.fma(w, -0.00038593770539966114, 0.006860187318272263)
    s = tl.fma(s, w, -0.07518726334906756)
    s = tl.fma(s, w, 0.524036151372038)
    s = tl.fma(s, w, -2.0261194642622)
    s = tl.fma(s, w, 3.1415926444234024)
    c = tl.fma(w, -0.00040402037544151197, 0.006253968605349106)
    c = tl.fma(c, w, -0.057209165765623265)
    c = tl.fma(c, w, 0.31949395262415836)
    c = tl.fma(c, w, -0.9348014015262159)
    c = tl.fma(c, w, 0.9999999889445824)
    return s * tl.fma(-w, u, u), c * tl.fma(w, -4.0, 1.0)


@triton.jit
def _sincospi_double(turns):
    """Return them in float64, |x| < 2^50, to 4e-16; tl.fma would round the constants."""
    even = (turns * 0.5 + 6755399441055744.0) - 6755399441055744.0
    u = turns - 2.0 * even
    w = u * u
    s = w * -4.795585299774921e-10 + 2.2316263150901134e-08
    s = s * w + -7.726653626528434e-07
    s = s * w + 2.1142482257621263e-05
    s = s * w + -0.00044516020078506175
    s = s * w + 0.006925270697499447
    s = s * w + -0.07522061590208608
    s = s * w + 0.5240439134170486
    s = s * w + -2.026120126460173
    s = s * w + 3.141592653589793
    c = w * -8.05331395730229e-10 + 3.4283071559158883e-08
    c = c * w + -1.0669271789494348e-06
    c = c * w + 2.5892581981078213e-05
    c = c * w + -0.0004759203237541083
    c = c * w + 0.006332742730945354
    c = c * w + -0.057249471899557834
    c = c * w + 0.31950332423783023
    c = c * w + -0.9348022005446727
    c = c * w + 1.0
    return s * (u - u * w), c * (1.0 - 4.0 * w)


@triton.jit
def geometry(x, y, z):
    """Return |d|, 1/|d|, 1/(|d| + 1e-9) and d/(|d| + 1e-9) (docs/theory.md, equation 10)."""
    square = x * x + y * y + z * z
    if x.dtype == tl.float64:
        r = tl.sqrt(square)
        inverse = 1.0 / r
        shorter = 1.0 / (r + 1e-9)
    else:
        inverse = tl.rsqrt(square)
        inverse = inverse * tl.fma(-0.5 * square * inverse, inverse, 1.5)  # one step of Newton's
        r = square * inverse
        shorter = inverse  # 1e-9 A is nothing in float32
    return r, inverse, shorter, x * shorter, y * shorter, z * shorter


@triton.jit
def cutoff(r, table, NB: tl.constexpr, RADIAL: tl.constexpr):
    """Return f_c and its first and second derivative, zero from r_c on (equations 6 to 9).

    What a kernel does not use costs nothing: the compiler drops it.
    """
    radius = tl.load(table + 2 * NB + 1)
    scale = tl.load(table + 2 * NB + 2)  # 1/r_c
    extra = tl.load(table + 2 * NB + 3)
    KIND: tl.constexpr = get(RADIAL, 1)
    if KIND == 0:
        return _polynomial(tl.minimum(r * scale, 1.0), scale, get(RADIAL, 2))
    elif KIND == 3:
        return _switch((r - extra) / (radius - extra), 1.0 / (radius - extra))
    inside = r < radius
    x = tl.where(inside, r * scale, 0.5)
    if KIND == 1:
        s, c = sincospi(x)
        f = 0.5 * (1.0 + c)
        first = -1.5707963267948966 * s * scale
        second = -4.934802200544679 * c * scale * scale
    elif KIND == 2:
        inside = (r + extra) < radius
        x = tl.where(inside, x, 0.0)
        q = 1.0 / (1.0 - x * x)
        f = tl.exp(1.0 - q)
        first = -2.0 * x * q * q * f * scale
        second = (4.0 * x * x * q * q * q * q - 2.0 * q * q - 8.0 * x * x * q * q * q) * f
        second = second * scale * scale
    else:
        f, first, second = _real_polynomial(tl.where(x > 0.0, x, 0.5), scale, get(RADIAL, 2))
    zero = r * 0.0
    return tl.where(inside, f, zero), tl.where(inside, first, zero), tl.where(inside, second, zero)


@triton.jit
def _polynomial(x, scale, P: tl.constexpr):
    """Return the polynomial cutoff of integer p, with positive terms only, x in [0, 1]."""
    rest = 1.0 - x
    series = x * 0.0 + P * (P + 1.0) / 2.0
    for k in tl.static_range(P - 1):
        series = series * x + (P - 1.0 - k) * (P - k) / 2.0
    f = rest * rest * rest * series
    low = scale * (-P * (P + 1.0) * (P + 2.0) / 2.0) * rest + x * 0.0
    if P == 1:
        return f, low * rest, -2.0 * low * scale
    for k in tl.static_range(P - 2):
        low = low * x
    second = ((P - 1.0) * rest - 2.0 * x) * low * scale
    return f, low * x * rest, second


@triton.jit
def _real_polynomial(x, scale, P: tl.constexpr):
    """Return the polynomial cutoff of any p, x in (0, 1)."""
    A: tl.constexpr = (P + 1.0) * (P + 2.0) / 2.0
    B: tl.constexpr = P * (P + 2.0)
    C: tl.constexpr = P * (P + 1.0) / 2.0
    power = tl.exp((P - 2.0) * tl.log(x))
    f = 1.0 - power * x * x * (A - x * (B - C * x))
    first = -power * x * (A * P - x * (B * (P + 1.0) - C * (P + 2.0) * x)) * scale
    bend = A * P * (P - 1.0) - x * (B * (P + 1.0) * P - C * (P + 2.0) * (P + 1.0) * x)
    return f, first, -power * bend * scale * scale


@triton.jit
def _switch(y, width):
    """Return the switch 1/(1 + e^z), z = 1/(1-y) - 1/y, of y in units of 1/``width``."""
    between = (y > 0.0) & (y < 1.0)
    y0 = tl.where(between, y, 0.5)
    a = 1.0 / (1.0 - y0)
    b = 1.0 / y0
    z = a - b
    e = tl.exp(-tl.abs(z))
    small = e / (1.0 + e)
    large = 1.0 / (1.0 + e)
    slope = (a * a + b * b) * width
    product = small * large  # f (1 - f)
    bend = 2.0 * (a * a * a - b * b * b) * width * width
    flat = between & (e > 0.0)  # where e^-|z| is nothing the tails are flat
    first = tl.where(flat, -product * slope, 0.0)
    tilt = tl.where(z > 0.0, large - small, small - large)  # 1 - 2 f
    second = tl.where(flat, product * (tilt * slope * slope - bend), 0.0)
    f = tl.where(between, tl.where(z > 0.0, small, large), tl.where(y <= 0.0, 1.0, 0.0))
    return f, first, second


@triton.jit
def radial(
    r, inverse, table, N0: tl.constexpr, NR: tl.constexpr, NB: tl.constexpr, RADIAL: tl.constexpr
):
    """Return R_n f_c, n = N0 .. N0+NR-1, with first and second derivatives: three tuples.

    ``table`` is what ``edges.radial_table`` makes: a_n, b_n [NB each], scale, r_c, 1/r_c, and
    the cutoff's eps or switch-on. Equations 3 to 5.
    """
    fc, dfc, ddfc = cutoff(r, table, NB, RADIAL)
    g = tl.load(table + 2 * NB)
    KIND: tl.constexpr = get(RADIAL, 0)
    values = ()
    slopes = ()
    bends = ()
    for n in tl.static_range(NR):
        a = tl.load(table + N0 + n)
        if KIND == 0:
            s, c = sincospi_product(a, r)
            f = s * (g * inverse)
            w = a * 3.14159265358979323846
            df = (c * (w * g) - f) * inverse
            ddf = -w * w * f - 2.0 * df * inverse
        elif KIND == 1:
            b = tl.load(table + NB + N0 + n)
            z = (r - a) * b
            f = tl.exp(-0.5 * z * z)
            df = -f * z * b
            ddf = f * (z * z - 1.0) * b * b
        else:
            f = g * tl.exp(-r * a)
            df = -f * a
            ddf = f * a * a
        values = values + (f * fc,)
        slopes = slopes + (df * fc + f * dfc,)
        bends = bends + (ddf * fc + 2.0 * df * dfc + f * ddfc,)
    return values, slopes, bends


@triton.jit
def radial_slopes(r, inverse, table, NB: tl.constexpr, RADIAL: tl.constexpr):
    """Return how R_n f_c changes with a_n and b_n of the table, and d/dr of that: four tuples."""
    fc, dfc, ddfc = cutoff(r, table, NB, RADIAL)
    g = tl.load(table + 2 * NB)
    KIND: tl.constexpr = get(RADIAL, 0)
    by_a = ()
    by_a_r = ()
    by_b = ()
    by_b_r = ()
    for n in tl.static_range(NB):
        a = tl.load(table + n)
        if KIND == 0:
            s, c = sincospi_product(a, r)
            f = c * (g * 3.14159265358979323846)
            df = s * (a * g * -9.86960440108935861883)
            h = r * 0.0
            dh = h
        elif KIND == 1:
            b = tl.load(table + NB + n)
            z = (r - a) * b
            e = tl.exp(-0.5 * z * z)
            f = e * z * b
            df = e * (1.0 - z * z) * b * b
            h = -e * z * (r - a)
            dh = e * z * (z * z - 2.0)
        else:
            e = g * tl.exp(-r * a)
            f = -r * e
            df = (a * r - 1.0) * e
            h = r * 0.0
            dh = h
        by_a = by_a + (f * fc,)
        by_a_r = by_a_r + (df * fc + f * dfc,)
        by_b = by_b + (h * fc,)
        by_b_r = by_b_r + (dh * fc + h * dfc,)
    return by_a, by_a_r, by_b, by_b_r


@triton.jit
def monomials(ux, uy, uz, PAR: tl.constexpr):
    """Return all Y_m of a unit vector, each made of its parent (equation 10)."""
    u = (ux, uy, uz)
    out = (ux * 0.0 + 1.0,)
    for k in tl.static_range(1, length(PAR)):
        if get(PAR, k, 0) == 0:
            out = out + (u[get(PAR, k, 1)],)
        else:
            out = out + (out[get(PAR, k, 0)] * u[get(PAR, k, 1)],)
    return out


@triton.jit
def monomial_rates(y, ux, uy, uz, vx, vy, vz, PAR: tl.constexpr):
    """Return how Y_m change along a change v of u."""
    u = (ux, uy, uz)
    v = (vx, vy, vz)
    out = (ux * 0.0,)
    for k in tl.static_range(1, length(PAR)):
        if get(PAR, k, 0) == 0:
            out = out + (v[get(PAR, k, 1)],)
        else:
            p = out[get(PAR, k, 0)] * u[get(PAR, k, 1)]
            out = out + (p + y[get(PAR, k, 0)] * v[get(PAR, k, 1)],)
    return out


@triton.jit
def edge_vector(vectors, e, inside, stride):
    """Return the components of edges; (1, 0, 0) where there is none."""
    x = tl.load(vectors + e, mask=inside, other=1.0)
    y = tl.load(vectors + stride + e, mask=inside, other=0.0)
    z = tl.load(vectors + 2 * stride + e, mask=inside, other=0.0)
    return x, y, z


@triton.jit
def edge_basis(
    x, y, z, table, N0: tl.constexpr, NR: tl.constexpr, NB: tl.constexpr, RADIAL: tl.constexpr,
    PAR: tl.constexpr,
):  # fmt: skip
    """Return what ``geometry``, ``radial`` and ``monomials`` make of edges, one after another."""
    r, inverse, shorter, ux, uy, uz = geometry(x, y, z)
    f, df, ddf = radial(r, inverse, table, N0, NR, NB, RADIAL)
    return r, inverse, shorter, ux, uy, uz, f, df, ddf, monomials(ux, uy, uz, PAR)
