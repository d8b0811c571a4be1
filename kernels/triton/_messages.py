"""Device code of message passing: Ar, Bchi and memory, forwards and backwards.

Everything here is atom-major, [atom, monomial, lane]: a program owns one atom and BL lanes, which
are (q, c) of A or (n, c) of the edge sums, and walks through the edges that the atom receives or
sends, one at a time. What a neighbour contributes is read as whole rows; sums stay in registers in
a fixed order; hub atoms and atoms without edges are nothing special. The edge gradient has a lane
for each edge.
"""

import triton
import triton.language as tl

from cace_fast.kernels.triton._device import (
    cutoff,
    geometry,
    get,
    length,
    monomials,
    radial,
    sincospi_product,
)


@triton.constexpr_function
def count(degree):
    """Return the number of monomials of a degree."""
    return (degree + 1) * (degree + 2) // 2


@triton.constexpr_function
def begin(degree):
    """Return the position of the first monomial of a degree."""
    return degree * (degree + 1) * (degree + 2) // 6


@triton.jit
def _owner(LANES: tl.constexpr, BL: tl.constexpr):
    """Return the atom of the program, its lanes, and which of them exist."""
    CHUNKS: tl.constexpr = (LANES + BL - 1) // BL
    program = tl.program_id(0)
    lane = program % CHUNKS * BL + tl.arange(0, BL)
    return program // CHUNKS, lane, lane < LANES


@triton.jit
def _received(atom_first, seg_first, atom):
    """Return the first edge that an atom receives, and the end of them."""
    first = tl.load(seg_first + tl.load(atom_first + atom))
    return first, tl.load(seg_first + tl.load(atom_first + atom + 1))


@triton.jit
def _edge(vectors, e, n_edges):
    """Return |d|, 1/|d|, 1/(|d| + 1e-9) and the unit vector of one edge."""
    x = vectors + e
    return geometry(tl.load(x), tl.load(x + n_edges), tl.load(x + 2 * n_edges))


@triton.jit
def _radial_lane(r, inverse, fc, table, n, NB: tl.constexpr, RADIAL: tl.constexpr):
    """Return R_n f_c where every lane has its own n."""
    KIND: tl.constexpr = get(RADIAL, 0)
    a = tl.load(table + n)
    g = tl.load(table + 2 * NB)
    if KIND == 0:
        s, c = sincospi_product(a, r)
        return s * (g * inverse * fc)
    elif KIND == 1:
        z = (r - a) * tl.load(table + NB + n)
        return tl.exp(-0.5 * z * z) * fc
    else:
        return tl.exp(-r * a) * (g * fc)


@triton.jit
def _zeros(COUNT: tl.constexpr, BL: tl.constexpr, like):
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (tl.zeros((BL,), like.dtype.element_ty),)
    return out


@triton.jit
def _by_degree(place, step: tl.constexpr, exists, NDEG: tl.constexpr):
    """Return one row for each degree, ``step`` numbers apart."""
    out = ()
    for degree in tl.static_range(NDEG):
        out = out + (tl.load(place + degree * step, mask=exists, other=0.0),)
    return out


@triton.jit(do_not_specialize=["n_edges"])
def bchi_sum(
    vectors, sender, atom_first, seg_first, table, v, sums, n_edges,
    NB: tl.constexpr, C: tl.constexpr, RADIAL: tl.constexpr, PAR: tl.constexpr,
    DEG: tl.constexpr, NDEG: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Write sum_e R_n f_c Y_m v[i, l, c], lanes (n, c); v = h_s w of the senders (equation 20)."""
    NL: tl.constexpr = length(DEG)
    atom, lane, exists = _owner(NB * C, BL)
    n = tl.minimum(lane // C, NB - 1)
    first, end = _received(atom_first, seg_first, atom)
    found = _zeros(NL, BL, sums)
    for e in range(first, end):
        r, inverse, shorter, ux, uy, uz = _edge(vectors, e, n_edges)
        fc, slope, bend = cutoff(r, table, NB, RADIAL)
        f = _radial_lane(r, inverse, fc, table, n, NB, RADIAL)
        y = monomials(ux, uy, uz, PAR)
        place = v + tl.load(sender + e).to(tl.int64) * (NDEG * C) + lane % C
        weighted = _by_degree(place, C, exists, NDEG)
        added = ()
        for m in tl.static_range(NL):
            added = added + (found[m] + (f * weighted[get(DEG, m)]) * y[m],)
        found = added
    own = sums + atom.to(tl.int64) * (NL * NB * C) + lane
    for m in tl.static_range(NL):
        tl.store(own + m * (NB * C), found[m], mask=exists)


@triton.jit(do_not_specialize=["n_edges"])
def messages_forward(
    a, sums, vectors, sender, atom_first, seg_first, species, table, receiver, mixing, decay,
    memory, out, n_edges, scale,
    NB: tl.constexpr, K: tl.constexpr, RADIAL_OUT: tl.constexpr, RADIAL: tl.constexpr,
    DEG: tl.constexpr, NDEG: tl.constexpr, AR: tl.constexpr, BCHI: tl.constexpr,
    MEMORY: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Write A' = s (ar + bc) + mem, lanes (q, c) (equations 17 to 21).

    ``decay`` are P_l and V_l [2, NDEG, RC], ``memory`` m_l [NDEG, RC].
    """
    NL: tl.constexpr = length(DEG)
    C: tl.constexpr = K * K
    RC: tl.constexpr = RADIAL_OUT * C
    atom, lane, exists = _owner(RC, BL)
    own = atom.to(tl.int64) * (NL * RC) + lane
    found = _zeros(NL, BL, out)
    if AR:
        first, end = _received(atom_first, seg_first, atom)
        found = _decayed(found, a, vectors, sender, first, end, table, decay, lane, exists,
                         n_edges, NB, RADIAL, DEG, NDEG, RC)  # fmt: skip
        prefactor = _by_degree(decay + lane, RC, exists, NDEG)
        scaled = ()
        for m in tl.static_range(NL):
            scaled = scaled + (found[m] * prefactor[get(DEG, m)],)
        found = scaled
    if BCHI:
        c = lane % C
        h = tl.load(receiver + tl.load(species + atom) * K + c % K)
        for n in range(NB):
            w = _by_degree(mixing + n * (NDEG * RC) + lane, RC, exists, NDEG)
            row = sums + atom.to(tl.int64) * (NL * NB * C) + n * C + c
            added = ()
            for m in tl.static_range(NL):
                value = tl.load(row + m * (NB * C), mask=exists, other=0.0)
                added = added + (found[m] + (h * w[get(DEG, m)]) * value,)
            found = added
    s = tl.load(scale)
    if MEMORY:
        kept = _by_degree(memory + lane, RC, exists, NDEG)
    for m in tl.static_range(NL):
        value = found[m] * s
        if MEMORY:
            value += kept[get(DEG, m)] * tl.load(a + own + m * RC, mask=exists, other=0.0)
        tl.store(out + own + m * RC, value, mask=exists)


@triton.jit
def _decayed(found, a, vectors, neighbour, first, end, table, decay, lane, exists, n_edges,
             NB: tl.constexpr, RADIAL: tl.constexpr, DEG: tl.constexpr, NDEG: tl.constexpr,
             RC: tl.constexpr):  # fmt: skip
    """Return ``found`` + sum over received edges of the sender's A times exp(-r V_l) f_c."""
    NL: tl.constexpr = length(DEG)
    rates = _by_degree(decay + NDEG * RC + lane, RC, exists, NDEG)
    for e in range(first, end):
        r, inverse, shorter, ux, uy, uz = _edge(vectors, e, n_edges)
        fc, slope, bend = cutoff(r, table, NB, RADIAL)
        factor = ()
        for degree in tl.static_range(NDEG):
            factor = factor + (tl.exp(-r * rates[degree]) * fc,)
        row = a + tl.load(neighbour + e).to(tl.int64) * (NL * RC) + lane
        added = ()
        for m in tl.static_range(NL):
            value = tl.load(row + m * RC, mask=exists, other=0.0)
            added = added + (found[m] + value * factor[get(DEG, m)],)
        found = added
    return found


@triton.jit(do_not_specialize=["n_edges"])
def messages_backward(
    grad, vectors, receiver_of, sent_first, sent_edge, table, decay, memory, grad_a,
    n_edges, scale,
    NB: tl.constexpr, RC: tl.constexpr, RADIAL: tl.constexpr, DEG: tl.constexpr,
    NDEG: tl.constexpr, AR: tl.constexpr, MEMORY: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Write dE/dA of dE/dA' through Ar, a sum over the edges that an atom sends, and memory."""
    NL: tl.constexpr = length(DEG)
    atom, lane, exists = _owner(RC, BL)
    own = atom.to(tl.int64) * (NL * RC) + lane
    found = _zeros(NL, BL, grad_a)
    if AR:
        rates = _by_degree(decay + NDEG * RC + lane, RC, exists, NDEG)
        for k in range(tl.load(sent_first + atom), tl.load(sent_first + atom + 1)):
            e = tl.load(sent_edge + k)
            r, inverse, shorter, ux, uy, uz = _edge(vectors, e, n_edges)
            fc, slope, bend = cutoff(r, table, NB, RADIAL)
            factor = ()
            for degree in tl.static_range(NDEG):
                factor = factor + (tl.exp(-r * rates[degree]) * fc,)
            row = grad + tl.load(receiver_of + e).to(tl.int64) * (NL * RC) + lane
            added = ()
            for m in tl.static_range(NL):
                value = tl.load(row + m * RC, mask=exists, other=0.0)
                added = added + (found[m] + value * factor[get(DEG, m)],)
            found = added
    s = tl.load(scale)
    prefactor = _by_degree(decay + lane, RC, exists & AR, NDEG)
    if MEMORY:
        kept = _by_degree(memory + lane, RC, exists, NDEG)
    for m in tl.static_range(NL):
        value = found[m] * (s * prefactor[get(DEG, m)])
        if MEMORY:
            value += kept[get(DEG, m)] * tl.load(grad + own + m * RC, mask=exists, other=0.0)
        tl.store(grad_a + own + m * RC, value, mask=exists)


@triton.jit(do_not_specialize=["n_edges"])
def ar_slopes(
    a, grad, vectors, sender, atom_first, seg_first, table, decay, slopes, n_edges, scale,
    NB: tl.constexpr, RC: tl.constexpr, RADIAL: tl.constexpr, DEG: tl.constexpr,
    NDEG: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Write dE/dr of every received edge through Ar, a part for each run of lanes [parts, E]."""
    NL: tl.constexpr = length(DEG)
    CHUNKS: tl.constexpr = (RC + BL - 1) // BL
    atom, lane, exists = _owner(RC, BL)
    first, end = _received(atom_first, seg_first, atom)
    rates = _by_degree(decay + NDEG * RC + lane, RC, exists, NDEG)
    prefactor = _by_degree(decay + lane, RC, exists, NDEG)
    own = grad + atom.to(tl.int64) * (NL * RC) + lane
    s = tl.load(scale)
    part = (tl.program_id(0) % CHUNKS).to(tl.int64) * n_edges
    g = ()
    for m in tl.static_range(NL):
        value = tl.load(own + m * RC, mask=exists, other=0.0)
        g = g + (value * (s * prefactor[get(DEG, m)]),)
    for e in range(first, end):
        r, inverse, shorter, ux, uy, uz = _edge(vectors, e, n_edges)
        fc, dfc, bend = cutoff(r, table, NB, RADIAL)
        factor = ()
        for degree in tl.static_range(NDEG):
            rate = rates[degree]
            factor = factor + (tl.exp(-r * rate) * (dfc - rate * fc),)
        row = a + tl.load(sender + e).to(tl.int64) * (NL * RC) + lane
        total = g[0] * tl.load(row, mask=exists, other=0.0) * factor[0]
        for m in tl.static_range(1, NL):
            value = tl.load(row + m * RC, mask=exists, other=0.0)
            total += g[m] * value * factor[get(DEG, m)]
        tl.store(slopes + part + e, tl.sum(total, 0))


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
    atom, lane, exists = _owner(NB * C, BL)
    c = lane % C
    h = tl.load(receiver + tl.load(species + atom) * K + c % K) * tl.load(scale)
    found = _zeros(NL, BL, grad_sums)
    for q in range(RADIAL_OUT):
        place = mixing + lane // C * (NDEG * RC) + q * C + c
        w = _by_degree(place, RC, exists, NDEG)
        row = grad + atom.to(tl.int64) * (NL * RC) + q * C + c
        added = ()
        for m in tl.static_range(NL):
            value = tl.load(row + m * RC, mask=exists, other=0.0)
            added = added + (found[m] + w[get(DEG, m)] * value,)
        found = added
    own = grad_sums + atom.to(tl.int64) * (NL * NB * C) + lane
    for m in tl.static_range(NL):
        tl.store(own + m * (NB * C), found[m] * h, mask=exists)


@triton.jit(do_not_specialize=["n_edges"])
def bchi_backward(
    grad_sums, vectors, receiver_of, sent_first, sent_edge, table, grad_v, n_edges,
    NB: tl.constexpr, C: tl.constexpr, RADIAL: tl.constexpr, PAR: tl.constexpr,
    DEG: tl.constexpr, NDEG: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Write dE/dv of every atom [n, NDEG, (n, c)], still to be summed over n: its sent edges."""
    NL: tl.constexpr = length(DEG)
    atom, lane, exists = _owner(NB * C, BL)
    n = tl.minimum(lane // C, NB - 1)
    found = _zeros(NDEG, BL, grad_v)
    for k in range(tl.load(sent_first + atom), tl.load(sent_first + atom + 1)):
        e = tl.load(sent_edge + k)
        r, inverse, shorter, ux, uy, uz = _edge(vectors, e, n_edges)
        fc, slope, bend = cutoff(r, table, NB, RADIAL)
        f = _radial_lane(r, inverse, fc, table, n, NB, RADIAL)
        y = monomials(ux, uy, uz, PAR)
        row = grad_sums + tl.load(receiver_of + e).to(tl.int64) * (NL * NB * C) + lane
        added = ()
        for degree in tl.static_range(NDEG):
            total = f * 0.0
            for m in tl.static_range(NL):
                if get(DEG, m) == degree:
                    value = tl.load(row + m * (NB * C), mask=exists, other=0.0)
                    total += value * y[m]
            added = added + (found[degree] + f * total,)
        found = added
    own = grad_v + atom.to(tl.int64) * (NDEG * NB * C) + lane
    for degree in tl.static_range(NDEG):
        tl.store(own + degree * (NB * C), found[degree], mask=exists)


@triton.jit
def _bchi_rates(row, sent, f, df, inside, M0: tl.constexpr, COUNT: tl.constexpr,
                NB: tl.constexpr, C: tl.constexpr):  # fmt: skip
    """Return sum_(n, c) of dE/dsums v R_n f_c for COUNT monomials, then the same of (R_n f_c)'."""
    found = ()
    for k in tl.static_range(2 * COUNT):
        found = found + (f[0] * 0.0,)
    for c in range(C):
        weight = tl.load(sent + c, mask=inside, other=0.0)
        values = ()
        slopes = ()
        for m in tl.static_range(COUNT):
            place = row + (M0 + m) * (NB * C) + c
            g = tl.load(place, mask=inside, other=0.0)
            value = g * f[0]
            slope = g * df[0]
            for n in tl.static_range(1, NB):
                g = tl.load(place + n * C, mask=inside, other=0.0)
                value += g * f[n]
                slope += g * df[n]
            values = values + (found[m] + weight * value,)
            slopes = slopes + (found[COUNT + m] + weight * slope,)
        found = values + slopes
    return found


@triton.jit
def _with_slope(total, value, h, DER: tl.constexpr, m: tl.constexpr, AXIS: tl.constexpr):
    """Return ``total`` + ``value`` dY_m/du of one axis."""
    if get(DER, m, AXIS, 1) > 0:
        return total + value * (h[get(DER, m, AXIS, 0)] * get(DER, m, AXIS, 1))
    else:
        return total


@triton.jit(do_not_specialize=["n_seg", "n_edges"])
def edge_gradient(
    grad_sums, v, slopes, vectors, sender, receiver_of, seg_first, table, grad_vectors,
    n_seg, n_edges,
    NB: tl.constexpr, C: tl.constexpr, RADIAL: tl.constexpr, PAR: tl.constexpr,
    DER: tl.constexpr, DEG: tl.constexpr, NDEG: tl.constexpr, PARTS: tl.constexpr,
    BCHI: tl.constexpr, BL: tl.constexpr,
):  # fmt: skip
    """Add dE/dd of Bchi, and of Ar whose dE/dr comes in PARTS, to grad_vectors [3, E]."""
    NL: tl.constexpr = length(DEG)
    e = tl.program_id(0) * BL + tl.arange(0, BL)
    inside = e < tl.load(seg_first + n_seg)
    x = tl.load(vectors + e, mask=inside, other=1.0)
    y = tl.load(vectors + n_edges + e, mask=inside, other=0.0)
    z = tl.load(vectors + 2 * n_edges + e, mask=inside, other=0.0)
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
        row = grad_sums + j * (NL * NB * C)
        for degree in tl.static_range(NDEG):
            sent = v + i * (NDEG * C) + degree * C
            found = _bchi_rates(row, sent, f, df, inside, begin(degree), count(degree), NB, C)
            for k in tl.static_range(count(degree)):
                value = found[k]
                along += found[count(degree) + k] * h[begin(degree) + k]
                gx = _with_slope(gx, value, h, DER, begin(degree) + k, 0)
                gy = _with_slope(gy, value, h, DER, begin(degree) + k, 1)
                gz = _with_slope(gz, value, h, DER, begin(degree) + k, 2)
    radially = along - (gx * ux + gy * uy + gz * uz) * shorter
    d, g = (x, y, z), (gx, gy, gz)
    for axis in tl.static_range(3):
        place = grad_vectors + axis * n_edges + e
        before = tl.load(place, mask=inside, other=0.0)
        tl.store(place, before + radially * (d[axis] * inverse) + g[axis] * shorter, mask=inside)
