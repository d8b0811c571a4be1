"""Write the straight-line C++ of the symmetric contraction, and its gradient, from the tables.

Run at build time::

    python kernels/cpu/generate.py <folder>      # writes contraction_generated.inl and a table

All orders are made of u_(l,d)[s] = sum_a M(a) A_a A_(a+s) as in the reference, so values and
gradients of every feature share them (``docs/theory.md``, equations 12 to 16).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

UNROLLED = ((2, 2), (2, 3), (3, 2), (3, 3), (4, 2), (4, 3))
FILE_NAME, ELEMENTS_NAME = "contraction_generated.inl", "elements_generated.h"


def _load_tables() -> ModuleType:
    """Load ``cace_fast/tables.py`` by its path: at build time nothing is installed yet."""
    root = Path(__file__).resolve().parents[2]
    for place in (root / "cace_fast" / "tables.py", root / "tables.py"):
        if place.exists():
            spec = importlib.util.spec_from_file_location("_cace_fast_tables", place)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise FileNotFoundError(f"cace_fast/tables.py near {root}")


tables = _load_tables()


def _indices(degree: int) -> range:
    return range(tables.offset(degree), tables.offset(degree + 1))


def _u(degree: int, d: int, s: int) -> str:
    return f"u{degree}_{d}_{s}"


def _partner(a: int, s: int) -> int:
    """Return the index of the product of monomials ``a`` and ``s``."""
    everything = tables.monomials(tables.MAX_DEGREE)
    return int(tables.index(tables.add(everything[a], everything[s])))


def partials(l_max: int, nu_max: int) -> list[tuple[int, int]]:
    """Return the (l, d) of every u that the features of order 3 and 4 need."""
    found: dict[tuple[int, int], None] = {}
    for nu, degrees in tables.features(l_max, nu_max):
        if nu == 3:
            found[degrees[1], degrees[0]] = None
        elif nu == 4:
            found[degrees[0], degrees[2]] = None
            found[degrees[1], degrees[2]] = None
    return list(found)


def _sum(terms: list[str]) -> str:
    return " + ".join(terms) if terms else "V{}"


def _load_lines(l_max: int, nu_max: int) -> Iterator[str]:
    """Load A but its scalar, and make w = M A (M the multinomial) and the sums u."""
    everything = tables.monomials(l_max)
    for index, monomial in enumerate(everything):
        if index == 0:  # enters nothing but its own feature
            continue
        yield f"const V a{index} = A[{index}];"
        if nu_max >= 2:
            m = tables.multinomial(monomial)
            yield f"const V w{index} = " + (f"a{index};" if m == 1 else f"a{index} * T({m});")
    for degree, d in partials(l_max, nu_max):
        for s in _indices(d):
            terms = [f"w{a} * a{_partner(a, s)}" for a in _indices(degree)]
            yield f"const V {_u(degree, d, s)} = {_sum(terms)};"


def _weighted(index: int, value: str) -> str:
    m = tables.multinomial(tables.monomials(tables.MAX_DEGREE)[index])
    return value if m == 1 else f"T({m}) * {value}"


def value_lines(l_max: int, nu_max: int) -> Iterator[str]:
    """Yield the statements that compute B of A."""
    yield from _load_lines(l_max, nu_max)
    for b, (nu, degrees) in enumerate(tables.features(l_max, nu_max)):
        if nu == 1:
            terms = ["A[0]"]
        elif nu == 2:
            terms = [f"w{a} * a{a}" for a in _indices(degrees[0])]
        elif nu == 3:
            terms = [f"w{a} * {_u(degrees[1], degrees[0], a)}" for a in _indices(degrees[0])]
        else:
            l1, l2, d = degrees
            terms = [_weighted(s, f"{_u(l1, d, s)} * {_u(l2, d, s)}") for s in _indices(d)]
        yield f"B[{b}] = {_sum(terms)};"


def gradient_lines(l_max: int, nu_max: int) -> Iterator[str]:
    """Yield the statements that compute D = dE/dA of A and G = dE/dB."""
    yield from _load_lines(l_max, nu_max)
    # e: gradient of w (times the multinomial below); d: of A itself; v: of u
    size = tables.n_monomials(l_max)
    d_terms: list[list[str]] = [[] for _ in range(size)]
    e_terms: list[list[str]] = [[] for _ in range(size)]
    v_terms: dict[str, list[str]] = {}
    for b, (nu, degrees) in enumerate(tables.features(l_max, nu_max)):
        yield f"const V g{b} = G[{b}];"
        if nu == 1:
            d_terms[0].append(f"g{b}")
        elif nu == 2:
            yield f"const V g{b}t = g{b} + g{b};"
            for a in _indices(degrees[0]):
                d_terms[a].append(f"g{b}t * w{a}")
        elif nu == 3:
            for a in _indices(degrees[0]):
                u = _u(degrees[1], degrees[0], a)
                e_terms[a].append(f"g{b} * {u}")
                v_terms.setdefault(u, []).append(f"g{b} * w{a}")
        else:
            l1, l2, d = degrees
            for s in _indices(d):
                one, two = _u(l1, d, s), _u(l2, d, s)
                v_terms.setdefault(one, []).append(_weighted(s, f"g{b} * {two}"))
                v_terms.setdefault(two, []).append(_weighted(s, f"g{b} * {one}"))
    for u, terms in v_terms.items():
        yield f"const V v{u} = {_sum(terms)};"
    for degree, d in partials(l_max, nu_max):
        for s in _indices(d):
            v = f"v{_u(degree, d, s)}"
            for a in _indices(degree):
                e_terms[a].append(f"{v} * a{_partner(a, s)}")
                d_terms[_partner(a, s)].append(f"{v} * w{a}")
    for index in range(size):
        terms = list(d_terms[index])
        if e_terms[index]:
            terms.append(_weighted(index, f"({_sum(e_terms[index])})"))
        yield f"D[{index}] = {_sum(terms)};"


def _function(name: str, arguments: str, lines: Iterator[str]) -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"template <class T, class V>\ninline void {name}({arguments}) {{\n{body}\n}}\n"


def source() -> str:
    """Return the generated header."""
    parts = [
        "// Generated by kernels/cpu/generate.py from cace_fast/tables.py; do not edit.\n"
        "// V is a vector of T; one lane of it is one atom.\n"
        '#pragma once\n\n#include "isa.h"\n\nnamespace cace_fast {\nnamespace CF_ISA {\n'
    ]
    for l_max, nu_max in UNROLLED:
        suffix = f"{l_max}_{nu_max}"
        parts += [
            _function(f"contract_{suffix}", "const V* A, V* B", value_lines(l_max, nu_max)),
            _function(
                f"contract_gradient_{suffix}",
                "const V* A, const V* G, V* D",
                gradient_lines(l_max, nu_max),
            ),
        ]
    rows = "".join(f" \\\n  X({l_max}, {nu_max})" for l_max, nu_max in UNROLLED)
    parts.append(f"// Every (l_max, nu_max) above.\n#define CF_UNROLLED(X){rows}\n")
    parts.append("}  // namespace CF_ISA\n}  // namespace cace_fast\n")
    return "\n".join(parts)


def elements() -> str:
    """Return the header with the covalent radii."""
    radii = ", ".join(map(repr, tables.COVALENT_RADII))
    return (
        "// Generated by kernels/cpu/generate.py from cace_fast/tables.py; do not edit.\n"
        "#pragma once\n"
        f"constexpr double kClosestShare = {tables.CLOSEST_SHARE!r};\n"
        f"constexpr double kCovalentRadii[] = {{{radii}}};\n"
        "// In A; of a number that is none of an element that of no element.\n"
        "inline double covalent_radius(int z) {\n"
        f"  return kCovalentRadii[z > 0 && z < {len(tables.COVALENT_RADII)} ? z : 0];\n"
        "}\n"
    )


def main(folder: str) -> None:
    """Write the headers into ``folder``, only when they changed (so builds stay incremental)."""
    for name, text in ((FILE_NAME, source()), (ELEMENTS_NAME, elements())):
        path = Path(folder) / name
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


if __name__ == "__main__":
    main(sys.argv[1])
