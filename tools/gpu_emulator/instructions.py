"""Decodes the instructions of a kernel into functions on lanes; refuses what it does not know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu_emulator import arithmetic
from gpu_emulator.lanes import DTYPES, Active, Lanes, Source, Step, Target, source, target
from gpu_emulator.ptx import (
    Address,
    Group,
    Instruction,
    Kernel,
    Operand,
    PtxError,
    Register,
    Symbol,
)

Array = NDArray[Any]

# Modifiers of loads and stores that change caching, not values.
HINTS = frozenset({
    "global", "shared", "weak", "nc", "ca", "cg", "cs", "lu", "wb", "wt", "L1::evict_last",
    "L1::evict_first", "L1::evict_normal", "L1::no_allocate", "L2::cache_hint", "L2::128B",
    "relaxed", "gpu", "cta", "sys", "v2", "v4", "v8", "::cta", "shared::cta",
})  # fmt: skip
NOTHING = frozenset({"membar", "fence", "griddepcontrol"})
ATOMICS: dict[str, Callable[..., Any]] = {
    "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
    "or": np.bitwise_or, "xor": np.bitwise_xor,
}  # fmt: skip


@dataclass
class Block:
    """Instructions that follow each other, and where the program goes from their end.

    ``guard`` decides between ``jump`` and the next block; ``jump`` -1 ends the thread. ``barrier``
    asks that all threads of a program arrive before any goes on.
    """

    steps: list[Step] = field(default_factory=list)
    instructions: list[Instruction] = field(default_factory=list)
    guard: Source | None = None
    jump: int | None = None
    barrier: bool = False

    @property
    def loads(self) -> bool:
        """Whether it loads from global memory."""
        return any(i.name == "ld" and "global" in i.parts for i in self.instructions)


def _operands(kernel: Kernel, i: Instruction, count: int) -> None:
    if len(i.operands) != count:
        raise i.error(f"expected {count} operands, got {len(i.operands)}")


def _elementwise(kernel: Kernel, i: Instruction, operation: arithmetic.Operation) -> Step:
    _operands(kernel, i, len(operation.arguments) + 1)
    sources = [
        source(kernel, o, kind, i)
        for o, kind in zip(i.operands[1:], operation.arguments, strict=True)
    ]
    write = target(i.operands[0], i)
    function = operation.function
    if operation.approximate:

        def noisy(lanes: Lanes, active: Active) -> None:
            value = np.asarray(function(*(read(lanes, active) for read in sources)))
            if lanes.noise:
                error = lanes.random.uniform(-lanes.noise, lanes.noise, value.shape) * 2.0**-24
                value = (value * (1 + error)).astype(value.dtype)
            write(lanes, active, value)

        return noisy
    if len(sources) == 2:
        first, second = sources
        return lambda lanes, active: write(
            lanes, active, function(first(lanes, active), second(lanes, active))
        )

    def step(lanes: Lanes, active: Active) -> None:
        write(lanes, active, function(*(read(lanes, active) for read in sources)))

    return step


def _halves(kernel: Kernel, i: Instruction) -> Step | None:
    """``mov`` between two registers of 32 bits and one of 64."""
    _operands(kernel, i, 2)
    to, of = i.operands
    if isinstance(to, Group):
        read = source(kernel, of, "b64", i)
        low, high = (target(o, i) for o in to.items)

        def split(lanes: Lanes, active: Active) -> None:
            value = np.atleast_1d(read(lanes, active)).view(np.uint32)
            low(lanes, active, value[0::2].copy())
            high(lanes, active, value[1::2].copy())

        return split
    if isinstance(of, Group):
        first, second = (source(kernel, o, "b32", i) for o in of.items)
        write = target(to, i)

        def join(lanes: Lanes, active: Active) -> None:
            halves = np.empty((lanes.lanes(active).size, 2), np.uint32)
            halves[:, 0], halves[:, 1] = first(lanes, active), second(lanes, active)
            write(lanes, active, halves.view(np.uint64)[:, 0])

        return join
    return None


def _move(kernel: Kernel, i: Instruction) -> Step:
    if i.name == "mov" and (step := _halves(kernel, i)) is not None:
        return step
    if i.name == "cvta" and not set(i.parts[1:-1]) <= {"to", "global"}:
        raise i.error("this variant is not emulated")
    _operands(kernel, i, 2)
    read, write = source(kernel, i.operands[1], i.type, i), target(i.operands[0], i)
    # A copy: lanes may later be written one by one, in one of the two registers only.
    return lambda lanes, active: write(lanes, active, read(lanes, active).copy())


def _parameter(kernel: Kernel, i: Instruction) -> Step:
    address = i.operands[1]
    if not isinstance(address, Address) or not isinstance(address.base, Symbol) or address.offset:
        raise i.error("only whole parameters are emulated")
    name, dtype, write = address.base.name, DTYPES[i.type], target(i.operands[0], i)
    if name not in kernel.parameters:
        raise i.error("no such parameter")
    ones = (1 << dtype.itemsize * 8) - 1

    def load(lanes: Lanes, active: Active) -> None:
        bits = np.asarray(lanes.parameters[name] & ones, f"u{dtype.itemsize}")
        write(lanes, active, np.full(lanes.lanes(active).size, bits.view(dtype)))

    return load


def _address(kernel: Kernel, operand: Operand, i: Instruction) -> Source:
    if not isinstance(operand, Address):
        raise i.error("the address is missing")
    base, offset = operand.base, operand.offset
    wide = isinstance(base, Register) and base.width == 64
    read = source(kernel, base, "s64" if wide or not isinstance(base, Register) else "u32", i)

    def address(lanes: Lanes, active: Active) -> Array:
        place = read(lanes, active).astype(np.int64) + offset
        return np.broadcast_to(place, lanes.lanes(active).shape)

    return address


def _space(i: Instruction, spaces: tuple[str, ...]) -> str:
    names = i.name, *i.parts[1:-1]
    space = next((s for s in spaces if any(n.split("::")[0] == s for n in names)), None)
    if space is None:
        raise i.error(f"only {' and '.join(spaces)} memory is emulated")
    return space


def _group(operand: Operand) -> tuple[Operand, ...]:
    return operand.items if isinstance(operand, Group) else (operand,)


def _load(kernel: Kernel, i: Instruction) -> Step:
    if "param" in i.parts:
        return _parameter(kernel, i)
    space = _space(i, ("global", "shared"))
    if not set(i.parts[1:-1]) <= HINTS or i.type not in DTYPES:
        raise i.error("this variant is not emulated")
    dtype, writers = DTYPES[i.type], [target(o, i) for o in _group(i.operands[0])]
    address, width = _address(kernel, i.operands[1], i), len(writers)

    def load(lanes: Lanes, active: Active) -> None:
        places, every = address(lanes, active), lanes.lanes(active)
        if not every.size:
            return
        try:
            if space == "global":
                values = lanes.memory.load(places, dtype, width, lanes.number[every])
            else:
                program, thread = lanes.program[every], lanes.thread[every]
                values = lanes.shared.load(places, dtype, width, program, thread)
        except PtxError as error:
            raise i.error(f"load of {error}") from None
        for write, value in zip(writers, values, strict=True):
            write(lanes, active, value)

    return load


def _store(kernel: Kernel, i: Instruction) -> Step:
    space = _space(i, ("global", "shared"))
    if not set(i.parts[1:-1]) <= HINTS or i.type not in DTYPES:
        raise i.error("this variant is not emulated")
    sources = [source(kernel, o, i.type, i) for o in _group(i.operands[1])]
    address = _address(kernel, i.operands[0], i)

    def store(lanes: Lanes, active: Active) -> None:
        places, every = address(lanes, active), lanes.lanes(active)
        if not every.size:
            return
        values = [read(lanes, active) for read in sources]
        try:
            if space == "global":
                lanes.memory.store(places, values, lanes.number[every])
            else:
                program, thread = lanes.program[every], lanes.thread[every]
                lanes.shared.store(places, values, program, thread)
        except PtxError as error:
            raise i.error(f"store to {error}") from None

    return store


def _atomic(kernel: Kernel, i: Instruction) -> Step:
    """``atom`` (gives the old value) and ``red``, in global memory; lanes act in their order."""
    _space(i, ("global",))
    name = next((p for p in i.parts if p in ATOMICS), "")
    known = {"global", "relaxed", "acq_rel", "gpu", "cta", "sys", name}
    if not name or not set(i.parts[1:-1]) <= known or i.type not in DTYPES:
        raise i.error("this variant is not emulated")
    returns = i.name == "atom"
    _operands(kernel, i, 2 + returns)
    write = target(i.operands[0], i) if returns else None
    address = _address(kernel, i.operands[returns], i)
    read, function = source(kernel, i.operands[1 + returns], i.type, i), ATOMICS[name]

    def atomic(lanes: Lanes, active: Active) -> None:
        places, every = address(lanes, active), lanes.lanes(active)
        if not every.size:
            return
        value = np.broadcast_to(read(lanes, active), places.shape)
        try:
            held, index = lanes.memory.atomic(places, value.dtype, lanes.number[every])
        except PtxError as error:
            raise i.error(f"atomic on {error}") from None
        if write is None:
            function.at(held, index, value)  # type: ignore[attr-defined]
            return
        old = np.empty(places.shape, value.dtype)
        for lane, place in enumerate(index):
            old[lane] = held[place]
            held[place] = function(held[place], value[lane])
        write(lanes, active, old)

    return atomic


def _shuffle(kernel: Kernel, i: Instruction) -> Step:
    """``shfl.sync``: a value from another lane of the warp."""
    if i.parts[1] != "sync" or i.parts[2] not in ("bfly", "idx", "up", "down"):
        raise i.error("this variant is not emulated")
    mode, result, found = i.parts[2], *(*_group(i.operands[0]), None)[:2]
    write, tell = target(result, i), target(found, i)
    value, by, clamp = (
        source(kernel, o, k, i) for o, k in zip(i.operands[1:4], ("b32", "s32", "u32"), strict=True)
    )

    def shuffle(lanes: Lanes, active: Active) -> None:
        every = lanes.lanes(active)
        lane, count = every % 32, by(lanes, active).astype(np.int64)
        control = clamp(lanes, active).astype(np.int64)
        segment = control >> 8 & 31
        last = (lane & segment) | (control & 31 & ~segment)
        first = lane & segment
        wanted = {
            "bfly": lane ^ count, "idx": first | (count & ~segment),
            "up": lane - count, "down": lane + count,
        }[mode]  # fmt: skip
        inside = wanted >= last if mode == "up" else wanted <= last
        wanted = every - lane + np.where(inside, wanted, lane)
        if active is not None:
            runs = np.zeros(lanes.count, bool)
            runs[active] = True
            if not runs[wanted].all():
                raise i.error("a lane is read that does not take part")
        write(lanes, active, np.broadcast_to(value(lanes, None), lanes.count)[wanted])
        tell(lanes, active, np.broadcast_to(inside, every.shape))

    return shuffle


def _vote(kernel: Kernel, i: Instruction) -> Step:
    """``redux.sync`` and ``vote.sync.ballot``: one value from all lanes of a warp that run."""
    ballot = i.parts[1:3] == ("sync", "ballot")
    name = "or" if ballot else i.parts[-2]
    if "sync" not in i.parts or (i.name == "vote" and not ballot) or name not in ATOMICS:
        raise i.error("this variant is not emulated")
    read = source(kernel, i.operands[1], "pred" if ballot else i.type, i)
    write, function = target(i.operands[0], i), ATOMICS[name]

    def vote(lanes: Lanes, active: Active) -> None:
        every = lanes.lanes(active)
        value = np.broadcast_to(read(lanes, active), every.shape)
        if ballot:
            value = value.astype(np.uint32) << (every % 32).astype(np.uint32)
        order = np.argsort(every, kind="stable")
        _, starts, inverse = np.unique(every[order] // 32, return_index=True, return_inverse=True)
        out = np.empty_like(value)
        out[order] = function.reduceat(value[order], starts)[inverse]  # type: ignore[attr-defined]
        write(lanes, active, out)

    return vote


def _matrix(kernel: Kernel, i: Instruction) -> Step:
    """``ldmatrix``, ``stmatrix``: 8 rows of 16 bytes for each register, whose places 8 lanes name.

    Lane t has bytes 4 (t % 4) to 4 (t % 4) + 3 of row t / 4.
    """
    loads, counts = i.name == "ldmatrix", {"x1": 1, "x2": 2, "x4": 4}
    _space(i, ("shared",))
    count = counts.get(i.parts[4], 0)
    group, address = _group(i.operands[not loads]), _address(kernel, i.operands[loads], i)
    if i.parts[1:4] != ("sync", "aligned", "m8n8") or len(i.parts) != 7 or count != len(group):
        raise i.error("this variant is not emulated")
    writers = [target(o, i) for o in group] if loads else []
    readers = [] if loads else [source(kernel, o, "u32", i) for o in group]

    def move(lanes: Lanes, active: Active) -> None:
        every, places = lanes.lanes(active), address(lanes, None)
        if len(every) % 32 or (places & 15).any():
            raise i.error("whole warps and rows at multiples of 16 bytes are needed")
        who = lanes.program[every], lanes.thread[every]
        for k in range(count):
            place = places[every // 32 * 32 + 8 * k + every % 32 // 4] + 4 * (every % 4)
            try:
                if loads:
                    writers[k](lanes, active, lanes.shared.load(place, DTYPES["u32"], 1, *who)[0])
                else:
                    lanes.shared.store(place, [readers[k](lanes, active)], *who)
            except PtxError as error:
                raise i.error(f"access to {error}") from None

    return move


def _policy(kernel: Kernel, i: Instruction) -> Step:
    """Give a caching policy some number: it has no meaning here."""
    write: Target = target(i.operands[0], i)
    return lambda lanes, active: write(lanes, active, np.zeros(lanes.lanes(active).size, np.uint64))


DECODERS: dict[str, Callable[[Kernel, Instruction], Step]] = {
    "mov": _move, "cvta": _move, "ld": _load, "st": _store, "atom": _atomic, "red": _atomic,
    "shfl": _shuffle, "redux": _vote, "vote": _vote, "createpolicy": _policy,
    "ldmatrix": _matrix, "stmatrix": _matrix,
}  # fmt: skip


def step(kernel: Kernel, i: Instruction) -> Step | None:
    """Return what an instruction does, guard included; ``None`` for nothing at all.

    Raises
    ------
    PtxError
        The instruction, or this variant of it, is not emulated.
    """
    if i.name in NOTHING:
        return None
    if i.name in DECODERS:
        plain = DECODERS[i.name](kernel, i)
    elif (operation := arithmetic.decode(i)) is not None:
        plain = _elementwise(kernel, i, operation)
    else:
        raise i.error("this instruction is not emulated")
    if i.guard is None:
        return plain
    read, negated = source(kernel, i.guard, "pred", i), i.negated

    def guarded(lanes: Lanes, active: Active) -> None:
        runs = read(lanes, active) ^ negated
        if runs.all():
            plain(lanes, active)
        elif runs.any():
            plain(lanes, np.flatnonzero(runs) if active is None else active[runs])

    return guarded
