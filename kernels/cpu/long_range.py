"""The long-range sum of the compiled library by itself, and the transforms that its mesh takes."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cace_fast.kernels.cpu import interface, library
from cace_fast.kernels.mesh import to_modes, to_points


class EwaldSum:
    """The long-range sum of one system after another, with its buffers.

    Parameters
    ----------
    spec
        Parameters of the Ewald module.
    k_cell
        The cell [3, 3] whose integer vectors are taken in every cell; by default each cell has
        its own sphere.
    slab_vacuum
        What the box of a slab has beyond the height of its cell, in A; 0 refuses slabs.
    method, tolerance
        ``"direct"``, ``"mesh"`` or ``"auto"``, and the error of forces by a mesh relative to
        max(max |F|, F0).

    Raises
    ------
    InputError
        For parameters that make no sense.
    """

    def __init__(
        self,
        spec: interface.EwaldSpec,
        k_cell: library.Floats | None = None,
        slab_vacuum: float = 0.0,
        *,
        method: str = "direct",
        tolerance: float = 1e-10,
    ) -> None:
        self._lib = library.library()
        self._handle = library.Handle("ewald", byref(spec))
        self._text = ctypes.create_string_buffer(library.ERROR_LENGTH)
        if k_cell is not None:
            kept = np.ascontiguousarray(k_cell, dtype=np.float64)
            self._lib.cf_ewald_freeze(self._handle, kept.ctypes.data)
        self._lib.cf_ewald_slab(self._handle, slab_vacuum)
        self._transform = Transform()
        code = self._lib.cf_ewald_method(
            self._handle,
            library.METHODS[method],
            tolerance,
            byref(self._transform.given),
            self._text,
        )
        library.raise_for(code, self._said)

    @property
    def _said(self) -> str:
        return self._text.value.decode()

    def evaluate(
        self,
        charges: library.Floats,
        positions: library.Floats,
        cell: library.Floats,
        *,
        periodic: int,
        n_threads: int,
    ) -> tuple[library.Floats, library.Floats, library.Floats, library.Floats]:
        """Return energies [n, n_q], dE/dq [n, n_q], forces [n, 3] and the virial [3, 3].

        Charges [n, n_q], positions [n, 3] and cell [3, 3] are float64 in C order; the energy
        that is differentiated is the sum of all ``energies``. ``periodic``: 0 open, 1 in all
        directions, 2 + a in all but a.
        """
        n, n_q = charges.shape
        energies, slopes = np.empty((n, n_q)), np.empty((n, n_q))
        forces, virial = np.zeros((n, 3)), np.zeros((3, 3))
        self._lib.cf_ewald_threads(self._handle, n_threads)
        with self._transform.keeping():
            code = self._lib.cf_ewald_evaluate(
                self._handle,
                n,
                n_q,
                charges.ctypes.data,
                positions.ctypes.data,
                cell.ctypes.data,
                int(periodic),
                energies.ctypes.data,
                slopes.ctypes.data,
                forces.ctypes.data,
                virial.ctypes.data,
                self._text,
            )
        self._transform.raise_kept()
        library.raise_for(code, self._said)
        return energies, slopes, forces, virial

    def sums(
        self,
        charges: library.Floats,
        positions: library.Floats,
        cell: library.Floats,
        *,
        n_all: int,
        periodic: int = 1,
    ) -> library.Floats:
        """Return what a part of the atoms puts into the sum; those of all parts are added up.

        ``n_all`` is the number of atoms of all parts; the rest as for :meth:`evaluate`. What comes
        back is for :meth:`finish` of every part.
        """
        n, n_q = charges.shape
        size = ctypes.c_int64()
        code = self._lib.cf_ewald_cell(
            self._handle, cell.ctypes.data, periodic, n_all, n_q, byref(size), self._text
        )
        library.raise_for(code, self._said)
        found = np.zeros(size.value)
        code = self._lib.cf_ewald_sums(
            self._handle,
            n,
            charges.ctypes.data,
            positions.ctypes.data,
            found.ctypes.data,
            self._text,
        )
        library.raise_for(code, self._said)
        return found

    def finish(
        self, sums: library.Floats, charges: library.Floats, positions: library.Floats
    ) -> tuple[library.Floats, library.Floats, library.Floats, library.Floats]:
        """Return :meth:`evaluate` of a part of the atoms, given the sums of all parts.

        The virial is a part too: those of all parts add up to that of all atoms. It follows a call
        of :meth:`sums` with the same atoms.
        """
        n, n_q = charges.shape
        energies, slopes = np.empty((n, n_q)), np.empty((n, n_q))
        forces, virial = np.zeros((n, 3)), np.zeros((3, 3))
        with self._transform.keeping():
            code = self._lib.cf_ewald_finish(
                self._handle,
                n,
                charges.ctypes.data,
                positions.ctypes.data,
                sums.ctypes.data,
                energies.ctypes.data,
                slopes.ctypes.data,
                forces.ctypes.data,
                virial.ctypes.data,
                self._text,
            )
        self._transform.raise_kept()
        library.raise_for(code, self._said)
        return energies, slopes, forces, virial


class Transform:
    """Fourier transforms by torch for a mesh of the library.

    ``given`` is what ``cf_step_method`` and ``cf_ewald_method`` take. No exception can pass through
    the library: one that comes meanwhile is kept for :meth:`raise_kept`.
    """

    def __init__(self) -> None:
        self._kept: BaseException | None = None
        self.given = interface.TransformC(interface.TRANSFORM(self._run), None)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Keep what ctypes would drop: the exception of a signal that came before the callback.

        Python runs the handlers of signals in its main thread, at the entry of the callback at the
        earliest, where no ``try`` of it is reached.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = sys.unraisablehook

        def keep(dropped: sys.UnraisableHookArgs) -> None:
            if dropped.object == self._run or "ctypes callback" in (dropped.err_msg or ""):
                self._kept = dropped.exc_value
            else:
                before(dropped)

        sys.unraisablehook = keep
        try:
            yield
        finally:
            sys.unraisablehook = before

    def raise_kept(self) -> None:
        """Raise what the last call raised, if anything."""
        error, self._kept = self._kept, None
        if error is not None:
            raise error

    def _run(self, context: Any, grids: Any, forward: int, points: int, modes: int) -> int:
        try:
            g = grids.contents
            size, (m1, m2, m3) = tuple(g.size), tuple(g.modes)
            real = torch.float32 if g.precision == 32 else torch.float64
            grid = _tensor(points, (g.n_grids, *size), real)
            pairs = _tensor(modes, (g.n_grids, 2 * m1 + 1, 2 * m2 + 1, m3 + 1, 2), real)
            spectrum = torch.view_as_complex(pairs)
            if forward:
                spectrum.copy_(to_modes(grid, (m1, m2, m3)))
            else:
                grid.copy_(to_points(spectrum, size))
        except BaseException as error:
            self._kept = error
            return library.INVALID
        return 0


def _tensor(address: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the numbers at an address as a tensor that shares their memory."""
    number = ctypes.c_float if dtype == torch.float32 else ctypes.c_double
    memory = (number * int(np.prod(shape))).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).reshape(shape)
