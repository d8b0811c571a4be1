"""Device code of the moments: rho of segments, its gradient, and derivatives of the gradient.

rho[(n, m), s] is the sum over the edges of segment s of R_n f_c Y_m (the inner sum of
docs/theory.md, equation 11, before embeddings). A program has BLOCK_SEG segments, and BLOCK_EDGE
lanes go through the edges of each: sums stay in registers until the end; no atomics, no shared
memory.
"""

import triton
import triton.language as tl

from cace_fast.kernels.triton._device import (
    edge_basis,
    edge_vector,
    geometry,
    get,
    length,
    monomial_tangents,
    monomials,
    opaque_row_index,
    radial_slopes,
    zeros,
)


@triton.jit
def _segments(seg_first, n_seg, BLOCK_SEG: tl.constexpr, BLOCK_EDGE: tl.constexpr):
    """Return which segments exist, their first edges and ends, and their numbers as a tile."""
    seg = tl.program_id(0) * BLOCK_SEG + tl.arange(0, BLOCK_SEG)
    exists = seg < n_seg
    first = tl.load(seg_first + seg, mask=exists, other=0)
    end = tl.load(seg_first + seg + 1, mask=exists, other=0)
    return exists, first, end, opaque_row_index(seg, first, BLOCK_SEG, BLOCK_EDGE)


@triton.jit(do_not_specialize=["n_seg", "n_edges"])
def moments_forward(
    vectors,
    seg_first,
    table,
    rho,
    n_seg,
    n_edges,
    FIRST_RBF: tl.constexpr,
    COUNT_RBF: tl.constexpr,
    N_RBF: tl.constexpr,
    RADIAL: tl.constexpr,
    PARENT: tl.constexpr,
    BLOCK_SEG: tl.constexpr,
    BLOCK_EDGE: tl.constexpr,
):
    """Write rho[(FIRST_RBF .. FIRST_RBF+COUNT_RBF-1, m), s] of BLOCK_SEG segments."""
    N_MONOMIALS: tl.constexpr = length(PARENT)
    exists, first, end, wide = _segments(seg_first, n_seg, BLOCK_SEG, BLOCK_EDGE)
    lane = tl.arange(0, BLOCK_EDGE)[None, :]
    sums = zeros(COUNT_RBF * N_MONOMIALS, BLOCK_SEG, BLOCK_EDGE, rho)
    for step in range(0, tl.max(end - first, 0), BLOCK_EDGE):
        e = first[:, None] + (lane + step)
        inside = e < end[:, None]
        x, y, z = edge_vector(vectors, e, inside, n_edges)
        r, inverse, inv_r_eps, ux, uy, uz, f, df, ddf, h = edge_basis(
            x, y, z, table, FIRST_RBF, COUNT_RBF, N_RBF, RADIAL, PARENT
        )
        added = ()
        for n in tl.static_range(COUNT_RBF):
            fn = tl.where(inside, f[n], 0.0)
            added = added + (sums[n * N_MONOMIALS] + fn,)
            for m in tl.static_range(1, N_MONOMIALS):
                added = added + (sums[n * N_MONOMIALS + m] + fn * h[m],)
        sums = added
    store = exists[:, None] & (lane == 0)
    for k in tl.static_range(COUNT_RBF * N_MONOMIALS):
        total = tl.broadcast_to(tl.sum(sums[k], 1, keep_dims=True), (BLOCK_SEG, BLOCK_EDGE))
        tl.store(rho + (FIRST_RBF * N_MONOMIALS + k) * n_seg + wide, total, mask=store)


@triton.jit(do_not_specialize=["n_seg", "n_edges"])
def moments_backward(
    vectors,
    seg_first,
    table,
    grad_rho,
    grad_vectors,
    n_seg,
    n_edges,
    FIRST_RBF: tl.constexpr,
    COUNT_RBF: tl.constexpr,
    N_RBF: tl.constexpr,
    RADIAL: tl.constexpr,
    PARENT: tl.constexpr,
    DERIVATIVES: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_SEG: tl.constexpr,
    BLOCK_EDGE: tl.constexpr,
):
    """Write dE/dd [3, n_edges] of dE/drho, or add it with ADD."""
    N_MONOMIALS: tl.constexpr = length(PARENT)
    exists, first, end, wide = _segments(seg_first, n_seg, BLOCK_SEG, BLOCK_EDGE)
    lane = tl.arange(0, BLOCK_EDGE)[None, :]
    g = ()
    some = (exists & (first < end))[:, None] & (wide >= 0)
    for k in tl.static_range(COUNT_RBF * N_MONOMIALS):
        g = g + (
            tl.load(grad_rho + (FIRST_RBF * N_MONOMIALS + k) * n_seg + wide, mask=some, other=0.0),
        )
    for step in range(0, tl.max(end - first, 0), BLOCK_EDGE):
        e = first[:, None] + (lane + step)
        inside = e < end[:, None]
        x, y, z = edge_vector(vectors, e, inside, n_edges)
        r, inverse, inv_r_eps, ux, uy, uz, f, df, ddf, h = edge_basis(
            x, y, z, table, FIRST_RBF, COUNT_RBF, N_RBF, RADIAL, PARENT
        )
        tangent = g[0] * df[0]  # dE/dr at a fixed direction
        for n in tl.static_range(1, COUNT_RBF):
            tangent += g[n * N_MONOMIALS] * df[n]
        gx = tangent * 0.0
        gy = gx
        gz = gx
        for m in tl.static_range(1, N_MONOMIALS):
            u = g[m] * f[0]
            w = g[m] * df[0]
            for n in tl.static_range(1, COUNT_RBF):
                u += g[n * N_MONOMIALS + m] * f[n]
                w += g[n * N_MONOMIALS + m] * df[n]
            tangent += w * h[m]
            if get(DERIVATIVES, m, 0, 1) > 0:
                gx += u * (h[get(DERIVATIVES, m, 0, 0)] * get(DERIVATIVES, m, 0, 1))
            if get(DERIVATIVES, m, 1, 1) > 0:
                gy += u * (h[get(DERIVATIVES, m, 1, 0)] * get(DERIVATIVES, m, 1, 1))
            if get(DERIVATIVES, m, 2, 1) > 0:
                gz += u * (h[get(DERIVATIVES, m, 2, 0)] * get(DERIVATIVES, m, 2, 1))
        # d r/dd = d/r, and du/dd = (1 - u (d/r)^T)/(r + 1e-9)
        radially = tangent - (gx * ux + gy * uy + gz * uz) * inv_r_eps
        dx = radially * (x * inverse) + gx * inv_r_eps
        dy = radially * (y * inverse) + gy * inv_r_eps
        dz = radially * (z * inverse) + gz * inv_r_eps
        if ADD:
            dx += tl.load(grad_vectors + e, mask=inside, other=0.0)
            dy += tl.load(grad_vectors + n_edges + e, mask=inside, other=0.0)
            dz += tl.load(grad_vectors + 2 * n_edges + e, mask=inside, other=0.0)
        tl.store(grad_vectors + e, dx, mask=inside)
        tl.store(grad_vectors + n_edges + e, dy, mask=inside)
        tl.store(grad_vectors + 2 * n_edges + e, dz, mask=inside)


@triton.jit(do_not_specialize=["n_seg", "n_edges"])
def moments_jvp(
    vectors,
    tangent,
    seg_first,
    table,
    jvp,
    n_seg,
    n_edges,
    FIRST_RBF: tl.constexpr,
    COUNT_RBF: tl.constexpr,
    N_RBF: tl.constexpr,
    RADIAL: tl.constexpr,
    PARENT: tl.constexpr,
    BLOCK_SEG: tl.constexpr,
    BLOCK_EDGE: tl.constexpr,
):
    """Write the change of rho when edge vectors change by ``tangent`` [3, n_edges].

    This is also the derivative of ``moments_backward``, along a tangent, by dE/drho.
    """
    N_MONOMIALS: tl.constexpr = length(PARENT)
    exists, first, end, wide = _segments(seg_first, n_seg, BLOCK_SEG, BLOCK_EDGE)
    lane = tl.arange(0, BLOCK_EDGE)[None, :]
    sums = zeros(COUNT_RBF * N_MONOMIALS, BLOCK_SEG, BLOCK_EDGE, jvp)
    for step in range(0, tl.max(end - first, 0), BLOCK_EDGE):
        e = first[:, None] + (lane + step)
        inside = e < end[:, None]
        x, y, z = edge_vector(vectors, e, inside, n_edges)
        vx = tl.load(tangent + e, mask=inside, other=0.0)
        vy = tl.load(tangent + n_edges + e, mask=inside, other=0.0)
        vz = tl.load(tangent + 2 * n_edges + e, mask=inside, other=0.0)
        r, inverse, inv_r_eps, ux, uy, uz, f, df, ddf, h = edge_basis(
            x, y, z, table, FIRST_RBF, COUNT_RBF, N_RBF, RADIAL, PARENT
        )
        dr = (vx * x + vy * y + vz * z) * inverse
        wx = (vx - ux * dr) * inv_r_eps
        wy = (vy - uy * dr) * inv_r_eps
        wz = (vz - uz * dr) * inv_r_eps
        dh = monomial_tangents(h, ux, uy, uz, wx, wy, wz, PARENT)
        added = ()
        for n in tl.static_range(COUNT_RBF):
            dn = df[n] * dr  # zero beyond the end, where ``along`` is read as zero
            added = added + (sums[n * N_MONOMIALS] + dn,)
            for m in tl.static_range(1, N_MONOMIALS):
                added = added + (sums[n * N_MONOMIALS + m] + (dn * h[m] + f[n] * dh[m]),)
        sums = added
    store = exists[:, None] & (lane == 0)
    for k in tl.static_range(COUNT_RBF * N_MONOMIALS):
        total = tl.broadcast_to(tl.sum(sums[k], 1, keep_dims=True), (BLOCK_SEG, BLOCK_EDGE))
        tl.store(jvp + (FIRST_RBF * N_MONOMIALS + k) * n_seg + wide, total, mask=store)


@triton.jit(do_not_specialize=["n_seg", "n_edges"])
def moments_vjp_jvp(
    vectors,
    tangent,
    segment,
    table,
    grad_rho,
    out,
    n_seg,
    n_edges,
    count,
    N_RBF: tl.constexpr,
    RADIAL: tl.constexpr,
    PARENT: tl.constexpr,
    DERIVATIVES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the change of dE/dd [3, n_edges] along ``tangent`` at a fixed dE/drho.

    ``tangent`` is the change of the edge vectors. There is one lane for each edge, which reads
    dE/drho of its segment: for training and Hessians simple code is better than quick code.
    """
    N_MONOMIALS: tl.constexpr = length(PARENT)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < count
    seg = tl.load(segment + e, mask=inside, other=0)
    x, y, z = edge_vector(vectors, e, inside, n_edges)
    vx, vy, vz = edge_vector(tangent, e, inside, n_edges)
    r, inverse, inv_r_eps, ux, uy, uz, f, df, ddf, h = edge_basis(
        x, y, z, table, 0, N_RBF, N_RBF, RADIAL, PARENT
    )
    dr = (vx * x + vy * y + vz * z) * inverse
    wx = (vx - ux * dr) * inv_r_eps
    wy = (vy - uy * dr) * inv_r_eps
    wz = (vz - uz * dr) * inv_r_eps
    dh = monomial_tangents(h, ux, uy, uz, wx, wy, wz, PARENT)
    zero = r * 0.0
    s = zero  # dE/dr at a fixed direction, and its rate
    ds = zero
    g = (zero, zero, zero)  # dE/du, and its rate
    dg = (zero, zero, zero)
    for m in tl.static_range(N_MONOMIALS):
        u = zero
        w = zero
        du = zero
        dw = zero
        for n in tl.static_range(N_RBF):
            gg = tl.load(grad_rho + (n * N_MONOMIALS + m) * n_seg + seg, mask=inside, other=0.0)
            u += gg * f[n]
            w += gg * df[n]
            dw += gg * ddf[n]
        du = w * dr
        s += w * h[m]
        ds += dw * dr * h[m] + w * dh[m]
        new_g = ()
        new_dg = ()
        for axis in tl.static_range(3):
            if get(DERIVATIVES, m, axis, 1) > 0:
                slope = h[get(DERIVATIVES, m, axis, 0)] * get(DERIVATIVES, m, axis, 1)
                bend = dh[get(DERIVATIVES, m, axis, 0)] * get(DERIVATIVES, m, axis, 1)
                new_g = new_g + (g[axis] + u * slope,)
                new_dg = new_dg + (dg[axis] + du * slope + u * bend,)
            else:
                new_g = new_g + (g[axis],)
                new_dg = new_dg + (dg[axis],)
        g = new_g
        dg = new_dg
    p = g[0] * ux + g[1] * uy + g[2] * uz
    dp = dg[0] * ux + dg[1] * uy + dg[2] * uz + g[0] * wx + g[1] * wy + g[2] * wz
    d_shorter = -dr * inv_r_eps * inv_r_eps
    q = s - p * inv_r_eps
    dq = ds - dp * inv_r_eps - p * d_shorter
    ex = x * inverse
    ey = y * inverse
    ez = z * inverse
    ox = dq * ex + q * (vx - ex * dr) * inverse + dg[0] * inv_r_eps + g[0] * d_shorter
    oy = dq * ey + q * (vy - ey * dr) * inverse + dg[1] * inv_r_eps + g[1] * d_shorter
    oz = dq * ez + q * (vz - ez * dr) * inverse + dg[2] * inv_r_eps + g[2] * d_shorter
    tl.store(out + e, ox, mask=inside)
    tl.store(out + n_edges + e, oy, mask=inside)
    tl.store(out + 2 * n_edges + e, oz, mask=inside)


@triton.jit(do_not_specialize=["n_seg", "n_edges", "count"])
def moments_by_table(
    vectors,
    tangent,
    segment,
    table,
    grad_rho,
    out,
    n_seg,
    n_edges,
    count,
    N_RBF: tl.constexpr,
    RADIAL: tl.constexpr,
    PARENT: tl.constexpr,
    TANGENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write each edge's part of dE/da_n, dE/db_n [2 n_b, n_edges] of dE/drho.

    With TANGENT: its change when edge vectors change by ``tangent``, dE/drho fixed.
    """
    N_MONOMIALS: tl.constexpr = length(PARENT)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < count
    seg = tl.load(segment + e, mask=inside, other=0)
    x, y, z = edge_vector(vectors, e, inside, n_edges)
    r, inverse, inv_r_eps, ux, uy, uz = geometry(x, y, z)
    h = monomials(ux, uy, uz, PARENT)
    by_a, by_a_r, by_b, by_b_r = radial_slopes(r, inverse, table, N_RBF, RADIAL)
    dr = r * 0.0
    dh = h
    if TANGENT:
        vx, vy, vz = edge_vector(tangent, e, inside, n_edges)
        dr = (vx * x + vy * y + vz * z) * inverse
        dh = monomial_tangents(
            h,
            ux,
            uy,
            uz,
            (vx - ux * dr) * inv_r_eps,
            (vy - uy * dr) * inv_r_eps,
            (vz - uz * dr) * inv_r_eps,
            PARENT,
        )
    for n in tl.static_range(N_RBF):
        sum = r * 0.0
        jvp = r * 0.0
        for m in tl.static_range(N_MONOMIALS):
            g = tl.load(grad_rho + (n * N_MONOMIALS + m) * n_seg + seg, mask=inside, other=0.0)
            sum += g * h[m]
            jvp += g * dh[m]
        a = sum * by_a[n]
        b = sum * by_b[n]
        if TANGENT:
            a = jvp * by_a[n] + sum * by_a_r[n] * dr
            b = jvp * by_b[n] + sum * by_b_r[n] * dr
        tl.store(out + n * n_edges + e, a, mask=inside)
        tl.store(out + (N_RBF + n) * n_edges + e, b, mask=inside)
