"""Device code between the two layouts: a lane for each atom, or whole rows of numbers of an atom.

Component-major arrays are [q, m, c, atom], atom-major ones [atom, m, q, c]. A tile is read along
its fast axis, transposed by the compiler in shared memory, and written along the other fast axis,
so that both sides move whole lines.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(n, COUNT: tl.constexpr, BLOCK_ATOM: tl.constexpr, BLOCK_COMPONENT: tl.constexpr):
    """Return atoms [BLOCK_ATOM, 1] and components [1, BLOCK_COMPONENT] of a tile; which exist."""
    TILES: tl.constexpr = (COUNT + BLOCK_COMPONENT - 1) // BLOCK_COMPONENT
    program = tl.program_id(0)
    atom = (program // TILES * BLOCK_ATOM + tl.arange(0, BLOCK_ATOM))[:, None]
    number = (program % TILES * BLOCK_COMPONENT + tl.arange(0, BLOCK_COMPONENT))[None, :]
    return atom, number, (atom < n) & (number < COUNT)


@triton.jit
def _component(number, N_RADIAL: tl.constexpr, N_MONOMIALS: tl.constexpr, C: tl.constexpr):
    """Return the row of [q, m, c] for the number [m, q, c] of an atom."""
    run = number // C  # (m, q)
    m = run // N_RADIAL
    return number + (run * (N_MONOMIALS - 1) - m * (N_RADIAL * N_MONOMIALS - 1)) * C


@triton.jit
def _factor(table, species, atom, number, exists, n, COUNT: tl.constexpr):
    """Return the entries of ``table`` [n_species, COUNT] that belong to the atoms of a tile."""
    kind = tl.load(species + atom, mask=atom < n, other=0)
    return tl.load(table + kind * COUNT + number, mask=exists, other=0.0)


@triton.jit(do_not_specialize=["n"])
def to_atoms(
    x,
    table,
    species,
    y,
    n,
    N_RADIAL: tl.constexpr,
    N_MONOMIALS: tl.constexpr,
    C: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCK_ATOM: tl.constexpr,
    BLOCK_COMPONENT: tl.constexpr,
):
    """Write y [atom, m, q, c] of x [q, m, c, atom], by ``table`` [species, (m, q, c)] if FACTOR."""
    atom, number, exists = _tile(n, N_RADIAL * N_MONOMIALS * C, BLOCK_ATOM, BLOCK_COMPONENT)
    value = tl.load(
        x + _component(number, N_RADIAL, N_MONOMIALS, C) * n + atom, mask=exists, other=0.0
    )
    if FACTOR:
        value *= _factor(table, species, atom, number, exists, n, N_RADIAL * N_MONOMIALS * C)
    tl.store(y + atom.to(tl.int64) * (N_RADIAL * N_MONOMIALS * C) + number, value, mask=exists)


@triton.jit(do_not_specialize=["n"])
def to_components(
    y,
    x,
    n,
    N_RADIAL: tl.constexpr,
    N_MONOMIALS: tl.constexpr,
    C: tl.constexpr,
    BLOCK_ATOM: tl.constexpr,
    BLOCK_COMPONENT: tl.constexpr,
):
    """Write x [q, m, c, atom] of y [atom, m, q, c]."""
    atom, number, exists = _tile(n, N_RADIAL * N_MONOMIALS * C, BLOCK_ATOM, BLOCK_COMPONENT)
    value = tl.load(
        y + atom.to(tl.int64) * (N_RADIAL * N_MONOMIALS * C) + number, mask=exists, other=0.0
    )
    tl.store(x + _component(number, N_RADIAL, N_MONOMIALS, C) * n + atom, value, mask=exists)
