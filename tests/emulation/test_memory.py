"""Memory, branches and barriers of the emulator; what it refuses; code made by nvcc."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
import torch
from gpu_emulator import Machine, PtxError, emulate, ptx

from cace_fast.errors import InputError

HEAD = """
.visible .entry k(.param .u64 k_param_0, .param .u64 k_param_1, .param .f32 k_param_2)
.reqntid {threads}
{{
 .reg .pred %p<8>; .reg .b32 %r<16>; .reg .b64 %d<16>;
 .shared .align 4 .f32 held[{threads}];
 ld.param.b64 %d0, [k_param_0]; ld.param.b64 %d1, [k_param_1]; ld.param.f32 %r10, [k_param_2];
 mov.u32 %r0, %tid.x; mov.u32 %r1, %ctaid.x; mov.u32 %r2, %ntid.x;
 mad.lo.s32 %r3, %r1, %r2, %r0;
 mad.wide.s32 %d2, %r3, 4, %d0; mad.wide.s32 %d3, %r3, 4, %d1;
{code}
 ret;
}}
"""


def machine(code: str, threads: int = 32) -> Machine:
    return Machine(HEAD.format(code=code, threads=threads))


COPY = "ld.global.f32 %r4, [%d2]; mul.f32 %r4, %r4, %r10; st.global.f32 [%d3], %r4;"


def test_arrays_are_read_and_written_in_place():
    x, y = torch.arange(64.0), torch.zeros(64)
    launch = machine(COPY).run((2,), x, y, 2.0, count=True)
    assert torch.equal(y, 2 * x)
    assert launch.executed["ld.global.f32"] == 2
    assert launch.warps == 2
    assert launch.traffic.loaded == launch.traffic.unique_stored == 256
    assert launch.traffic.load_sectors == 8


def test_scattered_loads_cost_more_sectors():
    code = "shl.b32 %r5, %r0, 3; mad.wide.s32 %d2, %r5, 4, %d0;" + COPY
    x, y = torch.arange(256.0), torch.zeros(32)
    traffic = machine(code).run((1,), x, y, 1.0, count=True).traffic
    assert torch.equal(y, x[::8])
    assert (traffic.load_sectors, traffic.store_sectors) == (32, 4)


def test_many_programs_are_cut_into_parts():
    x, y = torch.arange(20_000.0 - 20_000 % 32), torch.zeros(20_000 - 20_000 % 32)
    machine(COPY).run((x.numel() // 32,), x, y, 1.0)
    assert torch.equal(x, y)


def test_grids_have_three_axes():
    code = """mov.u32 %r4, %ctaid.y; mov.u32 %r5, %nctaid.x; mad.lo.s32 %r6, %r4, %r5, %r1;
 mov.u32 %r7, %ctaid.z; mov.u32 %r8, %nctaid.y; mul.lo.s32 %r8, %r8, %r5;
 mad.lo.s32 %r6, %r7, %r8, %r6; mad.wide.s32 %d3, %r6, 4, %d1; st.global.b32 [%d3], %r6;"""
    y = torch.zeros(24, dtype=torch.int32)
    machine(code).run((2, 3, 4), torch.zeros(64), y, 1.0)
    assert y.tolist() == list(range(24))


def test_vectors_are_loaded_and_stored():
    code = """shl.b32 %r5, %r3, 2; mad.wide.s32 %d2, %r5, 4, %d0; mad.wide.s32 %d3, %r5, 4, %d1;
 ld.global.v4.b32 {%r6, %r7, %r8, %r9}, [%d2]; st.global.v2.b32 [%d3], {%r9, %r8};
 st.global.v2.b32 [%d3+8], {%r7, %r6};"""
    x, y = torch.arange(128.0), torch.zeros(128)
    machine(code).run((1,), x, y, 1.0)
    assert torch.equal(y, x.reshape(-1, 4).flip(1).reshape(-1))


def test_strided_arrays_are_used_where_they_lie():
    code = "shl.b32 %r5, %r3, 1; mad.wide.s32 %d2, %r5, 4, %d0;" + COPY
    x, y = torch.arange(64.0), torch.zeros(40)
    machine(code).run((1,), x[::2], y[8:], 1.0)
    assert torch.equal(y[8:], x[::2])
    assert torch.equal(y[:8], torch.zeros(8))


@pytest.mark.parametrize("length", [31, 0])
def test_loads_outside_an_array_are_found(length):
    with pytest.raises(PtxError, match=r"load of element .* of 'k_param_0', which has"):
        machine(COPY).run((1,), torch.zeros(64)[:length], torch.zeros(64), 1.0)


def test_stores_outside_an_array_are_found_and_touch_nothing():
    memory = torch.zeros(64)
    with pytest.raises(PtxError, match=r"store to element 31 of 'k_param_1', which has 31"):
        machine(COPY).run((1,), torch.ones(32), memory[:31], 1.0)
    assert torch.equal(memory, torch.zeros(64))


def test_an_index_never_reaches_the_next_array():
    code = "mov.u64 %d4, 0x40000000; add.s64 %d2, %d2, %d4;" + COPY
    with pytest.raises(PtxError, match="of 'k_param_0'"):
        machine(code).run((1,), torch.zeros(32), torch.zeros(32), 1.0)


def test_misaligned_addresses_are_found():
    with pytest.raises(PtxError, match="misaligned address"):
        machine("add.s64 %d2, %d2, 2;" + COPY).run((1,), torch.zeros(64), torch.zeros(64), 1.0)


def test_a_guard_keeps_lanes_from_their_arrays():
    code = COPY.replace("ld.", "setp.lt.s32 %p1, %r0, 5; mov.b32 %r4, 0f3F800000; @%p1 ld.")
    code = code.replace("st.", "@%p2 st.").replace("mul", "setp.lt.s32 %p2, %r0, 9; mul")
    y = torch.zeros(9)
    machine(code).run((1,), torch.full((5,), 2.0), y, 3.0)
    assert y.tolist() == [6.0] * 5 + [3.0] * 4


def test_what_was_never_written_is_nan():
    y = torch.zeros(32)
    machine("st.global.f32 [%d3], %r9;").run((1,), y, y, 1.0)
    assert y.isnan().all()


def test_loops_end_for_each_lane_by_itself():
    code = """mov.b32 %r5, 0; mov.b32 %r6, 0;
$again: setp.ge.s32 %p1, %r5, %r3; @%p1 bra $done;
 add.s32 %r5, %r5, 1; add.s32 %r6, %r6, %r5; bra.uni $again;
$done: st.global.b32 [%d3], %r6;"""
    y = torch.zeros(96, dtype=torch.int32)
    launch = machine(code).run((3,), torch.zeros(96), y, 1.0)
    k = torch.arange(96)
    assert torch.equal(y.long(), k * (k + 1) // 2)
    assert launch.executed["bra.uni"] == 31 + 63 + 95  # each warp goes on until its last lane


def test_branches_meet_again():
    code = """setp.lt.s32 %p1, %r0, 7; @%p1 bra $small; mov.b32 %r5, 10; bra $end;
$small: mov.b32 %r5, 20;
$end: shfl.sync.idx.b32 %r6, %r5, 0, 31, -1; st.global.b32 [%d3], %r6;"""
    y = torch.zeros(32, dtype=torch.int32)
    machine(code).run((1,), y, y, 1.0)
    assert (y == 20).all()


def test_threads_may_leave_early():
    code = "setp.ge.s32 %p1, %r0, 5; @%p1 ret; mov.b32 %r5, 1; st.global.b32 [%d3], %r5;"
    y = torch.zeros(32, dtype=torch.int32)
    machine(code).run((1,), y, y, 1.0)
    assert y.sum() == 5


def test_a_shuffle_from_a_lane_that_does_not_run_is_found():
    code = "setp.ge.s32 %p1, %r0, 5; @%p1 ret; shfl.sync.idx.b32 %r6, %r5, 9, 31, -1;"
    with pytest.raises(PtxError, match="does not take part"):
        machine(code).run((1,), torch.zeros(32), torch.zeros(32), 1.0)


REVERSE = """mov.u32 %r4, held; shl.b32 %r5, %r0, 2; add.s32 %r6, %r4, %r5;
 ld.global.f32 %r7, [%d2]; st.shared.f32 [%r6], %r7; {barrier}
 xor.b32 %r8, %r0, 63; shl.b32 %r8, %r8, 2; add.s32 %r8, %r4, %r8;
 ld.shared.f32 %r7, [%r8]; st.global.f32 [%d3], %r7;"""


def test_shared_memory_carries_values_between_threads():
    x, y = torch.arange(128.0), torch.zeros(128)
    machine(REVERSE.format(barrier="bar.sync 0;"), 64).run((2,), x, y, 1.0)
    assert torch.equal(y, x.reshape(2, 64).flip(1).reshape(-1))


def test_a_missing_barrier_is_found():
    with pytest.raises(PtxError, match="no barrier"):
        machine(REVERSE.format(barrier=""), 64).run((2,), torch.zeros(128), torch.zeros(128), 1.0)
    late = REVERSE.format(barrier="bar.sync 0;") + " st.shared.f32 [%r6], %r7;"
    with pytest.raises(PtxError, match=r"written that another thread used"):
        machine(late, 64).run((2,), torch.zeros(128), torch.zeros(128), 1.0)


def test_a_barrier_that_some_threads_jump_over_is_found():
    code = """setp.lt.s32 %p1, %r0, 40; @%p1 bra $over; bar.sync 0;
$over: st.global.f32 [%d3], %r10;"""
    with pytest.raises(PtxError, match="only a part of the program reaches"):
        machine(code, 64).run((1,), torch.zeros(64), torch.zeros(64), 1.0)


# rows of 16 bytes from the last to the first: lane l names that at 16 (31 - l)
ROWS = """mov.u32 %r4, held; and.b32 %r5, %r0, 31; sub.s32 %r5, 31, %r5; shl.b32 %r5, %r5, 4;
 add.s32 %r5, %r4, %r5; shl.b32 %r6, %r0, 2; add.s32 %r6, %r4, %r6; shr.u32 %r7, %r0, 5;
 setp.eq.u32 %p1, %r7, 1; setp.eq.u32 %p2, %r7, 2; setp.eq.u32 %p3, %r7, 3;
 setp.eq.u32 %p4, %r7, 0;
"""
LOADED = """ld.global.b32 %r8, [%d2]; st.shared.b32 [%r6], %r8; bar.sync 0;
 ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r8, %r9, %r11, %r12}, [%r5];
 @%p1 mov.b32 %r8, %r9; @%p2 mov.b32 %r8, %r11; @%p3 mov.b32 %r8, %r12;
 st.global.b32 [%d3], %r8;
"""
STORED = """ld.global.b32 %r8, [%d2]; ld.global.b32 %r9, [%d2+128]; ld.global.b32 %r11, [%d2+256];
 ld.global.b32 %r12, [%d2+384];
 @%p4 stmatrix.sync.aligned.m8n8.x4.shared.b16 [%r5], {%r8, %r9, %r11, %r12};
 bar.sync 0; ld.shared.b32 %r8, [%r6]; st.global.b32 [%d3], %r8;
"""


@pytest.mark.parametrize("code", [LOADED, STORED], ids=["ldmatrix", "stmatrix"])
def test_rows_of_matrices_in_shared_memory(code):
    x, y = torch.arange(256.0), torch.zeros(128)
    machine(ROWS + code, 128).run((1,), x, y, 1.0)
    assert torch.equal(y, x[:128].reshape(32, 4).flip(0).reshape(-1))
    with pytest.raises(PtxError, match="no barrier"):
        machine(ROWS + code.replace("bar.sync 0;", ""), 128).run((1,), x, y, 1.0)
    with pytest.raises(PtxError, match="multiples of 16 bytes"):
        machine(ROWS + "add.s32 %r5, %r5, 4;" + code, 128).run((1,), x, y, 1.0)


def test_shared_memory_has_an_end():
    code = REVERSE.format(barrier="bar.sync 0;").replace("%r0, 63", "%r0, 255")
    with pytest.raises(PtxError, match="outside the 256 bytes of shared memory"):
        machine(code, 64).run((1,), torch.zeros(64), torch.zeros(64), 1.0)


def test_atomics_add_up():
    code = "and.b32 %r5, %r0, 3; mad.wide.s32 %d3, %r5, 4, %d1; mov.b32 %r6, 2;"
    y = torch.zeros(4, dtype=torch.int32)
    machine(code + "red.global.add.u32 [%d3], %r6;").run((3,), y, y, 1.0)
    assert y.tolist() == [48] * 4
    old = torch.zeros(32, dtype=torch.int32)
    both = code + "atom.global.max.s32 %r7, [%d3], %r0; st.global.b32 [%d2], %r7;"
    machine(both).run((1,), old, y.zero_(), 1.0)
    assert y.tolist() == [28, 29, 30, 31]
    assert old.tolist() == [0] * 4 + list(range(28))


def test_approximate_results_are_disturbed_reproducibly():
    x, exact = torch.linspace(1, 2, 32), torch.zeros(32)
    code = COPY.replace("mul.f32 %r4, %r4, %r10", "rcp.approx.ftz.f32 %r4, %r4")
    machine(code).run((1,), x, exact, 1.0)
    runs = []
    for _ in range(2):
        y = torch.zeros(32)
        Machine(HEAD.format(code=code, threads=32), approximate_ulp=2.0).run((1,), x, y, 1.0)
        runs.append(y)
    assert torch.equal(*runs)
    error = (runs[0] / exact - 1).abs()
    assert 0 < error.max() < 4 * 2.0**-24


@pytest.mark.parametrize(
    "statement",
    [
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 %r1, %r2, %r3, %r4",
        "cp.async.cg.shared.global [%r1], [%d2], 16", "add.rz.f32 %r1, %r2, %r3",
        "add.sat.f32 %r1, %r2, %r3", "ld.local.b32 %r1, [%d2]", "ld.b32 %r1, [%d2]",
        "ld.acquire.gpu.global.b32 %r1, [%d2]", "sin.f32 %r1, %r2", "cvt.rn.bf16.f32 %r1, %r2",
        "cvt.sat.s32.s32 %r1, %r2", "call.uni foo, (%r1)", "shfl.bfly.b32 %r1, %r2, 1, 31",
        "atom.global.cas.b32 %r1, [%d2], %r3, %r4", "setp.lt.and.f32 %p1, %r1, %r2, %p2",
        "mov.u32 %r1, %smid", "bfi.b32 %r1, %r2, %r3, 1, 2",
        "ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r1}, [%r2]", "prmt.b32 %r1, %r2, %r3, 1",
        "add.f64 %r1, %d2, %d3", "min.xorsign.abs.f32 %r1, %r2, %r3", "lop3.b32 %r1, %r2, %r3, 1",
        "vote.sync.any.pred %p1, %p2, -1", "bra $nowhere", "@%p1 bar.sync 0",
    ],
)  # fmt: skip
def test_what_is_unknown_is_refused_by_name(statement):
    with pytest.raises(PtxError) as error:
        machine(f"{statement};").run((1,), torch.zeros(64), torch.zeros(64), 1.0)
    assert statement in str(error.value)


def test_local_memory_is_refused():
    with pytest.raises(PtxError, match="a stack"):
        machine(".local .align 4 .b8 stack[16];")


def test_a_failed_assertion_stops_the_program():
    with pytest.raises(PtxError, match="stopped itself"):
        machine("setp.eq.s32 %p1, %r0, 3; @!%p1 bra $on; trap; $on: mov.u32 %r5, 1;").run(
            (1,), torch.zeros(32), torch.zeros(32), 1.0
        )


@pytest.mark.parametrize("text", ["", ".visible .entry k() .reqntid 32 { mov.u32 %r1 }"])
def test_other_texts_are_refused(text):
    with pytest.raises(PtxError):
        ptx.parse(text)


def test_arguments_of_a_launch_are_checked():
    with pytest.raises(PtxError, match="threads: expected a positive multiple of 32, got 48"):
        machine(COPY, 48).run((1,), torch.zeros(64), torch.zeros(64), 1.0)
    with pytest.raises(PtxError, match="too many arguments"):
        machine(COPY).run((1,), torch.zeros(64), torch.zeros(64), 1.0, 2, 3)


def test_errors_name_the_line_of_the_source():
    code = "\n .loc 1 12 4 // model.py:12:4\n" + COPY
    with pytest.raises(PtxError, match=r"\(model\.py:12:4\)"):
        machine(code).run((1,), torch.zeros(31), torch.zeros(64), 1.0)


def test_an_unknown_architecture_is_refused():
    with pytest.raises(InputError, match="architecture: expected one of sm_75"), emulate("sm_42"):
        pass


CUDA = """
extern "C" __global__ void sums(const float *x, double *total, int *count, float *warp, int n) {
    __shared__ float part[4];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float v = 0.0f;
    for (int k = i; k < n; k += gridDim.x * blockDim.x) v += sqrtf(fabsf(x[k])) / (1.0f + k % 7);
    if (i < n && x[i] > 0.5f) atomicAdd(count, 1);
    for (int s = 16; s; s >>= 1) v += __shfl_down_sync(0xffffffffu, v, s);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x == 0) {
        float all = 0.0f;
        for (int w = 0; w < 4; w++) all += part[w];
        warp[blockIdx.x] = all;
        total[blockIdx.x] = fma((double)all, 2.0, -1.0);
    }
}
"""


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_code_of_another_compiler_runs(tmp_path):
    source, code = tmp_path / "sums.cu", tmp_path / "sums.ptx"
    source.write_text(CUDA)
    command = ["nvcc", "-ptx", "-arch=sm_90", "-o", code, source]
    subprocess.run(command, check=True, capture_output=True)
    n, programs = 5_000, 5
    x = torch.rand(n, generator=torch.Generator().manual_seed(1))
    total, count = torch.zeros(programs, dtype=torch.float64), torch.zeros(1, dtype=torch.int32)
    warp = torch.zeros(programs)
    Machine(code.read_text()).run((programs,), x, total, count, warp, n, threads=128)
    values = np.sqrt(x.double().numpy()) / (1 + np.arange(n) % 7)
    owner = np.arange(n) // 128 % programs
    expected = np.bincount(owner, values)
    np.testing.assert_allclose(warp.numpy(), expected, rtol=2e-6)
    np.testing.assert_allclose(total.numpy(), 2 * warp.double().numpy() - 1, rtol=1e-15)
    assert count.item() == int((x[: programs * 128] > 0.5).sum())
