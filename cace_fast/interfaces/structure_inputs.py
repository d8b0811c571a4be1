"""Inputs of structures; a calculator remembers them to notice changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase import Atoms


def input_of(atoms: Atoms | None, key: str) -> Any:
    """Return an input of a structure from ``info`` or ``arrays``; None if it has none.

    See ``docs/user/coming-from-upstream.md``.
    """
    return None if atoms is None else atoms.info.get(key, atoms.arrays.get(key))


def copy_of(value: Any) -> Any:
    """Return a copy as an array; None stays None (``docs/user/coming-from-upstream.md``)."""
    return None if value is None else np.array(value, copy=True)


def is_same(old: Any, new: Any) -> bool:
    """Tell whether an input is exactly as it was (``docs/user/coming-from-upstream.md``)."""
    if old is None or new is None:
        return old is new
    return bool(np.array_equal(old, np.asarray(new)))
