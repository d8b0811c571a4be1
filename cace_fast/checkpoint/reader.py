"""From a path to inert objects; the one place that turns refusals into `CheckpointError`."""

from __future__ import annotations

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from cace_fast.checkpoint.archive import Archive
from cace_fast.checkpoint.limits import MIB, Budget, Refused
from cace_fast.checkpoint.records import Record
from cace_fast.checkpoint.unpickler import Unpickler
from cace_fast.errors import CheckpointError
from cace_fast.weights import require_regular

_CODE_BYTES = 1 * MIB


@dataclass(frozen=True, slots=True)
class Contents:
    """What one model file holds (``docs/developer/file_reader.md``).

    Attributes
    ----------
    root
        The pickled object: a record, or a dictionary of state dicts.
    code
        Source texts of a TorchScript archive by name (never executed); empty otherwise.
    budget
        What is left for making a model of it.
    """

    root: Any
    code: dict[str, str] = field(default_factory=dict)
    budget: Budget | None = None


def read_contents(path: str | PathLike[str]) -> Contents:
    """Read the objects of a file that ``torch.save`` or ``torch.jit.save`` wrote.

    See ``docs/developer/file_reader.md``.

    Nothing is imported or called that the file names: objects become `Record`, functions
    `Global`; tensors are rebuilt on the CPU.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Contents
        Its objects, free of cycles; one object that is stored once is one object here.

    Raises
    ------
    CheckpointError
        The file is of another kind, damaged, hostile, or too expensive to read; the message says
        what was found and where.
    """
    path = Path(path)
    try:
        require_regular(path)
        budget = Budget(path.stat().st_size)
        with Archive(path, budget) as archive:
            root = _unpickle(archive, budget)
            code = _code(archive) if _is_script(root) else {}
    except Refused as refusal:
        raise CheckpointError(f"{path}: {refusal}.") from None
    except OSError as error:
        raise CheckpointError(f"{path}: the file cannot be read ({error.strerror}).") from None
    return Contents(root, code, budget)


def _unpickle(archive: Archive, budget: Budget) -> Any:
    unpickler = Unpickler(archive.pickle(), archive.storage, budget)
    try:
        return unpickler.load()
    except Refused as refusal:
        where = f"{archive.pickle_name}, byte {unpickler.position}, {unpickler.opcode}"
        raise Refused(f"{where}: {refusal}") from None


def _is_script(root: object) -> bool:
    return isinstance(root, Record) and root.module.split(".", 1)[0] == "__torch__"


def _code(archive: Archive) -> dict[str, str]:
    names = [name for name in archive.names("code") if name.endswith(".py")]
    return {
        name: archive.read(name, largest=_CODE_BYTES).decode("utf-8", "replace") for name in names
    }
