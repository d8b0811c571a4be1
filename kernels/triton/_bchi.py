"""Device code of Bchi: sums over edges weighted by their senders, and the gradients of edges.

The forward sum is that of the moments, with one more weight v[sender, c, l]: rows of a tile are
(atom, c). Backwards a lane is an edge: dE/dsums of its receiver is the same for most lanes of a
warp, and one pass gives the gradient of the edge and dE/dv, which senders gather.
"""

import triton
import triton.language as tl

from cace_fast.kernels.triton._device import (
    edge_basis,
    edge_vector,
    geometry,
    get,
    length,
    monomials,
    radial,
    wide_rows,
    zeros,
)
from cace_fast.kernels.triton._messages import by_degree, owner


@triton.constexpr_function
def count(degree):
    """Return the number of monomials of a degree."""
    return (degree + 1) * (degree + 2) // 2


@triton.constexpr_function
def begin(degree):
    """Return the position of the first monomial of a degree."""
    return degree * (degree + 1) * (degree + 2) // 6


@triton.jit(do_not_specialize=["n", "n_edges"])
def bchi_sum(
    vectors, sender, atom_first, seg_first, table, v, sums, n, n_edges,
    N0: tl.constexpr, NR: tl.constexpr, NB: tl.constexpr, C: tl.constexpr, RADIAL: tl.constexpr,
    PAR: tl.constexpr, DEG: tl.constexpr, NDEG: tl.constexpr, BA: tl.constexpr,
    BE: tl.constexpr,
):  # fmt: skip
    """Write sum_e R_n f_c Y_m v[i, c, l] for n = N0 .. N0+NR-1; v = h_s w of the senders (20).

    As in ``moments_forward``: BA rows are (atom, c), BE slots share the edges of a row.
    """
    NL: tl.constexpr = length(DEG)
    row = tl.program_id(0) * BA + tl.arange(0, BA)
    atom, exists = row // C, row < n * C
    first = tl.load(seg_first + tl.load(atom_first + atom, mask=exists, other=0))
    end = tl.load(seg_first + tl.load(atom_first + atom + 1, mask=exists, other=0))
    lane = tl.arange(0, BE)[None, :]
    wide = wide_rows(row, first, BA, BE)
    c = wide % C
    found = zeros(NR * NL, BA, BE, sums)
    for step in range(0, tl.max(end - first, 0), BE):
        e = first[:, None] + (lane + step)
        inside = e < end[:, None]
        x, y, z = edge_vector(vectors, e, inside, n_edges)
        r, inverse, shorter, ux, uy, uz, f, df, ddf, h = edge_basis(
            x, y, z, table, N0, NR, NB, RADIAL, PAR
        )
        place = v + tl.load(sender + e, mask=inside, other=0).to(tl.int64) * (C * NDEG) + c * NDEG
        weights = by_degree(place, 1, inside, NDEG)
        weighted = ()
        for m in tl.static_range(NL):
            weighted = weighted + (h[m] * weights[get(DEG, m)],)
        added = ()
        for n_r in tl.static_range(NR):
            for m in tl.static_range(NL):
                added = added + (found[n_r * NL + m] + f[n_r] * weighted[m],)
        found = added
    own = sums + (wide // C).to(tl.int64) * (NL * NB * C) + c
    store = exists[:, None] & (lane == 0)
    for n_r in tl.static_range(NR):
        for m in tl.static_range(NL):
            total = tl.sum(found[n_r * NL + m], 1, keep_dims=True)
            place = own + (m * NB + N0 + n_r) * C
            tl.store(place, tl.broadcast_to(total, (BA, BE)), mask=store)


@triton.jit
def mix_sums(
    sums, species, receiver, mixing, out, scale,
    NB: tl.constexpr, K: tl.constexpr, RADIAL_OUT: tl.constexpr, DEG: tl.constexpr,
    NDEG: tl.constexpr, ADD: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Write s times the edge sums mixed to A', lanes (q, c); with ADD, to what is there."""
    NL: tl.constexpr = length(DEG)
    C: tl.constexpr = K * K
    RC: tl.constexpr = RADIAL_OUT * C
    atom, lane, exists = owner(RC, BL)
    c = lane % C
    h = tl.load(receiver + tl.load(species + atom) * K + c % K) * tl.load(scale)
    found = zeros(NL, 1, BL, out)
    lane, exists, c, h = lane[None, :], exists[None, :], c[None, :], h[None, :]
    for n in range(NB):
        w = by_degree(mixing + n * (NDEG * RC) + lane, RC, exists, NDEG)
        row = sums + atom.to(tl.int64) * (NL * NB * C) + n * C + c
        added = ()
        for m in tl.static_range(NL):
            value = tl.load(row + m * (NB * C), mask=exists, other=0.0)
            added = added + (found[m] + w[get(DEG, m)] * value,)
        found = added
    own = out + atom.to(tl.int64) * (NL * RC) + lane
    for m in tl.static_range(NL):
        value = found[m] * h
        if ADD:
            value += tl.load(own + m * RC, mask=exists, other=0.0)
        tl.store(own + m * RC, value, mask=exists)


@triton.jit
def mixing_gradient(
    grad, species, receiver, mixing, grad_sums, scale,
    NB: tl.constexpr, K: tl.constexpr, RADIAL_OUT: tl.constexpr, DEG: tl.constexpr,
    NDEG: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Write dE/d(edge sums), lanes (n, c), of dE/dA'."""
    NL: tl.constexpr = length(DEG)
    C: tl.constexpr = K * K
    RC: tl.constexpr = RADIAL_OUT * C
    atom, lane, exists = owner(NB * C, BL)
    c = lane % C
    h = tl.load(receiver + tl.load(species + atom) * K + c % K) * tl.load(scale)
    found = zeros(NL, 1, BL, grad_sums)
    lane, exists, c, h = lane[None, :], exists[None, :], c[None, :], h[None, :]
    for q in range(RADIAL_OUT):
        place = mixing + lane // C * (NDEG * RC) + q * C + c
        w = by_degree(place, RC, exists, NDEG)
        row = grad + atom.to(tl.int64) * (NL * RC) + q * C + c
        added = ()
        for m in tl.static_range(NL):
            value = tl.load(row + m * RC, mask=exists, other=0.0)
            added = added + (found[m] + w[get(DEG, m)] * value,)
        found = added
    own = grad_sums + atom.to(tl.int64) * (NL * NB * C) + lane
    for m in tl.static_range(NL):
        tl.store(own + m * (NB * C), found[m] * h, mask=exists)


@triton.jit(do_not_specialize=["n"])
def bchi_backward(
    sent, species, embedding, sent_first, sent_edge, grad_w, n,
    C: tl.constexpr, NDEG: tl.constexpr, BA: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Write dE/dw [l, c, n]: h_s times the sum of ``sent`` [e, c, l] over edges that an atom sends.

    BA rows are (atom, c, l), BE slots share the edges of a row.
    """
    COUNT: tl.constexpr = NDEG * C
    row = tl.program_id(0) * BA + tl.arange(0, BA)
    atom, exists = row // COUNT, row < n * COUNT
    first = tl.load(sent_first + atom, mask=exists, other=0)
    end = tl.load(sent_first + atom + 1, mask=exists, other=0)
    number = (row % COUNT)[:, None]
    found = tl.zeros((BA, BE), grad_w.dtype.element_ty)
    for step in range(0, tl.max(end - first, 0), BE):
        k = first[:, None] + (tl.arange(0, BE)[None, :] + step)
        inside = k < end[:, None]
        e = tl.load(sent_edge + k, mask=inside, other=0).to(tl.int64)
        found += tl.load(sent + e * COUNT + number, mask=inside, other=0.0)
    kind = tl.load(species + atom, mask=exists, other=0)
    h = tl.load(embedding + kind * COUNT + row % COUNT, mask=exists, other=0.0)
    component = row % COUNT % NDEG * C + row % COUNT // NDEG
    tl.store(grad_w + component * n + atom, tl.sum(found, 1) * h, mask=exists)


@triton.jit
def _weights(place, inside, NDEG: tl.constexpr, BL: tl.constexpr):
    """Return the NDEG numbers at ``place``; four of them are read at once."""
    if NDEG == 4:
        four = place[:, None] + tl.arange(0, 4)[None, :]
        found = tl.load(four, mask=inside[:, None], other=0.0)
        even, odd = tl.split(tl.reshape(found, (BL, 2, 2)))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
        return x0, x1, x2, x3
    else:
        return by_degree(place, 1, inside, NDEG)


@triton.jit
def _store(place, x, inside, NDEG: tl.constexpr, BL: tl.constexpr):
    """Write NDEG numbers at ``place``, four of them at once: else every lane fills a line alone."""
    if NDEG == 4:
        pairs = tl.join(tl.join(x[0], x[2]), tl.join(x[1], x[3]))
        four = place[:, None] + tl.arange(0, 4)[None, :]
        tl.store(four, tl.reshape(pairs, (BL, 4)), mask=inside[:, None])
    else:
        for degree in tl.static_range(NDEG):
            tl.store(place + degree, x[degree], mask=inside)


@triton.jit
def _slope(total, value, h, DER: tl.constexpr, m: tl.constexpr, AXIS: tl.constexpr):
    """Return ``total`` + ``value`` dY_m/du of one axis."""
    if get(DER, m, AXIS, 1) > 0:
        return total + value * (h[get(DER, m, AXIS, 0)] * get(DER, m, AXIS, 1))
    else:
        return total


@triton.jit
def _bchi_rates(row, f, df, h, inside, degree: tl.constexpr, NB: tl.constexpr, C: tl.constexpr,
                DER: tl.constexpr):  # fmt: skip
    """Return dE/dv of one (l, c) of an edge, and what v multiplies in dE/dr and dE/du."""
    value = f[0] * 0.0
    along, gx, gy, gz = value, value, value, value
    for k in tl.static_range(count(degree)):
        place = row + (begin(degree) + k) * (NB * C)
        g = tl.load(place, mask=inside, other=0.0)
        u = g * f[0]
        w = g * df[0]
        for n in tl.static_range(1, NB):
            g = tl.load(place + n * C, mask=inside, other=0.0)
            u += g * f[n]
            w += g * df[n]
        value += u * h[begin(degree) + k]
        along += w * h[begin(degree) + k]
        gx = _slope(gx, u, h, DER, begin(degree) + k, 0)
        gy = _slope(gy, u, h, DER, begin(degree) + k, 1)
        gz = _slope(gz, u, h, DER, begin(degree) + k, 2)
    return value, along, gx, gy, gz


@triton.jit(do_not_specialize=["n_seg", "n_edges"])
def edge_gradient(
    grad_sums, v, slopes, vectors, sender, receiver_of, seg_first, table, grad_vectors, sent,
    n_seg, n_edges,
    NB: tl.constexpr, C: tl.constexpr, RADIAL: tl.constexpr, PAR: tl.constexpr,
    DER: tl.constexpr, DEG: tl.constexpr, NDEG: tl.constexpr, PARTS: tl.constexpr,
    BCHI: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Add dE/dd of Bchi, and of Ar whose dE/dr comes in PARTS, to grad_vectors [3, E].

    With BCHI also write dE/dv of every edge to ``sent`` [e, c, l]: ``bchi_backward`` adds up those
    that an atom sends.
    """
    NL: tl.constexpr = length(DEG)
    e = tl.program_id(0) * BL + tl.arange(0, BL)
    inside = e < tl.load(seg_first + n_seg)
    x, y, z = edge_vector(vectors, e, inside, n_edges)
    r, inverse, shorter, ux, uy, uz = geometry(x, y, z)
    along = r * 0.0
    for k in tl.static_range(PARTS):
        along += tl.load(slopes + k * n_edges.to(tl.int64) + e, mask=inside, other=0.0)
    gx = r * 0.0
    gy = gx
    gz = gx
    if BCHI:
        f, df, ddf = radial(r, inverse, table, 0, NB, NB, RADIAL)
        h = monomials(ux, uy, uz, PAR)
        i = tl.load(sender + e, mask=inside, other=0).to(tl.int64)
        j = tl.load(receiver_of + e, mask=inside, other=0).to(tl.int64)
        for c in range(C):
            row = grad_sums + j * (NL * NB * C) + c
            weights = _weights(v + (i * C + c) * NDEG, inside, NDEG, BL)
            values = ()
            for degree in tl.static_range(NDEG):
                value, a, bx, by, bz = _bchi_rates(row, f, df, h, inside, degree, NB, C, DER)
                values = values + (value,)
                along += weights[degree] * a
                gx += weights[degree] * bx
                gy += weights[degree] * by
                gz += weights[degree] * bz
            _store(sent + (e.to(tl.int64) * C + c) * NDEG, values, inside, NDEG, BL)
    radially = along - (gx * ux + gy * uy + gz * uz) * shorter
    d, g = (x, y, z), (gx, gy, gz)
    for axis in tl.static_range(3):
        place = grad_vectors + axis * n_edges + e
        before = tl.load(place, mask=inside, other=0.0)
        tl.store(place, before + radially * (d[axis] * inverse) + g[axis] * shorter, mask=inside)
