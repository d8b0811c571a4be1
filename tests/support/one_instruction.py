"""One PTX instruction on 64 threads of the emulator, with numpy arrays in and out."""

from __future__ import annotations

import numpy as np
import torch
from gpu_emulator import Machine

N = 64  # threads: two warps, one program
DTYPES = {
    "u16": np.uint16, "s16": np.int16, "b16": np.uint16, "u32": np.uint32, "s32": np.int32,
    "b32": np.uint32, "u64": np.uint64, "s64": np.int64, "b64": np.uint64, "f32": np.float32,
    "f64": np.float64, "u8": np.uint8, "s8": np.int8, "b8": np.uint8,
}  # fmt: skip
SIGNED_TORCH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
HEAD = """
.version 8.7
.target sm_90a
.address_size 64
.visible .entry k({parameters})
.reqntid {threads}
{{
 .reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<16>; .reg .b64 %d<24>;
 mov.u32 %r0, %tid.x;
 mov.u32 %r15, %ctaid.x;
 mov.u32 %r14, %ntid.x;
 mad.lo.s32 %r0, %r15, %r14, %r0;
{code}
 ret;
}}
"""


def module(code: str, arrays: int, threads: int = N) -> str:
    parameters = ", ".join(f".param .u64 k_param_{k}" for k in range(arrays))
    loads = "".join(f" ld.param.b64 %d{16 + k}, [k_param_{k}];\n" for k in range(arrays))
    return HEAD.format(parameters=parameters, code=loads + code, threads=threads)


def pointer(k: int, size: int, to: int) -> str:
    return f" mad.wide.u32 %d{to}, %r0, {size}, %d{16 + k};\n"


def letter(kind: str) -> str:
    return {"8": "h", "6": "h", "2": "r", "4": "d"}[kind[-1]]


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.view(f"i{array.dtype.itemsize}").copy())


def run(opcode: str, result: str, *arguments: tuple[str, np.ndarray]) -> np.ndarray:
    """Load the arguments of each thread, execute one instruction, return its result."""
    size = np.dtype(DTYPES[result]).itemsize
    code = ""
    for k, (kind, _) in enumerate(arguments):
        code += pointer(k + 1, np.dtype(DTYPES[kind]).itemsize, k + 1)
        code += f" ld.global.{kind} %{letter(kind)}{k + 1}, [%d{k + 1}];\n"
    names = ", ".join(f"%{letter(kind)}{k + 1}" for k, (kind, _) in enumerate(arguments))
    code += f" {opcode} %{letter(result)}7, {names};\n"
    code += pointer(0, size, 0) + f" st.global.{result} [%d0], %{letter(result)}7;\n"
    out = torch.zeros(N, dtype=SIGNED_TORCH[size])
    Machine(module(code, len(arguments) + 1)).run((1,), out, *(tensor(a) for _, a in arguments))
    return out.numpy().view(DTYPES[result])


def predicate(code: str, *arguments: tuple[str, np.ndarray]) -> np.ndarray:
    """Execute code that leaves its result in %p7, return it."""
    head = ""
    for k, (kind, _) in enumerate(arguments):
        head += pointer(k + 1, np.dtype(DTYPES[kind]).itemsize, k + 1)
        head += f" ld.global.{kind} %{letter(kind)}{k + 1}, [%d{k + 1}];\n"
    tail = " selp.b32 %r7, 1, 0, %p7;\n" + pointer(0, 4, 0) + " st.global.b32 [%d0], %r7;\n"
    out = torch.zeros(N, dtype=torch.int32)
    Machine(module(head + code + tail, len(arguments) + 1)).run(
        (1,), out, *(tensor(a) for _, a in arguments)
    )
    return out.numpy() != 0


def numbers(kind: str, seed: int = 0) -> np.ndarray:
    """Draw numbers, the extremes of the type among them."""
    rng = np.random.default_rng([seed, *kind.encode()])
    dtype = np.dtype(DTYPES[kind])
    if dtype.kind == "f":
        drawn = (rng.normal(size=N) * 10.0 ** rng.integers(-3, 4, N)).astype(dtype)
        drawn[:6] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0]
        return rng.permutation(drawn)
    limits = np.iinfo(dtype)
    drawn = rng.integers(limits.min, limits.max, N, dtype=dtype, endpoint=True)
    drawn[:5] = [0, 1, limits.max, limits.min, 7]
    return rng.permutation(drawn)


FLOATS, INTEGERS = ("f32", "f64"), ("u16", "s16", "u32", "s32", "u64", "s64")


def same(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.dtype == expected.dtype
    np.testing.assert_array_equal(got, expected)  # NaN equals NaN
