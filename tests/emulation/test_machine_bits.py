"""Instructions on bits, conversions, comparisons, pairs and warps of the emulator against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gpu_emulator import Machine
from support.one_instruction import (
    DTYPES,
    N,
    letter,
    module,
    numbers,
    pointer,
    predicate,
    run,
    same,
    tensor,
)


@pytest.mark.parametrize("kind", ["b16", "b32", "b64"])
def test_bits(kind):
    x, y = numbers(kind), numbers(kind, 1)
    for name, function in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)):
        same(run(f"{name}.{kind}", kind, (kind, x), (kind, y)), function(x, y))
    same(run(f"not.{kind}", kind, (kind, x)), ~x)


@pytest.mark.parametrize("kind", ["b32", "u32", "s32", "b64", "s64", "u64"])
def test_shifts(kind):
    x, count = numbers(kind), np.arange(N, dtype=np.uint32) * 2
    bits = x.dtype.itemsize * 8
    left = [(v << int(c)) % 2**bits for v, c in zip(x.tolist(), count, strict=True)]
    right = [(v >> int(c)) % 2**bits for v, c in zip(x.tolist(), count, strict=True)]
    if kind[0] == "b":
        got = run(f"shl.{kind}", kind, (kind, x), ("u32", count))
        same(got, np.array(left, f"u{bits // 8}").view(x.dtype))
    got = run(f"shr.{kind}", kind, (kind, x), ("u32", count))
    same(got, np.array(right, f"u{bits // 8}").view(x.dtype))


def test_bit_fields_and_counts():
    x = numbers("u32")
    position, length = np.arange(N, dtype=np.uint32), np.arange(N, dtype=np.uint32)[::-1].copy()
    expected = [(v >> int(p)) & (2 ** int(n) - 1) for v, p, n in
                zip(x.tolist(), position, length, strict=True)]  # fmt: skip
    got = run("bfe.u32", "u32", ("u32", x), ("u32", position), ("u32", length))
    same(got, np.array(expected, np.uint32))
    same(run("popc.b32", "u32", ("b32", x)), np.bitwise_count(x).astype(np.uint32))


@pytest.mark.parametrize(
    ("opcode", "function"),
    [
        ("cvt.rn.f32.s32", None), ("cvt.rn.f32.u32", None), ("cvt.rn.f64.s64", None),
        ("cvt.f64.f32", None), ("cvt.rn.f32.f64", None), ("cvt.s64.s32", None),
        ("cvt.u64.u32", None), ("cvt.u32.u64", None), ("cvt.s32.s16", None),
        ("cvt.u16.u32", None), ("cvt.rmi.f32.f32", np.floor), ("cvt.rni.f64.f64", np.rint),
        ("cvt.rpi.f32.f32", np.ceil), ("cvt.rzi.f32.f32", np.trunc),
    ],
)  # fmt: skip
def test_conversions(opcode, function):
    to, of = opcode.split(".")[-2:]
    x = numbers(of)
    with np.errstate(all="ignore"):
        expected = (x if function is None else function(x)).astype(DTYPES[to])
        same(run(opcode, to, (of, x)), expected)


@pytest.mark.parametrize("to", ["s32", "u32", "s64", "u64"])
@pytest.mark.parametrize(
    ("rounding", "function"),
    [("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)],
)
def test_conversions_to_integers_stop_at_the_limits(to, rounding, function):
    x = numbers("f32")
    x[:4] = [1e30, -1e30, 2.5, -2.5]
    limits = np.iinfo(DTYPES[to])
    whole = function(x.astype(np.float64))
    expected = [0 if np.isnan(v) else int(min(max(v, -1e300), 1e300)) for v in whole]
    expected = [min(max(v, int(limits.min)), int(limits.max)) for v in expected]
    same(run(f"cvt.{rounding}.{to}.f32", to, ("f32", x)), np.array(expected, DTYPES[to]))


@pytest.mark.parametrize("kind", ["f32", "f64", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_comparisons(kind, name):
    x, y = numbers(kind), numbers(kind, 1)
    y[::3] = x[::3]
    function = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
                "gt": np.greater, "ge": np.greater_equal}[name]  # fmt: skip
    code = f" setp.{name}.{kind} %p7, %{letter(kind)}1, %{letter(kind)}2;\n"
    expected = function(x, y)
    if kind[0] == "f":
        nan = np.isnan(x) | np.isnan(y)
        same(predicate(code, (kind, x), (kind, y)), expected & ~nan)
        unordered = code.replace(f".{name}.", f".{name}u.")
        same(predicate(unordered, (kind, x), (kind, y)), expected | nan)
    else:
        same(predicate(code, (kind, x), (kind, y)), expected)


def test_comparisons_of_unsigned_numbers_and_of_nan():
    x, y = numbers("u32"), numbers("u32", 1)
    for name, function in (("lo", np.less), ("ls", np.less_equal), ("hi", np.greater),
                           ("hs", np.greater_equal)):  # fmt: skip
        same(predicate(f" setp.{name}.u32 %p7, %r1, %r2;\n", ("u32", x), ("u32", y)),
             function(x, y))  # fmt: skip
    x, y = numbers("f32"), numbers("f32", 1)
    nan = np.isnan(x) | np.isnan(y)
    same(predicate(" setp.nan.f32 %p7, %r1, %r2;\n", ("f32", x), ("f32", y)), nan)
    same(predicate(" setp.num.f32 %p7, %r1, %r2;\n", ("f32", x), ("f32", y)), ~nan)


def test_predicates():
    x, y = numbers("u32") % 2, numbers("u32", 1) % 2
    both = " setp.ne.b32 %p1, %r1, 0; setp.ne.b32 %p2, %r2, 0;\n"
    for name, function in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)):
        code = both + f" {name}.pred %p7, %p1, %p2;\n"
        same(predicate(code, ("b32", x), ("b32", y)), function(x, y) != 0)
    same(predicate(both + " not.pred %p7, %p2;\n", ("b32", x), ("b32", y)), y == 0)
    same(predicate(both + " mov.pred %p7, %p2;\n", ("b32", x), ("b32", y)), y != 0)
    guarded = both + " setp.eq.u32 %p7, %r1, %r1; @!%p1 mov.pred %p7, %p2;\n"
    same(predicate(guarded, ("b32", x), ("b32", y)), (x != 0) | (y != 0))


def test_selection():
    x, y = numbers("f32"), numbers("f32", 1)
    code = " setp.lt.s32 %p1, %r0, 10; selp.f32 %r3, %r1, %r2, %p1;\n"
    same(predicate(code + " setp.eq.f32 %p7, %r3, %r1;\n", ("f32", x), ("f32", y)),
         np.where(np.arange(N) < 10, x, y) == x)  # fmt: skip


def packed(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x, np.float32).view(np.uint64).reshape(-1)


def test_pairs_of_numbers():
    x, y, z = (np.random.default_rng(k).normal(size=(N, 2)).astype(np.float32) for k in range(3))
    arguments = [("b64", packed(v)) for v in (x, y, z)]
    for name, expected in (("add", x + y), ("sub", x - y), ("mul", x * y)):
        same(run(f"{name}.rn.f32x2", "b64", *arguments[:2]), packed(expected))
    fused = (x.astype(np.float64) * y + z).astype(np.float32)
    same(run("fma.rn.f32x2", "b64", *arguments), packed(fused))


def test_halves_of_registers():
    x = numbers("b64")
    code = pointer(1, 8, 1) + """ ld.global.b64 %d2, [%d1];
 mov.b64 {%r1, %r2}, %d2;
 mov.b64 {%r3, _}, %d2;
 mov.b64 %d3, {%r2, %r3};
""" + pointer(0, 8, 0) + " st.global.b64 [%d0], %d3;\n"  # fmt: skip
    out = torch.zeros(N, dtype=torch.int64)
    Machine(module(code, 2)).run((1,), out, tensor(x))
    same(out.numpy().view(np.uint64), (x >> np.uint64(32)) | (x << np.uint64(32)))


def test_literals():
    code = """ mov.b32 %r1, 0f40490FDB; mov.f64 %d1, 0d400921FB54442D18; cvt.rn.f32.f64 %r2, %d1;
 setp.eq.f32 %p1, %r1, %r2; mov.u32 %r3, 0x10; setp.eq.s32 %p2, %r3, 16;
 mov.s32 %r4, -3; setp.lt.s32 %p3, %r4, 0; and.pred %p7, %p1, %p2; and.pred %p7, %p7, %p3;
"""
    assert predicate(code).all()


@pytest.mark.parametrize(
    ("mode", "by", "clamp"),
    [("bfly", 5, 31), ("idx", 3, 31), ("up", 4, 0), ("down", 7, 31), ("idx", 2, 0x181F),
     ("bfly", 1, 0x1C1F)],
)  # fmt: skip
def test_shuffles(mode, by, clamp):
    lane = np.arange(32)
    segment, end = clamp >> 8 & 31, clamp & 31
    bound = (lane & segment) | (end & ~segment)
    wanted = {"bfly": lane ^ by, "idx": (lane & segment) | (by & ~segment), "up": lane - by,
              "down": lane + by}[mode]  # fmt: skip
    inside = wanted >= bound if mode == "up" else wanted <= bound
    expected = np.where(inside, wanted, lane)
    x = numbers("b32")
    got = run(f"shfl.sync.{mode}.b32", "b32", ("b32", x), ("u32", np.full(N, by, np.uint32)),
              ("u32", np.full(N, clamp, np.uint32)), ("s32", np.full(N, -1, np.int32)))  # fmt: skip
    same(got, np.concatenate((x[expected], x[32 + expected])))


def test_values_of_a_warp():
    x = numbers("s32")
    warps = x.reshape(2, 32)
    for name, function in (("add", np.add), ("min", np.minimum), ("max", np.maximum)):
        expected = np.repeat(function.reduce(warps, axis=1, dtype=np.int32), 32)
        got = run(f"redux.sync.{name}.s32", "s32", ("s32", x), ("s32", np.full(N, -1, np.int32)))
        same(got, expected)
    code = " setp.gt.s32 %p1, %r1, 0; vote.sync.ballot.b32 %r2, %p1, -1;\n"
    code += " mov.u32 %r3, %laneid; shr.b32 %r4, %r2, %r3; and.b32 %r5, %r4, 1;\n"
    same(predicate(code + " setp.ne.b32 %p7, %r5, 0;\n", ("s32", x)), x > 0)
