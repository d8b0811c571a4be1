"""What compiled kernels need: registers, stack, shared memory, instructions, for many GPUs.

Nothing is executed: Triton compiles for any architecture, and the tools beside it tell what the
result needs. Only what Triton's package brings along is used.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cace_fast.errors import InputError

NVIDIA = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
AMD = ("gfx90a", "gfx942", "gfx1100")
TARGETS = NVIDIA + AMD

# Kinds of instructions, by how their names begin in NVIDIA's machine code, the first match counts.
KINDS = (
    ("fp32", r"F(FMA|MUL|ADD|SEL|SETP|MNMX|SET|CHK|SWZADD)"),
    ("fp64", r"D(FMA|MUL|ADD|SETP|MNMX)"),
    ("special", r"MUFU|FRND|F2F|F2I|I2F|I2I|POPC|FLO"),
    ("matrix", r"[HDIQ]G?MMA|UTC"),
    ("exchange", r"SHFL|LDS|STS|LDSM|STSM|VOTE|MATCH|REDUX"),
    ("integer", r"IMAD|IADD|LEA|LOP|ISETP|SHF|SEL|PRMT|IABS|IMNMX|VIADD|VIMNMX|SGXT|PLOP|P2R|R2P"
                r"|BMSK|MOV|CS2R|S2R|R2UR|IDP|VABSDIFF"),
    ("load", r"LDG|LD$"),
    ("store", r"STG|ST$"),
    ("atomic", r"RED|ATOM"),
    ("stack", r"LDL|STL"),
    ("barrier", r"BAR"),
    ("control", r""),
)  # fmt: skip
_KINDS = [(kind, re.compile(pattern)) for kind, pattern in KINDS]
AMD_KINDS = (
    ("fp64", r"v_\w+_f64"),
    ("special", r"v_(rcp|rsq|sqrt|sin|cos|exp|log)_f32"),
    ("matrix", r"v_mfma|v_wmma"),
    ("fp32", r"v_(pk_)?\w+_f32"),
    ("load", r"(global|buffer|flat)_load"),
    ("store", r"(global|buffer|flat)_store"),
    ("atomic", r"(global|buffer|flat)_atomic"),
    ("stack", r"scratch_"),
    ("exchange", r"ds_|v_\w+_dpp|v_readlane|v_writelane"),
    ("barrier", r"s_barrier"),
    ("integer", r"v_"),
    ("control", r""),
)
_AMD_KINDS = [(kind, re.compile(pattern)) for kind, pattern in AMD_KINDS]


@dataclass(frozen=True)
class Specialised:
    """A kernel with its constants, as a launch made it: what a compiler takes.

    Attributes
    ----------
    name
        The kernel's name.
    source
        Triton's ``ASTSource``.
    num_warps
        Warps of a program.
    """

    name: str
    source: Any
    num_warps: int


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel needs.

    Attributes
    ----------
    registers
        Of a thread; on AMD's accelerators accumulation registers are counted in.
    stack, shared
        Bytes of local memory (what registers could not hold is there) and of shared memory.
    loop, rest
        Instructions of innermost loops and outside them, by kind.
    tf32
        Whether a matrix product rounds its inputs.
    """

    registers: int
    stack: int
    shared: int
    loop: Counter[str]
    rest: Counter[str]
    tf32: bool

    @property
    def spilled(self) -> int:
        """Instructions that reach the stack: registers did not suffice."""
        return self.count("stack")

    def count(self, *kinds: str) -> int:
        """Return how many instructions of these kinds there are; of all kinds without any."""
        both = self.loop + self.rest
        return sum(n for kind, n in both.items() if not kinds or kind in kinds)


def target(name: str) -> Any:
    """Return Triton's description of an architecture.

    Raises
    ------
    InputError
        It is not one of `TARGETS`.
    """
    from triton.backends.compiler import GPUTarget

    if name in NVIDIA:
        return GPUTarget("cuda", int(name.removeprefix("sm_")), 32)
    if name in AMD:
        return GPUTarget("hip", name, 32 if name.startswith("gfx1") else 64)
    raise InputError("target", f"one of {', '.join(TARGETS)}", repr(name))


def build(kernel: Specialised, architecture: str) -> Any:
    """Return a kernel as Triton compiles it for an architecture."""
    import triton

    options = {"num_warps": kernel.num_warps, "enable_fp_fusion": True}
    return triton.compile(kernel.source, target=target(architecture), options=options)


def measure(kernel: Specialised, architecture: str) -> Resources:
    """Compile a kernel for an architecture and return what it needs.

    Parameters
    ----------
    kernel
        The kernel with its constants.
    architecture
        One of `TARGETS`.

    Raises
    ------
    InputError
        An unknown architecture.
    """
    built = build(kernel, architecture)
    tf32 = "tf32" in built.asm["ttir"]
    if architecture in AMD:
        return _measure_amd(built.asm["amdgcn"], tf32)
    return _measure_nvidia(built.asm, built.metadata.shared, tf32)


@cache
def _tools() -> Path:
    import triton.backends.nvidia as nvidia

    return Path(next(iter(nvidia.__path__))) / "bin"


def _tool(name: str, *arguments: str | Path) -> str:
    done = subprocess.run([_tools() / name, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _measure_nvidia(asm: Any, shared: int, tf32: bool) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        report = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+)", report)
    assert found is not None
    return Resources(int(found[1]), int(found[2]), shared, *_nvidia_code(code), tf32)


_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)")
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_BACK = re.compile(r"\bBRA\b.*`\((\.L_x_\d+)\)")


def _nvidia_code(text: str) -> tuple[Counter[str], Counter[str]]:
    """Count the instructions of machine code, inside and outside innermost loops."""
    names: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, int]] = []
    for line in text.splitlines():
        if found := _LABEL.match(line):
            labels[found[1]] = len(names)
        elif (found := _INSTRUCTION.match(line)) and found[1] != "NOP":
            if (back := _BACK.search(line)) and back[1] in labels:
                jumps.append((labels[back[1]], len(names)))
            names.append(found[1])
    return _split(names, jumps, _KINDS)


def _split(
    names: list[str], jumps: list[tuple[int, int]], kinds: list[tuple[str, re.Pattern[str]]]
) -> tuple[Counter[str], Counter[str]]:
    # The code ends with an instruction that jumps to itself.
    loops = [(a, b) for a, b in jumps if b > a]
    inner = [
        (a, b)
        for a, b in loops
        if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)
    ]
    inside = {k for a, b in inner for k in range(a, b + 1)}
    loop: Counter[str] = Counter()
    rest: Counter[str] = Counter()
    for k, name in enumerate(names):
        # Uniform instructions (U...) are integer work of a unit of their own.
        plain = name[1:] if re.match(r"U[A-Z]", name) and not name.startswith("UTC") else name
        kind = next(kind for kind, pattern in kinds if pattern.match(plain))
        (loop if k in inside else rest)[kind] += 1
    return loop, rest


def _amd_number(text: str, key: str) -> int:
    found = re.search(rf"\.{key}:\s+(\d+)", text)
    return int(found[1]) if found else 0


def _measure_amd(text: str, tf32: bool) -> Resources:
    names: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, int]] = []
    for line in text.splitlines():
        if found := re.match(r"^(\.LBB\w+):", line):
            labels[found[1]] = len(names)
        elif found := re.match(r"^\s+([a-z]+_\w+)(.*)", line):
            if back := re.search(r"s_c?branch\w*\s+(\.LBB\w+)", line):
                jumps += [(labels[back[1]], len(names))] if back[1] in labels else []
            if found[1] not in ("s_nop", "s_code_end"):
                names.append(found[1])
    loop, rest = _split(names, jumps, _AMD_KINDS)
    return Resources(
        _amd_number(text, "vgpr_count"), _amd_number(text, "private_segment_fixed_size"),
        _amd_number(text, "group_segment_fixed_size"), loop, rest, tf32,
    )  # fmt: skip
