"""Threads of a launch as lanes of arrays, and how an instruction reads and writes registers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_emulator.memory import GlobalMemory, SharedMemory
from gpu_emulator.ptx import Instruction, Kernel, Literal, Operand, Register, Symbol

Array = NDArray[Any]
Active = NDArray[np.intp] | None  # numbers of the lanes that execute; None: all of them

DTYPES: dict[str, np.dtype[Any]] = {
    "u8": np.dtype(np.uint8), "s8": np.dtype(np.int8), "b8": np.dtype(np.uint8),
    "u16": np.dtype(np.uint16), "s16": np.dtype(np.int16), "b16": np.dtype(np.uint16),
    "u32": np.dtype(np.uint32), "s32": np.dtype(np.int32), "b32": np.dtype(np.uint32),
    "u64": np.dtype(np.uint64), "s64": np.dtype(np.int64), "b64": np.dtype(np.uint64),
    "f32": np.dtype(np.float32), "f64": np.dtype(np.float64), "pred": np.dtype(np.bool_),
}  # fmt: skip
UNSIGNED = {8: DTYPES["u8"], 16: DTYPES["u16"], 32: DTYPES["u32"], 64: DTYPES["u64"]}
SIGNED = {8: DTYPES["s8"], 16: DTYPES["s16"], 32: DTYPES["s32"], 64: DTYPES["s64"]}


class Lanes:
    """The state of all threads of some programs.

    Parameters
    ----------
    kernel
        What they run.
    programs
        Numbers of the programs, consecutive.
    grid
        Number of programs along three axes.
    threads
        Threads of a program.
    """

    def __init__(
        self, kernel: Kernel, programs: range, grid: tuple[int, int, int], threads: int
    ) -> None:
        self.count = len(programs) * threads
        self.registers: list[Array | None] = [None] * len(kernel.register_widths)
        self.number = np.arange(self.count) + programs.start * threads
        self.thread = np.arange(self.count) % threads
        self.program = np.arange(self.count) // threads  # within these programs
        program = self.number // threads
        zero = np.zeros(self.count, np.uint32)
        special = {
            "tid.x": self.thread, "tid.y": zero, "tid.z": zero,
            "ntid.x": zero + threads, "ntid.y": zero + 1, "ntid.z": zero + 1,
            "ctaid.x": program % grid[0], "ctaid.y": program // grid[0] % grid[1],
            "ctaid.z": program // (grid[0] * grid[1]),
            "nctaid.x": zero + grid[0], "nctaid.y": zero + grid[1], "nctaid.z": zero + grid[2],
            "laneid": self.thread % 32, "warpid": self.thread // 32,
        }  # fmt: skip
        self.special = {f"%{k}": np.asarray(v, np.uint32) for k, v in special.items()}
        self.parameters: dict[str, int] = {}
        self.memory = GlobalMemory([])
        self.shared = SharedMemory(len(programs), 0)
        self.noise = 0.0  # relative error of approximate instructions, in units of 2^-24
        self.random = np.random.default_rng(programs.start)

    def lanes(self, active: Active) -> Array:
        """Return the numbers of the lanes that execute."""
        return np.arange(self.count) if active is None else active

    def register(self, register: Register) -> Array:
        """Return the bits of a register in all lanes; unwritten ones are ones everywhere (NaN)."""
        value = self.registers[register.index]
        if value is None:
            value = np.zeros(self.count, bool)
            if register.width > 1:
                value = np.full(self.count, -1, SIGNED[register.width])
            self.registers[register.index] = value
        return value

    def write(self, register: Register, value: Array, active: Active) -> None:
        """Write a value of the register's own width."""
        if active is None and value.ndim:
            self.registers[register.index] = value
            return
        if active is None:
            self.registers[register.index] = np.full(self.count, value)
            return
        held = self.register(register)
        held.view(value.dtype)[active] = value


Source = Callable[[Lanes, Active], Array]
Target = Callable[[Lanes, Active, Array], None]
Step = Callable[[Lanes, Active], None]


def constant(literal: Literal, dtype: np.dtype[Any]) -> Array:
    """Return a literal as a number of this type."""
    bits = dtype.itemsize * 8
    if dtype == np.bool_:
        return np.asarray(bool(literal.value))
    if literal.width == 64 and dtype.kind == "f" and bits == 32:
        double = np.asarray(literal.value, np.uint64).view(np.float64)
        return double.astype(np.float32)
    if not literal.width and dtype.kind == "f":
        return np.asarray(literal.value, dtype)
    return np.asarray(literal.value & ((1 << bits) - 1), UNSIGNED[bits]).view(dtype)


def source(kernel: Kernel, operand: Operand, kind: str, instruction: Instruction) -> Source:
    """Return a function that reads an operand as type ``kind`` in the lanes that execute."""
    dtype = DTYPES[kind]
    if isinstance(operand, Register):
        return _from_register(operand, dtype, instruction)
    if isinstance(operand, Literal):
        value = constant(operand, dtype)
        return lambda lanes, active: value
    if isinstance(operand, Symbol) and operand.name in kernel.shared:
        place = np.asarray(kernel.shared[operand.name], dtype)
        return lambda lanes, active: place
    if isinstance(operand, Symbol) and operand.name.startswith("%"):
        name = operand.name

        def special(lanes: Lanes, active: Active) -> Array:
            value = lanes.special.get(name)
            if value is None:
                raise instruction.error(f"the special register {name} is not emulated")
            return (value if active is None else value[active]).astype(dtype)

        return special
    raise instruction.error(f"the operand {operand} is not emulated")


def _from_register(register: Register, dtype: np.dtype[Any], instruction: Instruction) -> Source:
    wanted = 1 if dtype == np.bool_ else dtype.itemsize * 8
    if register.width < wanted or (register.width == 1) != (wanted == 1):
        raise instruction.error("a register narrower than the instruction's type")
    narrow = register.width > wanted > 1

    def read(lanes: Lanes, active: Active) -> Array:
        value = lanes.register(register)
        if active is not None:
            value = value[active]
        if narrow:
            value = value.view(UNSIGNED[register.width]).astype(UNSIGNED[wanted])
        return value if value.dtype is dtype else value.view(dtype)

    return read


def target(operand: Operand, instruction: Instruction) -> Target:
    """Return a function that writes a register, widened as the value's sign asks."""
    if operand is None:
        return lambda lanes, active, value: None
    if not isinstance(operand, Register):
        raise instruction.error("the result is no register")
    register, width = operand, operand.width

    def write(lanes: Lanes, active: Active, value: Array) -> None:
        if width > 1 and value.dtype.itemsize * 8 != width:
            if value.dtype.kind == "f" or value.dtype.itemsize * 8 > width:
                raise instruction.error("the result does not fit its register")
            value = value.astype((SIGNED if value.dtype.kind == "i" else UNSIGNED)[width])
        lanes.write(register, value, active)

    return write
