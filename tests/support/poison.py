"""Uninitialised memory that cannot pass for a result.

``torch.empty`` and ``numpy.empty`` often return zeros, so that an output of which one element was
never written passes every test. While :func:`poisoned` is active, what the library allocates
without a value holds NaN (floating, complex), the largest number (integer) or True (bool).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

LIBRARY = "cace_fast"
_PLACES: tuple[tuple[Any, tuple[str, ...]], ...] = (
    (torch, ("empty", "empty_like", "empty_strided")),
    (torch.Tensor, ("new_empty", "new_empty_strided")),
    (np, ("empty", "empty_like")),
)


def _fill_tensor(tensor: torch.Tensor) -> None:
    value = torch.nan if tensor.is_floating_point() or tensor.is_complex() else True
    if value is True and tensor.dtype is not torch.bool:
        value = torch.iinfo(tensor.dtype).max
    with torch.no_grad():
        tensor.fill_(value)


def _fill_array(array: np.ndarray[Any, Any]) -> None:
    if array.dtype.kind in "fc":
        array.fill(np.nan)
    elif array.dtype.kind in "iu":
        array.fill(np.iinfo(array.dtype).max)
    elif array.dtype.kind == "b":
        array.fill(True)


def poisoning(allocate: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``allocate`` such that what it returns to code of the library is poisoned."""

    def empty(*args: Any, **kwargs: Any) -> Any:
        result = allocate(*args, **kwargs)
        caller = str(sys._getframe(1).f_globals.get("__name__", ""))
        if caller.partition(".")[0] == LIBRARY:
            (_fill_tensor if isinstance(result, torch.Tensor) else _fill_array)(result)
        return result

    return empty


@contextmanager
def poisoned() -> Iterator[None]:
    """Poison what code of the library allocates without a value; other callers are left alone."""
    with pytest.MonkeyPatch.context() as patch:
        for place, names in _PLACES:
            for name in names:
                patch.setattr(place, name, poisoning(getattr(place, name)))
        yield
