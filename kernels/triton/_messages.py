"""Device code of Ar and memory, which carry A from one generation to the next, and their gradients.

Arrays are atom-major, [atom, monomial, lane], lanes being (q, c) of A: a neighbour is read as
whole rows. A program has BLOCK_ROW rows, which are (atom, lane), and BLOCK_EDGE slots that share
the edges of a row; sums stay in registers, in a fixed order; hub atoms and atoms without edges are
no special cases. Bchi is in ``_bchi.py``.
"""

import triton
import triton.language as tl

from cace_fast.kernels.triton._device import (
    cutoff,
    edge_vector,
    geometry,
    get,
    length,
    opaque_row_index,
    zeros,
)


@triton.jit
def owner(LANES: tl.constexpr, BLOCK_LANE: tl.constexpr):
    """Return the atom of the program, its lanes, and which of them exist."""
    CHUNKS: tl.constexpr = (LANES + BLOCK_LANE - 1) // BLOCK_LANE
    program = tl.program_id(0)
    lane = program % CHUNKS * BLOCK_LANE + tl.arange(0, BLOCK_LANE)
    return program // CHUNKS, lane, lane < LANES


@triton.jit
def by_degree(place, step: tl.constexpr, exists, N_DEGREES: tl.constexpr):
    """Return one number for each degree, ``step`` places apart."""
    out = ()
    for degree in tl.static_range(N_DEGREES):
        out = out + (tl.load(place + degree * step, mask=exists, other=0.0),)
    return out


@triton.jit(do_not_specialize=["n", "n_edges"])
def memory_and_ar(
    x,
    vectors,
    other,
    first_of,
    through,
    table,
    decay,
    memory,
    y,
    n,
    n_edges,
    scale,
    N_RBF: tl.constexpr,
    N_LANES: tl.constexpr,
    RADIAL: tl.constexpr,
    DEGREE: tl.constexpr,
    N_DEGREES: tl.constexpr,
    AR: tl.constexpr,
    MEMORY: tl.constexpr,
    SENT: tl.constexpr,
    BLOCK_ROW: tl.constexpr,
    BLOCK_EDGE: tl.constexpr,
):
    """Write s P_l sum_e exp(-r V_l) f_c x[other end] + m_l x (equations 17, 18), or one of them.

    For A and the edges that an atom receives this is A'; then ``first_of`` are ``atom_first`` and
    ``through`` are ``seg_first``. For dE/dA' and the edges that it sends, with SENT, it is dE/dA;
    then they are ``sent_first`` and ``sent_edge``. ``decay`` are P_l and V_l [2, N_DEGREES,
    N_LANES], ``memory`` m_l [N_DEGREES, N_LANES].
    """
    N_MONOMIALS: tl.constexpr = length(DEGREE)
    row = tl.program_id(0) * BLOCK_ROW + tl.arange(0, BLOCK_ROW)
    atom, exists = row // N_LANES, row < n * N_LANES
    first = tl.load(first_of + atom, mask=exists, other=0)
    end = tl.load(first_of + atom + 1, mask=exists, other=0)
    if not SENT:
        first, end = tl.load(through + first), tl.load(through + end)
    slot = tl.arange(0, BLOCK_EDGE)[None, :]
    wide = opaque_row_index(row, first, BLOCK_ROW, BLOCK_EDGE)
    lane = wide % N_LANES
    some = exists[:, None] & (wide >= 0)
    found = zeros(N_MONOMIALS, BLOCK_ROW, BLOCK_EDGE, y)
    if AR:
        rates = by_degree(decay + N_DEGREES * N_LANES + lane, N_LANES, some, N_DEGREES)
        for step in range(0, tl.max(end - first, 0), BLOCK_EDGE):
            k = first[:, None] + (slot + step)
            inside = k < end[:, None]
            e = k
            if SENT:
                e = tl.load(through + k, mask=inside, other=0)
            dx, dy, dz = edge_vector(vectors, e, inside, n_edges)
            r, inverse, inv_r_eps, ux, uy, uz = geometry(dx, dy, dz)
            fc, slope, bend = cutoff(r, table, N_RBF, RADIAL)
            factor = ()
            for degree in tl.static_range(N_DEGREES):
                factor = factor + (tl.exp(-r * rates[degree]) * fc,)
            place = (
                x
                + tl.load(other + e, mask=inside, other=0).to(tl.int64) * (N_MONOMIALS * N_LANES)
                + lane
            )
            added = ()
            for m in tl.static_range(N_MONOMIALS):
                value = tl.load(place + m * N_LANES, mask=inside, other=0.0)
                added = added + (found[m] + value * factor[get(DEGREE, m)],)
            found = added
    s = tl.load(scale)
    store = exists[:, None] & (slot == 0)
    prefactor = by_degree(decay + lane, N_LANES, some & AR, N_DEGREES)
    kept = by_degree(memory + lane, N_LANES, some & MEMORY, N_DEGREES)
    own = (wide // N_LANES).to(tl.int64) * (N_MONOMIALS * N_LANES) + lane
    for m in tl.static_range(N_MONOMIALS):
        value = tl.broadcast_to(tl.sum(found[m], 1, keep_dims=True), (BLOCK_ROW, BLOCK_EDGE))
        value *= s * prefactor[get(DEGREE, m)]
        if MEMORY:
            value += kept[get(DEGREE, m)] * tl.load(x + own + m * N_LANES, mask=store, other=0.0)
        tl.store(y + own + m * N_LANES, value, mask=store)


@triton.jit(do_not_specialize=["n_edges"])
def ar_slopes(
    a,
    grad,
    vectors,
    sender,
    atom_first,
    seg_first,
    table,
    decay,
    slopes,
    n_edges,
    scale,
    N_RBF: tl.constexpr,
    N_LANES: tl.constexpr,
    RADIAL: tl.constexpr,
    DEGREE: tl.constexpr,
    N_DEGREES: tl.constexpr,
    BLOCK_LANE: tl.constexpr,
    BLOCK_EDGE: tl.constexpr,
):
    """Write dE/dr of every received edge through Ar, a part for each run of lanes [parts, E].

    A program has one atom and BLOCK_LANE lanes; a lane takes BLOCK_EDGE edges at once.
    """
    N_MONOMIALS: tl.constexpr = length(DEGREE)
    CHUNKS: tl.constexpr = (N_LANES + BLOCK_LANE - 1) // BLOCK_LANE
    atom, lane, exists = owner(N_LANES, BLOCK_LANE)
    first = tl.load(seg_first + tl.load(atom_first + atom))
    end = tl.load(seg_first + tl.load(atom_first + atom + 1))
    lane, exists = lane[None, :], exists[None, :]
    rates = by_degree(decay + N_DEGREES * N_LANES + lane, N_LANES, exists, N_DEGREES)
    prefactor = by_degree(decay + lane, N_LANES, exists, N_DEGREES)
    own = grad + atom.to(tl.int64) * (N_MONOMIALS * N_LANES) + lane
    s = tl.load(scale)
    part = (tl.program_id(0) % CHUNKS).to(tl.int64) * n_edges
    g = ()
    for m in tl.static_range(N_MONOMIALS):
        value = tl.load(own + m * N_LANES, mask=exists, other=0.0)
        g = g + (value * (s * prefactor[get(DEGREE, m)]),)
    for step in range(first, end, BLOCK_EDGE):
        e = (step + tl.arange(0, BLOCK_EDGE))[:, None]
        inside = e < end
        dx, dy, dz = edge_vector(vectors, e, inside, n_edges)
        r, inverse, inv_r_eps, ux, uy, uz = geometry(dx, dy, dz)
        fc, dfc, bend = cutoff(r, table, N_RBF, RADIAL)
        factor = ()
        for degree in tl.static_range(N_DEGREES):
            rate = rates[degree]
            factor = factor + (tl.exp(-r * rate) * (dfc - rate * fc),)
        place = (
            a
            + tl.load(sender + e, mask=inside, other=0).to(tl.int64) * (N_MONOMIALS * N_LANES)
            + lane
        )
        some = inside & exists
        total = g[0] * tl.load(place, mask=some, other=0.0) * factor[0]
        for m in tl.static_range(1, N_MONOMIALS):
            sent = tl.load(place + m * N_LANES, mask=some, other=0.0)
            total += g[m] * sent * factor[get(DEGREE, m)]
        tl.store(slopes + part + e, tl.sum(total, 1, keep_dims=True), mask=inside)
