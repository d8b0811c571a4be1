"""Restart files of molecular dynamics: everything that the next step depends on.

What an integrator holds is taken as it is: every number and array among its attributes and those
of its thermostat and barostat. So a restart continues bit for bit whatever the integrator keeps.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cace_fast.cli.common import write_whole
from cace_fast.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

VERSION = 1
PARTS = ("_thermostat", "_barostat")

Array = NDArray[Any]


@dataclass(frozen=True)
class Restart:
    """The state of a run after some step.

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
        Positions, momenta and cell of the atoms, and the numbers of the integrator.
    """

    step: int
    settings: dict[str, Any]
    lengths: dict[str, int]
    random: dict[str, Any]
    arrays: dict[str, Array]

    def save(self, path: Path) -> None:
        """Write the file such that it appears whole or not at all."""
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
        InputError
            If it is none.
        """
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            head = json.loads(arrays.pop("head").tobytes())
            if head.pop("version") != VERSION:
                raise ValueError("of another version of cace-fast")
            return cls(arrays=arrays, **head)
        except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise InputError(
                "--restart", "a restart file of cace-fast md", f"{path}: {error}",
                "Remove it and its outputs with --force to begin anew.",
            ) from error  # fmt: skip


def state_of(atoms: Atoms, dynamics: object) -> dict[str, Array]:
    """Return the arrays of a :class:`Restart` for atoms and their integrator."""
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


def restore(atoms: Atoms, dynamics: object, arrays: dict[str, Array]) -> None:
    """Give atoms and integrator the state that :func:`state_of` took.

    Raises
    ------
    InputError
        If the state is not of such an integrator, as after an update of ASE.
    """
    atoms.set_cell(arrays["atoms.cell"], scale_atoms=False)
    atoms.set_positions(arrays["atoms.positions"], apply_constraint=False)
    atoms.set_momenta(arrays["atoms.momenta"], apply_constraint=False)
    owners = dict(_owners(dynamics))
    missing = {
        f"{prefix}.{name}"
        for prefix, owner in owners.items()
        for name, value in vars(owner).items()
        if _is_number(value)
    } - set(arrays)
    if missing:
        raise InputError(
            "--restart", "the state of this version of ASE's integrator",
            f"one without {', '.join(sorted(missing))}",
        )  # fmt: skip
    for key, value in arrays.items():
        prefix, _, name = key.partition(".")
        if prefix != "atoms":
            setattr(owners[prefix], name, value.copy() if value.ndim else value.item())


def _owners(dynamics: object) -> list[tuple[str, object]]:
    parts = [(name, getattr(dynamics, name)) for name in PARTS if hasattr(dynamics, name)]
    return [("dynamics", dynamics), *parts]


def _is_number(value: object) -> bool:
    kinds = (int, float, np.number, np.ndarray)
    return isinstance(value, kinds) and not isinstance(value, bool)
