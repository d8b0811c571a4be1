"""The compiled CPU engine behind Python objects: ``csrc/cace_fast.h`` and ``cace_fast_step.h``.

Nothing here knows torch's settings or keeps state between calls but what an object holds; the GIL
is released while the library works.
"""

from __future__ import annotations

import ctypes
import importlib.resources
import threading
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_double, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cace_fast.errors import CaceFastError, InputError, UnsupportedModelError
from cace_fast.kernels.cpu.build import LIBRARY

ABI_VERSION = 1
ERROR_LENGTH = 512
INVALID, UNSUPPORTED, NOT_FINITE, MEMORY, TOO_CLOSE = 1, 2, 3, 4, 100
REMEDY = (
    "Install a C++ compiler with OpenMP (g++, or clang++ with libomp) and run "
    "'python -m cace_fast.kernels.cpu.build'."
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class NotLoadedError(CaceFastError):
    """The library is not here or cannot be used; ``remedy`` says what to do."""

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


class Head(ctypes.Structure):
    """``cf_head``: one read-out to evaluate."""

    _fields_ = (
        ("submodel", c_int32), ("module", c_int32), ("energy_column", c_int32),
        ("average", c_int32), ("charges", c_int32), ("extra_before", c_int32),
        ("energy_weight", c_double),
    )  # fmt: skip


class EwaldSpec(ctypes.Structure):
    """``cf_ewald_spec``: parameters of an Ewald module."""

    _fields_ = (
        ("dl", c_double), ("sigma", c_double), ("norm", c_double), ("field", c_double),
        ("neutral_lambda", c_double), ("exponent", c_int32), ("remove_self", c_int32),
        ("field_direction", c_int32),
    )  # fmt: skip


class LongRange(ctypes.Structure):
    """``cf_long_range``: one Ewald term of the energy."""

    _fields_ = (
        ("ewald", EwaldSpec), ("weight", c_double), ("first_charge", c_int32),
        ("n_charges", c_int32), ("fixed", POINTER(c_double)),
    )  # fmt: skip


class _Structures(ctypes.Structure):
    _fields_ = (
        ("n_atoms", c_int32), ("n_systems", c_int32), ("species", c_void_p),
        ("positions", c_void_p), ("first_atom", c_void_p), ("cells", c_void_p),
        ("periodic", c_void_p), ("extras", c_void_p), ("min_dist", c_double),
    )  # fmt: skip


class _StepResult(ctypes.Structure):
    _fields_ = tuple(
        (name, c_void_p) for name in ("energies_sr", "energies_lr", "forces", "virials", "charges")
    )


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "cf_abi_version": (ctypes.c_int, ()),
    "cf_isa": (c_char_p, (c_char_p,)),
    "cf_model_create": (
        ctypes.c_int,
        (c_char_p, c_int32, POINTER(c_char_p), POINTER(c_void_p), POINTER(c_int64), c_int32,
         POINTER(Head), POINTER(c_void_p), c_char_p),
    ),
    "cf_model_free": (None, (c_void_p,)),
    "cf_model_query": (c_int64, (c_void_p, c_char_p)),
    "cf_model_extras": (c_int32, (c_void_p, c_int32)),
    "cf_state_create": (ctypes.c_int, (c_void_p, c_int32, POINTER(c_void_p), c_char_p)),
    "cf_state_free": (None, (c_void_p,)),
    "cf_state_bad_atom": (c_int64, (c_void_p,)),
    "cf_state_bytes": (c_int64, (c_void_p,)),
    "cf_step_create": (
        ctypes.c_int,
        (c_void_p, c_void_p, c_int32, POINTER(LongRange), POINTER(c_void_p), c_char_p),
    ),
    "cf_step_free": (None, (c_void_p,)),
    "cf_step_threads": (None, (c_void_p, c_int32)),
    "cf_step_pairs": (
        ctypes.c_int, (c_void_p, POINTER(_Structures), c_int64, c_void_p, c_void_p, c_void_p)
    ),
    "cf_step_run": (ctypes.c_int, (c_void_p, POINTER(_Structures), POINTER(_StepResult))),
    "cf_step_features": (ctypes.c_int, (c_void_p, POINTER(_Structures), c_void_p)),
    "cf_step_error": (c_char_p, (c_void_p,)),
    "cf_step_closest": (None, (c_void_p, POINTER(c_int32), POINTER(c_double))),
    "cf_ewald_create": (ctypes.c_int, (POINTER(EwaldSpec), POINTER(c_void_p), c_char_p)),
    "cf_ewald_free": (None, (c_void_p,)),
    "cf_ewald_threads": (None, (c_void_p, c_int32)),
    "cf_ewald_evaluate": (
        ctypes.c_int, (c_void_p, c_int64, c_int32, *(c_void_p,) * 3, c_int32, *(c_void_p,) * 4,
                       c_char_p)
    ),
}  # fmt: skip


@cache
def library() -> ctypes.CDLL:
    """Return the library with its functions declared.

    Raises
    ------
    NotLoadedError
        If it was not compiled, cannot be loaded, or its variable asks for what is not there.
    """
    path = importlib.resources.files(__package__) / LIBRARY
    if not path.is_file():
        reason = "its library was not compiled when the package was installed"
        raise NotLoadedError(reason, REMEDY)
    try:
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise NotLoadedError(f"its library cannot be loaded: {error}", REMEDY) from None
    version = loaded.cf_abi_version()
    if version != ABI_VERSION:
        reason = f"its library has interface {version}, this package needs {ABI_VERSION}"
        raise NotLoadedError(reason, "Run 'python -m cace_fast.kernels.cpu.build'.")
    text = ctypes.create_string_buffer(ERROR_LENGTH)
    if loaded.cf_isa(text) is None:
        raise NotLoadedError(text.value.decode(), "Unset CACE_FAST_ISA to use the best there is.")
    return loaded


def isa() -> str:
    """Return the name of the instruction set in use."""
    name: bytes = library().cf_isa(None)
    return name.decode()


class Structures(NamedTuple):
    """Structures evaluated together; arrays in C order.

    ``species`` [n] int32, ``positions`` [n, 3] float64, ``first_atom`` [n_systems + 1] int32,
    ``cells`` [n_systems, 3, 3] float64, ``periodic`` [n_systems] int32, ``extras`` one float64
    array [n, n_extra] or None for each head, ``min_dist`` in A (0: any).
    """

    species: NDArray[np.int32]
    positions: Floats
    first_atom: NDArray[np.int32]
    cells: Floats
    periodic: NDArray[np.int32]
    extras: Sequence[Floats | None] = ()
    min_dist: float = 0.0


class StepResult(NamedTuple):
    """What :meth:`Evaluator.run` returns, float64; None where it was not asked for."""

    energies_sr: Floats
    energies_lr: Floats
    forces: Floats | None
    virials: Floats | None
    charges: Floats | None


class TooCloseError(CaceFastError):
    """Two atoms are closer than ``min_dist``: ``atoms`` and their ``distance`` in A."""

    def __init__(self, atoms: tuple[int, int], distance: float) -> None:
        super().__init__(f"atoms {atoms[0]} and {atoms[1]} at {distance:.6f} A")
        self.atoms, self.distance = atoms, distance


class NotFiniteError(CaceFastError):
    """A position or a result is NaN or infinite; ``atom`` is the first such atom."""

    def __init__(self, atom: int, text: str) -> None:
        super().__init__(text)
        self.atom = atom


class Evaluator:
    """A model in the library, and the buffers of its evaluation.

    Parameters
    ----------
    spec_json
        The specification as JSON text.
    tensors
        Its tensors, float64 arrays in C order.
    heads, terms
        Read-outs to evaluate and Ewald terms of the energy.
    precision
        32 or 64.

    Raises
    ------
    UnsupportedModelError
        If the library does not have a part of the model.
    """

    def __init__(
        self,
        spec_json: str,
        tensors: Mapping[str, Floats],
        heads: Sequence[Head],
        terms: Sequence[LongRange],
        precision: int,
    ) -> None:
        self._lib = library()
        self._lock = threading.Lock()
        self._model, self._state, self._step = c_void_p(), c_void_p(), c_void_p()
        self._text = ctypes.create_string_buffer(ERROR_LENGTH)
        names = (c_char_p * len(tensors))(*(name.encode() for name in tensors))
        arrays = [np.ascontiguousarray(t, dtype=np.float64) for t in tensors.values()]
        data = (c_void_p * len(arrays))(*(a.ctypes.data for a in arrays))
        sizes = (c_int64 * len(arrays))(*(a.size for a in arrays))
        self._n_heads = len(heads)
        self._check(
            self._lib.cf_model_create(
                spec_json.encode(), len(arrays), names, data, sizes, len(heads),
                (Head * len(heads))(*heads), byref(self._model), self._text,
            )
        )  # fmt: skip
        self._check(
            self._lib.cf_state_create(self._model, precision, byref(self._state), self._text)
        )
        self._check(
            self._lib.cf_step_create(
                self._model, self._state, len(terms), (LongRange * len(terms))(*terms),
                byref(self._step), self._text,
            )
        )  # fmt: skip
        self.n_charges = self.query("n_charges")

    def query(self, name: str) -> int:
        """Return a number that describes the model; see ``cf_model_query``."""
        return int(self._lib.cf_model_query(self._model, name.encode()))

    def n_extras(self, head: int) -> int:
        """Return how many extra inputs a head takes beside the features."""
        return int(self._lib.cf_model_extras(self._model, head))

    @property
    def n_bytes(self) -> int:
        """Memory held by the buffers of the engine."""
        return int(self._lib.cf_state_bytes(self._state))

    def run(
        self,
        structures: Structures,
        pairs: tuple[Ints, Ints, Ints] | None,
        wanted: Sequence[str],
        n_threads: int,
    ) -> StepResult:
        """Evaluate structures.

        Parameters
        ----------
        structures
            Atoms and cells.
        pairs
            A new list: senders, receivers [n_pairs] and shifts [n_pairs, 3], int64; None to use
            that of the last call.
        wanted
            Any of ``forces``, ``virials``, ``charges``.
        n_threads
            How many threads to use.

        Raises
        ------
        TooCloseError, NotFiniteError, InputError
            For structures that make no sense.
        """
        n, n_systems = len(structures.species), len(structures.cells)
        result = StepResult(
            np.empty(n),
            np.empty(n),
            np.empty((n, 3)) if "forces" in wanted else None,
            np.empty((n_systems, 3, 3)) if "virials" in wanted else None,
            np.empty((n, self.n_charges)) if "charges" in wanted else None,
        )
        out = _StepResult(*(None if a is None else a.ctypes.data for a in result))
        with self._lock:
            given, _kept = self._given(structures)
            self._prepare(given, pairs, n_threads)
            self._finish(self._lib.cf_step_run(self._step, byref(given), byref(out)))
        return result

    def features(
        self, structures: Structures, pairs: tuple[Ints, Ints, Ints] | None, n_threads: int
    ) -> Floats:
        """Return the invariants [n, n_radial, n_B, C, T]; arguments as in :meth:`run`."""
        names = ("n_radial", "n_invariants", "n_channels", "n_stages")
        found = np.empty((len(structures.species), *(self.query(name) for name in names)))
        with self._lock:
            given, _kept = self._given(structures)
            self._prepare(given, pairs, n_threads)
            self._finish(self._lib.cf_step_features(self._step, byref(given), found.ctypes.data))
        return found

    def _given(self, s: Structures) -> tuple[_Structures, Any]:
        """Return the C structure, and what has to live as long as it."""
        extras = None
        if any(e is not None for e in s.extras):
            pointers = (None if e is None else e.ctypes.data for e in s.extras)
            extras = (c_void_p * self._n_heads)(*pointers)
        given = _Structures(
            len(s.species), len(s.cells), s.species.ctypes.data, s.positions.ctypes.data,
            s.first_atom.ctypes.data, s.cells.ctypes.data, s.periodic.ctypes.data,
            None if extras is None else ctypes.addressof(extras), s.min_dist,
        )  # fmt: skip
        return given, extras

    def _prepare(
        self, given: _Structures, pairs: tuple[Ints, Ints, Ints] | None, n_threads: int
    ) -> None:
        self._lib.cf_step_threads(self._step, n_threads)
        if pairs is not None:
            senders, receivers, shifts = pairs
            self._finish(
                self._lib.cf_step_pairs(
                    self._step, byref(given), len(senders), receivers.ctypes.data,
                    senders.ctypes.data, shifts.ctypes.data,
                )
            )  # fmt: skip

    def _finish(self, code: int) -> None:
        if code == TOO_CLOSE:
            atoms, distance = (c_int32 * 2)(), c_double()
            self._lib.cf_step_closest(self._step, atoms, byref(distance))
            raise TooCloseError((atoms[0], atoms[1]), distance.value)
        text = self._lib.cf_step_error(self._step).decode() if code else ""
        if code == NOT_FINITE:
            raise NotFiniteError(int(self._lib.cf_state_bad_atom(self._state)), text)
        _raise(code, text)

    def _check(self, code: int) -> None:
        _raise(code, self._text.value.decode())

    def __del__(self) -> None:
        """Free what the library holds."""
        for name in ("step", "state", "model"):
            handle = getattr(self, f"_{name}", None)
            if handle:
                getattr(self._lib, f"cf_{name}_free")(handle)


def _raise(code: int, text: str) -> None:
    """Raise what a code of the library means."""
    if code == 0:
        return
    if code == UNSUPPORTED:
        raise UnsupportedModelError(text)
    if code == MEMORY:
        raise MemoryError(text)
    if code == INVALID and ": " in text:
        argument, _, expected = text.partition(": ")
        raise InputError(argument, expected, "something else")
    raise CaceFastError(f"the CPU engine failed ({code}): {text}")
