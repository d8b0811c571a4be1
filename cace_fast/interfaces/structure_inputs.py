"""Structures and their inputs, which a calculator remembers to notice changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_changes


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


def changes_of(
    old: Atoms | None, atoms: Atoms, seen: Mapping[str, Any], keys: Collection[str]
) -> list[str]:
    """Return the names of what differs between two structures, exactly; see ASE's ``check_state``.

    ``seen`` are the inputs of the old structure by key, ``keys`` those to compare: they count as
    one change, ``inputs``. Without an old structure everything has changed.
    """
    if old is None or len(old) != len(atoms):
        return list(all_changes)
    pairs = {
        "positions": (old.positions, atoms.positions),
        "numbers": (old.numbers, atoms.numbers),
        "cell": (old.cell.array, atoms.cell.array),
        "pbc": (old.pbc, atoms.pbc),
    }
    changes = [name for name, (a, b) in pairs.items() if not bool((a == b).all())]
    for name in ("initial_charges", "initial_magmoms"):
        if not is_same(old.arrays.get(name), atoms.arrays.get(name)):
            changes.append(name)
    if any(not is_same(seen.get(key), input_of(atoms, key)) for key in keys):
        changes.append("inputs")
    return changes


def remembered(old: Atoms | None, atoms: Atoms, changes: Sequence[str]) -> Atoms:
    """Return a copy of ``atoms``; ``old`` itself, updated, if only positions or cell changed.

    ``changes`` are those of :func:`changes_of`.
    """
    if old is None or len(old) != len(atoms) or not set(changes) <= {"positions", "cell"}:
        copy: Atoms = atoms.copy()
        return copy
    old.positions[:] = atoms.positions
    old.cell[:] = atoms.cell.array
    return old
