"""Device code around the model: edge vectors, forces and virials of edge gradients, float64 sums.

Every sum has a fixed order, so results are the same bits from run to run.
"""

import triton
import triton.language as tl

from cace_fast.kernels.triton._cells import FIELDS, REACH, SKIN, lattice_vectors


@triton.jit
def _split(high, low, place, value, inside, GRID: tl.constexpr):
    """Write a float64 number as a sum of two of the working precision.

    ``high`` is a multiple of 1/GRID A: differences of it, and with lattice vectors split alike,
    are exact in float32 up to 2^24/GRID A.
    """
    coarse = tl.floor(value * GRID + 0.5) * (1.0 / GRID)
    tl.store(high + place, coarse.to(high.dtype.element_ty), mask=inside)
    tl.store(low + place, (value - coarse).to(low.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["n"])
def split_atoms(positions, high, low, n, GRID: tl.constexpr, BLOCK: tl.constexpr):
    """Write r [n, 3] float64 as a sum of two, [3, n] each."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    for axis in tl.static_range(3):
        r = tl.load(positions + 3 * i + axis, mask=inside, other=0.0)
        _split(high, low, axis * n + i, r, inside, GRID)


@triton.jit(do_not_specialize=["n", "n_shifts", "n_blocks"])
def split_positions(
    positions,
    cells,
    high,
    low,
    numbers,
    system,
    shift_high,
    shift_low,
    system_of,
    frames,
    grids,
    settings,
    wraps,
    fractions,
    reciprocals,
    displacement_ratio,
    n,
    n_shifts,
    n_blocks,
    KEEPS_LIST: tl.constexpr,
    GRID: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write positions, and from program ``n_blocks`` on S h, each as a sum of two.

    S are ``numbers`` [3, n_shifts] of the systems ``system`` [n_shifts], ``cells`` float64.
    KEEPS_LIST: the device made the list (``_neighbors``). Then positions are moved back by the
    cells ``wraps`` that they lay away when it was made, and ``displacement_ratio`` gets the
    largest squared displacement in units of the allowed one.
    """
    if tl.program_id(0) < n_blocks:
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        inside = i < n
        r = ()
        for x in tl.static_range(3):
            r = r + (tl.load(positions + 3 * i + x, mask=inside, other=0.0),)
        if KEEPS_LIST:
            own = tl.load(system_of + i, mask=inside, other=0)
            grid = grids + FIELDS * own
            h = lattice_vectors(cells, frames, grid, own, inside)
            home = (r[0] * 0.0, r[0] * 0.0, r[0] * 0.0)
            for k in tl.static_range(3):
                wrap = tl.load(wraps + k * n + i, mask=inside, other=0).to(tl.float64)
                f = tl.load(fractions + k * n + i, mask=inside, other=0.0)
                moved = ()
                then = ()
                for x in tl.static_range(3):
                    moved = moved + (r[x] - wrap * h[3 * k + x],)
                    then = then + (home[x] + f * h[3 * k + x],)
                r = moved
                home = then
            square = r[0] * 0.0
            for x in tl.static_range(3):
                square += (r[x] - home[x]) * (r[x] - home[x])
            allowed = _allowed(h, reciprocals + 9 * own, settings, inside)
            kept = (allowed > 0.0) & (square < 1e30)  # NaN counts as far away
            ratio = 4.0 * square.to(tl.float32) / tl.where(kept, allowed * allowed, 1.0)
            ratio = tl.where(inside, tl.where(kept, ratio, float("inf")), 0.0)
            tl.store(displacement_ratio + tl.program_id(0), tl.max(ratio, 0))
        for x in tl.static_range(3):
            _split(high, low, x * n + i, r[x], inside, GRID)
    else:
        i = (tl.program_id(0) - n_blocks) * BLOCK + tl.arange(0, BLOCK)
        inside = i < n_shifts
        cell = cells + 9 * tl.load(system + i, mask=inside, other=0)
        for axis in tl.static_range(3):
            total = tl.zeros((BLOCK,), tl.float64)
            for vector in tl.static_range(3):
                s = tl.load(numbers + vector * n_shifts + i, mask=inside, other=0).to(tl.float64)
                total += s * tl.load(cell + 3 * vector + axis, mask=inside, other=0.0)
            _split(shift_high, shift_low, axis * n_shifts + i, total, inside, GRID)


@triton.jit
def _allowed(h, reciprocals, settings, inside):
    """Return how far two atoms together may move: the skin minus the share of the strain.

    A pair at the cutoff was at most (cutoff + moves)/(1 - |strain|) apart when the list was made.
    """
    square = h[0] * 0.0
    for x in tl.static_range(3):
        for y in tl.static_range(3):
            change = h[0] * 0.0 - (1.0 if x == y else 0.0)
            for k in tl.static_range(3):
                c = tl.load(reciprocals + 3 * k + x, mask=inside, other=0.0)
                change += c * h[3 * k + y]
            square += change * change
    strain = tl.sqrt(square.to(tl.float32)) * 1.0001
    return tl.load(settings + SKIN).to(tl.float32) - strain * tl.load(settings + REACH).to(
        tl.float32
    )


@triton.jit(do_not_specialize=["n", "n_edges", "n_shifts"])
def edge_vectors(
    high,
    low,
    shift_high,
    shift_low,
    sender,
    receiver,
    shift,
    vectors,
    closest,
    n,
    n_edges,
    n_shifts,
    BLOCK: tl.constexpr,
):
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
    # NaN must not get lost in the minimum: it counts as 0, too close
    square = tl.where(square >= 0.0, square, 0.0)
    tl.store(closest + tl.program_id(0), tl.min(square, 0))


@triton.jit(do_not_specialize=["n", "n_edges"])
def gather_forces(
    vectors,
    grad_vectors,
    seg_first,
    atom_first,
    sent_first,
    sent_edge,
    more,
    forces,
    virials,
    n,
    n_edges,
    MORE: tl.constexpr,
    VIRIALS: tl.constexpr,
    BLOCK_ATOM: tl.constexpr,
    BLOCK_EDGE: tl.constexpr,
):
    """Write forces [3, n], plus ``more`` with MORE; with VIRIALS also -d (x) dE/dd of atoms.

    ``virials`` is [6, n], symmetrised, in the order xx yy zz yz xz xy.
    """
    atom = tl.program_id(0) * BLOCK_ATOM + tl.arange(0, BLOCK_ATOM)
    exists = atom < n
    lane = tl.arange(0, BLOCK_EDGE)[None, :]
    first_segment = tl.load(atom_first + atom, mask=exists, other=0)
    last_segment = tl.load(atom_first + atom + 1, mask=exists, other=0)
    first = tl.load(seg_first + first_segment, mask=exists, other=0)
    end = tl.load(seg_first + last_segment, mask=exists, other=0)
    zero = tl.zeros((BLOCK_ATOM, BLOCK_EDGE), forces.dtype.element_ty)
    fx = zero
    fy = zero
    fz = zero
    w = (zero, zero, zero, zero, zero, zero)
    for step in range(0, tl.max(end - first, 0), BLOCK_EDGE):
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
                w[0] - x * gx,
                w[1] - y * gy,
                w[2] - z * gz,
                w[3] - 0.5 * (y * gz + z * gy),
                w[4] - 0.5 * (x * gz + z * gx),
                w[5] - 0.5 * (x * gy + y * gx),
            )
    sent = tl.load(sent_first + atom, mask=exists, other=0)
    sent_end = tl.load(sent_first + atom + 1, mask=exists, other=0)
    for step in range(0, tl.max(sent_end - sent, 0), BLOCK_EDGE):
        k = sent[:, None] + (lane + step)
        inside = k < sent_end[:, None]
        e = tl.load(sent_edge + k, mask=inside, other=0)
        fx += tl.load(grad_vectors + e, mask=inside, other=0.0)
        fy += tl.load(grad_vectors + n_edges + e, mask=inside, other=0.0)
        fz += tl.load(grad_vectors + 2 * n_edges + e, mask=inside, other=0.0)
    wide = (atom + tl.minimum(first, 0))[:, None] + tl.zeros((BLOCK_ATOM, BLOCK_EDGE), tl.int32)
    store = exists[:, None] & (lane == 0)
    f = (fx, fy, fz)
    for axis in tl.static_range(3):
        total = tl.broadcast_to(tl.sum(f[axis], 1, keep_dims=True), (BLOCK_ATOM, BLOCK_EDGE))
        if MORE:
            total += tl.load(more + axis * n + wide, mask=store, other=0.0)
        tl.store(forces + axis * n + wide, total, mask=store)
    if VIRIALS:
        for c in tl.static_range(6):
            total = tl.broadcast_to(tl.sum(w[c], 1, keep_dims=True), (BLOCK_ATOM, BLOCK_EDGE))
            tl.store(virials + c * n + wide, total, mask=store)


@triton.jit
def _largest(values, n, start, BLOCK: tl.constexpr, SMALLEST: tl.constexpr):
    """Return the largest of ``values`` [n] and ``start``, or the smallest."""
    found = tl.zeros((BLOCK,), tl.float64) + start
    for first in range(0, n, BLOCK):
        i = first + tl.arange(0, BLOCK)
        value = tl.load(values + i, mask=i < n, other=start).to(tl.float64)
        found = tl.minimum(found, value) if SMALLEST else tl.maximum(found, value)
    return tl.min(found, 0) if SMALLEST else tl.max(found, 0)


@triton.jit(do_not_specialize=["n", "n_out", "n_systems", "n_closest", "n_ratios", "long_range"])
def totals(
    outputs,
    energy_weights,
    energies,
    virials,
    first_atom,
    energy_sums,
    virial_sums,
    long_virials,
    closest,
    displacement_ratio,
    bins_too_small,
    need,
    status,
    n,
    n_out,
    n_systems,
    n_closest,
    n_ratios,
    long_range,
    KEEPS_LIST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the energies of atoms, float64 sums over systems, and the status of the step.

    Programs are (system, row): row 0 has the energies of the read-outs, made of ``outputs``
    [n_out, n], row 1 those of the long range, rows 2 to 7 the virials [6, n] plus those of the
    long range by system. The system behind the last one is the status: the smallest squared
    distance, and if KEEPS_LIST the largest of ``displacement_ratio``, how many systems have too
    few bins, and the edges and segments of the list.
    """
    system = tl.program_id(0)
    row = tl.program_id(1)
    if system < n_systems:
        first = tl.load(first_atom + system)
        end = tl.load(first_atom + system + 1)
        total = tl.zeros((BLOCK,), tl.float64)
        for start in range(first, end, BLOCK):
            i = start + tl.arange(0, BLOCK)
            inside = i < end
            if row == 0:
                value = tl.zeros((BLOCK,), tl.float64)
                for k in range(0, n_out):
                    y = tl.load(outputs + k * n + i, mask=inside, other=0.0).to(tl.float64)
                    value += y * tl.load(energy_weights + k * n + i, mask=inside, other=0.0)
                tl.store(energies + i, value, mask=inside)
                total += value
            elif row == 1:
                total += tl.load(energies + n + i, mask=inside & (long_range > 0), other=0.0)
            else:
                place = virials + (row - 2) * n + i
                total += tl.load(place, mask=inside, other=0.0).to(tl.float64)
        whole = tl.sum(total, 0)
        if row < 2:
            tl.store(energy_sums + row * n_systems + system, whole)
        else:
            place = (row - 2) * n_systems + system
            if long_range > 0:
                whole += tl.load(long_virials + place)
            tl.store(virial_sums + place, whole)
    elif row == 0:
        tl.store(status, _largest(closest, n_closest, float("inf"), BLOCK, True))
        if KEEPS_LIST:
            tl.store(status + 1, _largest(displacement_ratio, n_ratios, 0.0, BLOCK, False))
            tl.store(status + 2, _largest(bins_too_small, n_systems, 0.0, BLOCK, False))
            tl.store(status + 3, tl.load(need).to(tl.float64))
            tl.store(status + 4, tl.load(need + 1).to(tl.float64))
