"""Storages and tensors of a file, rebuilt from raw bytes with every number checked first.

Source: specification of checkpoints, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from cace_fast.checkpoint.limits import TENSOR_DIMENSIONS, Budget, Refused, short
from cace_fast.checkpoint.records import Global

STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_TENSOR_OVERHEAD = 2048  # a torch.Tensor with its storage object, generously
_LARGEST = 2**62  # torch counts in int64


class Storage:
    """The numbers of one storage entry; read from the archive when a tensor first needs them.

    See ``docs/user/security.md``.

    Parameters
    ----------
    key
        Name of the entry below ``data/``.
    dtype
        Type of its elements.
    n_elements
        How many the pickle says there are; the entry's size must agree.
    """

    def __init__(self, key: str, dtype: torch.dtype, n_elements: int) -> None:
        self.key, self.dtype, self.n_elements = key, dtype, n_elements
        self._numbers: torch.Tensor | None = None

    def numbers(self, read: Callable[[str, int], bytes], budget: Budget) -> torch.Tensor:
        """Return all elements as a one-dimensional tensor [n_elements] of ``dtype``.

        See ``docs/user/security.md``.

        Raises
        ------
        Refused
            If the entry cannot be read, the budget is spent, or truth values are other
            than 0 and 1.
        """
        if self._numbers is None:
            n_bytes = self.n_elements * self.dtype.itemsize
            budget.charge(2 * n_bytes + _TENSOR_OVERHEAD)
            raw = bytearray(read(self.key, n_bytes))
            if self.dtype is torch.bool and raw.translate(None, b"\0\1"):
                raise Refused(f"storage {short(self.key)} holds something else than truth values")
            self._numbers = (
                torch.frombuffer(raw, dtype=self.dtype) if raw else torch.empty(0, dtype=self.dtype)
            )
        return self._numbers


class TensorReader:
    """Makes the tensors that a pickle describes (``docs/user/security.md``).

    Parameters
    ----------
    read
        Called with a storage key and the number of bytes expected; returns them or raises
        `Refused`.
    budget
        What reading may cost.
    """

    def __init__(self, read: Callable[[str, int], bytes], budget: Budget) -> None:
        self._read, self._budget = read, budget
        self._storages: dict[str, Storage] = {}

    def storage(self, persistent_id: object) -> Storage:
        """Return the storage that a persistent id names (``docs/user/security.md``).

        Raises
        ------
        Refused
            If the id is malformed or contradicts an earlier one.
        """
        match persistent_id:
            case ("storage", Global("torch", name), str(key), str(), int(n_elements)) if (
                name in STORAGE_DTYPES and type(n_elements) is int
            ):
                dtype = STORAGE_DTYPES[name]
            case _:
                raise Refused(
                    "a persistent id is not of the form "
                    "('storage', storage type, key, location, number of elements)"
                )
        if not 0 <= n_elements < _LARGEST:
            raise Refused(f"storage {short(key)} claims {short(n_elements)} elements")
        known = self._storages.get(key)
        if known is None:
            self._budget.charge(_TENSOR_OVERHEAD)
            known = self._storages[key] = Storage(key, dtype, n_elements)
        elif (known.dtype, known.n_elements) != (dtype, n_elements):
            raise Refused(f"storage {short(key)} is described in two contradictory ways")
        return known

    def tensor(self, args: tuple[Any, ...]) -> torch.Tensor:
        """Rebuild one tensor, contiguous and owning its memory, of the dtype of its storage.

        See ``docs/user/security.md``.

        Parameters
        ----------
        args
            (storage, offset, size, stride, requires_grad, hooks) as the pickle gives them, offset
            and strides in elements; newer files append metadata.

        Raises
        ------
        Refused
            If the arguments are malformed or reach beyond the storage.
        """
        if len(args) not in (6, 7):
            raise Refused(f"a tensor has {len(args)} arguments instead of 6 or 7")
        storage, offset, size, stride = args[:4]
        if not isinstance(storage, Storage):
            raise Refused("a tensor names no storage")
        if not (_are_counts((offset,)) and _are_counts(size) and _are_counts(stride)):
            raise Refused("a tensor's offset, size or strides are not whole numbers >= 0")
        if len(size) != len(stride):
            raise Refused(f"a tensor has {len(size)} lengths but {len(stride)} strides")
        n_elements = math.prod(size)
        # the last element that the tensor touches; Python integers do not overflow
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if n_elements and last >= storage.n_elements:
            raise Refused(
                f"a tensor reaches beyond storage {short(storage.key)} (last element {last}, "
                f"but the storage has {storage.n_elements} elements)"
            )
        if n_elements == 0:
            if math.prod(n for n in size if n) >= _LARGEST:
                raise Refused("an empty tensor claims lengths beyond 2^62")
            return torch.empty(size, dtype=storage.dtype)
        self._budget.charge(n_elements * storage.dtype.itemsize + _TENSOR_OVERHEAD)
        numbers = storage.numbers(self._read, self._budget)
        # a stride along a length of one is never used and may be any number
        steps = [step if n > 1 else 1 for n, step in zip(size, stride, strict=True)]
        view = numbers.as_strided(size, steps, offset)
        return view.clone(memory_format=torch.contiguous_format)


def _are_counts(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) <= TENSOR_DIMENSIONS
        and all(type(n) is int and 0 <= n < _LARGEST for n in value)
    )
