"""Device code around the model: edge vectors, forces and virials of edge gradients, float64 sums.

Every sum has a fixed order, so results are the same bits from run to run.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["n"])
def split_positions(positions, high, low, n, GRID: tl.constexpr, BLOCK: tl.constexpr):
    """Write r [n, 3] float64 as a sum of two of the working precision, [3, n] each.

    ``high`` is a multiple of 1/GRID A: differences of it, and with lattice vectors split alike,
    are exact in float32 up to 2^24/GRID A.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    for axis in tl.static_range(3):
        r = tl.load(positions + 3 * i + axis, mask=inside, other=0.0)
        coarse = tl.floor(r * GRID + 0.5) * (1.0 / GRID)
        tl.store(high + axis * n + i, coarse.to(high.dtype.element_ty), mask=inside)
        tl.store(low + axis * n + i, (r - coarse).to(low.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n"])
def shift_vectors(numbers, system, cells, high, low, n, GRID: tl.constexpr, BLOCK: tl.constexpr):
    """Write S h, split as positions are: S [3, n] int32, ``cells`` [n_systems, 3, 3] float64."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    cell = cells + 9 * tl.load(system + i, mask=inside, other=0)
    for axis in tl.static_range(3):
        total = tl.zeros((BLOCK,), tl.float64)
        for vector in tl.static_range(3):
            s = tl.load(numbers + vector * n + i, mask=inside, other=0).to(tl.float64)
            total += s * tl.load(cell + 3 * vector + axis, mask=inside, other=0.0)
        coarse = tl.floor(total * GRID + 0.5) * (1.0 / GRID)
        tl.store(high + axis * n + i, coarse.to(high.dtype.element_ty), mask=inside)
        tl.store(low + axis * n + i, (total - coarse).to(low.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n", "n_edges", "n_shifts"])
def edge_vectors(
    high, low, shift_high, shift_low, sender, receiver, shift, vectors, closest,
    n, n_edges, n_shifts, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write d = r_receiver - r_sender + S h [3, n_edges], and the smallest d^2 of each program."""
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < n_edges
    i = tl.load(sender + e, mask=inside, other=0)
    j = tl.load(receiver + e, mask=inside, other=0)
    s = tl.load(shift + e, mask=inside, other=0)
    square = tl.zeros((BLOCK,), vectors.dtype.element_ty)
    for axis in tl.static_range(3):
        d = tl.load(high + axis * n + j, mask=inside, other=1e3)
        d -= tl.load(high + axis * n + i, mask=inside, other=0.0)
        d += tl.load(shift_high + axis * n_shifts + s, mask=inside, other=0.0)
        rest = tl.load(low + axis * n + j, mask=inside, other=0.0)
        rest -= tl.load(low + axis * n + i, mask=inside, other=0.0)
        rest += tl.load(shift_low + axis * n_shifts + s, mask=inside, other=0.0)
        d += rest
        tl.store(vectors + axis * n_edges + e, d, mask=inside)
        square += d * d
    # a number that is none must not get lost in the minimum: it counts as 0, too close
    square = tl.where(square >= 0.0, square, 0.0)
    tl.store(closest + tl.program_id(0), tl.min(square, 0))


@triton.jit(do_not_specialize=["n", "n_edges"])
def gather_forces(
    vectors, grad_vectors, seg_first, atom_first, sent_first, sent_edge, more, forces, virials,
    n, n_edges, MORE: tl.constexpr, VIRIALS: tl.constexpr, BA: tl.constexpr, BE: tl.constexpr,
):  # fmt: skip
    """Write forces [3, n] of BA atoms, with MORE added to ``more``; with VIRIALS also -d (x) dE/dd.

    ``virials`` is [6, n], symmetrised, in the order xx yy zz yz xz xy.
    """
    atom = tl.program_id(0) * BA + tl.arange(0, BA)
    exists = atom < n
    lane = tl.arange(0, BE)[None, :]
    first_segment = tl.load(atom_first + atom, mask=exists, other=0)
    last_segment = tl.load(atom_first + atom + 1, mask=exists, other=0)
    first = tl.load(seg_first + first_segment, mask=exists, other=0)
    end = tl.load(seg_first + last_segment, mask=exists, other=0)
    zero = tl.zeros((BA, BE), forces.dtype.element_ty)
    fx = zero
    fy = zero
    fz = zero
    w = (zero, zero, zero, zero, zero, zero)
    for step in range(0, tl.max(end - first, 0), BE):
        e = first[:, None] + (lane + step)
        inside = e < end[:, None]
        gx = tl.load(grad_vectors + e, mask=inside, other=0.0)
        gy = tl.load(grad_vectors + n_edges + e, mask=inside, other=0.0)
        gz = tl.load(grad_vectors + 2 * n_edges + e, mask=inside, other=0.0)
        fx -= gx
        fy -= gy
        fz -= gz
        if VIRIALS:
            x = tl.load(vectors + e, mask=inside, other=0.0)
            y = tl.load(vectors + n_edges + e, mask=inside, other=0.0)
            z = tl.load(vectors + 2 * n_edges + e, mask=inside, other=0.0)
            w = (
                w[0] - x * gx, w[1] - y * gy, w[2] - z * gz, w[3] - 0.5 * (y * gz + z * gy),
                w[4] - 0.5 * (x * gz + z * gx), w[5] - 0.5 * (x * gy + y * gx),
            )  # fmt: skip
    sent = tl.load(sent_first + atom, mask=exists, other=0)
    sent_end = tl.load(sent_first + atom + 1, mask=exists, other=0)
    for step in range(0, tl.max(sent_end - sent, 0), BE):
        k = sent[:, None] + (lane + step)
        inside = k < sent_end[:, None]
        e = tl.load(sent_edge + k, mask=inside, other=0)
        fx += tl.load(grad_vectors + e, mask=inside, other=0.0)
        fy += tl.load(grad_vectors + n_edges + e, mask=inside, other=0.0)
        fz += tl.load(grad_vectors + 2 * n_edges + e, mask=inside, other=0.0)
    wide = (atom + tl.minimum(first, 0))[:, None] + tl.zeros((BA, BE), tl.int32)
    store = exists[:, None] & (lane == 0)
    f = (fx, fy, fz)
    for axis in tl.static_range(3):
        total = tl.broadcast_to(tl.sum(f[axis], 1, keep_dims=True), (BA, BE))
        if MORE:
            total += tl.load(more + axis * n + wide, mask=store, other=0.0)
        tl.store(forces + axis * n + wide, total, mask=store)
    if VIRIALS:
        for c in tl.static_range(6):
            total = tl.broadcast_to(tl.sum(w[c], 1, keep_dims=True), (BA, BE))
            tl.store(virials + c * n + wide, total, mask=store)


@triton.jit(do_not_specialize=["n", "n_systems"])
def system_sums(values, first_atom, out, n, n_systems, BLOCK: tl.constexpr):
    """Write the sum of each row of ``values`` [rows, n] over each system, float64.

    ``out`` is [rows, n_systems]; programs are (system, row). Only this kernel adds in float64.
    """
    system = tl.program_id(0)
    row = tl.program_id(1)
    first = tl.load(first_atom + system)
    end = tl.load(first_atom + system + 1)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(first, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        found = tl.load(values + row * n + i, mask=i < end, other=0.0)
        total += found.to(tl.float64)
    tl.store(out + row * n_systems + system, tl.sum(total, 0))
