"""Executes PTX on the CPU: all threads of many programs at once, an array for each register.

Threads that stand at different places wait for each other: the lowest place goes first, which
brings the branches of structured code together again and lets every thread arrive at a barrier.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch

from gpu_emulator.instructions import Block, step
from gpu_emulator.lanes import Active, Lanes, Source, Step, source
from gpu_emulator.memory import GlobalMemory, SharedMemory, Traffic
from gpu_emulator.ptx import Instruction, Kernel, PtxError, Symbol, parse

LANES_AT_ONCE = 8192  # registers of so many threads stay in the processor's cache
JUMPS = ("bra", "ret", "exit", "trap")


@dataclass(frozen=True)
class Launch:
    """What a launch did.

    Attributes
    ----------
    name
        The kernel.
    grid
        Programs along three axes.
    warps
        Warps that were started.
    executed
        How often warps executed instructions, by the instruction's full name.
    loop, rest
        Instructions of innermost loops and outside them: how many there are, how often warps
        executed one.
    load_rounds
        How often warps waited for loads from global memory: once for each basic block with any.
    traffic
        Bytes moved; zeros if they were not counted.
    """

    name: str
    grid: tuple[int, int, int]
    warps: int
    executed: Counter[str]
    loop: tuple[int, int]
    rest: tuple[int, int]
    load_rounds: int
    traffic: Traffic


def _is_barrier(i: Instruction) -> bool:
    return i.name in ("bar", "barrier") and i.type != "arrive"


def _blocks(kernel: Kernel) -> list[Block]:
    """Cut the program at jumps, at their targets and at barriers."""
    code = kernel.instructions
    cuts = {0}
    for place, i in enumerate(code):
        if i.name in JUMPS or _is_barrier(i):
            cuts.add(place + 1)
        if _is_barrier(i):
            cuts.add(place)
        if i.name == "bra":
            cuts.add(_target(kernel, i))
    starts = sorted(cut for cut in cuts if cut < len(code))
    number = {start: n for n, start in enumerate(starts)} | {len(code): -1}
    return [
        _block(kernel, code[a:b], number)
        for a, b in zip(starts, [*starts[1:], len(code)], strict=True)
    ]


def _loops(blocks: list[Block]) -> set[int]:
    """Return the blocks that belong to innermost loops."""
    found = [(b.jump, k) for k, b in enumerate(blocks) if b.jump is not None and 0 <= b.jump <= k]
    inner = [
        (a, b)
        for a, b in found
        if not any((c, d) != (a, b) and a <= c and d <= b for c, d in found)
    ]
    return {k for a, b in inner for k in range(a, b + 1)}


def _target(kernel: Kernel, i: Instruction) -> int:
    label = i.operands[0]
    if not isinstance(label, Symbol) or label.name not in kernel.labels:
        raise i.error("the jump leads nowhere")
    return kernel.labels[label.name]


def _block(kernel: Kernel, code: list[Instruction], number: dict[int, int]) -> Block:
    block = Block(instructions=code)
    for i in code:
        if i.name == "bra" or i.name in ("ret", "exit"):
            block.jump = number[_target(kernel, i)] if i.name == "bra" else -1
            if i.guard is not None:
                block.guard = _condition(kernel, i)
        elif i.name == "trap":
            block.steps.append(_trap(i))
        elif _is_barrier(i):
            if i.guard is not None:
                raise i.error("a barrier with a guard is not emulated")
            block.barrier = True
        elif (action := step(kernel, i)) is not None:
            block.steps.append(action)
    return block


def _condition(kernel: Kernel, i: Instruction) -> Source:
    """Return what says in which lanes a guarded jump is taken."""
    read, negated = source(kernel, i.guard, "pred", i), i.negated
    return lambda lanes, active: np.broadcast_to(
        read(lanes, active) ^ negated, lanes.lanes(active).shape
    )


def _trap(i: Instruction) -> Step:
    def trap(lanes: Lanes, active: Active) -> None:
        raise i.error("the program stopped itself (an assertion failed)")

    return trap


class Machine:
    """One kernel, decoded once, ready to be launched.

    Parameters
    ----------
    text
        The PTX module.
    name
        The kernel; may be omitted if the module has only one.
    approximate_ulp
        Random relative error of approximate instructions, in units of 2^-24.

    Raises
    ------
    PtxError
        The module cannot be read, or holds an instruction that is not emulated.
    """

    def __init__(self, text: str, name: str | None = None, approximate_ulp: float = 0.0) -> None:
        kernels = parse(text)
        if name is None and len(kernels) > 1:
            raise PtxError(f"name one of the kernels {', '.join(kernels)}")
        self.kernel = kernels[name] if name is not None else next(iter(kernels.values()))
        self.blocks = _blocks(self.kernel)
        self.loops = _loops(self.blocks)
        self.noise = approximate_ulp

    def run(
        self,
        grid: tuple[int, ...],
        *arguments: torch.Tensor | int | float | bool,
        threads: int = 0,
        shared: int = 0,
        count: bool = False,
    ) -> Launch:
        """Launch the kernel; tensors are read and written in place.

        Parameters
        ----------
        grid
            Number of programs along one to three axes.
        arguments
            In the order of the kernel's parameters; missing ones at the end are 0.
        threads
            Threads of a program, if the kernel leaves it open; a multiple of 32.
        shared
            Bytes for the shared array without a length.
        count
            Whether to count the bytes moved.

        Returns
        -------
        Launch
            What it executed.

        Raises
        ------
        PtxError
            The program leaves its arrays, misses a barrier, or stops itself.
        """
        threads = self.kernel.threads or threads
        if threads <= 0 or threads % 32:
            raise PtxError(f"threads: expected a positive multiple of 32, got {threads}")
        if len(arguments) > len(self.kernel.parameters):
            raise PtxError(f"too many arguments for {list(self.kernel.parameters)}")
        sizes = (*grid, *(1,) * (3 - len(grid)))
        full = sizes[0], sizes[1], sizes[2]
        parameters, memory = self._arguments(arguments, count)
        total, at_once = full[0] * full[1] * full[2], max(LANES_AT_ONCE // threads, 1)
        visits = [0] * len(self.blocks)
        for first in range(0, total, at_once):
            programs = range(first, min(first + at_once, total))
            lanes = Lanes(self.kernel, programs, full, threads)
            lanes.parameters, lanes.memory, lanes.noise = parameters, memory, self.noise
            lanes.shared = SharedMemory(len(programs), self.kernel.shared_bytes + shared)
            with np.errstate(all="ignore"):
                self._run(lanes, visits, threads)
        executed: Counter[str] = Counter()
        for block, times in zip(self.blocks, visits, strict=True):
            for i in block.instructions:
                executed[".".join(i.parts)] += times
        loop, rest = (self._weighed(visits, inside=inside) for inside in (True, False))
        waits = sum(n for block, n in zip(self.blocks, visits, strict=True) if block.loads)
        return Launch(
            self.kernel.name, full, total * threads // 32, executed, loop, rest, waits,
            memory.finish(),
        )  # fmt: skip

    def _weighed(self, visits: list[int], *, inside: bool) -> tuple[int, int]:
        """Return the number of instructions inside loops, or outside, and of their executions."""
        chosen = [
            (len(block.instructions), n)
            for k, (block, n) in enumerate(zip(self.blocks, visits, strict=True))
            if (k in self.loops) == inside
        ]
        return sum(size for size, _ in chosen), sum(size * n for size, n in chosen)

    def _arguments(
        self, arguments: tuple[torch.Tensor | int | float | bool, ...], count: bool
    ) -> tuple[dict[str, int], GlobalMemory]:
        """Return the bits of every parameter, and the arrays that pointers lead to."""
        parameters = dict.fromkeys(self.kernel.parameters, 0)
        names = zip(self.kernel.parameters.items(), arguments, strict=False)
        tensors: list[tuple[str, torch.Tensor]] = []
        pointers: list[str] = []
        for (name, kind), value in names:
            if isinstance(value, torch.Tensor):
                tensors.append((name, value))
                pointers.append(name)
            elif isinstance(value, float):
                width = 8 if kind.endswith("64") else 4
                parameters[name] = int(np.asarray(value, f"f{width}").view(f"u{width}"))
            else:
                parameters[name] = int(value)
        memory = GlobalMemory(tensors, count)
        for name, region in zip(pointers, memory.regions, strict=True):
            parameters[name] = region.base
        return parameters, memory

    def _run(self, lanes: Lanes, visits: list[int], threads: int) -> None:
        waiting: dict[int, Active] = {0: None}
        while waiting:
            here = min(waiting)
            active = waiting.pop(here)
            block = self.blocks[here]
            every = lanes.lanes(active)
            visits[here] += lanes.count // 32 if active is None else np.unique(active // 32).size
            if block.barrier:
                self._barrier(lanes, every, waiting, threads)
            for action in block.steps:
                action(lanes, active)
            following = here + 1 if here + 1 < len(self.blocks) else -1
            if block.jump is None:
                self._go(lanes, waiting, following, active)
            elif block.guard is None:
                self._go(lanes, waiting, block.jump, active)
            else:
                jumps = block.guard(lanes, active)
                if jumps.all():
                    self._go(lanes, waiting, block.jump, active)
                elif not jumps.any():
                    self._go(lanes, waiting, following, active)
                else:
                    self._go(lanes, waiting, block.jump, every[jumps])
                    self._go(lanes, waiting, following, every[~jumps])

    def _go(self, lanes: Lanes, waiting: dict[int, Active], block: int, active: Active) -> None:
        """Let some lanes wait at a block, together with those that are there already."""
        if block == -1:
            return
        if block in waiting:
            there, new = waiting[block], active
            assert there is not None
            assert new is not None
            active = np.sort(np.concatenate((there, new)))
            if active.size == lanes.count:
                active = None
        waiting[block] = active

    def _barrier(
        self, lanes: Lanes, every: Active, waiting: dict[int, Active], threads: int
    ) -> None:
        """Check that all threads of a program that still run have arrived."""
        assert every is not None
        arrived = np.bincount(lanes.program[every], minlength=lanes.count // threads)
        for others in waiting.values():
            if others is not None and (arrived[lanes.program[others]] > 0).any():
                raise PtxError(
                    f"{self.kernel.name}: a barrier that only a part of the program reaches"
                )
        lanes.shared.barrier(np.flatnonzero(arrived))
