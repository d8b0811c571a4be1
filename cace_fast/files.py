"""Files that are complete, whatever interrupts their writing."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import IO


def write_whole(path: Path, write: Callable[[IO[bytes]], object], *, writer: str = "") -> None:
    """Write a file such that it appears whole or not at all, also if the power fails.

    See ``docs/user/molecular_dynamics.md``.

    Parameters
    ----------
    path
        Its place.
    write
        Called with an open binary file in the same folder. That file is flushed to disk and then
        renamed to ``path``.
    writer
        Part of that file's name; two processes that write at the same time need different ones.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    part = path.with_name(f"{path.name}{writer}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # makes the new name last too; Windows has no such call
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def append_whole(file: FileIO, data: bytes) -> None:
    """Append to an unbuffered file; an interrupted call leaves nothing of ``data`` in it.

    See ``docs/user/molecular_dynamics.md``.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    place = os.fstat(file.fileno()).st_size
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except BaseException:
        os.ftruncate(file.fileno(), place)
        raise
