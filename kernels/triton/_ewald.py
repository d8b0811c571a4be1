"""Device code of the long range: the sum over k vectors, and the open sum over pairs.

Phases are exact: fractional coordinates are integer turns (32 bits in float32), so that integer
arithmetic with overflow gives n . x modulo a whole turn in any box; only the last step is rounded.
HALF is the number of half turns of the integer 1. The host lists the work as items (system, run of
k vectors, run of atoms); every item writes one part. UNROLL terms are loaded together, so that
their latencies overlap.
"""

import triton
import triton.language as tl

from cace_fast.kernels.triton._math import sincospi


@triton.jit
def _item(items, FIELDS: tl.constexpr):
    """Return the numbers of the program's item."""
    out = ()
    for k in tl.static_range(FIELDS):
        out = out + (tl.load(items + tl.program_id(0) * FIELDS + k),)
    return out


@triton.jit
def _phase(n0, n1, n2, f0, f1, f2, like, HALF: tl.constexpr):
    """Return sin, cos of 2 pi n . x."""
    turns = n0 * f0 + n1 * f1 + n2 * f2
    return sincospi(turns.to(like.dtype.element_ty) * HALF)


@triton.jit(do_not_specialize=["n_k", "n"])
def structure_factors(
    items,
    k_turns,
    fraction,
    q,
    parts,
    n_k,
    n,
    N_CHARGES: tl.constexpr,
    HALF: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_LANE: tl.constexpr,
):
    """Write a part of S_c(k), lanes k: [2 N_CHARGES, n_k] real and imaginary, of a run of atoms.

    Items: first k, end of k, first atom, end of atoms, part.
    """
    k0, k1, first, end, part = _item(items, 5)
    k = k0 + tl.arange(0, BLOCK_LANE)
    inside = k < k1
    n0 = tl.load(k_turns + k, mask=inside, other=0)
    n1 = tl.load(k_turns + n_k + k, mask=inside, other=0)
    n2 = tl.load(k_turns + 2 * n_k + k, mask=inside, other=0)
    sums = ()
    for c in tl.static_range(2 * N_CHARGES):
        sums = sums + (tl.zeros((BLOCK_LANE,), q.dtype.element_ty),)
    for start in range(first, end, UNROLL):
        for turn in tl.static_range(UNROLL):
            i = tl.minimum(start + turn, end - 1)
            f0 = tl.load(fraction + i)
            f1 = tl.load(fraction + n + i)
            f2 = tl.load(fraction + 2 * n + i)
            sin, cos = _phase(n0, n1, n2, f0, f1, f2, q, HALF)
            added = ()
            for c in tl.static_range(N_CHARGES):
                charge = tl.load(q + c * n.to(tl.int64) + i)
                charge = tl.where(start + turn < end, charge, 0.0)
                added = added + (sums[2 * c] + charge * cos, sums[2 * c + 1] + charge * sin)
            sums = added
    place = parts + part.to(tl.int64) * (2 * N_CHARGES) * n_k + k
    for c in tl.static_range(2 * N_CHARGES):
        tl.store(place + c * n_k.to(tl.int64), sums[c], mask=inside)


@triton.jit(do_not_specialize=["n_k", "n"])
def potentials(
    items,
    k_turns,
    k_vectors,
    fraction,
    q,
    weighted,
    parts,
    n_k,
    n,
    N_CHARGES: tl.constexpr,
    HALF: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK_LANE: tl.constexpr,
):
    """Write a part of phi_c and of dE/dr, lanes atoms: [N_CHARGES + 3, n], of a run of k vectors.

    ``weighted`` are 4 g Re S_c, 4 g Im S_c [2 N_CHARGES, n_k]. Items: first atom, end of atoms,
    first k, end of k, part.
    """
    first, end, k0, k1, part = _item(items, 5)
    i = first + tl.arange(0, BLOCK_LANE)
    inside = i < end
    f0 = tl.load(fraction + i, mask=inside, other=0)
    f1 = tl.load(fraction + n + i, mask=inside, other=0)
    f2 = tl.load(fraction + 2 * n + i, mask=inside, other=0)
    stride = n.to(tl.int64)
    charge = ()
    phi = ()
    for c in tl.static_range(N_CHARGES):
        charge = charge + (tl.load(q + c * stride + i, mask=inside, other=0.0),)
        phi = phi + (tl.zeros((BLOCK_LANE,), q.dtype.element_ty),)
    gx = tl.zeros((BLOCK_LANE,), q.dtype.element_ty)
    gy = gx
    gz = gx
    for start in range(k0, k1, UNROLL):
        for turn in tl.static_range(UNROLL):
            k = tl.minimum(start + turn, k1 - 1)
            here = start + turn < k1
            n0 = tl.load(k_turns + k)
            n1 = tl.load(k_turns + n_k + k)
            n2 = tl.load(k_turns + 2 * n_k + k)
            sin, cos = _phase(n0, n1, n2, f0, f1, f2, q, HALF)
            pull = gx * 0.0
            added = ()
            for c in tl.static_range(N_CHARGES):
                place = weighted + (2 * c) * n_k.to(tl.int64) + k
                real = tl.where(here, tl.load(place), 0.0)
                imaginary = tl.where(here, tl.load(place + n_k), 0.0)
                added = added + (phi[c] + (real * cos + imaginary * sin),)
                pull += charge[c] * (imaginary * cos - real * sin)
            phi = added
            gx += pull * tl.load(k_vectors + k)
            gy += pull * tl.load(k_vectors + n_k + k)
            gz += pull * tl.load(k_vectors + 2 * n_k + k)
    place = parts + part.to(tl.int64) * (N_CHARGES + 3) * stride + i
    for c in tl.static_range(N_CHARGES):
        tl.store(place + c * stride, phi[c], mask=inside)
    tl.store(place + N_CHARGES * stride, gx, mask=inside)
    tl.store(place + (N_CHARGES + 1) * stride, gy, mask=inside)
    tl.store(place + (N_CHARGES + 2) * stride, gz, mask=inside)


@triton.jit(do_not_specialize=["n"])
def open_pairs(
    items, high, low, q, parts, settings, n, N_CHARGES: tl.constexpr, BLOCK_LANE: tl.constexpr
):
    """Write a part of phi_c and of dE/dr, lanes atoms: [N_CHARGES + 3, n], of a run of partners.

    Positions are split in two numbers, [3, n] each. ``settings``: 1/(sigma sqrt 2), its product
    with 2/sqrt(pi), and 1/(2 pi) times the norm. Items: first atom, end of atoms, first partner,
    end of partners, part.
    """
    first, end, j0, j1, part = _item(items, 5)
    i = first + tl.arange(0, BLOCK_LANE)
    inside = i < end
    stride = n.to(tl.int64)
    own = ()
    charge = ()
    phi = ()
    for axis in tl.static_range(3):
        own = own + (tl.load(high + axis * stride + i, mask=inside, other=0.0),)
        own = own + (tl.load(low + axis * stride + i, mask=inside, other=0.0),)
    for c in tl.static_range(N_CHARGES):
        charge = charge + (tl.load(q + c * stride + i, mask=inside, other=0.0),)
        phi = phi + (tl.zeros((BLOCK_LANE,), q.dtype.element_ty),)
    sharp = tl.load(settings)
    bell = tl.load(settings + 1)
    unit = tl.load(settings + 2)
    gx = tl.zeros((BLOCK_LANE,), q.dtype.element_ty)
    gy = gx
    gz = gx
    for j in range(j0, j1):
        x = (own[0] - tl.load(high + j)) + (own[1] - tl.load(low + j))
        y = (own[2] - tl.load(high + stride + j)) + (own[3] - tl.load(low + stride + j))
        z = (own[4] - tl.load(high + 2 * stride + j)) + (own[5] - tl.load(low + 2 * stride + j))
        other = inside & (i != j)
        square = tl.where(other, x * x + y * y + z * z, 1.0)
        r = tl.sqrt(square)
        inverse = 1.0 / (r + 1e-6)
        erf = tl.erf(r * sharp) * inverse
        slope = (bell * tl.exp(-square * (sharp * sharp)) - erf) * inverse
        value = tl.where(other, erf * unit, 0.0)
        pull = gx * 0.0
        added = ()
        for c in tl.static_range(N_CHARGES):
            partner = tl.load(q + c * stride + j)
            added = added + (phi[c] + value * partner,)
            pull += charge[c] * partner
        phi = added
        pull = tl.where(other, pull * slope * unit / r, 0.0)
        gx += pull * x
        gy += pull * y
        gz += pull * z
    place = parts + part.to(tl.int64) * (N_CHARGES + 3) * stride + i
    for c in tl.static_range(N_CHARGES):
        tl.store(place + c * stride, phi[c], mask=inside)
    tl.store(place + N_CHARGES * stride, gx, mask=inside)
    tl.store(place + (N_CHARGES + 1) * stride, gy, mask=inside)
    tl.store(place + (N_CHARGES + 2) * stride, gz, mask=inside)
