"""Device code that several kernels share: look-ups, radial functions, cutoffs, monomials.

It computes in float32; the operator of the long range and runs of the interpreter use float64.
"""

import triton
import triton.language as tl

from cace_fast.kernels.triton._formulas import cutoff_function, radial_function
from cace_fast.spec import units

LENGTH_SHIFT = tl.constexpr(units.LENGTH_SHIFT)


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
    """Return COUNT sums [ROWS, LANES] of zeros, in the dtype of ``like``."""
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (tl.zeros((ROWS, LANES), like.dtype.element_ty),)
    return out


@triton.jit
def opaque_row_index(row, first, BLOCK_ROW: tl.constexpr, BLOCK_EDGE: tl.constexpr):
    """Return the rows of a tile as [BLOCK_ROW, BLOCK_EDGE], whose strides the compiler cannot see.

    It adds min(first, 0) = 0: else data would go through shared memory for stores along rows.
    """
    return (row + tl.minimum(first, 0))[:, None] + tl.zeros((BLOCK_ROW, BLOCK_EDGE), tl.int32)


@triton.jit
def geometry(x, y, z):
    """Return |d|, 1/|d|, 1/(|d| + 1e-9) and d/(|d| + 1e-9) (docs/theory.md, equation 10)."""
    square = x * x + y * y + z * z
    if x.dtype == tl.float64:
        r = tl.sqrt(square)
        inverse = 1.0 / r
        inv_r_eps = 1.0 / (r + LENGTH_SHIFT)
    else:
        inverse = tl.rsqrt(square)
        inverse = inverse * tl.fma(-0.5 * square * inverse, inverse, 1.5)  # one step of Newton's
        r = square * inverse
        inv_r_eps = inverse  # 1e-9 A is nothing in float32
    return r, inverse, inv_r_eps, x * inv_r_eps, y * inv_r_eps, z * inv_r_eps


@triton.jit
def cutoff(r, table, N_RBF: tl.constexpr, RADIAL: tl.constexpr):
    """Return f_c and its first and second derivative, zero from r_c on.

    The compiler drops results that a kernel does not use.
    """
    radius = tl.load(table + 2 * N_RBF + 1)
    scale = tl.load(table + 2 * N_RBF + 2)  # 1/r_c
    extra = tl.load(table + 2 * N_RBF + 3)
    return cutoff_function(get(RADIAL, 1), r, r * scale, scale, radius, extra, get(RADIAL, 2))


@triton.jit
def radial(
    r,
    inverse,
    table,
    FIRST_RBF: tl.constexpr,
    COUNT_RBF: tl.constexpr,
    N_RBF: tl.constexpr,
    RADIAL: tl.constexpr,
):
    """Return R_n f_c of COUNT_RBF functions from FIRST_RBF, and two derivatives: three tuples.

    ``table`` comes from ``edges.radial_table``: a_n, b_n [N_RBF each], scale, r_c, 1/r_c, and the
    cutoff's eps or switch-on.
    """
    fc, dfc, ddfc = cutoff(r, table, N_RBF, RADIAL)
    values = ()
    slopes = ()
    bends = ()
    for n in tl.static_range(FIRST_RBF, FIRST_RBF + COUNT_RBF):
        f, df, ddf, by_a, by_a_r, by_b, by_b_r = _function(r, inverse, table, n, N_RBF, RADIAL)
        values = values + (f * fc,)
        slopes = slopes + (df * fc + f * dfc,)
        bends = bends + (ddf * fc + 2.0 * df * dfc + f * ddfc,)
    return values, slopes, bends


@triton.jit
def radial_slopes(r, inverse, table, N_RBF: tl.constexpr, RADIAL: tl.constexpr):
    """Return derivatives of R_n f_c by a_n and b_n of the table, and their d/dr: four tuples."""
    fc, dfc, ddfc = cutoff(r, table, N_RBF, RADIAL)
    by_a = ()
    by_a_r = ()
    by_b = ()
    by_b_r = ()
    for n in tl.static_range(N_RBF):
        f, df, ddf, a, a_r, b, b_r = _function(r, inverse, table, n, N_RBF, RADIAL)
        by_a = by_a + (a * fc,)
        by_a_r = by_a_r + (a_r * fc + a * dfc,)
        by_b = by_b + (b * fc,)
        by_b_r = by_b_r + (b_r * fc + b * dfc,)
    return by_a, by_a_r, by_b, by_b_r


@triton.jit
def _function(r, inverse, table, n: tl.constexpr, N_RBF: tl.constexpr, RADIAL: tl.constexpr):
    a = tl.load(table + n)
    b = tl.load(table + N_RBF + n)
    g = tl.load(table + 2 * N_RBF)
    scale = tl.load(table + 2 * N_RBF + 2)
    return radial_function(get(RADIAL, 0), n, r, inverse, scale, a, b, g)


@triton.jit
def monomials(ux, uy, uz, PARENT: tl.constexpr):
    """Return all Y_m of a unit vector, each made from its parent (equation 10)."""
    u = (ux, uy, uz)
    out = (ux * 0.0 + 1.0,)
    for k in tl.static_range(1, length(PARENT)):
        if get(PARENT, k, 0) == 0:
            out = out + (u[get(PARENT, k, 1)],)
        else:
            out = out + (out[get(PARENT, k, 0)] * u[get(PARENT, k, 1)],)
    return out


@triton.jit
def monomial_tangents(y, ux, uy, uz, vx, vy, vz, PARENT: tl.constexpr):
    """Return the tangents of Y_m along a tangent v of u."""
    u = (ux, uy, uz)
    v = (vx, vy, vz)
    out = (ux * 0.0,)
    for k in tl.static_range(1, length(PARENT)):
        if get(PARENT, k, 0) == 0:
            out = out + (v[get(PARENT, k, 1)],)
        else:
            p = out[get(PARENT, k, 0)] * u[get(PARENT, k, 1)]
            out = out + (p + y[get(PARENT, k, 0)] * v[get(PARENT, k, 1)],)
    return out


@triton.jit
def edge_vector(vectors, e, inside, stride):
    """Return the components of edges; (1, 0, 0) where there is no edge."""
    x = tl.load(vectors + e, mask=inside, other=1.0)
    y = tl.load(vectors + stride + e, mask=inside, other=0.0)
    z = tl.load(vectors + 2 * stride + e, mask=inside, other=0.0)
    return x, y, z


@triton.jit
def edge_basis(
    x,
    y,
    z,
    table,
    FIRST_RBF: tl.constexpr,
    COUNT_RBF: tl.constexpr,
    N_RBF: tl.constexpr,
    RADIAL: tl.constexpr,
    PARENT: tl.constexpr,
):
    """Return ``geometry``, ``radial`` and ``monomials`` of edges, one after another."""
    r, inverse, inv_r_eps, ux, uy, uz = geometry(x, y, z)
    f, df, ddf = radial(r, inverse, table, FIRST_RBF, COUNT_RBF, N_RBF, RADIAL)
    return r, inverse, inv_r_eps, ux, uy, uz, f, df, ddf, monomials(ux, uy, uz, PARENT)
