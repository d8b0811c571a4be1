"""A watch over Triton's interpreter (``TRITON_INTERPRET=1``), which checks nothing by itself.

Inside ``with watch() as guard:`` every launch is searched for

- lanes that read or write outside the arrays of the launch (the interpreter reads foreign memory),
- races: two lanes of a store, or two programs, at one address, one of them writing,
- a load of what the same program stored, without ``tl.debug_barrier()`` between them,
- masked lanes whose value is undefined on a GPU: they become NaN or extreme integers,
- ``tl.device_assert``, which the interpreter ignores otherwise;

and `Guard.unwritten` counts the elements of an output that no program wrote.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
NOBODY = -1
SEVERAL = -2


class GuardError(AssertionError):
    """A kernel did what is wrong or undefined on a GPU."""


@dataclasses.dataclass
class Watched:
    """One array of a launch, and which program touched each element last, and how."""

    name: str
    low: int
    high: int
    size: int

    def __post_init__(self) -> None:
        count = max((self.high - self.low) // self.size, 1)
        self.storer, self.loader, self.updater, self.stored_at = (
            np.full(count, NOBODY) for _ in range(4)
        )


def _mark(record: Array, index: Array, program: int) -> None:
    """Note that a program touched elements; two different ones are `SEVERAL`."""
    held = record[index]
    record[index] = np.where((held == NOBODY) | (held == program), program, SEVERAL)


class Guard:
    """What the launches inside `watch` did so far."""

    def __init__(self) -> None:
        self.arrays: list[Watched] = []
        self.kernel = ""
        self.program = NOBODY
        self.place: tuple[int, ...] = ()
        self.epoch = 0

    def _fail(self, message: str) -> None:
        raise GuardError(f"{self.kernel}, program {self.place}: {message}")

    def begin(self, kernel: str, tensors: list[tuple[str, torch.Tensor]]) -> None:
        """Start to watch a launch; arrays given twice share one record."""
        self.kernel, self.arrays, self.program, self.place = kernel, [], NOBODY, ()
        for name, tensor in tensors:
            if tensor.numel() == 0:
                continue
            size, low = tensor.element_size(), tensor.data_ptr()
            last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            high = low + (last + 1) * size
            if not any(a.low == low and a.high == high for a in self.arrays):
                self.arrays.append(Watched(name, low, high, size))

    def begin_program(self, place: tuple[int, ...]) -> None:
        """Another program of the launch starts."""
        self.program, self.place = self.program + 1, place
        self.barrier()

    def barrier(self) -> None:
        """Let all lanes of the program see what it stored."""
        self.epoch += 1

    def _touched(self, addresses: Array, mask: Array, what: str) -> Iterator[tuple[Watched, Array]]:
        """Yield each array that active lanes touch, with the elements."""
        lanes = np.broadcast_to(np.asarray(mask, bool), np.shape(addresses))
        wanted = np.asarray(addresses)[lanes].astype(np.int64)
        left = np.ones(wanted.size, bool)
        for array in self.arrays:
            inside = (wanted >= array.low) & (wanted < array.high)
            if inside.any():
                left &= ~inside
                offset = wanted[inside] - array.low
                if (offset % array.size).any():
                    self._fail(f"misaligned {what} in '{array.name}'")
                yield array, offset // array.size
        if left.any():
            self._fail(f"{what} out of bounds: {self._nearest(int(wanted[left][0]))}")

    def _nearest(self, address: int) -> str:
        if not self.arrays:
            return "the launch has no arrays"
        near = min(self.arrays, key=lambda a: min(abs(address - a.low), abs(address - a.high)))
        count = (near.high - near.low) // near.size
        return f"element {(address - near.low) // near.size} of '{near.name}', which has {count}"

    def _others(self, record: Array, index: Array) -> bool:
        held = record[index]
        return bool(((held != NOBODY) & (held != self.program)).any())

    def load(self, addresses: Array, mask: Array) -> None:
        """Check a load."""
        for array, index in self._touched(addresses, mask, "load"):
            if self._others(array.storer, index):
                self._fail(f"race: '{array.name}' is loaded, another program stores it")
            if self._others(array.updater, index):
                self._fail(f"race: '{array.name}' is loaded, another program updates it")
            if (array.stored_at[index] == self.epoch).any():
                self._fail(f"'{array.name}' is loaded after a store, without a barrier")
            _mark(array.loader, index, self.program)

    def store(self, addresses: Array, mask: Array) -> None:
        """Check a plain store."""
        for array, index in self._touched(addresses, mask, "store"):
            if np.unique(index).size != index.size:
                self._fail(f"race: lanes of one store to '{array.name}' share an address")
            if self._others(array.storer, index):
                self._fail(f"race: '{array.name}' is stored by two programs")
            if self._others(array.updater, index):
                self._fail(f"race: '{array.name}' is stored and updated atomically")
            if self._others(array.loader, index):
                self._fail(f"race: '{array.name}' is stored, another program loads it")
            _mark(array.storer, index, self.program)
            array.stored_at[index] = self.epoch

    def atomic(self, addresses: Array, mask: Array) -> None:
        """Check an atomic update."""
        for array, index in self._touched(addresses, mask, "atomic"):
            if self._others(array.storer, index):
                self._fail(f"race: '{array.name}' is updated atomically and stored")
            if self._others(array.loader, index):
                self._fail(f"race: '{array.name}' is updated atomically and loaded")
            _mark(array.updater, index, self.program)

    def unwritten(self, name: str) -> int:
        """Return how many elements of an array of the last launch no program wrote."""
        array = next((a for a in self.arrays if a.name == name), None)
        if array is None:
            raise KeyError(f"the last launch had no array '{name}'")
        return int(((array.storer == NOBODY) & (array.updater == NOBODY)).sum())


def _tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, tuple | list):
        for k, part in enumerate(value):
            yield from _tensors(f"{name}[{k}]", part)


def _poison(interpreter: Any, pointers: Any) -> Any:
    """Return what masked lanes hold that were loaded without ``other``."""
    kind = pointers.get_element_ty()
    dtype = interpreter._get_np_dtype(kind)
    value: float = float("nan")
    if not np.issubdtype(dtype, np.floating):
        value = np.iinfo(dtype).max // 2 if np.issubdtype(dtype, np.integer) else True
    return interpreter.TensorHandle(np.full(pointers.data.shape, value, dtype=dtype), kind)


def _replacements(guard: Guard, interpreter: Any) -> dict[str, Callable[..., Any]]:
    """Return methods of the interpreter's builder that tell the guard first."""
    builder = interpreter.InterpreterBuilder
    plain = {
        name: getattr(builder, name)
        for name in ("create_masked_load", "create_masked_store", "create_atomic_rmw",
                     "create_atomic_cas", "set_grid_idx")
    }  # fmt: skip

    def load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        guard.load(pointers.data, mask.data)
        if other is None and not np.asarray(mask.data).all():
            other = _poison(interpreter, pointers)
        return plain["create_masked_load"](self, pointers, mask, other, *rest)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        guard.store(pointers.data, mask.data)
        return plain["create_masked_store"](self, pointers, value, mask, *rest)

    def update(self: Any, kind: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        guard.atomic(pointers.data, mask.data)
        return plain["create_atomic_rmw"](self, kind, pointers, value, mask, *rest)

    def exchange(self: Any, pointers: Any, *rest: Any) -> Any:
        guard.atomic(pointers.data, np.ones(np.shape(pointers.data), bool))
        return plain["create_atomic_cas"](self, pointers, *rest)

    def barrier(self: Any) -> None:
        guard.barrier()

    def begin(self: Any, x: int, y: int, z: int) -> Any:
        guard.begin_program((x, y, z))
        return plain["set_grid_idx"](self, x, y, z)

    return {
        "create_masked_load": load, "create_masked_store": store, "create_atomic_rmw": update,
        "create_atomic_cas": exchange, "create_barrier": barrier, "set_grid_idx": begin,
    }  # fmt: skip


@contextmanager
def watch() -> Iterator[Guard]:
    """Watch all launches inside the ``with`` block.

    Yields
    ------
    Guard
        For `Guard.unwritten`.

    Raises
    ------
    GuardError
        From the launch that does what is wrong.
    RuntimeError
        Triton does not interpret in this process: ``TRITON_INTERPRET=1`` must be in its
        environment before Triton is imported.
    """
    from triton import knobs
    from triton.runtime import interpreter

    if not knobs.runtime.interpret:
        raise RuntimeError("set TRITON_INTERPRET=1 before Triton is imported")
    guard, executor = Guard(), interpreter.GridExecutor
    builder: Any = interpreter.InterpreterBuilder
    arguments = executor._init_args_hst
    replaced = {name: getattr(builder, name) for name in _replacements(guard, interpreter)}
    options = interpreter.interpreter_builder.options

    def begin(self: Any, values: Any, named: Any) -> Any:
        host, host_named = arguments(self, values, named)
        pairs = [*zip(self.arg_names, host, strict=False), *host_named.items()]
        guard.begin(self.fn.__name__, [t for name, value in pairs for t in _tensors(name, value)])
        return host, host_named

    interpreter.interpreter_builder.options = dataclasses.replace(options, debug=True)
    for name, function in _replacements(guard, interpreter).items():
        setattr(builder, name, function)
    executor._init_args_hst = begin
    try:
        yield guard
    finally:
        for name, function in replaced.items():
            setattr(builder, name, function)
        executor._init_args_hst = arguments
        interpreter.interpreter_builder.options = options
