"""Device code around the sums of the long range: turns before them, float64 sums of parts after.

Parts are added in order, so results are the same bits from run to run. Two tables describe each
system. ``spans`` int32 [n_systems, SPAN]: first atom, end of atoms, first k, end of k, parts of its
structure factors, parts of its potentials, whether it is open. ``systems`` float64
[n_systems, WIDTH]: its inverse cell, and the self energies of a unit charge: that of its channel,
and that which counts for every channel. ``settings`` float64: weight of the term, field.
"""

import triton
import triton.language as tl

SPAN = tl.constexpr(7)
FIRST_ATOM, END_ATOM, FIRST_K, END_K, FACTOR_PARTS, POTENTIAL_PARTS, IS_OPEN = map(
    tl.constexpr, range(7)
)
WIDTH = tl.constexpr(11)
SELF_ALONE, SELF_OF_EACH = tl.constexpr(9), tl.constexpr(10)


@triton.jit(do_not_specialize=["n_atoms", "n"])
def integer_turns(positions, system_of, systems, turns, n_atoms, n, BLOCK: tl.constexpr):
    """Write fractional coordinates modulo 1 as integers [3, n] of 32 bits, or of 64."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < n_atoms
    inverse = systems + WIDTH * tl.load(system_of + i, mask=inside, other=0)
    for axis in tl.static_range(3):
        f = tl.zeros((BLOCK,), tl.float64)
        for x in tl.static_range(3):
            r = tl.load(positions + 3 * i + x, mask=inside, other=0.0)
            f += r * tl.load(inverse + 3 * x + axis, mask=inside, other=0.0)
        f -= tl.floor(f + 0.5)
        if turns.dtype.element_ty == tl.int64:
            whole = tl.floor(f * 4611686018427387904.0 + 0.5).to(tl.int64) << 2
        else:
            whole = tl.floor(f * 4294967296.0 + 0.5).to(tl.int64)
        tl.store(turns + axis * n + i, whole.to(turns.dtype.element_ty), mask=inside)


@triton.jit
def _with_parts(sums, parts, count, stride, ROWS: tl.constexpr, UNROLL: tl.constexpr):
    """Return ``sums`` plus ``count`` parts of ROWS rows each, in order; UNROLL loads at a time."""
    for first in range(0, tl.max(count, 0), UNROLL):
        for turn in tl.static_range(UNROLL):
            place = parts + (first + turn) * ROWS * stride
            added = ()
            for row in tl.static_range(ROWS):
                part = tl.load(place + row * stride, mask=first + turn < count, other=0.0)
                added = added + (sums[row] + part.to(tl.float64),)
            sums = added
    return sums


@triton.jit(do_not_specialize=["n_k"])
def sum_factors(
    parts,
    k_system,
    spans,
    potential,
    weighted,
    squares,
    n_k,
    N_CHARGES: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up the parts of S_c; write them for ``potentials``, and sum_c |S_c|^2 [n_k]."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = k < n_k
    own = tl.load(k_system + k, mask=inside, other=0)
    count = tl.load(spans + SPAN * own + FACTOR_PARTS, mask=inside, other=0)
    stride = n_k.to(tl.int64)
    sums = ()
    for c in tl.static_range(2 * N_CHARGES):
        sums = sums + (tl.zeros((BLOCK,), tl.float64),)
    sums = _with_parts(sums, parts + k, count, stride, 2 * N_CHARGES, UNROLL)
    unit = tl.load(potential + k, mask=inside, other=0.0)
    square = tl.zeros((BLOCK,), tl.float64)
    for c in tl.static_range(2 * N_CHARGES):
        value = (sums[c] * unit).to(weighted.dtype.element_ty)
        tl.store(weighted + c * stride + k, value, mask=inside)
        square += sums[c] * sums[c]
    tl.store(squares + k, square, mask=inside)


@triton.jit
def _position(positions, i, exists):
    r = ()
    for x in tl.static_range(3):
        r = r + (tl.load(positions + 3 * i + x, mask=exists, other=0.0),)
    return r


@triton.jit(do_not_specialize=["n_atoms", "n"])
def sum_potentials(
    parts,
    given,
    positions,
    q,
    system_of,
    spans,
    systems,
    settings,
    known,
    energies,
    slopes,
    forces,
    moments,
    n_atoms,
    n,
    N_CHARGES: tl.constexpr,
    AXIS: tl.constexpr,
    GIVEN: tl.constexpr,
    KNOWN: tl.constexpr,
    ADD: tl.constexpr,
    MOMENTS: tl.constexpr,
    UNROLL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add up the parts of potentials and dE/dr; write results of atoms, times the weight.

    Energies [n] and forces [3, n] are added to their arrays with ADD, dE/dq [N_CHARGES, n] to
    ``known`` with KNOWN; GIVEN are potentials and dE/dr [N_CHARGES + 3, n] that were summed
    elsewhere. AXIS is that of the field, or -1. With MOMENTS also r_i F_i [6, n], symmetric,
    without weight: of open systems and of the field. Lanes behind the last atom get zeros.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = i < n_atoms
    inside = i < n
    own = tl.load(system_of + i, mask=exists, other=0)
    span = spans + SPAN * own
    count = tl.load(span + POTENTIAL_PARTS, mask=exists, other=0)
    stride = n.to(tl.int64)
    sums = ()
    for row in tl.static_range(N_CHARGES + 3):
        if GIVEN:
            sums = sums + (tl.load(given + row * stride + i, mask=exists, other=0.0),)
        else:
            sums = sums + (tl.zeros((BLOCK,), tl.float64),)
    sums = _with_parts(sums, parts + i, count, stride, N_CHARGES + 3, UNROLL)
    weight = tl.load(settings)
    field = tl.load(settings + 1) * _entries(span, exists, N_CHARGES)
    alone = tl.load(systems + WIDTH * own + SELF_ALONE)
    alone += tl.load(systems + WIDTH * own + SELF_OF_EACH) * N_CHARGES
    r = _position(positions, i, exists)
    energy = tl.zeros((BLOCK,), tl.float64)
    push = tl.zeros((BLOCK,), tl.float64)
    for c in tl.static_range(N_CHARGES):
        charge = tl.load(q + c * stride + i, mask=exists, other=0.0).to(tl.float64)
        energy += charge * (0.5 * sums[c] + alone * charge)
        slope = sums[c] + 2.0 * alone * charge
        if AXIS >= 0:
            energy -= field * charge * r[AXIS]
            slope -= field * r[AXIS]  # nothing behind the last atom
            push += field * charge
        slope *= weight
        if KNOWN:
            slope += tl.load(known + c * stride + i, mask=inside, other=0.0).to(tl.float64)
        tl.store(slopes + c * stride + i, slope.to(slopes.dtype.element_ty), mask=inside)
    energy *= weight
    if ADD:
        energy += tl.load(energies + i, mask=inside, other=0.0)
    tl.store(energies + i, energy, mask=inside)
    for x in tl.static_range(3):
        force = -sums[N_CHARGES + x]
        if x == AXIS:
            force += push
        force *= weight
        if ADD:
            force += tl.load(forces + x * stride + i, mask=inside, other=0.0).to(tl.float64)
        tl.store(forces + x * stride + i, force.to(forces.dtype.element_ty), mask=inside)
    if MOMENTS:
        open_ = tl.load(span + IS_OPEN, mask=exists, other=0) > 0
        # forces sum to nothing
        center = positions + 3 * tl.load(span + FIRST_ATOM, mask=exists, other=0)
        arm = ()
        pull = ()
        pushed = ()
        for x in tl.static_range(3):
            arm = arm + (r[x] - tl.load(center + x, mask=exists, other=0.0),)
            pull = pull + (tl.where(open_, -sums[N_CHARGES + x], 0.0),)
            pushed = pushed + (push if x == AXIS else push * 0.0,)
        inner = _moments(arm, pull)
        outer = _moments(r, pushed)
        for row in tl.static_range(6):
            tl.store(moments + row * stride + i, inner[row] + outer[row], mask=exists)


@triton.jit
def _entries(span, exists, N_CHARGES: tl.constexpr):
    """Return how many entries of the result get the field: one for an open system."""
    return tl.where(tl.load(span + IS_OPEN, mask=exists, other=0) > 0, 1.0, N_CHARGES * 1.0).to(
        tl.float64
    )


@triton.jit
def _moments(r, f):
    """Return r_a f_b, its symmetric part: xx yy zz yz xz xy."""
    yz = 0.5 * (r[1] * f[2] + r[2] * f[1])
    xz = 0.5 * (r[0] * f[2] + r[2] * f[0])
    xy = 0.5 * (r[0] * f[1] + r[1] * f[0])
    return r[0] * f[0], r[1] * f[1], r[2] * f[2], yz, xz, xy


@triton.jit(do_not_specialize=["n_k", "n", "n_systems"])
def sum_virials(
    squares,
    virial,
    moments,
    spans,
    settings,
    virials,
    n_k,
    n,
    n_systems,
    PERIODIC: tl.constexpr,
    MOMENTS: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write virials [6, n_systems] times the weight, or add them; programs are (system, row).

    PERIODIC: of sum_c |S_c|^2 and ``virial`` [6, n_k]; MOMENTS: of r_i F_i [6, n].
    """
    system = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float64)
    span = spans + SPAN * system
    if PERIODIC:
        end = tl.load(span + END_K)
        for first in range(tl.load(span + FIRST_K), end, BLOCK):
            k = first + tl.arange(0, BLOCK)
            unit = tl.load(virial + row * n_k + k, mask=k < end, other=0.0)
            total += unit * tl.load(squares + k, mask=k < end, other=0.0)
    if MOMENTS:
        end = tl.load(span + END_ATOM)
        for first in range(tl.load(span + FIRST_ATOM), end, BLOCK):
            i = first + tl.arange(0, BLOCK)
            total += tl.load(moments + row * n + i, mask=i < end, other=0.0)
    place = virials + row * n_systems + system
    whole = tl.sum(total, 0) * tl.load(settings)
    if ADD:
        whole += tl.load(place)
    tl.store(place, whole)
