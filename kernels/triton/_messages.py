"""Device code of Ar and memory, which carry A from one generation to the next, and back.

Arrays are atom-major, [atom, monomial, lane], lanes being (q, c) of A: what a neighbour contributes
is read as whole rows. A program has BA rows, which are (atom, lane), and BE slots that share the
edges of a row; sums stay in registers, in a fixed order; hub atoms and atoms without edges are
nothing special. What is Bchi's: ``_bchi.py``.
"""

import triton
import triton.language as tl

from cace_fast.kernels.triton._device import (
    cutoff,
    edge_vector,
    geometry,
    get,
    length,
    wide_rows,
    zeros,
)


@triton.jit
def owner(LANES: tl.constexpr, BL: tl.constexpr):
    """Return the atom of the program, its lanes, and which of them exist."""
    CHUNKS: tl.constexpr = (LANES + BL - 1) // BL
    program = tl.program_id(0)
    lane = program % CHUNKS * BL + tl.arange(0, BL)
    return program // CHUNKS, lane, lane < LANES


@triton.jit
def by_degree(place, step: tl.constexpr, exists, NDEG: tl.constexpr):
    """Return one number for each degree, ``step`` places apart."""
    out = ()
    for degree in tl.static_range(NDEG):
        out = out + (tl.load(place + degree * step, mask=exists, other=0.0),)
    return out


@triton.jit(do_not_specialize=["n", "n_edges"])
def carry(
    x, vectors, other, first_of, through, table, decay, memory, y, n, n_edges, scale,
    NB: tl.constexpr, RC: tl.constexpr, RADIAL: tl.constexpr, DEG: tl.constexpr,
    NDEG: tl.constexpr, AR: tl.constexpr, MEMORY: tl.constexpr, SENT: tl.constexpr,
    BA: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Write s P_l sum_e exp(-r V_l) f_c x[other end] + m_l x (equations 17, 18), or one of them.

    Of A and the edges that an atom receives this is A'; then ``first_of`` are ``atom_first`` and
    ``through`` are ``seg_first``. Of dE/dA' and the edges that it sends, with SENT, it is dE/dA;
    then they are ``sent_first`` and ``sent_edge``. ``decay`` are P_l and V_l [2, NDEG, RC],
    ``memory`` m_l [NDEG, RC].
    """
    NL: tl.constexpr = length(DEG)
    row = tl.program_id(0) * BA + tl.arange(0, BA)
    atom, exists = row // RC, row < n * RC
    first = tl.load(first_of + atom, mask=exists, other=0)
    end = tl.load(first_of + atom + 1, mask=exists, other=0)
    if not SENT:
        first, end = tl.load(through + first), tl.load(through + end)
    slot = tl.arange(0, BE)[None, :]
    wide = wide_rows(row, first, BA, BE)
    lane = wide % RC
    some = exists[:, None] & (wide >= 0)
    found = zeros(NL, BA, BE, y)
    if AR:
        rates = by_degree(decay + NDEG * RC + lane, RC, some, NDEG)
        for step in range(0, tl.max(end - first, 0), BE):
            k = first[:, None] + (slot + step)
            inside = k < end[:, None]
            e = k
            if SENT:
                e = tl.load(through + k, mask=inside, other=0)
            dx, dy, dz = edge_vector(vectors, e, inside, n_edges)
            r, inverse, shorter, ux, uy, uz = geometry(dx, dy, dz)
            fc, slope, bend = cutoff(r, table, NB, RADIAL)
            factor = ()
            for degree in tl.static_range(NDEG):
                factor = factor + (tl.exp(-r * rates[degree]) * fc,)
            place = x + tl.load(other + e, mask=inside, other=0).to(tl.int64) * (NL * RC) + lane
            added = ()
            for m in tl.static_range(NL):
                value = tl.load(place + m * RC, mask=inside, other=0.0)
                added = added + (found[m] + value * factor[get(DEG, m)],)
            found = added
    s = tl.load(scale)
    store = exists[:, None] & (slot == 0)
    prefactor = by_degree(decay + lane, RC, some & AR, NDEG)
    kept = by_degree(memory + lane, RC, some & MEMORY, NDEG)
    own = (wide // RC).to(tl.int64) * (NL * RC) + lane
    for m in tl.static_range(NL):
        value = tl.broadcast_to(tl.sum(found[m], 1, keep_dims=True), (BA, BE))
        value *= s * prefactor[get(DEG, m)]
        if MEMORY:
            value += kept[get(DEG, m)] * tl.load(x + own + m * RC, mask=store, other=0.0)
        tl.store(y + own + m * RC, value, mask=store)


@triton.jit(do_not_specialize=["n_edges"])
def ar_slopes(
    a, grad, vectors, sender, atom_first, seg_first, table, decay, slopes, n_edges, scale,
    NB: tl.constexpr, RC: tl.constexpr, RADIAL: tl.constexpr, DEG: tl.constexpr,
    NDEG: tl.constexpr, BL: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Write dE/dr of every received edge through Ar, a part for each run of lanes [parts, E].

    A program has one atom and BL lanes; a lane takes BE edges at once.
    """
    NL: tl.constexpr = length(DEG)
    CHUNKS: tl.constexpr = (RC + BL - 1) // BL
    atom, lane, exists = owner(RC, BL)
    first = tl.load(seg_first + tl.load(atom_first + atom))
    end = tl.load(seg_first + tl.load(atom_first + atom + 1))
    lane, exists = lane[None, :], exists[None, :]
    rates = by_degree(decay + NDEG * RC + lane, RC, exists, NDEG)
    prefactor = by_degree(decay + lane, RC, exists, NDEG)
    own = grad + atom.to(tl.int64) * (NL * RC) + lane
    s = tl.load(scale)
    part = (tl.program_id(0) % CHUNKS).to(tl.int64) * n_edges
    g = ()
    for m in tl.static_range(NL):
        value = tl.load(own + m * RC, mask=exists, other=0.0)
        g = g + (value * (s * prefactor[get(DEG, m)]),)
    for step in range(first, end, BE):
        e = (step + tl.arange(0, BE))[:, None]
        inside = e < end
        dx, dy, dz = edge_vector(vectors, e, inside, n_edges)
        r, inverse, shorter, ux, uy, uz = geometry(dx, dy, dz)
        fc, dfc, bend = cutoff(r, table, NB, RADIAL)
        factor = ()
        for degree in tl.static_range(NDEG):
            rate = rates[degree]
            factor = factor + (tl.exp(-r * rate) * (dfc - rate * fc),)
        place = a + tl.load(sender + e, mask=inside, other=0).to(tl.int64) * (NL * RC) + lane
        some = inside & exists
        total = g[0] * tl.load(place, mask=some, other=0.0) * factor[0]
        for m in tl.static_range(1, NL):
            sent = tl.load(place + m * RC, mask=some, other=0.0)
            total += g[m] * sent * factor[get(DEG, m)]
        tl.store(slopes + part + e, tl.sum(total, 1, keep_dims=True), mask=inside)
