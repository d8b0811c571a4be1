"""Arithmetic instructions of PTX: what each does to arrays of numbers.

The results are those of IEEE arithmetic with rounding to nearest. A fused multiply-add of float32
is computed in float64 and one of float64 in the platform's long double, so it may be rounded twice
(half a unit in the last place more, at most). Approximate functions are computed in float64,
rounded, and disturbed by `Lanes.noise`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_emulator.lanes import DTYPES
from gpu_emulator.ptx import Instruction

Array = NDArray[Any]
Function = Callable[..., Array]

INTEGERS = frozenset({"u16", "s16", "u32", "s32", "u64", "s64"})
BITS = frozenset({"b16", "b32", "b64"})
FLOATS = frozenset({"f32", "f64"})
PACKED = "f32x2"
WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}


@dataclass(frozen=True)
class Operation:
    """An elementwise instruction, decoded: argument types, the result's type, and the function.

    ``approximate`` results are disturbed by the machine's noise.
    """

    arguments: tuple[str, ...]
    result: str
    function: Function
    approximate: bool = False


def _flushed(value: Array) -> Array:
    """Return subnormal float32 numbers as zeros of the same sign."""
    small = np.abs(value) < np.finfo(np.float32).tiny
    return np.where(small, np.copysign(np.float32(0), value), value)


def _flushing(function: Function) -> Function:
    return lambda *values: _flushed(function(*map(_flushed, values)))


def _flushing_input(function: Function) -> Function:
    return lambda value: function(_flushed(value))


def _fma(kind: str) -> Function:
    wide = np.float64 if kind == "f32" else np.longdouble

    def fma(x: Array, y: Array, z: Array) -> Array:
        product = np.multiply(x, y, dtype=wide)
        return np.add(product, z, dtype=wide).astype(DTYPES[kind])

    return fma


def _pairs(function: Function) -> Function:
    """Apply a float32 function to both halves of 64-bit registers."""

    def both(*values: Array) -> Array:
        halves = [np.atleast_1d(v).view(np.float32).reshape(-1, 2) for v in values]
        out = np.ascontiguousarray(function(*halves)).view(np.uint64).reshape(-1)
        return np.asarray(out if any(v.ndim for v in values) else out[0])

    return both


def _quotient(x: Array, y: Array) -> Array:
    """Integer division towards zero; by zero the hardware gives ones everywhere."""
    zero = y == 0
    safe = np.where(zero, np.ones_like(y), y)
    quotient = x // safe
    quotient += ((x - quotient * safe != 0) & ((x < 0) != (safe < 0))).astype(x.dtype)
    return np.where(zero, ~np.zeros_like(quotient), quotient)


def _remainder(x: Array, y: Array) -> Array:
    return np.asarray(np.where(y == 0, x, np.fmod(x, np.where(y == 0, np.ones_like(y), y))))


def _high(kind: str) -> Function:
    bits = DTYPES[kind].itemsize * 8
    if bits == 64:
        raise KeyError(kind)
    wide = DTYPES[WIDER[kind]]
    return lambda x, y: (x.astype(wide) * y.astype(wide) >> wide.type(bits)).astype(DTYPES[kind])


def _shift(left: bool) -> Function:
    def shift(x: Array, count: Array) -> Array:
        bits = x.dtype.itemsize * 8
        inside = np.minimum(count, bits - 1).astype(x.dtype)
        moved = np.left_shift(x, inside) if left else np.right_shift(x, inside)
        if not left and x.dtype.kind == "i":
            return np.asarray(moved)  # the sign fills all bits
        return np.asarray(np.where(count >= bits, np.zeros_like(moved), moved))

    return shift


def _extract(x: Array, position: Array, length: Array) -> Array:
    """Bits of an unsigned number from ``position`` on; beyond the end there are zeros."""
    bits = x.dtype.itemsize * 8
    moved = _shift(left=False)(x, np.minimum(position & 0xFF, bits))
    count = length & np.uint32(0xFF)
    ones = ~_shift(left=True)(np.full_like(moved, ~x.dtype.type(0)), np.minimum(count, bits))
    return np.asarray(moved & ones)


def _extract_signed(x: Array, position: Array, length: Array) -> Array:
    """Bits of a signed number from ``position`` on, the last of them (or of x) repeated upwards."""
    bits = np.uint32(x.dtype.itemsize * 8)
    first, count = (np.minimum(y & np.uint32(0xFF), bits) for y in (position, length))
    up = bits - np.minimum(first + count, bits)
    moved = _shift(left=False)(_shift(left=True)(x, up), up + first)
    return np.where(count == 0, x.dtype.type(0), moved)


_UNARY: dict[str, Function] = {
    "rcp": lambda x: 1 / x, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "sin": np.sin,
    "cos": np.cos, "ex2": np.exp2, "lg2": np.log2, "tanh": np.tanh,
}  # fmt: skip
_COMPARE: dict[str, Function] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "lo": np.less, "ls": np.less_equal, "hi": np.greater,
    "hs": np.greater_equal,
}  # fmt: skip
_ROUND: dict[str, Function] = {
    "rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil,
}  # fmt: skip
_LOGIC: dict[str, Function] = {
    "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


def _select(x: Array, y: Array, chosen: Array) -> Array:
    return np.where(chosen, x, y)


def _ordered(function: Function) -> Function:
    """Compare so that a NaN makes the result false (numpy's ``ne`` alone says true)."""
    return lambda x, y: function(x, y) & ~np.isnan(x) & ~np.isnan(y)


def _unordered(function: Function) -> Function:
    return lambda x, y: function(x, y) | np.isnan(x) | np.isnan(y)


def _comparison(name: str, kind: str) -> Function:
    if kind in FLOATS:
        if name == "nan":
            return lambda x, y: np.isnan(x) | np.isnan(y)
        if name == "num":
            return lambda x, y: ~(np.isnan(x) | np.isnan(y))
        if name in ("lo", "ls", "hi", "hs"):
            raise KeyError(name)
        if name in _COMPARE:
            return _ordered(_COMPARE[name])
        return _unordered(_COMPARE[name.removesuffix("u")])
    if kind in BITS and name not in ("eq", "ne"):
        raise KeyError(name)
    if name in ("lo", "ls", "hi", "hs") and kind[0] != "u":
        raise KeyError(name)
    return _COMPARE[name]


def _simple(i: Instruction, names: set[str], kind: str) -> Operation:
    """Instructions whose operands and result have one type."""
    flush = "ftz" in names
    names = names - {"rn", "ftz"}
    wrap = _flushing if flush else lambda f: f
    exact = not names  # no further modifier
    floating = kind in FLOATS
    if flush and kind != "f32":
        raise KeyError("ftz")
    if i.name in ("add", "sub", "mul") and (exact or (i.name == "mul" and names == {"lo"})):
        if kind not in FLOATS | INTEGERS:
            raise KeyError(kind)
        function = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[i.name]
        return Operation((kind, kind), kind, wrap(function))
    if i.name == "mul" and names == {"hi"} and kind in INTEGERS:
        return Operation((kind, kind), kind, _high(kind))
    if i.name == "mad" and names == {"lo"} and kind in INTEGERS:
        return Operation((kind,) * 3, kind, lambda x, y, z: x * y + z)
    if i.name == "fma" and exact and floating:
        return Operation((kind,) * 3, kind, wrap(_fma(kind)))
    if i.name == "div" and floating and names <= {"full", "approx"}:
        return Operation((kind, kind), kind, wrap(np.divide), approximate=bool(names))
    if i.name in ("div", "rem") and exact and kind in INTEGERS:
        return Operation((kind, kind), kind, _quotient if i.name == "div" else _remainder)
    if i.name in ("min", "max") and names <= {"NaN"} and kind in FLOATS | INTEGERS:
        low, high = (np.minimum, np.maximum) if names else (np.fmin, np.fmax)
        return Operation((kind, kind), kind, wrap(low if i.name == "min" else high))
    if i.name in ("neg", "abs") and exact and kind in FLOATS | INTEGERS:
        return Operation((kind,), kind, wrap(np.negative if i.name == "neg" else np.abs))
    if i.name == "copysign" and exact and floating:
        return Operation((kind, kind), kind, lambda x, y: np.copysign(y, x))
    raise KeyError(i.name)


def _function(i: Instruction, names: set[str], kind: str) -> Operation:
    """Square roots, sines and the like."""
    modifiers = names - {"rn", "ftz"}
    if kind not in FLOATS or not modifiers <= {"approx"} or ("ftz" in names and kind != "f32"):
        raise KeyError(kind)
    if i.name not in ("rcp", "sqrt", "rsqrt") and not modifiers:
        raise KeyError(i.name)
    plain, dtype = _UNARY[i.name], DTYPES[kind]

    def function(x: Array) -> Array:
        return np.asarray(plain(x.astype(np.float64))).astype(dtype)

    return Operation(
        (kind,), kind, _flushing(function) if "ftz" in names else function, bool(modifiers)
    )


def _logic(i: Instruction, names: set[str], kind: str) -> Operation:
    """Bits: and, or, xor, not, shifts, extraction, counting."""
    if i.name in _LOGIC and not names and kind in BITS | {"pred"}:
        return Operation((kind, kind), kind, _LOGIC[i.name])
    if i.name == "not" and not names and kind in BITS | {"pred"}:
        return Operation((kind,), kind, np.bitwise_not)
    if i.name == "shl" and not names and kind in BITS:
        return Operation((kind, "u32"), kind, _shift(left=True))
    if i.name == "shr" and not names and kind in BITS | INTEGERS:
        return Operation((kind, "u32"), kind, _shift(left=False))
    if i.name == "bfe" and not names and kind in ("u32", "u64"):
        return Operation((kind, "u32", "u32"), kind, _extract)
    if i.name == "bfe" and not names and kind in ("s32", "s64"):
        return Operation((kind, "u32", "u32"), kind, _extract_signed)
    if i.name == "popc" and not names and kind in BITS:
        return Operation((kind,), "u32", lambda x: np.bitwise_count(x).astype(np.uint32))
    raise KeyError(i.name)


def _conversion(names: list[str]) -> Operation:
    """``cvt``: between integers and floating-point numbers of all widths."""
    to, of = names[-2:]
    modifiers = set(names[:-2])
    rounding = next((_ROUND[m] for m in modifiers if m in _ROUND), None)
    if not modifiers <= {"rn", "ftz", *_ROUND} or {to, of} & {"pred", "b8", "b16", "b32", "b64"}:
        raise KeyError("cvt")
    dtype = DTYPES[to]
    if "ftz" in modifiers and of != "f32":
        raise KeyError("cvt")
    flush = _flushing_input if "ftz" in modifiers else lambda function: function
    if of[0] == "f" and to[0] != "f":
        if rounding is None:
            raise KeyError("cvt")
        function, limits = rounding, np.iinfo(dtype)
        low, high = float(limits.min), float(limits.max)
        last = high if int(high) == limits.max else np.nextafter(high, 0.0)

        def to_integer(x: Array) -> Array:
            whole = np.asarray(function(np.where(np.isnan(x), 0, x).astype(np.float64)))
            inside = np.clip(whole, low, last).astype(dtype)
            return np.where(whole >= high, limits.max, inside).astype(dtype)

        return Operation((of,), to, flush(to_integer))
    if rounding is not None:
        if to != of:
            raise KeyError("cvt")
        return Operation((of,), to, flush(rounding))
    return Operation((of,), to, flush(lambda x: x.astype(dtype)))


def decode(i: Instruction) -> Operation | None:
    """Return what an elementwise instruction does, or ``None`` if it is none.

    Raises
    ------
    PtxError
        A variant that is not emulated.
    """
    try:
        return _decode(i)
    except KeyError:
        raise i.error("this variant is not emulated") from None


def _decode(i: Instruction) -> Operation | None:
    kind, names = i.type, set(i.parts[1:-1])
    if i.name == "cvt":
        return _conversion(list(i.parts[1:]))
    if i.name == "setp":
        if len(names - {"ftz"}) != 1 or kind not in FLOATS | INTEGERS | BITS:
            raise KeyError("setp")
        return Operation((kind, kind), "pred", _comparison(i.parts[1], kind))
    if i.name == "selp":
        if names or kind not in DTYPES:
            raise KeyError("selp")
        return Operation((kind, kind, "pred"), kind, _select)
    if i.name in ("mul", "mad") and "wide" in names:
        wide = WIDER[kind]
        dtype = DTYPES[wide]
        if i.name == "mul":
            return Operation((kind, kind), wide, lambda x, y: np.multiply(x, y, dtype=dtype))
        return Operation(
            (kind, kind, wide), wide, lambda x, y, z: np.multiply(x, y, dtype=dtype) + z
        )
    if kind == PACKED and i.name in ("add", "sub", "mul", "fma"):
        if names - {"rn"}:
            raise KeyError(PACKED)
        scalar: dict[str, Function] = {
            "add": np.add, "sub": np.subtract, "mul": np.multiply, "fma": _fma("f32"),
        }  # fmt: skip
        count = 3 if i.name == "fma" else 2
        return Operation(("b64",) * count, "b64", _pairs(scalar[i.name]))
    if i.name in ("and", "or", "xor", "not", "shl", "shr", "bfe", "popc"):
        return _logic(i, names, kind)
    if i.name in _UNARY:
        return _function(i, names, kind)
    if i.name in ("add", "sub", "mul", "mad", "fma", "div", "rem", "min", "max", "neg", "abs",
                  "copysign"):  # fmt: skip
        return _simple(i, names, kind)
    return None
