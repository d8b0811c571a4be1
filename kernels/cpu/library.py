"""The compiled CPU engine as ctypes sees it: ``csrc/cace_fast.h`` and ``cace_fast_step.h``.

The GIL is released while the library works.
"""

from __future__ import annotations

import ctypes
import importlib.resources
from collections.abc import Mapping
from ctypes import byref, c_char_p, c_int64, c_void_p
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cace_fast.errors import CaceFastError, InputError, UnsupportedModelError
from cace_fast.kernels.cpu.build import LIBRARY
from cace_fast.kernels.cpu.interface import SIGNATURES

VERSION = 500  # CF_VERSION of the header
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
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise NotLoadedError(f"its library cannot be loaded: {error}", REMEDY) from None
    version = loaded.cf_version()
    if version != VERSION:
        reason = f"its library has interface {version}, this package needs {VERSION}"
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
