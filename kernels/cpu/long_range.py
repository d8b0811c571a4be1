"""The long-range sum of the compiled library by itself."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_void_p

import numpy as np

from cace_fast.kernels.cpu import library


class EwaldSum:
    """The long-range sum of one system after another, with its buffers.

    Parameters
    ----------
    spec
        Parameters of the Ewald module.
    """

    def __init__(self, spec: library.EwaldSpec) -> None:
        self._lib = library.library()
        self._handle = c_void_p()
        self._text = ctypes.create_string_buffer(library.ERROR_LENGTH)
        library.raise_for(
            self._lib.cf_ewald_create(byref(spec), byref(self._handle), self._text), self._said
        )

    @property
    def _said(self) -> str:
        return self._text.value.decode()

    def evaluate(
        self,
        charges: library.Floats,
        positions: library.Floats,
        cell: library.Floats,
        *,
        periodic: bool,
        n_threads: int,
    ) -> tuple[library.Floats, library.Floats, library.Floats, library.Floats]:
        """Return energies [n, n_q], dE/dq [n, n_q], forces [n, 3] and the virial [3, 3].

        Charges [n, n_q], positions [n, 3] and cell [3, 3] are float64 in C order; the energy
        that is differentiated is the sum of all ``energies``.
        """
        n, n_q = charges.shape
        energies, slopes = np.empty((n, n_q)), np.empty((n, n_q))
        forces, virial = np.zeros((n, 3)), np.zeros((3, 3))
        self._lib.cf_ewald_threads(self._handle, n_threads)
        code = self._lib.cf_ewald_evaluate(
            self._handle, n, n_q, charges.ctypes.data, positions.ctypes.data, cell.ctypes.data,
            int(periodic), energies.ctypes.data, slopes.ctypes.data, forces.ctypes.data,
            virial.ctypes.data, self._text,
        )  # fmt: skip
        library.raise_for(code, self._said)
        return energies, slopes, forces, virial

    def __del__(self) -> None:
        """Free what the library holds."""
        if getattr(self, "_handle", None):
            self._lib.cf_ewald_free(self._handle)
