"""Source of the contraction's polynomials, written from :mod:`cace_fast.tables`.

All orders are made of the partial contractions u (docs/theory.md, equation 12), so that a term of
order 4 costs one multiply-add, and the gradient is the same program backwards. The result is
ordinary Triton source with a variable for every number; a table that the kernel walks through at
compile time gives the same registers, but compiles slowly from nu = 4 on.
"""

from __future__ import annotations

import linecache
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from cace_fast import tables

HEAD = "import triton\nimport triton.language as tl\n"


class Polynomials(NamedTuple):
    """Device functions: B of A, and dE/dA of A and dE/dB; tuples of values in and out."""

    invariants: Any
    gradient: Any


@cache
def polynomials(l_max: int, nu_max: int) -> Polynomials:
    """Return the device functions of a shape; their source is kept where tracebacks find it."""
    text = source(l_max, nu_max)
    name = f"<cace_fast.kernels.triton.generate l_max={l_max} nu_max={nu_max}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    found: dict[str, Any] = {"__name__": __name__}
    exec(compile(text, name, "exec"), found)
    suffix = f"{l_max}_{nu_max}"
    return Polynomials(found[f"invariants_{suffix}"], found[f"gradient_{suffix}"])


def source(l_max: int, nu_max: int) -> str:
    """Return the module that holds both functions."""
    lines = [HEAD]
    for title, arguments, body in (
        ("invariants", "a", _invariants(l_max, nu_max)),
        ("gradient", "a, g", _gradient(l_max, nu_max)),
    ):
        lines += ["", "@triton.jit", f"def {title}_{l_max}_{nu_max}({arguments}):"]
        lines += [f"    {line}" for line in body]
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


def _times(factor: int, text: str) -> str:
    return text if factor == 1 else f"{factor}.0 * {text}"


class _Sums:
    """Names of sums that grow statement by statement."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._begun: set[str] = set()

    def set(self, name: str, value: str) -> None:
        self.lines.append(f"{name} = {value}")

    def add(self, name: str, value: str) -> None:
        self.set(name, f"{name} + {value}" if name in self._begun else value)
        self._begun.add(name)

    def begun(self, name: str) -> bool:
        return name in self._begun

    def partial(self, u: _Partial) -> None:
        """Add the statements of one partial contraction, unless they are there."""
        if not self.begun(u.name):
            for factor, i, j in u.products():
                self.add(u.name, f"{_times(factor, f'a[{i}]')} * a[{j}]")


def _invariants(l_max: int, nu_max: int) -> list[str]:
    sums = _Sums()
    features = tables.features(l_max, nu_max)
    for number, feature in enumerate(features):
        target = f"b{number}"
        partials = _partials(feature)
        for u in partials:
            sums.partial(u)
        if feature.nu == 1:
            sums.add(target, "a[0]")
        elif feature.nu == 2:
            sums.add(target, partials[0].name)
        elif feature.nu == 3:
            for u in partials:
                factor = _times(tables.multinomial(u.s), f"a[{tables.index(u.s)}]")
                sums.add(target, f"{factor} * {u.name}")
        else:
            for u, v in zip(partials[::2], partials[1::2], strict=True):
                sums.add(target, f"{_times(tables.multinomial(u.s), u.name)} * {v.name}")
    out = ", ".join(f"b{number}" for number in range(len(features)))
    return [*sums.lines, f"return ({out},)"]


def _gradient(l_max: int, nu_max: int) -> list[str]:
    sums = _Sums()
    sums.add("d0", "g[0]")
    used: dict[_Partial, None] = {}
    for number, feature in enumerate(tables.features(l_max, nu_max)):
        partials = _partials(feature)
        used |= dict.fromkeys(partials)
        if feature.nu == 2:
            sums.add(f"d{partials[0].name}", f"g[{number}]")
        elif feature.nu == 3:
            for u in partials:
                sums.partial(u)
                weight = _times(tables.multinomial(u.s), f"g[{number}]")
                sums.add(f"d{u.name}", f"{weight} * a[{tables.index(u.s)}]")
                sums.add(f"d{tables.index(u.s)}", f"{weight} * {u.name}")
        elif feature.nu == 4:
            for u, v in zip(partials[::2], partials[1::2], strict=True):
                sums.partial(u)
                sums.partial(v)
                weight = _times(tables.multinomial(u.s), f"g[{number}]")
                sums.add(f"d{u.name}", f"{weight} * {v.name}")
                sums.add(f"d{v.name}", f"{weight} * {u.name}")
    for u in used:
        for factor, i, j in u.products():
            weight = _times(factor if i != j else 2 * factor, f"d{u.name}")
            sums.add(f"d{i}", f"{weight} * a[{j}]")
            if i != j:
                sums.add(f"d{j}", f"{weight} * a[{i}]")
    names = [f"d{k}" for k in range(tables.n_monomials(l_max))]
    zeros = [f"{name} = a[0] * 0.0" for name in names if not sums.begun(name)]
    return [*sums.lines, *zeros, f"return ({', '.join(names)},)"]
