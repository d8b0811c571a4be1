"""Inputs of structures, which a calculator remembers to see changes of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms


def input_of(atoms: Atoms | None, key: str) -> Any:
    """Return an input of a structure under its key; None if it has none."""
    return None if atoms is None else atoms.info.get(key, atoms.arrays.get(key))


def copy_of(value: Any) -> Any:
    """Return a copy as an array."""
    return None if value is None else np.array(value, copy=True)


def is_same(old: Any, new: Any) -> bool:
    """Return whether an input has not changed."""
    if old is None or new is None:
        return old is new
    return bool(np.array_equal(old, np.asarray(new)))
