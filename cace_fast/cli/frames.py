"""Structures in files: read with care for their formats, written with results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cace_fast.cli.common import check_input, note
from cace_fast.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

NO_CELL = np.eye(3)  # CRYST1 1 1 1: the cell in a PDB file of a molecule


def read_structure(path: Path, argument: str = "STRUCTURE") -> Atoms:
    """Return the last frame of a file, with a note if there are several.

    Raises
    ------
    FileNotFoundError, InputError
        As for :func:`read_structures`, and if the frame has no atoms.
    """
    count, last = 0, None
    for last in read_structures(path, argument):  # noqa: B007 - the last one
        count += 1
    assert last is not None
    if not len(last):
        raise InputError(argument, "a structure with at least one atom", f"none in {path}")
    if count > 1:
        note(f"{path} has {count} frames: the last one is taken")
    return last


def read_structures(path: Path, argument: str = "STRUCTURE") -> Iterator[Atoms]:
    """Yield the frames of a file, one after the other (``docs/user/evaluate_and_convert.md``).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    InputError
        If ASE cannot read it, or it holds no frame.
    """
    from ase.io import iread

    check_input(path, argument)
    count = 0
    frames = iread(os.fspath(path), index=":")
    while True:
        try:
            atoms = next(frames, None)
        except Exception as error:  # readers of ASE raise errors of any type
            got = f"{type(error).__name__}: {error} (frame {count} of {path})"
            raise InputError(argument, "a file of structures that ASE reads", got) from error
        if atoms is None:
            break
        if atoms.pbc.all() and np.array_equal(atoms.cell[:], NO_CELL):
            note(f"frame {count} of {path}: a cell of 1 x 1 x 1 A stands for none, taken as open")
            atoms.set_cell(np.zeros((3, 3)))
            atoms.pbc = False
        count += 1
        yield atoms
    if not count:
        raise InputError(argument, "a file with at least one structure", f"none in {path}")


def keep_constraints(atoms: Atoms) -> None:
    """Convert constraints to those that extended xyz can hold.

    Extended xyz has a mask of each atom's x, y and z: fixed atoms and fixed Cartesian components.

    Raises
    ------
    InputError
        For other constraints (``docs/user/errors.md``).
    """
    from ase.constraints import FixAtoms, FixCartesian, FixScaled

    kept: list[Any] = []
    for constraint in atoms.constraints:
        if isinstance(constraint, FixScaled):
            if constraint.mask.all():
                constraint = FixAtoms(constraint.index)
            elif np.array_equal(atoms.cell[:], np.diag(atoms.cell.array.diagonal())):
                constraint = FixCartesian(constraint.index, constraint.mask)
        if not isinstance(constraint, FixAtoms | FixCartesian):
            raise InputError(
                "constraints",
                "fixed atoms, or fixed x, y or z, which the output can keep",
                f"{type(constraint).__name__} of atoms {constraint.get_indices().tolist()[:5]}",
                "Fix the atoms wholly, use a cell along x, y and z, or run it in Python with ASE.",
            )
        kept.append(constraint)
    if any(isinstance(constraint, FixCartesian) for constraint in kept):
        kept = [FixCartesian(i, row) for i, row in enumerate(_fixed(atoms, kept)) if row.any()]
    atoms.set_constraint(kept)


def _fixed(atoms: Atoms, constraints: list[Any]) -> Any:
    """Return which components [n, 3] are fixed by one of the constraints."""
    from ase.constraints import FixCartesian

    fixed = np.zeros((len(atoms), 3), dtype=bool)
    for constraint in constraints:
        mask = constraint.mask if isinstance(constraint, FixCartesian) else True
        fixed[constraint.index] |= mask
    return fixed


def frames_to_bytes(frames: list[Atoms]) -> bytes:
    """Return structures as the text of an extended xyz file, UTF-8.

    See ``docs/user/evaluate_and_convert.md``.
    """
    import io

    from ase.io.extxyz import write_extxyz

    text = io.StringIO()
    write_extxyz(text, frames)
    return text.getvalue().encode()


def with_results(atoms: Atoms) -> Atoms:
    """Return a copy of ``atoms`` with the results of its calculator, in ASE's units.

    See ``docs/user/evaluate_and_convert.md``.

    They replace entries of the same names that came with the file of the structure. Born charges
    are left out: ASE fails to write them.
    """
    from ase.calculators.singlepoint import SinglePointCalculator

    frame: Atoms = atoms.copy()
    results = {k: v for k, v in atoms.calc.results.items() if k != "born_effective_charges"}
    frame.calc = SinglePointCalculator(frame, **results)
    for name in results:
        frame.info.pop(name, None)
        frame.arrays.pop(name, None)
    return frame
