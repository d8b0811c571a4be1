"""The contraction's polynomials and their derivatives as programs, from :mod:`cace_fast.tables`.

All orders are made of the partial contractions u (docs/theory.md, equation 12), so that a term of
order 4 costs one multiply-add. The gradient is the same program backwards, and the jvp of both is
the product rule on each of its statements. ``kernels/cpu/generate.py`` prints a program as C++;
here it is printed as ordinary Python with a variable for every number. Triton compiles that (a
table that a kernel walks through gives the same registers, but compiles slowly from nu = 4 on), and
it runs on tensors as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from cace_fast import tables
from cace_fast.kernels.source import compiled

if TYPE_CHECKING:  # a build of the C++ has no torch
    from torch import Tensor

TRITON = "import triton\nimport triton.language as tl\n"
Numbers = tuple["Tensor", ...]


class Polynomials(NamedTuple):
    """Functions of tuples of values: B of A; dE/dA of A and dE/dB; jvps of both in one tuple.

    ``jvps(a, g, v)`` are the changes of B and of dE/dA, at a fixed dE/dB ``g``, along ``v``
    (``docs/theory.md``, equations 12 to 16).
    """

    invariants: Any
    gradient: Any
    jvps: Any


@cache
def polynomials(l_max: int, nu_max: int) -> Polynomials:
    """Return Triton's device functions of a shape (``docs/theory.md``, equations 12 to 16)."""
    return _made(l_max, nu_max, TRITON, "@triton.jit\n")


@cache
def jvps_of_tensors(l_max: int, nu_max: int) -> Callable[[Numbers, Numbers, Numbers], Numbers]:
    """Return the function ``jvps`` of a shape, on tensors.

    See ``docs/theory.md``, equations 12 to 16.
    """
    found: Callable[[Numbers, Numbers, Numbers], Numbers] = _made(l_max, nu_max, "", "").jvps
    return found


def _made(l_max: int, nu_max: int, head: str, decorator: str) -> Polynomials:
    text = source(l_max, nu_max, head, decorator)
    found = compiled(text, f"{__name__} l_max={l_max} nu_max={nu_max} {decorator.strip()}")
    return Polynomials(*(found[f"{title}_{l_max}_{nu_max}"] for title in Polynomials._fields))


def source(l_max: int, nu_max: int, head: str = TRITON, decorator: str = "@triton.jit\n") -> str:
    """Return the text of the module with the functions (``docs/theory.md``, equations 12 to 16)."""
    lines = [head]
    for title, arguments, program in (
        ("invariants", "a", invariants(l_max, nu_max)),
        ("gradient", "a, g", gradient(l_max, nu_max)),
        ("jvps", "a, g, v", jvps(l_max, nu_max)),
    ):
        lines += ["", f"{decorator}def {title}_{l_max}_{nu_max}({arguments}):"]
        lines += [f"    {line}" for line in _python(program)]
    return "\n".join(lines) + "\n"


class _Partial(NamedTuple):
    """The component s of u_(l,d)."""

    degree: int
    s: tables.Monomial

    @property
    def name(self) -> str:
        return f"u{self.degree}_" + "".join(map(str, self.s))

    def products(self) -> Iterator[tuple[int, int, int]]:
        """Yield (M(a), a, a + s) of the sum over a."""
        for a in tables.monomials_of(self.degree):
            yield tables.multinomial(a), tables.index(a), tables.index(tables.add(a, self.s))


def _partials(feature: tables.Feature) -> list[_Partial]:
    """Return the partial contractions that a feature is made of."""
    if feature.nu == 2:
        return [_Partial(feature.degrees[0], (0, 0, 0))]
    if feature.nu == 3:
        return [_Partial(feature.degrees[1], s) for s in tables.monomials_of(feature.degrees[0])]
    if feature.nu == 4:
        l1, l2, d = feature.degrees
        return [_Partial(k, s) for s in tables.monomials_of(d) for k in (l1, l2)]
    return []


class Term(NamedTuple):
    """A statement: ``factor`` times the product of one or two values is added to ``target``.

    Programs are those of decision 0017.
    """

    target: str
    factor: int
    values: tuple[str, ...]


class Program:
    """Sums that grow statement by statement, and the names of those that are its results.

    Values are other sums, which are complete by then, or inputs ``a[k]``, ``g[k]``, ``v[k]``. A
    result without a term is zero (decision 0017).
    """

    def __init__(self) -> None:
        self.terms: list[Term] = []
        self.begun: set[str] = set()
        self.results: list[str] = []

    def add(self, target: str, factor: int, *values: str) -> None:
        """Add a statement (decision 0017)."""
        self.terms.append(Term(target, factor, values))
        self.begun.add(target)

    def partial(self, u: _Partial) -> None:
        """Add the statements of one partial contraction (equation 12), unless they are there."""
        if u.name not in self.begun:
            for factor, i, j in u.products():
                self.add(u.name, factor, f"a[{i}]", f"a[{j}]")


def _python(program: Program) -> list[str]:
    """Return a program as the statements of a function."""
    begun, lines = set(), []
    for target, factor, values in program.terms:
        sum_ = f"{target} + " if target in begun else ""
        weight = "" if factor == 1 else f"{factor}.0 * "
        lines.append(f"{target} = {sum_}{weight}{' * '.join(values)}")
        begun.add(target)
    zeros = [f"{name} = a[0] * 0.0" for name in program.results if name not in begun]
    return [*lines, *zeros, f"return ({', '.join(program.results)},)"]


def invariants(l_max: int, nu_max: int) -> Program:
    """Return the program of B (``docs/theory.md``, equations 13 to 16)."""
    program = Program()
    program.results = _add_invariants(program, l_max, nu_max)
    return program


def gradient(l_max: int, nu_max: int) -> Program:
    """Return the program of dE/dA, the derivative of equations 13 to 16."""
    program = Program()
    program.results = _add_gradient(program, l_max, nu_max)
    return program


def jvps(l_max: int, nu_max: int) -> Program:
    """Return the program of the jvps of B and of dE/dA (``docs/theory.md``, equations 13 to 16)."""
    values, program = Program(), Program()
    results = [*_add_invariants(values, l_max, nu_max), *_add_gradient(values, l_max, nu_max)]
    factors = {value for term in values.terms for value in term.values}
    for target, factor, product in values.terms:
        if target in factors:
            program.add(target, factor, *product)
        for place, value in enumerate(product):
            jvp = value.replace("a[", "v[") if value.startswith("a[") else f"r{value}"
            if jvp.startswith("v[") or jvp in program.begun:
                rest = product[:place] + product[place + 1 :]
                program.add(f"r{target}", factor, jvp, *rest)
    program.results = [f"r{name}" for name in results]
    return program


def _add_invariants(program: Program, l_max: int, nu_max: int) -> list[str]:
    """Add the statements that make B, and return its names."""
    features = tables.features(l_max, nu_max)
    for number, feature in enumerate(features):
        target, partials = f"b{number}", _partials(feature)
        for u in partials:
            program.partial(u)
        if feature.nu == 1:
            program.add(target, 1, "a[0]")
        elif feature.nu == 2:
            program.add(target, 1, partials[0].name)
        elif feature.nu == 3:
            for u in partials:
                program.add(target, tables.multinomial(u.s), f"a[{tables.index(u.s)}]", u.name)
        else:
            for u, v in zip(partials[::2], partials[1::2], strict=True):
                program.add(target, tables.multinomial(u.s), u.name, v.name)
    return [f"b{number}" for number in range(len(features))]


def _add_gradient(program: Program, l_max: int, nu_max: int) -> list[str]:
    """Add the statements that make dE/dA, and return its names."""
    used: dict[_Partial, None] = {}
    program.add("d0", 1, "g[0]")
    for number, feature in enumerate(tables.features(l_max, nu_max)):
        partials, slope = _partials(feature), f"g[{number}]"
        used |= dict.fromkeys(partials)
        if feature.nu == 2:
            program.add(f"d{partials[0].name}", 1, slope)
        elif feature.nu == 3:
            for u in partials:
                program.partial(u)
                weight, k = tables.multinomial(u.s), tables.index(u.s)
                program.add(f"d{u.name}", weight, slope, f"a[{k}]")
                program.add(f"d{k}", weight, slope, u.name)
        elif feature.nu == 4:
            for u, v in zip(partials[::2], partials[1::2], strict=True):
                program.partial(u)
                program.partial(v)
                weight = tables.multinomial(u.s)
                program.add(f"d{u.name}", weight, slope, v.name)
                program.add(f"d{v.name}", weight, slope, u.name)
    for u in used:
        for factor, i, j in u.products():
            program.add(f"d{i}", factor if i != j else 2 * factor, f"d{u.name}", f"a[{j}]")
            if i != j:
                program.add(f"d{j}", factor, f"d{u.name}", f"a[{i}]")
    return [f"d{k}" for k in range(tables.n_monomials(l_max))]
