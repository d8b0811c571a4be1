"""The long-range sum of the compiled library by itself, and sums that it leaves to Python."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import byref
from typing import Any, NamedTuple

import numpy as np
import torch

from cace_fast.kernels.cpu import library
from cace_fast.kernels.ewald_method import choose
from cace_fast.kernels.nufft import NufftSum, accuracy
from cace_fast.kernels.transforms import make_transforms


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
    """

    def __init__(
        self,
        spec: library.EwaldSpec,
        k_cell: library.Floats | None = None,
        slab_vacuum: float = 0.0,
    ) -> None:
        self._lib = library.library()
        self._handle = library.Handle("ewald", byref(spec))
        self._text = ctypes.create_string_buffer(library.ERROR_LENGTH)
        if k_cell is not None:
            kept = np.ascontiguousarray(k_cell, dtype=np.float64)
            self._lib.cf_ewald_freeze(self._handle, kept.ctypes.data)
        self._lib.cf_ewald_slab(self._handle, slab_vacuum)

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
        library.raise_for(code, self._said)
        return energies, slopes, forces, virial

    def structure_factors(
        self, charges: library.Floats, positions: library.Floats, cell: library.Floats
    ) -> library.Floats:
        """Return S(k) [2, n_q, n_k] of a part of the atoms; those of all parts are added up."""
        n, n_q = charges.shape
        structure = np.zeros((2, n_q, self._select(cell)))
        self._lib.cf_ewald_structure_factors(
            self._handle, n, n_q, charges.ctypes.data, positions.ctypes.data, structure.ctypes.data
        )
        return structure

    def finish(
        self,
        structure: library.Floats,
        charges: library.Floats,
        positions: library.Floats,
        cell: library.Floats,
    ) -> tuple[library.Floats, library.Floats, library.Floats, library.Floats]:
        """Return :meth:`evaluate` of a part of the atoms, given the sum of all parts' S(k).

        The virial is that of all atoms, whole in every part.
        """
        n, n_q = charges.shape
        self._select(cell)
        energies, slopes = np.empty((n, n_q)), np.empty((n, n_q))
        forces, virial = np.zeros((n, 3)), np.zeros((3, 3))
        code = self._lib.cf_ewald_finish(
            self._handle,
            n,
            n_q,
            charges.ctypes.data,
            positions.ctypes.data,
            structure.ctypes.data,
            energies.ctypes.data,
            slopes.ctypes.data,
            forces.ctypes.data,
            self._text,
        )
        library.raise_for(code, self._said)
        self._lib.cf_ewald_virial(self._handle, n_q, structure.ctypes.data, virial.ctypes.data)
        return energies, slopes, forces, virial

    def _select(self, cell: library.Floats) -> int:
        """Choose the vectors k of a cell and return their number, with pads."""
        size = ctypes.c_int64()
        code = self._lib.cf_ewald_cell(self._handle, cell.ctypes.data, byref(size), self._text)
        library.raise_for(code, self._said)
        return size.value


class _Given(NamedTuple):
    """Arrays of one call from the library, which owns their memory."""

    q: library.Floats
    r: library.Floats
    cell: library.Floats
    potentials: library.Floats
    forces: library.Floats | None
    virial: library.Floats | None


class HostSum:
    """Sums over k by Fourier transforms for a step of the library, where they are cheaper.

    ``callback`` is for ``cf_step_host``; what it raises is kept for :meth:`raise_kept`.

    Parameters
    ----------
    terms
        dl, sigma and exponent of each Ewald term.
    method
        ``"auto"``, ``"direct"`` or ``"nufft"``.
    tolerance
        Largest relative error of forces.
    """

    def __init__(
        self, terms: Sequence[tuple[float, float, int]], method: str, tolerance: float
    ) -> None:
        self._terms, self._method, self._tolerance = tuple(terms), method, tolerance
        self.k_cell: library.Floats | None = None
        self._sums: dict[int, tuple[int, NufftSum]] = {}
        self._kept: BaseException | None = None
        self.callback = library.HOST_SUM(self._call)

    def reset(self) -> None:
        """Forget the plans of transforms."""
        self._sums, self._kept = {}, None

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
            if dropped.object == self._call or "ctypes callback" in (dropped.err_msg or ""):
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

    def _call(self, context: Any, term: int, n: int, n_q: int, *rest: Any) -> int:
        q, r, cell, weight, potentials, forces, virial = rest
        try:
            own = _array(cell, (3, 3))
            of = own if self.k_cell is None else self.k_cell
            dl = self._terms[term][0]
            if choose(self._method, n, n_q, of, dl, self._tolerance) == "direct":
                return library.DECLINED
            given = _Given(
                _array(q, (n, n_q)),
                _array(r, (n, 3)),
                own,
                _array(potentials, (n, n_q)),
                None if forces is None else _array(forces, (n, 3)),
                None if virial is None else _array(virial, (3, 3)),
            )
            self._evaluate(term, given, of, weight)
        except BaseException as error:  # no exception can pass through the library
            self._kept = error
            return library.INVALID
        return 0

    def _evaluate(self, term: int, given: _Given, k_cell: library.Floats, weight: float) -> None:
        q, r, cell, of = map(torch.from_numpy, (given.q, given.r, given.cell, k_cell))
        wanted = given.forces is not None or given.virial is not None
        found = self._sum(term).evaluate(q, r, cell, of, derivatives=wanted)
        given.potentials[:] = found.potential.numpy()
        if given.forces is not None:
            given.forces[:] += weight * found.forces.numpy()
        if given.virial is not None:
            given.virial[:] += weight * found.virial.numpy()

    def _sum(self, term: int) -> NufftSum:
        """Return the sum of a term for the current number of threads, with its plans."""
        threads = torch.get_num_threads()
        held = self._sums.get(term)
        if held is None or held[0] != threads:
            wanted, dtype = accuracy(self._tolerance)
            transforms = make_transforms(torch.device("cpu"), wanted, dtype)
            held = self._sums[term] = (threads, NufftSum(*self._terms[term], transforms, dtype))
        return held[1]


def _array(address: int, shape: tuple[int, ...]) -> library.Floats:
    """Return the doubles at an address as an array that shares their memory."""
    count = int(np.prod(shape))
    if count == 0:
        return np.zeros(shape)
    memory = (ctypes.c_double * count).from_address(address)
    return np.ctypeslib.as_array(memory).reshape(shape)
