"""The compiled CPU engine as ctypes sees it: ``csrc/cace_fast.h`` and ``cace_fast_step.h``.

The GIL is released while the library works.
"""

from __future__ import annotations

import ctypes
import importlib.resources
from collections.abc import Mapping
from ctypes import POINTER, byref, c_char_p, c_double, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cace_fast.errors import CaceFastError, InputError, UnsupportedModelError
from cace_fast.kernels.cpu.build import LIBRARY

ABI_VERSION = 4
ERROR_LENGTH = 512
INVALID, UNSUPPORTED, NOT_FINITE, MEMORY, TOO_CLOSE = 1, 2, 3, 4, 100
METHODS = {"auto": 0, "direct": 1, "mesh": 2}  # CF_EWALD_...
REMEDY = (
    "Install a C++ compiler with OpenMP (g++, or clang++ with libomp) and run "
    "'python -m cace_fast.kernels.cpu.build'."
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class NotLoadedError(CaceFastError):
    """The library is not here or cannot be used; ``remedy`` says what to do.

    See ``docs/user/install.md``.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason)
        self.remedy = remedy


class Head(ctypes.Structure):
    """``cf_head`` of ``cace_fast.h``: one read-out to evaluate."""

    _fields_ = (
        ("submodel", c_int32),
        ("module", c_int32),
        ("energy_column", c_int32),
        ("average", c_int32),
        ("charges", c_int32),
        ("energy_weight", c_double),
    )


class EwaldSpec(ctypes.Structure):
    """``cf_ewald_spec`` of ``cace_fast_step.h``: parameters of an Ewald module."""

    _fields_ = (
        ("dl", c_double),
        ("sigma", c_double),
        ("norm", c_double),
        ("field", c_double),
        ("neutral_lambda", c_double),
        ("exponent", c_int32),
        ("remove_self", c_int32),
        ("field_direction", c_int32),
    )


class LongRange(ctypes.Structure):
    """``cf_long_range`` of ``cace_fast_step.h``: one Ewald term of the energy."""

    _fields_ = (
        ("ewald", EwaldSpec),
        ("weight", c_double),
        ("first_charge", c_int32),
        ("n_charges", c_int32),
        ("fixed", POINTER(c_double)),
    )


class StructuresC(ctypes.Structure):
    """``cf_structures`` of ``cace_fast_step.h``; addresses of arrays."""

    _fields_ = (
        ("n_atoms", c_int32),
        ("n_systems", c_int32),
        ("species", c_void_p),
        ("positions", c_void_p),
        ("first_atom", c_void_p),
        ("cells", c_void_p),
        ("periodic", c_void_p),
        ("extras", c_void_p),
        ("min_dist", c_double),
    )


class StepResultC(ctypes.Structure):
    """``cf_step_result`` of ``cace_fast_step.h``; addresses of arrays."""

    _fields_ = tuple(
        (name, c_void_p) for name in ("energies_sr", "energies_lr", "forces", "virials", "charges")
    )


class EdgesC(ctypes.Structure):
    """``cf_edges``; addresses of arrays."""

    _fields_ = (
        ("n_edges", c_int64),
        ("n_atoms", c_int64),
        *((name, c_void_p) for name in ("vectors", "senders", "receivers", "species")),
    )


class MessageC(ctypes.Structure):
    """``cf_message``; addresses of arrays."""

    _fields_ = (("step", c_int32), ("a", c_void_p), ("b", c_void_p))


class GridsC(ctypes.Structure):
    """``cf_grids``."""

    _fields_ = (
        ("n_grids", c_int32),
        ("precision", c_int32),
        ("size", c_int64 * 3),
        ("modes", c_int64 * 3),
    )


# context, grids, forward, points, modes
TRANSFORM = ctypes.CFUNCTYPE(ctypes.c_int, c_void_p, POINTER(GridsC), c_int32, c_void_p, c_void_p)


class TransformC(ctypes.Structure):
    """``cf_transform``."""

    _fields_ = (("run", TRANSFORM), ("context", c_void_p))


# a description, and the number, names, data and sizes of tensors
_TENSORS = (c_char_p, c_int32, POINTER(c_char_p), POINTER(c_void_p), POINTER(c_int64))

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "cf_abi_version": (ctypes.c_int, ()),
    "cf_invalid": (c_char_p, (c_int32,)),
    "cf_isa": (c_char_p, (c_char_p,)),
    "cf_model_create": (
        ctypes.c_int,
        (*_TENSORS, c_int32, POINTER(Head), POINTER(c_void_p), c_char_p),
    ),
    "cf_model_open": (ctypes.c_int, (c_char_p, c_char_p, c_int32, POINTER(c_void_p), c_char_p)),
    "cf_model_open_bytes": (
        ctypes.c_int,
        (c_char_p, c_int64, c_char_p, c_int32, POINTER(c_void_p), c_char_p),
    ),
    "cf_model_row": (c_int32, (c_void_p, c_int32)),
    "cf_model_isolated": (c_double, (c_void_p, c_int32)),
    "cf_model_charge_unit": (c_double, (c_void_p,)),
    "cf_model_terms": (POINTER(LongRange), (c_void_p, POINTER(c_int32))),
    "cf_model_free": (None, (c_void_p,)),
    "cf_model_query": (c_int64, (c_void_p, c_char_p)),
    "cf_model_extras": (c_int32, (c_void_p, c_int32)),
    "cf_state_create": (ctypes.c_int, (c_void_p, c_int32, POINTER(c_void_p), c_char_p)),
    "cf_state_free": (None, (c_void_p,)),
    "cf_state_error": (c_char_p, (c_void_p,)),
    "cf_state_bad_atom": (c_int64, (c_void_p,)),
    "cf_state_bytes": (c_int64, (c_void_p,)),
    "cf_step_create": (
        ctypes.c_int,
        (c_void_p, c_void_p, c_int32, POINTER(LongRange), POINTER(c_void_p), c_char_p),
    ),
    "cf_step_free": (None, (c_void_p,)),
    "cf_step_threads": (None, (c_void_p, c_int32)),
    "cf_step_freeze": (None, (c_void_p, c_void_p)),
    "cf_step_slab": (None, (c_void_p, c_double)),
    "cf_step_fields": (ctypes.c_int, (c_void_p, c_int32, c_void_p, c_void_p)),
    "cf_step_method": (ctypes.c_int, (c_void_p, c_int32, c_double, POINTER(TransformC))),
    "cf_step_pairs": (
        ctypes.c_int,
        (c_void_p, POINTER(StructuresC), c_int64, c_void_p, c_void_p, c_void_p),
    ),
    "cf_step_run": (ctypes.c_int, (c_void_p, POINTER(StructuresC), POINTER(StepResultC))),
    "cf_step_charge_virials": (ctypes.c_int, (c_void_p, c_void_p, c_void_p)),
    "cf_step_charge_gradients": (ctypes.c_int, (c_void_p, c_int32, c_void_p, c_void_p)),
    "cf_step_features": (ctypes.c_int, (c_void_p, POINTER(StructuresC), c_void_p)),
    "cf_step_error": (c_char_p, (c_void_p,)),
    "cf_step_closest": (None, (c_void_p, POINTER(c_int32), POINTER(c_double), POINTER(c_double))),
    "cf_machine_peak": (c_double, (c_int32,)),
    "cf_machine_bandwidth": (c_double, ()),
    "cf_ewald_create": (ctypes.c_int, (POINTER(EwaldSpec), POINTER(c_void_p), c_char_p)),
    "cf_ewald_free": (None, (c_void_p,)),
    "cf_ewald_threads": (None, (c_void_p, c_int32)),
    "cf_state_seconds": (c_double, (c_void_p, c_char_p)),
    "cf_ewald_freeze": (None, (c_void_p, c_void_p)),
    "cf_ewald_slab": (None, (c_void_p, c_double)),
    "cf_ewald_method": (ctypes.c_int, (c_void_p, c_int32, c_double, POINTER(TransformC), c_char_p)),
    "cf_ewald_cell": (
        ctypes.c_int,
        (c_void_p, c_void_p, c_int32, c_int64, c_int32, POINTER(c_int64), c_char_p),
    ),
    "cf_ewald_sums": (ctypes.c_int, (c_void_p, c_int64, *(c_void_p,) * 3, c_char_p)),
    "cf_ewald_finish": (ctypes.c_int, (c_void_p, c_int64, *(c_void_p,) * 7, c_char_p)),
    "cf_ewald_mesh": (ctypes.c_int, (c_void_p, c_void_p, c_char_p)),
    "cf_ewald_spread": (ctypes.c_int, (c_void_p, c_void_p, c_int64, *(c_void_p,) * 3, c_char_p)),
    "cf_ewald_multiply": (
        ctypes.c_int,
        (c_void_p, c_void_p, c_int32, c_void_p, c_void_p, c_char_p),
    ),
    "cf_ewald_moments": (ctypes.c_int, (c_void_p, c_int64, *(c_void_p,) * 3, c_char_p)),
    "cf_ewald_gather": (
        ctypes.c_int,
        (c_void_p, c_void_p, c_int64, *(c_void_p,) * 8, c_char_p),
    ),
    "cf_edge_sums_run": (ctypes.c_int, (c_void_p, c_void_p, c_int32)),
    "cf_contraction": (
        ctypes.c_int,
        (c_int32, c_int32, c_int32, c_int64, c_int64, *(c_void_p,) * 2),
    ),
    "cf_contraction_gradient": (
        ctypes.c_int,
        (c_int32, c_int32, c_int32, c_int64, c_int64, *(c_void_p,) * 3),
    ),
    "cf_network_create": (ctypes.c_int, (*_TENSORS, c_int32, POINTER(c_void_p), c_char_p)),
    "cf_network_free": (None, (c_void_p,)),
    "cf_network_run": (ctypes.c_int, (c_void_p, c_int64, *(c_void_p,) * 2)),
    "cf_network_gradient": (ctypes.c_int, (c_void_p, c_int64, *(c_void_p,) * 3)),
    "cf_moments": (ctypes.c_int, (c_void_p, POINTER(EdgesC), c_void_p)),
    "cf_moments_gradient": (ctypes.c_int, (c_void_p, POINTER(EdgesC), *(c_void_p,) * 2)),
    "cf_messages": (ctypes.c_int, (c_void_p, POINTER(EdgesC), POINTER(MessageC), c_void_p)),
    "cf_messages_gradient": (
        ctypes.c_int,
        (c_void_p, POINTER(EdgesC), POINTER(MessageC), *(c_void_p,) * 4),
    ),
    "cf_ewald_evaluate": (
        ctypes.c_int,
        (c_void_p, c_int64, c_int32, *(c_void_p,) * 3, c_int32, *(c_void_p,) * 4, c_char_p),
    ),
}


@cache
def library() -> ctypes.CDLL:
    """Return the library with its functions declared (decision 0008).

    Raises
    ------
    NotLoadedError
        If it was not compiled, cannot be loaded, or ``CACE_FAST_ISA`` asks for an instruction set
        that is not there.
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
    """Return the name of the instruction set in use; NotLoadedError as :func:`library`."""
    name: bytes = library().cf_isa(None)
    return name.decode()


def peak(precision: int) -> float:
    """Return the measured multiply-add peak of one core in operations/s, ``precision`` 32 or 64.

    Raises
    ------
    NotLoadedError
        As for :func:`library`.
    """
    return float(library().cf_machine_peak(precision))


def bandwidth() -> float:
    """Return the measured rate of copying memory by one core in bytes/s.

    Raises
    ------
    NotLoadedError
        As for :func:`library`.
    """
    return float(library().cf_machine_bandwidth())


def address(array: NDArray[Any]) -> int:
    """Return the address of the data of an array; quicker than ``array.ctypes.data``."""
    found: int = array.__array_interface__["data"][0]
    return found


class Handle:
    """An object of the library, which ctypes passes as its pointer (``cace_fast.h``).

    ``cf_KIND_create`` makes it and ``cf_KIND_free`` frees it; the handles that it was made of live
    as long as it does.

    Parameters
    ----------
    kind
        ``"model"``, ``"state"``, ``"step"``, ``"network"`` or ``"ewald"``.
    given
        The first arguments of the function that makes it.

    Raises
    ------
    InputError, UnsupportedModelError
        As for :func:`raise_for`.
    """

    def __init__(self, kind: str, *given: Any) -> None:
        self._as_parameter_ = c_void_p()  # set first, so that __del__ works after an error
        self._lib, self._kind = library(), kind
        self._made_of = [x for x in given if isinstance(x, Handle)]
        text = ctypes.create_string_buffer(ERROR_LENGTH)
        create = getattr(self._lib, f"cf_{kind}_create")
        raise_for(create(*given, byref(self._as_parameter_), text), text.value.decode())

    @classmethod
    def of_tensors(cls, kind: str, text: str, tensors: Mapping[str, Floats], *rest: Any) -> Handle:
        """Return an object made of JSON text, named tensors and further arguments.

        The tensors, float64, are copied.

        Raises
        ------
        InputError, UnsupportedModelError
            As for :func:`raise_for`.
        """
        arrays = [np.ascontiguousarray(t, dtype=np.float64) for t in tensors.values()]
        n = len(arrays)
        names = (c_char_p * n)(*(name.encode() for name in tensors))
        data = (c_void_p * n)(*map(address, arrays))
        sizes = (c_int64 * n)(*(a.size for a in arrays))
        return cls(kind, text.encode(), n, names, data, sizes, *rest)

    def __del__(self) -> None:
        """Free the object of the library."""
        if self._as_parameter_:
            getattr(self._lib, f"cf_{self._kind}_free")(self._as_parameter_)


class TooCloseError(CaceFastError):
    """Two atoms are too close: ``atoms``, their ``distance`` and the one ``allowed`` in A.

    See ``docs/user/errors.md``.
    """

    def __init__(self, atoms: tuple[int, int], distance: float, allowed: float) -> None:
        super().__init__(f"atoms {atoms[0]} and {atoms[1]} at {distance:.6f} A")
        self.atoms, self.distance, self.allowed = atoms, distance, allowed


class NotFiniteError(CaceFastError):
    """A position or a result is NaN or infinite; ``atom`` is the first such atom.

    See ``docs/user/errors.md``.
    """

    def __init__(self, atom: int, text: str) -> None:
        super().__init__(text)
        self.atom = atom


def raise_for(code: int, text: str) -> None:
    """Raise the error of a code that the library has just returned in this thread.

    Raises
    ------
    UnsupportedModelError, MemoryError, InputError, CaceFastError
        By the code (``cace_fast.h``); nothing for 0.
    """
    if code == 0:
        return
    if code == UNSUPPORTED:
        raise UnsupportedModelError(text)
    if code == MEMORY:
        raise MemoryError(text)
    if code == INVALID:
        argument, expected, got = (library().cf_invalid(part).decode() for part in range(3))
        if argument:
            raise InputError(argument, expected, got)
    raise CaceFastError(f"the CPU engine failed ({code}): {text}")
