"""Restart files of molecular dynamics: everything that the next step depends on.

Every number and array among the attributes of an integrator, its thermostat and its barostat is
saved. So a restart continues bit for bit whatever the integrator keeps.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cace_fast.cli.common import check_input
from cace_fast.errors import InputError
from cace_fast.files import write_whole

if TYPE_CHECKING:
    from ase import Atoms

VERSION = 1
MOST_STEPS = 2**53
FAULTS = (
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    OSError,
    AttributeError,
    OverflowError,
    RecursionError,
    MemoryError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
PARTS = ("_thermostat", "_barostat")

Array = NDArray[Any]


@dataclass(frozen=True)
class Restart:
    """The state of a run after a step (``docs/user/molecular_dynamics.md``, "Restart").

    Attributes
    ----------
    step
        Steps done.
    settings
        What the run was started with, as plain data.
    lengths
        Bytes of each output that belong to the steps done.
    random
        State of the random numbers, as plain data.
    arrays
        Positions [n, 3] in A, momenta [n, 3] and cell [3, 3] of the atoms, and the numbers of the
        integrator, in ASE's units.
    """

    step: int
    settings: dict[str, Any]
    lengths: dict[str, int]
    random: dict[str, Any]
    arrays: dict[str, Array]

    def save(self, path: Path) -> None:
        """Write the file; it appears whole or not at all (``docs/user/molecular_dynamics.md``).

        Raises
        ------
        OSError
            If it cannot be written.
        """
        head = {
            "version": VERSION,
            "step": self.step,
            "settings": self.settings,
            "lengths": self.lengths,
            "random": self.random,
        }
        text = np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)

        def write(file: IO[bytes]) -> None:
            np.savez(file, head=text, **self.arrays)  # type: ignore[arg-type]

        write_whole(path, write)

    @classmethod
    def load(cls, path: Path) -> Restart:
        """Read a file that :meth:`save` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        InputError
            If it is no restart file, is damaged, or is of another version.
        """
        check_input(path, "--restart")
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            head = json.loads(arrays.pop("head").tobytes())
            if head.pop("version") != VERSION:
                raise ValueError("of another version of cace-fast")
            found = cls(arrays=arrays, **head)
            found.check()
            return found
        except FAULTS as error:
            raise _damaged(f"{path}: {type(error).__name__}: {error}") from error

    def take(self, name: str, shape: tuple[int, ...]) -> Array | None:
        """Remove and return an array that is not of atoms or integrator; None if it is not there.

        See ``docs/user/molecular_dynamics.md``.

        Raises
        ------
        InputError
            If it is of another shape.
        """
        array = self.arrays.pop(name, None)
        if array is not None and array.shape != shape:
            raise _damaged(f"{name} of shape {array.shape}")
        return array

    def check(self) -> None:
        """Raise ValueError for parts of other kinds than :meth:`save` writes."""
        if not (type(self.step) is int and 0 <= self.step < MOST_STEPS):
            raise ValueError(f"step {self.step!r}")
        if not (isinstance(self.settings, dict) and isinstance(self.random, dict)):
            raise ValueError("settings or random numbers of another kind")
        lengths = self.lengths.values() if isinstance(self.lengths, dict) else [None]
        if not all(type(n) is int and n >= 0 for n in lengths):
            raise ValueError(f"lengths {self.lengths!r}")
        for name, array in self.arrays.items():
            if array.dtype.kind not in "fiu" or not np.isfinite(array).all():
                raise ValueError(f"{name}: numbers that are not finite, or none")


def _damaged(got: str) -> InputError:
    return InputError(
        "--restart",
        "a restart file of cace-fast md",
        got,
        "Begin anew with --force, which removes it and its outputs.",
    )


def state_of(atoms: Atoms, dynamics: object) -> dict[str, Array]:
    """Return the arrays of a :class:`Restart` for atoms and their integrator, in ASE's units."""
    found = {
        "atoms.positions": atoms.positions,
        "atoms.momenta": atoms.get_momenta(),
        "atoms.cell": atoms.cell[:],
    }
    for prefix, owner in _owners(dynamics):
        for name, value in vars(owner).items():
            if _is_number(value):
                found[f"{prefix}.{name}"] = value
    return {name: np.array(value) for name, value in found.items()}


def restore(atoms: Atoms, dynamics: object, saved: Restart, random: np.random.Generator) -> None:
    """Restore the state of atoms, integrator and random numbers, in place.

    ``docs/user/molecular_dynamics.md``, "Restart", says what is promised.

    Raises
    ------
    InputError
        If the state is not of such an integrator, as after an update of ASE, or not of such atoms.
    """
    arrays, now = saved.arrays, state_of(atoms, dynamics)
    owners = dict(_owners(dynamics))
    missing = sorted(now.keys() - arrays.keys())
    more = [name for name in sorted(arrays.keys() - now.keys()) if not _is_new(name, owners)]
    if missing or more:
        raise InputError(
            "--restart",
            "the state of this version of ASE's integrator",
            f"one without {', '.join(missing)}" if missing else f"one with {', '.join(more)}",
        )
    for name, own in now.items():
        array = arrays[name]
        kinds = "fiu" if own.dtype.kind == "f" else "iu"
        if array.shape != own.shape or array.dtype.kind not in kinds:
            raise _damaged(f"{name} of shape {array.shape} and type {array.dtype}")
    if arrays["dynamics.nsteps"] != saved.step:
        raise _damaged(f"{arrays['dynamics.nsteps']} steps of the integrator, {saved.step} in all")
    try:
        random.bit_generator.state = saved.random
    except FAULTS as error:
        raise _damaged(f"random numbers: {error}") from error
    atoms.set_cell(arrays["atoms.cell"], scale_atoms=False)
    atoms.set_positions(arrays["atoms.positions"], apply_constraint=False)
    atoms.set_momenta(arrays["atoms.momenta"], apply_constraint=False)
    for key, value in arrays.items():
        prefix, _, name = key.partition(".")
        if prefix != "atoms":
            setattr(owners[prefix], name, value.copy() if value.ndim else value.item())


def _is_new(key: str, owners: dict[str, object]) -> bool:
    """Tell whether an integrator makes this number in its first step."""
    prefix, _, name = key.partition(".")
    return prefix in owners and name.isidentifier() and not hasattr(owners[prefix], name)


def _owners(dynamics: object) -> list[tuple[str, object]]:
    parts = [(name, getattr(dynamics, name)) for name in PARTS if hasattr(dynamics, name)]
    return [("dynamics", dynamics), *parts]


def _is_number(value: object) -> bool:
    kinds = (int, float, np.number, np.ndarray)
    return isinstance(value, kinds) and not isinstance(value, bool)
