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
    opaque_row_index,
    radial,
    zeros,
)
from cace_fast.kernels.triton._messages import by_degree, owner


@triton.constexpr_function
def count(degree):
    """Return the number of monomials of a degree."""
    return (degree + 1) * (degree + 2) // 2


@triton.constexpr_function
def begin(degree):
    """Return the index of the first monomial of a degree."""
    return degree * (degree + 1) * (degree + 2) // 6


@triton.jit(do_not_specialize=["n", "n_edges"])
def bchi_sum(
    vectors,
    sender,
    atom_first,
    seg_first,
    table,
    v,
    sums,
    n,
    n_edges,
    FIRST_RBF: tl.constexpr,
    COUNT_RBF: tl.constexpr,
    N_RBF: tl.constexpr,
    C: tl.constexpr,
    RADIAL: tl.constexpr,
    PARENT: tl.constexpr,
    DEGREE: tl.constexpr,
    N_DEGREES: tl.constexpr,
    BLOCK_ROW: tl.constexpr,
    BLOCK_EDGE: tl.constexpr,
):
    """Write sum_e R_n f_c Y_m v[i, c, l] of COUNT_RBF functions from FIRST_RBF (equation 20).

    v = h_s w of the senders. As in ``moments_forward``: BLOCK_ROW rows are (atom, c), BLOCK_EDGE
    slots share the edges of a row.
    """
    N_MONOMIALS: tl.constexpr = length(DEGREE)
    row = tl.program_id(0) * BLOCK_ROW + tl.arange(0, BLOCK_ROW)
    atom, exists = row // C, row < n * C
    first = tl.load(seg_first + tl.load(atom_first + atom, mask=exists, other=0))
    end = tl.load(seg_first + tl.load(atom_first + atom + 1, mask=exists, other=0))
    lane = tl.arange(0, BLOCK_EDGE)[None, :]
    wide = opaque_row_index(row, first, BLOCK_ROW, BLOCK_EDGE)
    c = wide % C
    found = zeros(COUNT_RBF * N_MONOMIALS, BLOCK_ROW, BLOCK_EDGE, sums)
    for step in range(0, tl.max(end - first, 0), BLOCK_EDGE):
        e = first[:, None] + (lane + step)
        inside = e < end[:, None]
        x, y, z = edge_vector(vectors, e, inside, n_edges)
        r, inverse, inv_r_eps, ux, uy, uz, f, df, ddf, h = edge_basis(
            x, y, z, table, FIRST_RBF, COUNT_RBF, N_RBF, RADIAL, PARENT
        )
        place = (
            v
            + tl.load(sender + e, mask=inside, other=0).to(tl.int64) * (C * N_DEGREES)
            + c * N_DEGREES
        )
        weights = by_degree(place, 1, inside, N_DEGREES)
        weighted = ()
        for m in tl.static_range(N_MONOMIALS):
            weighted = weighted + (h[m] * weights[get(DEGREE, m)],)
        added = ()
        for n_r in tl.static_range(COUNT_RBF):
            for m in tl.static_range(N_MONOMIALS):
                added = added + (found[n_r * N_MONOMIALS + m] + f[n_r] * weighted[m],)
        found = added
    own = sums + (wide // C).to(tl.int64) * (N_MONOMIALS * N_RBF * C) + c
    store = exists[:, None] & (lane == 0)
    for n_r in tl.static_range(COUNT_RBF):
        for m in tl.static_range(N_MONOMIALS):
            total = tl.sum(found[n_r * N_MONOMIALS + m], 1, keep_dims=True)
            place = own + (m * N_RBF + FIRST_RBF + n_r) * C
            tl.store(place, tl.broadcast_to(total, (BLOCK_ROW, BLOCK_EDGE)), mask=store)


@triton.jit
def mix_sums(
    sums,
    species,
    receiver,
    mixing,
    out,
    scale,
    N_RBF: tl.constexpr,
    K: tl.constexpr,
    N_RADIAL: tl.constexpr,
    DEGREE: tl.constexpr,
    N_DEGREES: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_LANE: tl.constexpr,
):
    """Write s times the edge sums mixed to A', lanes (q, c); with ADD, to what is there."""
    N_MONOMIALS: tl.constexpr = length(DEGREE)
    C: tl.constexpr = K * K
    N_LANES: tl.constexpr = N_RADIAL * C
    atom, lane, exists = owner(N_LANES, BLOCK_LANE)
    c = lane % C
    h = tl.load(receiver + tl.load(species + atom) * K + c % K) * tl.load(scale)
    found = zeros(N_MONOMIALS, 1, BLOCK_LANE, out)
    lane, exists, c, h = lane[None, :], exists[None, :], c[None, :], h[None, :]
    for n in range(N_RBF):
        w = by_degree(mixing + n * (N_DEGREES * N_LANES) + lane, N_LANES, exists, N_DEGREES)
        row = sums + atom.to(tl.int64) * (N_MONOMIALS * N_RBF * C) + n * C + c
        added = ()
        for m in tl.static_range(N_MONOMIALS):
            value = tl.load(row + m * (N_RBF * C), mask=exists, other=0.0)
            added = added + (found[m] + w[get(DEGREE, m)] * value,)
        found = added
    own = out + atom.to(tl.int64) * (N_MONOMIALS * N_LANES) + lane
    for m in tl.static_range(N_MONOMIALS):
        value = found[m] * h
        if ADD:
            value += tl.load(own + m * N_LANES, mask=exists, other=0.0)
        tl.store(own + m * N_LANES, value, mask=exists)


@triton.jit
def mixing_gradient(
    grad,
    species,
    receiver,
    mixing,
    grad_sums,
    scale,
    N_RBF: tl.constexpr,
    K: tl.constexpr,
    N_RADIAL: tl.constexpr,
    DEGREE: tl.constexpr,
    N_DEGREES: tl.constexpr,
    BLOCK_LANE: tl.constexpr,
):
    """Write dE/d(edge sums), lanes (n, c), of dE/dA'."""
    N_MONOMIALS: tl.constexpr = length(DEGREE)
    C: tl.constexpr = K * K
    N_LANES: tl.constexpr = N_RADIAL * C
    atom, lane, exists = owner(N_RBF * C, BLOCK_LANE)
    c = lane % C
    h = tl.load(receiver + tl.load(species + atom) * K + c % K) * tl.load(scale)
    found = zeros(N_MONOMIALS, 1, BLOCK_LANE, grad_sums)
    lane, exists, c, h = lane[None, :], exists[None, :], c[None, :], h[None, :]
    for q in range(N_RADIAL):
        place = mixing + lane // C * (N_DEGREES * N_LANES) + q * C + c
        w = by_degree(place, N_LANES, exists, N_DEGREES)
        row = grad + atom.to(tl.int64) * (N_MONOMIALS * N_LANES) + q * C + c
        added = ()
        for m in tl.static_range(N_MONOMIALS):
            value = tl.load(row + m * N_LANES, mask=exists, other=0.0)
            added = added + (found[m] + w[get(DEGREE, m)] * value,)
        found = added
    own = grad_sums + atom.to(tl.int64) * (N_MONOMIALS * N_RBF * C) + lane
    for m in tl.static_range(N_MONOMIALS):
        tl.store(own + m * (N_RBF * C), found[m] * h, mask=exists)


@triton.jit(do_not_specialize=["n"])
def bchi_backward(
    sent,
    species,
    embedding,
    sent_first,
    sent_edge,
    grad_w,
    n,
    C: tl.constexpr,
    N_DEGREES: tl.constexpr,
    BLOCK_ROW: tl.constexpr,
    BLOCK_EDGE: tl.constexpr,
):
    """Write dE/dw [l, c, n]: h_s times the sum of ``sent`` [e, c, l] over edges that an atom sends.

    BLOCK_ROW rows are (atom, c, l), BLOCK_EDGE slots share the edges of a row.
    """
    COUNT: tl.constexpr = N_DEGREES * C
    row = tl.program_id(0) * BLOCK_ROW + tl.arange(0, BLOCK_ROW)
    atom, exists = row // COUNT, row < n * COUNT
    first = tl.load(sent_first + atom, mask=exists, other=0)
    end = tl.load(sent_first + atom + 1, mask=exists, other=0)
    number = (row % COUNT)[:, None]
    found = tl.zeros((BLOCK_ROW, BLOCK_EDGE), grad_w.dtype.element_ty)
    for step in range(0, tl.max(end - first, 0), BLOCK_EDGE):
        k = first[:, None] + (tl.arange(0, BLOCK_EDGE)[None, :] + step)
        inside = k < end[:, None]
        e = tl.load(sent_edge + k, mask=inside, other=0).to(tl.int64)
        found += tl.load(sent + e * COUNT + number, mask=inside, other=0.0)
    kind = tl.load(species + atom, mask=exists, other=0)
    h = tl.load(embedding + kind * COUNT + row % COUNT, mask=exists, other=0.0)
    component = row % COUNT % N_DEGREES * C + row % COUNT // N_DEGREES
    tl.store(grad_w + component * n + atom, tl.sum(found, 1) * h, mask=exists)


@triton.jit
def _weights(place, inside, N_DEGREES: tl.constexpr, BLOCK_EDGE: tl.constexpr):
    """Return the N_DEGREES numbers at ``place``; four of them are read at once."""
    if N_DEGREES == 4:
        four = place[:, None] + tl.arange(0, 4)[None, :]
        found = tl.load(four, mask=inside[:, None], other=0.0)
        even, odd = tl.split(tl.reshape(found, (BLOCK_EDGE, 2, 2)))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
        return x0, x1, x2, x3
    else:
        return by_degree(place, 1, inside, N_DEGREES)


@triton.jit
def _store(place, x, inside, N_DEGREES: tl.constexpr, BLOCK_EDGE: tl.constexpr):
    """Write N_DEGREES numbers at ``place``, four at once: else every lane fills a line alone."""
    if N_DEGREES == 4:
        pairs = tl.join(tl.join(x[0], x[2]), tl.join(x[1], x[3]))
        four = place[:, None] + tl.arange(0, 4)[None, :]
        tl.store(four, tl.reshape(pairs, (BLOCK_EDGE, 4)), mask=inside[:, None])
    else:
        for degree in tl.static_range(N_DEGREES):
            tl.store(place + degree, x[degree], mask=inside)


@triton.jit
def _slope(total, value, h, DERIVATIVES: tl.constexpr, m: tl.constexpr, AXIS: tl.constexpr):
    """Return ``total`` + ``value`` dY_m/du of one axis."""
    if get(DERIVATIVES, m, AXIS, 1) > 0:
        return total + value * (h[get(DERIVATIVES, m, AXIS, 0)] * get(DERIVATIVES, m, AXIS, 1))
    else:
        return total


@triton.jit
def _bchi_gradient(
    row,
    f,
    df,
    h,
    inside,
    degree: tl.constexpr,
    N_RBF: tl.constexpr,
    C: tl.constexpr,
    DERIVATIVES: tl.constexpr,
):
    """Return dE/dv of one (l, c) of an edge, and what v multiplies in dE/dr and dE/du."""
    value = f[0] * 0.0
    along, gx, gy, gz = value, value, value, value
    for k in tl.static_range(count(degree)):
        place = row + (begin(degree) + k) * (N_RBF * C)
        g = tl.load(place, mask=inside, other=0.0)
        u = g * f[0]
        w = g * df[0]
        for n in tl.static_range(1, N_RBF):
            g = tl.load(place + n * C, mask=inside, other=0.0)
            u += g * f[n]
            w += g * df[n]
        value += u * h[begin(degree) + k]
        along += w * h[begin(degree) + k]
        gx = _slope(gx, u, h, DERIVATIVES, begin(degree) + k, 0)
        gy = _slope(gy, u, h, DERIVATIVES, begin(degree) + k, 1)
        gz = _slope(gz, u, h, DERIVATIVES, begin(degree) + k, 2)
    return value, along, gx, gy, gz


@triton.jit(do_not_specialize=["n_seg", "n_edges"])
def edge_gradient(
    grad_sums,
    v,
    slopes,
    vectors,
    sender,
    receiver_of,
    seg_first,
    table,
    grad_vectors,
    sent,
    n_seg,
    n_edges,
    N_RBF: tl.constexpr,
    C: tl.constexpr,
    RADIAL: tl.constexpr,
    PARENT: tl.constexpr,
    DERIVATIVES: tl.constexpr,
    DEGREE: tl.constexpr,
    N_DEGREES: tl.constexpr,
    PARTS: tl.constexpr,
    BCHI: tl.constexpr,
    BLOCK_EDGE: tl.constexpr,
):
    """Add dE/dd of Bchi, and of Ar whose dE/dr comes in PARTS, to grad_vectors [3, E].

    With BCHI also write dE/dv of every edge to ``sent`` [e, c, l]; ``bchi_backward`` sums it over
    the edges that an atom sends.
    """
    N_MONOMIALS: tl.constexpr = length(DEGREE)
    e = tl.program_id(0) * BLOCK_EDGE + tl.arange(0, BLOCK_EDGE)
    inside = e < tl.load(seg_first + n_seg)
    x, y, z = edge_vector(vectors, e, inside, n_edges)
    r, inverse, inv_r_eps, ux, uy, uz = geometry(x, y, z)
    along = r * 0.0
    for k in tl.static_range(PARTS):
        along += tl.load(slopes + k * n_edges.to(tl.int64) + e, mask=inside, other=0.0)
    gx = r * 0.0
    gy = gx
    gz = gx
    if BCHI:
        f, df, ddf = radial(r, inverse, table, 0, N_RBF, N_RBF, RADIAL)
        h = monomials(ux, uy, uz, PARENT)
        i = tl.load(sender + e, mask=inside, other=0).to(tl.int64)
        j = tl.load(receiver_of + e, mask=inside, other=0).to(tl.int64)
        for c in range(C):
            row = grad_sums + j * (N_MONOMIALS * N_RBF * C) + c
            weights = _weights(v + (i * C + c) * N_DEGREES, inside, N_DEGREES, BLOCK_EDGE)
            values = ()
            for degree in tl.static_range(N_DEGREES):
                value, a, bx, by, bz = _bchi_gradient(
                    row, f, df, h, inside, degree, N_RBF, C, DERIVATIVES
                )
                values = values + (value,)
                along += weights[degree] * a
                gx += weights[degree] * bx
                gy += weights[degree] * by
                gz += weights[degree] * bz
            _store(
                sent + (e.to(tl.int64) * C + c) * N_DEGREES, values, inside, N_DEGREES, BLOCK_EDGE
            )
    radially = along - (gx * ux + gy * uy + gz * uz) * inv_r_eps
    d, g = (x, y, z), (gx, gy, gz)
    for axis in tl.static_range(3):
        place = grad_vectors + axis * n_edges + e
        before = tl.load(place, mask=inside, other=0.0)
        tl.store(place, before + radially * (d[axis] * inverse) + g[axis] * inv_r_eps, mask=inside)
