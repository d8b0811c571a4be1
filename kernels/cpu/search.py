"""The compiled search of pairs (``cf_search`` of ``cace_fast_step.h``)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_int64, c_void_p

import numpy as np

from cace_fast.kernels.cpu import library


class PairSearch:
    """A search with its memory; one thread at a time.

    See ``docs/theory.md``, equation 1.

    Raises
    ------
    NotLoadedError
        If the library is not here.
    """

    def __init__(self) -> None:
        self._lib = library.library()
        self._handle = library.Handle("search")
        self._text = ctypes.create_string_buffer(library.ERROR_LENGTH)

    def run(
        self,
        positions: library.Floats,
        cell: library.Floats,
        periodic: Sequence[bool],
        reach: float,
        n_threads: int,
    ) -> tuple[library.Ints, library.Ints, library.Ints]:
        """Return receivers, senders [n] and shifts [n, 3], int64; the next run writes over them.

        Parameters
        ----------
        positions
            [n, 3] float64, A; need not lie inside the cell.
        cell
            [3, 3] float64, A, lattice vectors as rows, with a volume.
        periodic
            Of the three directions.
        reach
            In A.
        n_threads
            The result is the same for any number of them.

        Raises
        ------
        InputError
            For numbers that are not finite, or a cell without volume.
        """
        r = np.ascontiguousarray(positions, dtype=np.float64)
        h = np.ascontiguousarray(cell, dtype=np.float64)
        flags = np.array(periodic, dtype=np.int32)
        n = c_int64()
        code = self._lib.cf_search_run(
            self._handle, len(r), r.ctypes.data, h.ctypes.data, flags.ctypes.data, reach,
            n_threads, byref(n), self._text,
        )  # fmt: skip
        library.raise_for(code, self._text.value.decode())
        pointers = [c_void_p() for _ in range(3)]
        self._lib.cf_search_pairs(self._handle, *map(byref, pointers))
        receivers, senders, shifts = (
            self._array(p, n.value * w) for p, w in zip(pointers, (1, 1, 3), strict=True)
        )
        return receivers, senders, shifts

    def _array(self, pointer: c_void_p, size: int) -> library.Ints:
        if size == 0:
            return np.zeros(0, dtype=np.int64)
        return np.asarray(_Memory(self, pointer, size))


class _Memory:
    """The base of an array in the memory of a search, which lives as long."""

    def __init__(self, owner: PairSearch, pointer: c_void_p, size: int) -> None:
        self._owner = owner
        self.__array_interface__ = {
            "version": 3,
            "typestr": np.dtype(np.int64).str,
            "data": (pointer.value, True),
            "shape": (size,),
        }
