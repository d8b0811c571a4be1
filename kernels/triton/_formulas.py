"""The radial and cutoff functions of ``kernels/formulas.py`` as Triton's device functions."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from cace_fast.kernels import formulas
from cace_fast.kernels.source import compiled
from cace_fast.kernels.triton._math import sincos_product, sincospi

HEAD = "import triton\nimport triton.language as tl\n"
LANGUAGE = {
    "exp": "tl.exp",
    "log": "tl.log",
    "abs": "tl.abs",
    "where": "tl.where",
    "minimum": "tl.minimum",
    "range": "tl.static_range",
    "PI": repr(formulas.PI),
    "PI2": repr(formulas.PI2),
}
CONSTANTS = ("n", "p")


class _Renamed(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        name = LANGUAGE.get(node.id)
        return node if name is None else ast.parse(name, mode="eval").body


def _jit(function: Callable[..., Any]) -> str:
    """Return the text of a device function."""
    tree = ast.parse(inspect.getsource(function)).body[0]
    assert isinstance(tree, ast.FunctionDef)
    tree.returns = None
    for argument in tree.args.args:
        constant = argument.arg in CONSTANTS
        argument.annotation = ast.parse("tl.constexpr", mode="eval").body if constant else None
    return f"@triton.jit\n{ast.unparse(_Renamed().visit(tree))}\n"


def _choice(name: str, arguments: tuple[str, ...], functions: Iterable[str]) -> str:
    """Return the text of a device function that calls another one by its number."""
    typed = [f"{a}: tl.constexpr" if a in CONSTANTS else a for a in arguments]
    lines = ["@triton.jit", f"def {name}(KIND: tl.constexpr, {', '.join(typed)}):"]
    for number, function in enumerate(functions):
        lines += [f"    {'elif' if number else 'if'} KIND == {number}:"]
        lines += [f"        return {function}({', '.join(arguments)})"]
    return "\n".join([*lines, ""])


def source() -> str:
    """Return the text of the module: all device functions, and the two that choose among them."""
    parts = [HEAD]
    for name, functions in (
        ("radial_function", [basis.function for basis in formulas.BASES.values()]),
        ("cutoff_function", list(formulas.CUTOFFS.values())),
    ):
        arguments = tuple(inspect.signature(functions[0]).parameters)
        parts += [*map(_jit, functions), _choice(name, arguments, (f.__name__ for f in functions))]
    return "\n".join(parts)


_made = compiled(source(), __name__, sincospi=sincospi, sincos_product=sincos_product)
radial_function, cutoff_function = _made["radial_function"], _made["cutoff_function"]
