"""Kernels for the tests of the guard: one that is right, and the same with one fault each."""

import triton
import triton.language as tl


@triton.jit
def right(x, out, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(out + i, tl.load(x + i, mask=i < n, other=0.0) + 1.0, mask=i < n)


@triton.jit
def load_without_mask(x, out, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(out + i, tl.load(x + i) + 1.0, mask=i < n)


@triton.jit
def store_without_mask(x, out, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(out + i, tl.load(x + i, mask=i < n, other=0.0) + 1.0)


@triton.jit
def index_before_the_start(x, out, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(out + i, tl.load(x + i - 1, mask=i < n, other=0.0) + 1.0, mask=i < n)


@triton.jit
def lanes_share_an_address(x, out, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(out + i // 2, tl.load(x + i, mask=i < n, other=0.0), mask=i < n)


@triton.jit
def programs_share_an_address(x, out, n, B: tl.constexpr):
    i = tl.program_id(0) * (B - 1) + tl.arange(0, B)
    tl.store(out + i, tl.load(x + i, mask=i < n, other=0.0), mask=i < n)


@triton.jit
def reads_what_another_writes(x, out, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(out + i, tl.load(x + i, mask=i < n, other=0.0), mask=i < n)
    tl.store(x + i, tl.load(out + (i + B) % n, mask=i < n, other=0.0), mask=i < n)


@triton.jit
def writes_what_another_read(x, out, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    value = tl.load(x + (i + B) % n, mask=i < n, other=0.0)
    tl.store(x + i, value, mask=i < n)
    tl.store(out + i, value, mask=i < n)


@triton.jit
def reads_its_own_store(x, out, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(out + i, tl.load(x + i, mask=i < n, other=0.0), mask=i < n)
    back = tl.load(out + tl.program_id(0) * B + (B - 1 - tl.arange(0, B)), mask=i < n, other=0.0)
    tl.store(out + i, back, mask=i < n)


@triton.jit
def barrier_before_reading(x, out, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(out + i, tl.load(x + i, mask=i < n, other=0.0), mask=i < n)
    tl.debug_barrier()
    back = tl.load(out + tl.program_id(0) * B + (B - 1 - tl.arange(0, B)))
    tl.debug_barrier()
    tl.store(out + i, back, mask=i < n)


@triton.jit
def adds_and_stores(x, out, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.atomic_add(out + i % 4, tl.load(x + i, mask=i < n, other=0.0), mask=i < n)
    tl.store(out + tl.program_id(0), 1.0)


@triton.jit
def adds_only(x, out, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.atomic_add(out + i, tl.load(x + i, mask=i < n, other=0.0), mask=i < n)


@triton.jit
def asserts(x, out, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.device_assert(i < n, "too many lanes")
    tl.store(out + i, tl.load(x + i, mask=i < n, other=0.0), mask=i < n)


@triton.jit
def forgets_what_a_mask_leaves(x, out, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    total = tl.sum(tl.load(x + i, mask=i < n), 0)
    tl.store(out + i, total, mask=i < n)


@triton.jit
def forgets_the_last(x, out, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(out + i, tl.load(x + i, mask=i < n, other=0.0), mask=i < n - 1)
