"""Device code of the moments: rho of segments, its gradient, and derivatives of that.

rho[(n, m), s] is the sum over the edges of segment s of R_n f_c Y_m (the inner sum of
docs/theory.md, equation 11, before embeddings). A program owns BA segments, BE lanes walk through
the edges of each: sums stay in registers until the end; no atomics, no shared memory.
"""

import triton
import triton.language as tl

from cace_fast.kernels.triton._device import (
    edge_basis,
    edge_vector,
    geometry,
    get,
    length,
    monomial_rates,
    monomials,
    radial_slopes,
    wide_rows,
    zeros,
)


@triton.jit
def _segments(seg_first, n_seg, BA: tl.constexpr, BE: tl.constexpr):
    """Return whether a segment exists, its first edge and end, and the segment as [BA, BE]."""
    seg = tl.program_id(0) * BA + tl.arange(0, BA)
    exists = seg < n_seg
    first = tl.load(seg_first + seg, mask=exists, other=0)
    end = tl.load(seg_first + seg + 1, mask=exists, other=0)
    return exists, first, end, wide_rows(seg, first, BA, BE)


@triton.jit(do_not_specialize=["n_seg", "n_edges"])
def moments_forward(
    vectors, seg_first, table, rho, n_seg, n_edges,
    N0: tl.constexpr, NR: tl.constexpr, NB: tl.constexpr, RADIAL: tl.constexpr,
    PAR: tl.constexpr, BA: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Write rho[(N0 .. N0+NR-1, m), s] of BA segments."""
    NL: tl.constexpr = length(PAR)
    exists, first, end, wide = _segments(seg_first, n_seg, BA, BE)
    lane = tl.arange(0, BE)[None, :]
    sums = zeros(NR * NL, BA, BE, rho)
    for step in range(0, tl.max(end - first, 0), BE):
        e = first[:, None] + (lane + step)
        inside = e < end[:, None]
        x, y, z = edge_vector(vectors, e, inside, n_edges)
        r, inverse, shorter, ux, uy, uz, f, df, ddf, h = edge_basis(
            x, y, z, table, N0, NR, NB, RADIAL, PAR
        )
        added = ()
        for n in tl.static_range(NR):
            fn = tl.where(inside, f[n], 0.0)
            added = added + (sums[n * NL] + fn,)
            for m in tl.static_range(1, NL):
                added = added + (sums[n * NL + m] + fn * h[m],)
        sums = added
    store = exists[:, None] & (lane == 0)
    for k in tl.static_range(NR * NL):
        total = tl.broadcast_to(tl.sum(sums[k], 1, keep_dims=True), (BA, BE))
        tl.store(rho + (N0 * NL + k) * n_seg + wide, total, mask=store)


@triton.jit(do_not_specialize=["n_seg", "n_edges"])
def moments_backward(
    vectors, seg_first, table, grad_rho, grad_vectors, n_seg, n_edges,
    N0: tl.constexpr, NR: tl.constexpr, NB: tl.constexpr, RADIAL: tl.constexpr,
    PAR: tl.constexpr, DER: tl.constexpr, ADD: tl.constexpr, BA: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Write dE/dd [3, n_edges] of dE/drho; with ADD, add it to what is there."""
    NL: tl.constexpr = length(PAR)
    exists, first, end, wide = _segments(seg_first, n_seg, BA, BE)
    lane = tl.arange(0, BE)[None, :]
    g = ()
    some = (exists & (first < end))[:, None] & (wide >= 0)
    for k in tl.static_range(NR * NL):
        g = g + (tl.load(grad_rho + (N0 * NL + k) * n_seg + wide, mask=some, other=0.0),)
    for step in range(0, tl.max(end - first, 0), BE):
        e = first[:, None] + (lane + step)
        inside = e < end[:, None]
        x, y, z = edge_vector(vectors, e, inside, n_edges)
        r, inverse, shorter, ux, uy, uz, f, df, ddf, h = edge_basis(
            x, y, z, table, N0, NR, NB, RADIAL, PAR
        )
        along = g[0] * df[0]  # dE/dr at a fixed direction
        for n in tl.static_range(1, NR):
            along += g[n * NL] * df[n]
        gx = along * 0.0
        gy = gx
        gz = gx
        for m in tl.static_range(1, NL):
            u = g[m] * f[0]
            w = g[m] * df[0]
            for n in tl.static_range(1, NR):
                u += g[n * NL + m] * f[n]
                w += g[n * NL + m] * df[n]
            along += w * h[m]
            if get(DER, m, 0, 1) > 0:
                gx += u * (h[get(DER, m, 0, 0)] * get(DER, m, 0, 1))
            if get(DER, m, 1, 1) > 0:
                gy += u * (h[get(DER, m, 1, 0)] * get(DER, m, 1, 1))
            if get(DER, m, 2, 1) > 0:
                gz += u * (h[get(DER, m, 2, 0)] * get(DER, m, 2, 1))
        # d r/dd = d/r, and du/dd = (1 - u (d/r)^T)/(r + 1e-9)
        radially = along - (gx * ux + gy * uy + gz * uz) * shorter
        dx = radially * (x * inverse) + gx * shorter
        dy = radially * (y * inverse) + gy * shorter
        dz = radially * (z * inverse) + gz * shorter
        if ADD:
            dx += tl.load(grad_vectors + e, mask=inside, other=0.0)
            dy += tl.load(grad_vectors + n_edges + e, mask=inside, other=0.0)
            dz += tl.load(grad_vectors + 2 * n_edges + e, mask=inside, other=0.0)
        tl.store(grad_vectors + e, dx, mask=inside)
        tl.store(grad_vectors + n_edges + e, dy, mask=inside)
        tl.store(grad_vectors + 2 * n_edges + e, dz, mask=inside)


@triton.jit(do_not_specialize=["n_seg", "n_edges"])
def moments_rate(
    vectors, along, seg_first, table, rate, n_seg, n_edges,
    N0: tl.constexpr, NR: tl.constexpr, NB: tl.constexpr, RADIAL: tl.constexpr,
    PAR: tl.constexpr, BA: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Write how rho changes when edge vectors change by ``along`` [3, n_edges].

    This is also the derivative of ``moments_backward``, along a direction, by dE/drho.
    """
    NL: tl.constexpr = length(PAR)
    exists, first, end, wide = _segments(seg_first, n_seg, BA, BE)
    lane = tl.arange(0, BE)[None, :]
    sums = zeros(NR * NL, BA, BE, rate)
    for step in range(0, tl.max(end - first, 0), BE):
        e = first[:, None] + (lane + step)
        inside = e < end[:, None]
        x, y, z = edge_vector(vectors, e, inside, n_edges)
        vx = tl.load(along + e, mask=inside, other=0.0)
        vy = tl.load(along + n_edges + e, mask=inside, other=0.0)
        vz = tl.load(along + 2 * n_edges + e, mask=inside, other=0.0)
        r, inverse, shorter, ux, uy, uz, f, df, ddf, h = edge_basis(
            x, y, z, table, N0, NR, NB, RADIAL, PAR
        )
        dr = (vx * x + vy * y + vz * z) * inverse
        wx = (vx - ux * dr) * shorter
        wy = (vy - uy * dr) * shorter
        wz = (vz - uz * dr) * shorter
        dh = monomial_rates(h, ux, uy, uz, wx, wy, wz, PAR)
        added = ()
        for n in tl.static_range(NR):
            dn = df[n] * dr  # nothing beyond the end, where ``along`` is read as zero
            added = added + (sums[n * NL] + dn,)
            for m in tl.static_range(1, NL):
                added = added + (sums[n * NL + m] + (dn * h[m] + f[n] * dh[m]),)
        sums = added
    store = exists[:, None] & (lane == 0)
    for k in tl.static_range(NR * NL):
        total = tl.broadcast_to(tl.sum(sums[k], 1, keep_dims=True), (BA, BE))
        tl.store(rate + (N0 * NL + k) * n_seg + wide, total, mask=store)


@triton.jit(do_not_specialize=["n_seg", "n_edges"])
def moments_backward_rate(
    vectors, along, segment, table, grad_rho, out, n_seg, n_edges, count,
    NB: tl.constexpr, RADIAL: tl.constexpr, PAR: tl.constexpr, DER: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write how dE/dd changes when edge vectors change by ``along``, dE/drho fixed [3, n_edges].

    One lane for each edge, which reads dE/drho of its segment as it goes: for training and
    Hessians, where simple is better than quick.
    """
    NL: tl.constexpr = length(PAR)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < count
    seg = tl.load(segment + e, mask=inside, other=0)
    x, y, z = edge_vector(vectors, e, inside, n_edges)
    vx, vy, vz = edge_vector(along, e, inside, n_edges)
    r, inverse, shorter, ux, uy, uz, f, df, ddf, h = edge_basis(
        x, y, z, table, 0, NB, NB, RADIAL, PAR
    )
    dr = (vx * x + vy * y + vz * z) * inverse
    wx = (vx - ux * dr) * shorter
    wy = (vy - uy * dr) * shorter
    wz = (vz - uz * dr) * shorter
    dh = monomial_rates(h, ux, uy, uz, wx, wy, wz, PAR)
    zero = r * 0.0
    s = zero  # dE/dr at a fixed direction, and its rate
    ds = zero
    g = (zero, zero, zero)  # dE/du, and its rate
    dg = (zero, zero, zero)
    for m in tl.static_range(NL):
        u = zero
        w = zero
        du = zero
        dw = zero
        for n in tl.static_range(NB):
            gg = tl.load(grad_rho + (n * NL + m) * n_seg + seg, mask=inside, other=0.0)
            u += gg * f[n]
            w += gg * df[n]
            dw += gg * ddf[n]
        du = w * dr
        s += w * h[m]
        ds += dw * dr * h[m] + w * dh[m]
        new_g = ()
        new_dg = ()
        for axis in tl.static_range(3):
            if get(DER, m, axis, 1) > 0:
                slope = h[get(DER, m, axis, 0)] * get(DER, m, axis, 1)
                bend = dh[get(DER, m, axis, 0)] * get(DER, m, axis, 1)
                new_g = new_g + (g[axis] + u * slope,)
                new_dg = new_dg + (dg[axis] + du * slope + u * bend,)
            else:
                new_g = new_g + (g[axis],)
                new_dg = new_dg + (dg[axis],)
        g = new_g
        dg = new_dg
    p = g[0] * ux + g[1] * uy + g[2] * uz
    dp = dg[0] * ux + dg[1] * uy + dg[2] * uz + g[0] * wx + g[1] * wy + g[2] * wz
    d_shorter = -dr * shorter * shorter
    q = s - p * shorter
    dq = ds - dp * shorter - p * d_shorter
    ex = x * inverse
    ey = y * inverse
    ez = z * inverse
    ox = dq * ex + q * (vx - ex * dr) * inverse + dg[0] * shorter + g[0] * d_shorter
    oy = dq * ey + q * (vy - ey * dr) * inverse + dg[1] * shorter + g[1] * d_shorter
    oz = dq * ez + q * (vz - ez * dr) * inverse + dg[2] * shorter + g[2] * d_shorter
    tl.store(out + e, ox, mask=inside)
    tl.store(out + n_edges + e, oy, mask=inside)
    tl.store(out + 2 * n_edges + e, oz, mask=inside)


@triton.jit(do_not_specialize=["n_seg", "n_edges", "count"])
def moments_by_table(
    vectors, along, segment, table, grad_rho, out, n_seg, n_edges, count,
    NB: tl.constexpr, RADIAL: tl.constexpr, PAR: tl.constexpr, RATE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write each edge's part of dE/da_n, dE/db_n [2 n_b, n_edges] of dE/drho.

    With RATE: how it changes when edge vectors change by ``along``, dE/drho fixed.
    """
    NL: tl.constexpr = length(PAR)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < count
    seg = tl.load(segment + e, mask=inside, other=0)
    x, y, z = edge_vector(vectors, e, inside, n_edges)
    r, inverse, shorter, ux, uy, uz = geometry(x, y, z)
    h = monomials(ux, uy, uz, PAR)
    by_a, by_a_r, by_b, by_b_r = radial_slopes(r, inverse, table, NB, RADIAL)
    dr = r * 0.0
    dh = h
    if RATE:
        vx, vy, vz = edge_vector(along, e, inside, n_edges)
        dr = (vx * x + vy * y + vz * z) * inverse
        dh = monomial_rates(h, ux, uy, uz, (vx - ux * dr) * shorter, (vy - uy * dr) * shorter,
                            (vz - uz * dr) * shorter, PAR)  # fmt: skip
    for n in tl.static_range(NB):
        sum = r * 0.0
        rate = r * 0.0
        for m in tl.static_range(NL):
            g = tl.load(grad_rho + (n * NL + m) * n_seg + seg, mask=inside, other=0.0)
            sum += g * h[m]
            rate += g * dh[m]
        a = sum * by_a[n]
        b = sum * by_b[n]
        if RATE:
            a = rate * by_a[n] + sum * by_a_r[n] * dr
            b = rate * by_b[n] + sum * by_b_r[n] * dr
        tl.store(out + n * n_edges + e, a, mask=inside)
        tl.store(out + (NB + n) * n_edges + e, b, mask=inside)
