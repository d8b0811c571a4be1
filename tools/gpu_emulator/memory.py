"""The memory of the emulated device: the arrays of a launch, and what programs share.

Every array lies in an address space of its own, 2^40 bytes apart from the next: an index that
leaves its array is always an error, never a value of the neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gpu_emulator.ptx import PtxError

Array = NDArray[Any]
SPACE = 40  # bits of an array's own address space; it begins in the middle
SECTOR = 32  # bytes that a GPU moves at least


def _bytes_of(tensor: torch.Tensor) -> Array:
    """Return the bytes from the first to the last element, without a copy."""
    if tensor.numel() == 0:
        return np.empty(0, np.uint8)
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    size = tensor.element_size()
    flat = torch.empty(0, dtype=torch.uint8).set_(
        tensor.untyped_storage(), tensor.storage_offset() * size, ((last + 1) * size,), (1,)
    )
    return np.asarray(flat.numpy())


class Region:
    """One array: its bytes, where they begin in the address space, and what was touched."""

    def __init__(self, name: str, tensor: torch.Tensor, number: int) -> None:
        self.name = name
        self.bytes = _bytes_of(tensor)
        self.base = (number << SPACE) + (1 << (SPACE - 1)) + tensor.data_ptr() % 256
        self._views: dict[np.dtype[Any], tuple[int, Array]] = {}
        sectors = self.bytes.size // SECTOR + 2
        self.loaded, self.stored = np.zeros(sectors, bool), np.zeros(sectors, bool)

    def view(self, dtype: np.dtype[Any]) -> tuple[int, Array]:
        """Return the address of the first aligned element, and the elements from there."""
        if dtype not in self._views:
            skipped = -self.base % dtype.itemsize
            count = max(self.bytes.size - skipped, 0) // dtype.itemsize
            part = self.bytes[skipped : skipped + count * dtype.itemsize]
            self._views[dtype] = self.base + skipped, part.view(dtype)
        return self._views[dtype]


@dataclass
class Traffic:
    """Bytes that a launch moved.

    ``loaded`` and ``stored`` count every lane's bytes; ``load_sectors`` and ``store_sectors`` the
    sectors of 32 bytes that the warps asked for, instruction by instruction; ``unique_loaded`` and
    ``unique_stored`` the bytes of the sectors that were touched at all.
    """

    loaded: int = 0
    stored: int = 0
    load_sectors: int = 0
    store_sectors: int = 0
    unique_loaded: int = 0
    unique_stored: int = 0


class GlobalMemory:
    """The arrays that a launch was given.

    Parameters
    ----------
    tensors
        Name and tensor of each, on the CPU; they are read and written in place.
    count
        Whether to keep `traffic`; it takes time.
    """

    def __init__(self, tensors: list[tuple[str, torch.Tensor]], count: bool = False) -> None:
        self.regions = [Region(name, t, i + 1) for i, (name, t) in enumerate(tensors)]
        self.count = count
        self.traffic = Traffic()

    def _locate(self, addresses: Array, dtype: np.dtype[Any], width: int) -> Region:
        """Return the array that all the addresses lie in, ``width`` elements from each."""
        number = int(addresses[0]) >> SPACE
        if not 1 <= number <= len(self.regions):
            raise PtxError(f"an address outside every array: {int(addresses[0]):#x}")
        region = self.regions[number - 1]
        start, view = region.view(dtype)
        low, high = int(addresses.min()), int(addresses.max())
        last = start + (view.size - width) * dtype.itemsize
        if low < start or high > last:
            worst = low if low < start else high
            raise PtxError(
                f"element {(worst - start) // dtype.itemsize} of '{region.name}', which has "
                f"{view.size} of {dtype.itemsize} bytes"
            )
        if (addresses & (dtype.itemsize * width - 1)).any():
            raise PtxError(f"a misaligned address in '{region.name}'")
        return region

    def _split(self, addresses: Array) -> list[Array | None]:
        """Return the positions of the addresses in each array, ``None`` if there is one only."""
        numbers = addresses >> SPACE
        if (numbers == numbers[0]).all():
            return [None]
        return [np.flatnonzero(numbers == n) for n in np.unique(numbers)]

    def load(self, addresses: Array, dtype: np.dtype[Any], width: int, lanes: Array) -> list[Array]:
        """Return ``width`` arrays: the elements at the addresses, and those that follow."""
        out = [np.empty(addresses.size, dtype) for _ in range(width)]
        for part in self._split(addresses):
            some = addresses if part is None else addresses[part]
            region = self._locate(some, dtype, width)
            start, view = region.view(dtype)
            index = (some - start) // dtype.itemsize
            for k in range(width):
                if part is None:
                    out[k] = view[index + k]
                else:
                    out[k][part] = view[index + k]
            if self.count:
                self._note(region, some, dtype.itemsize * width, lanes, part, stored=False)
        return out

    def store(self, addresses: Array, values: list[Array], lanes: Array) -> None:
        """Write the values: the first at the addresses, the others after it."""
        dtype, width = values[0].dtype, len(values)
        for part in self._split(addresses):
            some = addresses if part is None else addresses[part]
            region = self._locate(some, dtype, width)
            start, view = region.view(dtype)
            index = (some - start) // dtype.itemsize
            for k, value in enumerate(values):
                full = np.broadcast_to(value, addresses.shape)
                view[index + k] = full if part is None else full[part]
            if self.count:
                self._note(region, some, dtype.itemsize * width, lanes, part, stored=True)

    def atomic(self, addresses: Array, dtype: np.dtype[Any], lanes: Array) -> tuple[Array, Array]:
        """Return the elements that atomics of one instruction change, and where each lane's is."""
        region = self._locate(addresses, dtype, 1)
        start, view = region.view(dtype)
        if self.count:
            self._note(region, addresses, dtype.itemsize, lanes, None, stored=True)
        return view, (addresses - start) // dtype.itemsize

    def _note(
        self, region: Region, addresses: Array, size: int, lanes: Array, part: Array | None,
        *, stored: bool,
    ) -> None:  # fmt: skip
        """Count the bytes of one access: ``lanes`` are the threads' numbers."""
        threads = lanes if part is None else lanes[part]
        offsets = (addresses - region.base) // SECTOR
        touched = region.stored if stored else region.loaded
        touched[offsets] = True
        touched[(addresses + (size - 1) - region.base) // SECTOR] = True
        sectors = np.unique(((threads >> 5) << np.int64(SPACE)) + offsets).size * max(
            size // SECTOR, 1
        )
        if stored:
            self.traffic.stored += addresses.size * size
            self.traffic.store_sectors += sectors
        else:
            self.traffic.loaded += addresses.size * size
            self.traffic.load_sectors += sectors

    def finish(self) -> Traffic:
        """Return the traffic of the whole launch."""
        for region in self.regions:
            self.traffic.unique_loaded += int(region.loaded.sum()) * SECTOR
            self.traffic.unique_stored += int(region.stored.sum()) * SECTOR
        return self.traffic


class SharedMemory:
    """The shared memory of several programs at once, with a watch on missing barriers.

    Parameters
    ----------
    programs
        Number of programs.
    size
        Bytes of each.
    """

    def __init__(self, programs: int, size: int) -> None:
        self.size = -(-size // 8) * 8
        self.bytes = np.full((programs, self.size), 0xFF, np.uint8)  # unwritten: NaN
        words = self.size // 4 + 2
        self.writer = np.full((programs, words), -1, np.int64)
        self.reader = np.full((programs, words), -1, np.int64)

    def barrier(self, program: Array) -> None:
        """Let all threads of these programs see what was written before."""
        self.writer[program] = -1
        self.reader[program] = -1

    def index(self, addresses: Array, size: int, width: int) -> Array:
        """Return element numbers after checking that they exist."""
        if (addresses < 0).any() or (addresses + size * width > self.size).any():
            raise PtxError(f"an address outside the {self.size} bytes of shared memory")
        if (addresses & (size * width - 1)).any():
            raise PtxError("a misaligned address in shared memory")
        return np.asarray(addresses // size)

    def load(
        self, addresses: Array, dtype: np.dtype[Any], width: int, program: Array, thread: Array
    ) -> list[Array]:
        """Return ``width`` arrays: the elements at the addresses, and those that follow."""
        index = self.index(addresses, dtype.itemsize, width)
        view = self.bytes.view(dtype)
        for word in self._words(addresses, dtype.itemsize * width):
            writer = self.writer[program, word]
            if ((writer >= 0) & (writer != thread)).any():
                raise PtxError("shared memory is read that another thread wrote, and no barrier")
            reader = self.reader[program, word]
            self.reader[program, word] = np.where((reader >= 0) & (reader != thread), -2, thread)
        return [view[program, index + k] for k in range(width)]

    def store(self, addresses: Array, values: list[Array], program: Array, thread: Array) -> None:
        """Write the values: the first at the addresses, the others after it."""
        dtype, width = values[0].dtype, len(values)
        index = self.index(addresses, dtype.itemsize, width)
        for word in self._words(addresses, dtype.itemsize * width):
            for seen in (self.writer, self.reader):
                other = seen[program, word]
                if ((other != -1) & (other != thread)).any():
                    raise PtxError("shared memory is written that another thread used: no barrier")
            self.writer[program, word] = thread
        view = self.bytes.view(dtype)
        for k, value in enumerate(values):
            view[program, index + k] = value

    def _words(self, addresses: Array, size: int) -> list[Array]:
        return [addresses // 4 + k for k in range(max(size // 4, 1))]
