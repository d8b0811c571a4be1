"""Device code of message passing: Ar, Bchi's edge sums mixed, and memory, forwards and backwards.

Everything here is atom-major, [atom, monomial, lane]: a program owns one atom and BL lanes, which
are (q, c) of A, and walks through the edges that the atom receives or sends, one at a time. What a
neighbour contributes is read as whole rows; sums stay in registers in a fixed order; hub atoms and
atoms without edges are nothing special. What is Bchi's own: ``_bchi.py``.
"""

import triton
import triton.language as tl

from cace_fast.kernels.triton._device import (
    cutoff,
    geometry,
    get,
    length,
)


@triton.jit
def owner(LANES: tl.constexpr, BL: tl.constexpr):
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
def zeros(COUNT: tl.constexpr, BL: tl.constexpr, like):
    out = ()
    for k in tl.static_range(COUNT):
        out = out + (tl.zeros((BL,), like.dtype.element_ty),)
    return out


@triton.jit
def by_degree(place, step: tl.constexpr, exists, NDEG: tl.constexpr):
    """Return one row for each degree, ``step`` numbers apart."""
    out = ()
    for degree in tl.static_range(NDEG):
        out = out + (tl.load(place + degree * step, mask=exists, other=0.0),)
    return out


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
    atom, lane, exists = owner(RC, BL)
    own = atom.to(tl.int64) * (NL * RC) + lane
    found = zeros(NL, BL, out)
    if AR:
        first, end = _received(atom_first, seg_first, atom)
        found = _decayed(found, a, vectors, sender, first, end, table, decay, lane, exists,
                         n_edges, NB, RADIAL, DEG, NDEG, RC)  # fmt: skip
        prefactor = by_degree(decay + lane, RC, exists, NDEG)
        scaled = ()
        for m in tl.static_range(NL):
            scaled = scaled + (found[m] * prefactor[get(DEG, m)],)
        found = scaled
    if BCHI:
        c = lane % C
        h = tl.load(receiver + tl.load(species + atom) * K + c % K)
        for n in range(NB):
            w = by_degree(mixing + n * (NDEG * RC) + lane, RC, exists, NDEG)
            row = sums + atom.to(tl.int64) * (NL * NB * C) + n * C + c
            added = ()
            for m in tl.static_range(NL):
                value = tl.load(row + m * (NB * C), mask=exists, other=0.0)
                added = added + (found[m] + (h * w[get(DEG, m)]) * value,)
            found = added
    s = tl.load(scale)
    if MEMORY:
        kept = by_degree(memory + lane, RC, exists, NDEG)
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
    rates = by_degree(decay + NDEG * RC + lane, RC, exists, NDEG)
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
    atom, lane, exists = owner(RC, BL)
    own = atom.to(tl.int64) * (NL * RC) + lane
    found = zeros(NL, BL, grad_a)
    if AR:
        rates = by_degree(decay + NDEG * RC + lane, RC, exists, NDEG)
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
    prefactor = by_degree(decay + lane, RC, exists & AR, NDEG)
    if MEMORY:
        kept = by_degree(memory + lane, RC, exists, NDEG)
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
    atom, lane, exists = owner(RC, BL)
    first, end = _received(atom_first, seg_first, atom)
    rates = by_degree(decay + NDEG * RC + lane, RC, exists, NDEG)
    prefactor = by_degree(decay + lane, RC, exists, NDEG)
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
