"""Device code of the neighbour list: bins, candidates, order, segments.

Every array has a fixed size; entries that do not fit are left out and counted: the host need not
know how many pairs there are while a list is made. Positions and cells are float64 throughout, as
in a list of the host: both have to contain the same pairs.
"""

import triton
import triton.language as tl

from cace_fast.kernels.triton._cells import (
    BIN_WIDTH,
    FAR,
    FIELDS,
    FIRST_BIN,
    FIRST_SHIFT,
    IMAGES,
    N_BINS,
    PERIODIC,
    REACH2,
    WINDOW,
    lattice_vectors,
    reciprocal,
)

LANES = tl.constexpr(32)
LARGEST = tl.constexpr(2**63 - 1)


@triton.jit
def _place_block(
    positions,
    system_of,
    cells,
    frames,
    grids,
    settings,
    placed,
    wraps,
    fractions,
    bins,
    n,
    BLOCK: tl.constexpr,
):
    width = tl.load(settings + BIN_WIDTH)
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n
    system = tl.load(system_of + i, mask=inside, other=0)
    grid = grids + FIELDS * system
    h = lattice_vectors(cells, frames, grid, system, inside)
    c = reciprocal(h)
    r = ()
    for x in tl.static_range(3):
        r = r + (tl.load(positions + 3 * i + x, mask=inside, other=0.0),)
    moved = r
    code = tl.load(grid + FIRST_BIN, mask=inside, other=0)
    number = code * 0
    for k in tl.static_range(3):
        f = r[0] * c[3 * k] + r[1] * c[3 * k + 1] + r[2] * c[3 * k + 2]
        periodic = tl.load(grid + PERIODIC + k, mask=inside, other=0)
        count = tl.load(grid + N_BINS + k, mask=inside, other=1)
        # NaN, and positions too far for a double or 32 bits, have no bin; in a periodic
        # direction they are NaN from here on, which the host sees in the next step
        there = tl.abs(f) < tl.where(periodic > 0, 1e9, 1e15)
        lost = (periodic > 0) & ~there
        f = tl.where(there, f, 0.0)
        cell = tl.where(periodic > 0, tl.floor(f), 0.0)
        f -= cell
        within = tl.minimum((f * count).to(tl.int32), count - 1)
        far = tl.floor(f / width)
        beyond = (far - count * tl.floor(far / count)).to(tl.int32)
        place = tl.where(periodic > 0, within, tl.minimum(beyond, count - 1))
        number = number * count + place
        tl.store(wraps + k * n + i, cell.to(tl.int32), mask=inside)
        tl.store(fractions + k * n + i, tl.where(lost, float("nan"), f), mask=inside)
        moved = (
            moved[0] - cell * h[3 * k],
            moved[1] - cell * h[3 * k + 1],
            moved[2] - cell * h[3 * k + 2],
        )
    tl.store(bins + i, code + number, mask=inside)
    for x in tl.static_range(3):
        tl.store(placed + x * n + i, moved[x], mask=inside)


@triton.jit
def _check_bins(system, cells, frames, grids, settings, reciprocals, bins_too_small):
    width = tl.load(settings + BIN_WIDTH)
    grid = grids + FIELDS * system
    c = reciprocal(lattice_vectors(cells, frames, grid, system, system >= 0))
    reach2 = tl.load(settings + REACH2)
    short = system * 0
    for k in tl.static_range(3):
        for x in tl.static_range(3):
            tl.store(reciprocals + 9 * system + 3 * k + x, c[3 * k + x])
        square = c[3 * k] * c[3 * k] + c[3 * k + 1] * c[3 * k + 1] + c[3 * k + 2] * c[3 * k + 2]
        count = tl.load(grid + N_BINS + k)
        far = tl.load(grid + FAR + k) * 1.0
        periodic = tl.load(grid + PERIODIC + k) > 0
        length = tl.where(periodic, far / count, far * width)
        enough = length * length >= reach2 * square * (1.0 - 1e-12)
        everywhere = (periodic == 0) & (tl.load(grid + WINDOW + k) == count)
        short += tl.where(enough | everywhere, 0, 1)
    tl.store(bins_too_small + system, short)


@triton.jit(do_not_specialize=["n", "n_blocks"])
def place_atoms(
    positions,
    system_of,
    cells,
    frames,
    grids,
    settings,
    placed,
    wraps,
    fractions,
    bins,
    reciprocals,
    bins_too_small,
    n,
    n_blocks,
    BLOCK: tl.constexpr,
):
    """Write where atoms are when the list is made, and the reciprocal vectors of systems.

    ``placed`` [3, n] is r without the cells ``wraps`` [3, n] that it lies away, ``fractions`` [3,
    n] the same in units of lattice vectors, ``bins`` [n] the bin. The programs from ``n_blocks``
    on have one system each: ``reciprocals`` [n_systems, 9], and in ``bins_too_small`` whether the
    bins that an atom looks at reach too short. ``settings``: reach of the list, its square, width
    of bins in open directions, skin.
    """
    if tl.program_id(0) < n_blocks:
        _place_block(
            positions,
            system_of,
            cells,
            frames,
            grids,
            settings,
            placed,
            wraps,
            fractions,
            bins,
            n,
            BLOCK,
        )
    else:
        system = tl.program_id(0) - n_blocks
        _check_bins(system, cells, frames, grids, settings, reciprocals, bins_too_small)


@triton.jit
def _three(place):
    return tl.load(place), tl.load(place + 1), tl.load(place + 2)


@triton.jit(do_not_specialize=["n", "n_edges"])
def near_pairs(
    placed,
    species,
    system_of,
    bins,
    members,
    bin_first,
    cells,
    frames,
    grids,
    settings,
    ends,
    counts,
    keys,
    receivers,
    n,
    n_edges,
    WRITE: tl.constexpr,
):
    """Count the neighbours of one atom that each lane finds, or WRITE them.

    Lane l looks at the bins l, l + 32, ... around the atom. A key is the element (15 bits), the
    sender (32 bits) and the number of the shift among its system's (16 bits); ``ends`` [32 n] is
    where each lane's keys end.
    """
    receiver = tl.program_id(0)
    lane = tl.arange(0, LANES)
    system = tl.load(system_of + receiver)
    grid = grids + FIELDS * system
    h = lattice_vectors(cells, frames, grid, system, system >= 0)
    x = tl.load(placed + receiver)
    y = tl.load(placed + n + receiver)
    z = tl.load(placed + 2 * n + receiver)
    numbers = _three(grid)
    n0, n1, n2 = numbers
    far = _three(grid + FAR)
    w0, w1, w2 = _three(grid + WINDOW)
    m = _three(grid + IMAGES)
    first_bin = tl.load(grid + FIRST_BIN)
    own = tl.load(bins + receiver) - first_bin
    corner = (own // (n1 * n2), own // n2 % n1, own % n2)
    reach2 = tl.load(settings + REACH2)
    mine = receiver * LANES + lane
    count = lane * 0
    start = count
    if WRITE:
        start = tl.load(ends + mine) - tl.load(counts + mine)
    for step in range(0, w0 * w1 * w2, LANES):
        o = step + lane
        inside = o < w0 * w1 * w2
        offset = (o // (w1 * w2), o // w2 % w1, o % w2)
        q = ()
        there = first_bin * 0
        for k in tl.static_range(3):
            target = corner[k] + offset[k] - far[k] + numbers[k] * far[k]  # never below zero
            turn = target // numbers[k]
            there = there * numbers[k] + (target - turn * numbers[k])
            q = q + (tl.where(tl.load(grid + PERIODIC + k) > 0, turn - far[k], 0),)
        sx = x - (q[0] * h[0] + q[1] * h[3] + q[2] * h[6])
        sy = y - (q[0] * h[1] + q[1] * h[4] + q[2] * h[7])
        sz = z - (q[0] * h[2] + q[1] * h[5] + q[2] * h[8])
        code = ((m[0] - q[0]) * (2 * m[1] + 1) + m[1] - q[1]) * (2 * m[2] + 1) + m[2] - q[2]
        home = (q[0] == 0) & (q[1] == 0) & (q[2] == 0)
        k = tl.load(bin_first + first_bin + there, mask=inside, other=0)
        end = tl.load(bin_first + first_bin + there + 1, mask=inside, other=0)
        for _ in range(0, tl.max(end - k, 0)):
            here = inside & (k < end)
            sender = tl.load(members + k, mask=here, other=0).to(tl.int32)
            dx = sx - tl.load(placed + sender, mask=here, other=0.0)
            dy = sy - tl.load(placed + n + sender, mask=here, other=0.0)
            dz = sz - tl.load(placed + 2 * n + sender, mask=here, other=0.0)
            near = here & (dx * dx + dy * dy + dz * dz < reach2)
            near = near & ((sender != receiver) | (home == 0))
            if WRITE:
                element = tl.load(species + sender, mask=near, other=0).to(tl.int64)
                key = (element << 48) | (sender.to(tl.int64) << 16) | code.to(tl.int64)
                fits = near & (start + count < n_edges)
                tl.store(keys + start + count, key, mask=fits)
                tl.store(receivers + start + count, receiver + lane * 0, mask=fits)
            count += near.to(tl.int32)
            k += 1
    if WRITE == 0:
        tl.store(counts + mine, count)


@triton.jit
def _row(ends, atom, mask, n_edges):
    """Return the begin and end of the edges of receivers, of those that fit."""
    first = tl.load(ends + atom * LANES - 1, mask=mask & (atom > 0), other=0)
    end = tl.load(ends + atom * LANES + (LANES - 1), mask=mask, other=0)
    return tl.minimum(first, n_edges), tl.minimum(end, n_edges)


@triton.jit(do_not_specialize=["n", "n_edges", "n_shifts"])
def sort_pairs(
    keys,
    receivers,
    ends,
    system_of,
    grids,
    sorted_keys,
    sender,
    receiver,
    shift,
    opens,
    n,
    n_edges,
    n_shifts,
    UNROLL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Put the edges of each receiver in the order of their keys, one lane for each edge.

    A lane counts the smaller keys of its row. ``opens`` marks the first edge of every segment.
    """
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < n_edges
    some = e < tl.load(ends + n * LANES - 1)
    some = some & inside
    atom = tl.load(receivers + e, mask=some, other=0)
    own = tl.load(keys + e, mask=some, other=0)
    first, end = _row(ends, atom, some, n_edges)
    below = e * 0
    alike = e * 0
    for step in range(0, tl.max(end - first, 0), UNROLL):
        found = ()
        for t in tl.static_range(UNROLL):
            k = first + step + t
            found = found + (tl.load(keys + k, mask=some & (k < end), other=LARGEST),)
        for t in tl.static_range(UNROLL):
            smaller = found[t] < own
            below += smaller.to(tl.int32)
            alike += (smaller & (found[t] >> 48 == own >> 48)).to(tl.int32)
    place = tl.where(some, first + below, e)
    system = tl.load(system_of + atom, mask=some, other=0)
    number = tl.load(grids + FIELDS * system + FIRST_SHIFT, mask=some, other=0) + (own & 65535).to(
        tl.int32
    )
    tl.store(sorted_keys + place, own, mask=some)
    tl.store(sender + place, ((own >> 16) & 4294967295).to(tl.int32), mask=inside)
    tl.store(receiver + place, atom, mask=inside)
    tl.store(shift + place, tl.where(some, number, n_shifts - 1), mask=inside)
    tl.store(opens + place, (some & (alike == 0)).to(tl.int32), mask=inside)


@triton.jit(do_not_specialize=["n", "n_edges", "n_segments"])
def finalize_segments(
    sorted_keys,
    sender,
    receiver,
    opens,
    numbers,
    ends,
    species,
    system_of,
    grids,
    seg_first,
    seg_atom,
    seg_species,
    atom_first,
    sent_first,
    sent_edge,
    need,
    n,
    n_edges,
    n_segments,
    BLOCK: tl.constexpr,
):
    """Write segments, the first segment and edge of atoms, and for each edge its reverse.

    The reverse of an edge of i is one that i sends: bisection in the row of its receiver finds it.
    ``numbers`` are the running sums of ``opens``. ``need``: how many edges and segments there are,
    whether they fit or not.
    """
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    whole = tl.load(ends + n * LANES - 1)
    total = tl.minimum(whole, n_edges)
    segments = tl.load(numbers + n_edges - 1)
    some = e < total
    atom = tl.load(receiver + e, mask=some, other=0)
    key = tl.load(sorted_keys + e, mask=some, other=0)
    first = tl.load(opens + e, mask=some, other=0) > 0
    s = tl.load(numbers + e, mask=some, other=1) - 1
    here = first & (s < n_segments)
    tl.store(seg_first + s, e, mask=here)
    tl.store(seg_atom + s, atom, mask=here)
    tl.store(seg_species + s, (key >> 48).to(tl.int32), mask=here)
    empty = (e >= segments) & (e < n_segments)
    tl.store(seg_atom + e, e * 0, mask=empty)
    tl.store(seg_species + e, e * 0, mask=empty)
    tl.store(seg_first + e, e * 0 + total, mask=(e >= segments) & (e <= n_segments))
    is_atom = e <= n
    before = tl.load(ends + e * LANES - 1, mask=is_atom & (e > 0), other=0)
    before = tl.minimum(before, n_edges)
    closed = tl.load(numbers + before - 1, mask=is_atom & (before > 0), other=0)
    tl.store(sent_first + e, before, mask=is_atom)
    tl.store(atom_first + e, tl.minimum(closed, n_segments), mask=is_atom)
    other = tl.load(sender + e, mask=some, other=0)
    system = tl.load(system_of + atom, mask=some, other=0)
    grid = grids + FIELDS * system
    images = some.to(tl.int64)
    for k in tl.static_range(3):
        images = images * (2 * tl.load(grid + IMAGES + k, mask=some, other=0) + 1)
    element = tl.load(species + atom, mask=some, other=0).to(tl.int64)
    wanted = (element << 48) | (atom.to(tl.int64) << 16) | (images - 1 - (key & 65535))
    low, high = _row(ends, other, some, n_edges)
    while tl.max(high - low, 0) > 0:
        middle = (low + high) // 2
        searching = low < high
        found = tl.load(sorted_keys + middle, mask=searching, other=0)
        low = tl.where(searching & (found < wanted), middle + 1, low)
        high = tl.where(searching & (found >= wanted), middle, high)
    reverse = tl.where(some, tl.minimum(low, n_edges - 1), 0)
    tl.store(sent_edge + e, reverse, mask=e < n_edges)
    if tl.program_id(0) == 0:
        tl.store(need, whole)
        tl.store(need + 1, segments)
