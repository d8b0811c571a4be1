"""Tables of a representation that kernels take as constants, from :mod:`cace_fast.tables`."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

from cace_fast import tables
from cace_fast.kernels.formulas import BASES, CUTOFFS
from cace_fast.spec import Representation

MOST_ACCUMULATORS = 200  # of one lane: with more, registers spill (docs/developer/kernels.md)

Radial = tuple[int, int, float]


@cache
def parents(l_max: int) -> tuple[tuple[int, int], ...]:
    """Return (k, axis) of every monomial: it is monomial k times that component of u (equation 10).

    The first monomial is 1 and has no parent.
    """
    found = [(0, 0)]
    for monomial in tables.monomials(l_max)[1:]:
        axis = max(range(3), key=lambda x: monomial[x])
        found.append((tables.index(_lowered(monomial, axis)), axis))
    return tuple(found)


@cache
def derivatives(l_max: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Return (k, factor) of every monomial and axis: the derivative is factor times monomial k.

    See ``docs/theory.md``, equation 10.
    """
    return tuple(
        tuple(
            (tables.index(_lowered(monomial, axis)), monomial[axis]) if monomial[axis] else (0, 0)
            for axis in range(3)
        )
        for monomial in tables.monomials(l_max)
    )


def _lowered(monomial: tables.Monomial, axis: int) -> tables.Monomial:
    powers = list(monomial)
    powers[axis] -= 1
    return (powers[0], powers[1], powers[2])


def radial_shape(spec: Representation) -> Radial:
    """Return (kind of radial function, kind of cutoff function, p) as kernels take them.

    They are equations 3 to 9 of ``docs/theory.md`` by their place in ``formulas``.
    """
    cutoff = spec.cutoff_function
    kind = cutoff.kind
    real = kind == "polynomial" and cutoff.p != int(cutoff.p)
    number = list(CUTOFFS).index("real polynomial" if real else kind)
    return list(BASES).index(spec.radial.kind), number, cutoff.p if real else int(cutoff.p)


def radial_chunks(n_rbf: int, l_max: int) -> tuple[tuple[int, int], ...]:
    """Return (first, count) of the radial functions of each launch, few enough not to spill.

    ``docs/developer/kernels.md`` explains the limit.
    """
    most = max(1, MOST_ACCUMULATORS // tables.n_monomials(l_max))
    n_chunks = -(-n_rbf // most)
    edges = [k * n_rbf // n_chunks for k in range(n_chunks + 1)]
    return tuple((a, b - a) for a, b in pairwise(edges))
