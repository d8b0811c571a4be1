"""Arithmetic instructions of the emulator against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from support.one_instruction import DTYPES, FLOATS, INTEGERS, N, numbers, run, same


@pytest.mark.parametrize("kind", FLOATS + INTEGERS)
@pytest.mark.parametrize(
    ("name", "function"),
    [("add", np.add), ("sub", np.subtract), ("min", np.fmin), ("max", np.fmax)],
)
def test_two_arguments(name, function, kind):
    x, y = numbers(kind), numbers(kind, 1)
    with np.errstate(all="ignore"):
        same(run(f"{name}.{kind}", kind, (kind, x), (kind, y)), function(x, y))


def test_rounding_is_named_and_nan_wins_where_asked():
    x, y = numbers("f32"), numbers("f32", 1)
    with np.errstate(all="ignore"):
        same(run("add.rn.f32", "f32", ("f32", x), ("f32", y)), x + y)
        same(run("max.NaN.f32", "f32", ("f32", x), ("f32", y)), np.maximum(x, y))


@pytest.mark.parametrize("kind", FLOATS)
def test_products_and_quotients(kind):
    x, y = numbers(kind), numbers(kind, 1)
    with np.errstate(all="ignore"):
        same(run(f"mul.{kind}", kind, (kind, x), (kind, y)), x * y)
        same(run(f"div.rn.{kind}", kind, (kind, x), (kind, y)), x / y)
        same(run(f"copysign.{kind}", kind, (kind, x), (kind, y)), np.copysign(y, x))


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32"])
def test_integer_products(kind):
    wide = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}[kind]
    x, y, z = numbers(kind), numbers(kind, 1), numbers(wide, 2)
    product = x.astype(DTYPES[wide]) * y.astype(DTYPES[wide])
    bits = x.dtype.itemsize * 8
    same(run(f"mul.lo.{kind}", kind, (kind, x), (kind, y)), product.astype(DTYPES[kind]))
    high = (product >> np.dtype(DTYPES[wide]).type(bits)).astype(DTYPES[kind])
    same(run(f"mul.hi.{kind}", kind, (kind, x), (kind, y)), high)
    same(run(f"mul.wide.{kind}", wide, (kind, x), (kind, y)), product)
    got = run(f"mad.wide.{kind}", wide, (kind, x), (kind, y), (wide, z))
    same(got, product + z)


def test_integer_multiply_add():
    x, y, z = (numbers("s32", k) for k in range(3))
    same(run("mad.lo.s32", "s32", ("s32", x), ("s32", y), ("s32", z)), x * y + z)


@pytest.mark.parametrize("kind", INTEGERS)
def test_integer_quotients_round_to_zero(kind):
    x, y = numbers(kind), numbers(kind, 1)
    quotient, remainder = [], []
    for a, b in zip(x.tolist(), y.tolist(), strict=True):
        q = 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        quotient.append(q if b else -1)
        remainder.append(a - q * b if b else a)
    bits = x.dtype.itemsize * 8
    expected = [np.array([v % 2**bits for v in w], f"u{bits // 8}") for w in (quotient, remainder)]
    same(run(f"div.{kind}", kind, (kind, x), (kind, y)), expected[0].view(x.dtype))
    same(run(f"rem.{kind}", kind, (kind, x), (kind, y)), expected[1].view(x.dtype))


def test_fused_multiply_add_rounds_once():
    rng = np.random.default_rng(3)
    x, y = (rng.normal(size=N).astype(np.float32) for _ in range(2))
    z = (-(x * y)).astype(np.float32)  # what remains is the error of the product
    exact = (x.astype(np.float64) * y + z).astype(np.float32)
    assert np.count_nonzero(exact) > N // 2
    same(run("fma.rn.f32", "f32", ("f32", x), ("f32", y), ("f32", z)), exact)
    x, y, z = x.astype(np.float64), y.astype(np.float64) + 1e-12, z.astype(np.float64)
    got = run("fma.rn.f64", "f64", ("f64", x), ("f64", y), ("f64", z))
    np.testing.assert_allclose(got, x * y + z, rtol=0, atol=4e-16)


@pytest.mark.parametrize("kind", [*FLOATS, "s16", "s32", "s64"])
def test_signs(kind):
    x = numbers(kind)
    same(run(f"neg.{kind}", kind, (kind, x)), -x)
    same(run(f"abs.{kind}", kind, (kind, x)), np.abs(x))


@pytest.mark.parametrize("kind", ["s32", "s64"])
def test_signed_bit_fields(kind):
    x, bits = numbers(kind), int(kind[1:])
    first, count = (np.random.default_rng(k).integers(0, bits + 9, N) for k in (1, 2))
    expected = []
    for value, low, length in zip(x.tolist(), first.tolist(), count.tolist(), strict=True):
        last = min(low + length, bits) - 1  # its bit is repeated upwards
        sign = -(value >> last & 1) << max(last - low, 0) if length else 0
        expected.append(sign | (value >> low & ((1 << max(last - low, 0)) - 1)))
    got = run(f"bfe.{kind}", kind, (kind, x), ("u32", first.astype(np.uint32)),
              ("u32", count.astype(np.uint32)))  # fmt: skip
    same(got, np.array(expected, x.dtype))


@pytest.mark.parametrize(
    ("opcode", "function"),
    [
        ("rcp.rn.f32", lambda x: 1 / x), ("rcp.approx.ftz.f32", lambda x: 1 / x),
        ("sqrt.rn.f32", np.sqrt), ("rsqrt.approx.ftz.f32", lambda x: 1 / np.sqrt(x)),
        ("sin.approx.f32", np.sin), ("cos.approx.f32", np.cos), ("ex2.approx.ftz.f32", np.exp2),
        ("lg2.approx.f32", np.log2), ("tanh.approx.f32", np.tanh), ("sqrt.rn.f64", np.sqrt),
        ("rcp.rn.f64", lambda x: 1 / x),
    ],
)  # fmt: skip
def test_functions(opcode, function):
    kind = opcode[-3:]
    x = numbers(kind)
    with np.errstate(all="ignore"):
        expected = function(x.astype(np.float64)).astype(DTYPES[kind])
        if ".ftz" in opcode:
            expected[np.abs(expected) < np.finfo(np.float32).tiny] = 0
        same(run(opcode, kind, (kind, x)), expected)


def test_subnormal_numbers_are_flushed_where_asked():
    x = np.full(N, 1e-39, np.float32)
    assert run("add.f32", "f32", ("f32", x), ("f32", -x / 2))[0] != 0
    assert run("add.ftz.f32", "f32", ("f32", x), ("f32", -x / 2))[0] == 0
    assert np.isinf(run("rcp.approx.ftz.f32", "f32", ("f32", x))[0])
    assert np.signbit(run("mul.ftz.f32", "f32", ("f32", -x), ("f32", x + 1))[0])
