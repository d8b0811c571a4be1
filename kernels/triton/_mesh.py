"""Device code of the mesh: charges are spread on a grid, potentials are gathered from one.

One program has one atom: a tile of the y and z points of its stencil, and a loop along x. Grids are
[n_q, N1, N2, N3]; ``coefficients`` [2, TERMS, WIDTH] are the polynomials of the window and of its
slope, in the precision of the plan. Atoms are placed in float64.
"""

import triton
import triton.language as tl


@triton.jit
def _polynomial(coefficients, x, j, WIDTH: tl.constexpr, TERMS: tl.constexpr):
    """Return polynomials of x at points j, zero beyond the window."""
    exists = j < WIDTH
    total = tl.load(coefficients + (TERMS - 1) * WIDTH + j, mask=exists, other=0.0)
    for step in tl.static_range(1, TERMS):
        term = tl.load(coefficients + (TERMS - 1 - step) * WIDTH + j, mask=exists, other=0.0)
        total = total * x + term
    return total


@triton.jit
def _axis(
    r, inverse, coefficients, size, j, AXIS: tl.constexpr, WIDTH: tl.constexpr, TERMS: tl.constexpr
):
    """Return points of a stencil along an axis, and their weights and slopes."""
    fraction = tl.load(r) * tl.load(inverse + AXIS)
    fraction += tl.load(r + 1) * tl.load(inverse + 3 + AXIS)
    fraction += tl.load(r + 2) * tl.load(inverse + 6 + AXIS)
    u = (fraction - tl.floor(fraction)) * size
    begin = tl.ceil(u - 0.5 * WIDTH)
    x = (2.0 * (begin - u + 0.5 * WIDTH) - 1.0).to(coefficients.dtype.element_ty)
    weights = _polynomial(coefficients, x, j, WIDTH, TERMS)
    slopes = _polynomial(coefficients + TERMS * WIDTH, x, j, WIDTH, TERMS)
    points = (begin.to(tl.int64) + j + size) % size  # no window is wider than the grid
    # a place that is not finite stays so in x, and must not lead out of the grid
    points = tl.maximum(points, 0)
    return points, weights, slopes


@triton.jit
def _pick(values, j, which):
    return tl.sum(tl.where(j == which, values, tl.zeros_like(values)), 0)


@triton.jit(do_not_specialize=["n1", "n2", "n3"])
def spread(
    positions,
    q,
    units,
    inverse,
    coefficients,
    grid,
    n1,
    n2,
    n3,
    N_CHARGES: tl.constexpr,
    WIDTH: tl.constexpr,
    TERMS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Add the charges of an atom to the grid int64, in units [n_q]: the order does not matter."""
    i = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, LANES)
    r = positions + 3 * i
    x, wx, _ = _axis(r, inverse, coefficients, n1, j, 0, WIDTH, TERMS)
    y, wy, _ = _axis(r, inverse, coefficients, n2, j, 1, WIDTH, TERMS)
    z, wz, _ = _axis(r, inverse, coefficients, n3, j, 2, WIDTH, TERMS)
    place = y[:, None] * n3 + z[None, :]
    exists = (j < WIDTH)[:, None] & (j < WIDTH)[None, :]
    plane = n2.to(tl.int64) * n3
    for step in range(WIDTH):
        weight = (_pick(wx, j, step) * wy[:, None] * wz[None, :]).to(tl.float64)
        start = grid + _pick(x, j, step) * plane
        for c in tl.static_range(N_CHARGES):
            charge = tl.load(q + i * N_CHARGES + c) / tl.load(units + c)
            value = tl.floor(charge * weight + 0.5).to(tl.int64)
            tl.atomic_add(start + c * n1 * plane + place, value, mask=exists, sem="relaxed")


@triton.jit(do_not_specialize=["n1", "n2", "n3"])
def gather(
    positions,
    q,
    inverse,
    coefficients,
    grid,
    potential,
    gradient,
    n1,
    n2,
    n3,
    N_CHARGES: tl.constexpr,
    WIDTH: tl.constexpr,
    TERMS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Write the potentials [n_q] of an atom, and sum_c q_c dphi_c/dr [3]."""
    i = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, LANES)
    r = positions + 3 * i
    x, wx, dx = _axis(r, inverse, coefficients, n1, j, 0, WIDTH, TERMS)
    y, wy, dy = _axis(r, inverse, coefficients, n2, j, 1, WIDTH, TERMS)
    z, wz, dz = _axis(r, inverse, coefficients, n3, j, 2, WIDTH, TERMS)
    place = y[:, None] * n3 + z[None, :]
    exists = (j < WIDTH)[:, None] & (j < WIDTH)[None, :]
    plane = n2.to(tl.int64) * n3
    along_x, along_y, along_z = 0.0, 0.0, 0.0
    for c in tl.static_range(N_CHARGES):
        columns = tl.zeros((LANES, LANES), grid.dtype.element_ty)
        steep = tl.zeros((LANES, LANES), grid.dtype.element_ty)
        for step in range(WIDTH):
            start = grid + (c * n1 + _pick(x, j, step)) * plane
            points = tl.load(start + place, mask=exists, other=0.0)
            columns += points * _pick(wx, j, step)
            steep += points * _pick(dx, j, step)
        rows = tl.sum(columns * wz[None, :], 1)
        by_z = tl.sum(tl.sum(columns * dz[None, :], 1) * wy, 0)
        by_x = tl.sum(tl.sum(steep * wz[None, :], 1) * wy, 0)
        charge = tl.load(q + i * N_CHARGES + c)
        tl.store(potential + i * N_CHARGES + c, tl.sum(rows * wy, 0).to(tl.float64))
        along_x += charge * by_x.to(tl.float64)
        along_y += charge * tl.sum(rows * dy, 0).to(tl.float64)
        along_z += charge * by_z.to(tl.float64)
    for k in tl.static_range(3):
        total = along_x * n1 * tl.load(inverse + 3 * k)
        total += along_y * n2 * tl.load(inverse + 3 * k + 1)
        total += along_z * n3 * tl.load(inverse + 3 * k + 2)
        tl.store(gradient + 3 * i + k, total)
