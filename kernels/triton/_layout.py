"""Device code between the two layouts: a lane for each atom, or whole rows of numbers of an atom.

Component-major arrays are [q, m, c, atom], atom-major ones [atom, m, q, c]. A tile is read along
its fast axis, turned by the compiler in shared memory, and written along the other fast axis, so
that both sides move whole lines.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(n, COUNT: tl.constexpr, BA: tl.constexpr, BN: tl.constexpr):
    """Return the atoms [BA, 1] and numbers [1, BN] of the program's tile, and which exist."""
    TILES: tl.constexpr = (COUNT + BN - 1) // BN
    program = tl.program_id(0)
    atom = (program // TILES * BA + tl.arange(0, BA))[:, None]
    number = (program % TILES * BN + tl.arange(0, BN))[None, :]
    return atom, number, (atom < n) & (number < COUNT)


@triton.jit
def _component(number, Q: tl.constexpr, M: tl.constexpr, C: tl.constexpr):
    """Return the row of [q, m, c] that is number [m, q, c] of an atom."""
    run = number // C  # (m, q)
    m = run // Q
    return number + (run * (M - 1) - m * (Q * M - 1)) * C


@triton.jit
def _factor(table, species, atom, number, exists, n, COUNT: tl.constexpr):
    """Return the entries of ``table`` [n_species, COUNT] that belong to the atoms of a tile."""
    kind = tl.load(species + atom, mask=atom < n, other=0)
    return tl.load(table + kind * COUNT + number, mask=exists, other=0.0)


@triton.jit(do_not_specialize=["n"])
def to_atoms(
    x, table, species, y, n, Q: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
    FACTOR: tl.constexpr, BA: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Write y [atom, m, q, c] of x [q, m, c, atom], by ``table`` [species, (m, q, c)] if FACTOR."""
    atom, number, exists = _tile(n, Q * M * C, BA, BN)
    value = tl.load(x + _component(number, Q, M, C) * n + atom, mask=exists, other=0.0)
    if FACTOR:
        value *= _factor(table, species, atom, number, exists, n, Q * M * C)
    tl.store(y + atom.to(tl.int64) * (Q * M * C) + number, value, mask=exists)


@triton.jit(do_not_specialize=["n"])
def to_components(
    y, x, n, Q: tl.constexpr, M: tl.constexpr, C: tl.constexpr, BA: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """Write x [q, m, c, atom] of y [atom, m, q, c]."""
    atom, number, exists = _tile(n, Q * M * C, BA, BN)
    value = tl.load(y + atom.to(tl.int64) * (Q * M * C) + number, mask=exists, other=0.0)
    tl.store(x + _component(number, Q, M, C) * n + atom, value, mask=exists)
