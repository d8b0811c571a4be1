"""Files of a run that grow, whole frames and lines at a time."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

from cace_fast.cli.common import append_whole
from cace_fast.errors import InputError


class Outputs:
    """Trajectory and log, appended to in whole frames and lines.

    Parameters
    ----------
    prefix
        The files are ``prefix.extxyz`` and ``prefix.csv``.
    """

    def __init__(self, prefix: str) -> None:
        self.paths = {"trajectory": Path(f"{prefix}.extxyz"), "log": Path(f"{prefix}.csv")}
        self._files: dict[str, FileIO] = {}

    def remove(self) -> None:
        """Delete the files."""
        for path in self.paths.values():
            path.unlink(missing_ok=True)

    def open(self, lengths: dict[str, int]) -> None:
        """Open the files for appending, cut to ``lengths`` bytes."""
        for name, path in self.paths.items():
            file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
            size = os.fstat(file.fileno()).st_size
            if size < lengths[name]:
                file.close()
                got = f"{size} bytes in {path}"
                raise InputError("--restart", f"at least {lengths[name]} bytes", got)
            file.truncate(lengths[name])
            self._files[name] = file

    def append(self, name: str, data: bytes) -> None:
        """Append to one of the files."""
        append_whole(self._files[name], data)

    def lengths(self) -> dict[str, int]:
        """Return the bytes of each file after they have reached the disk."""
        for file in self._files.values():
            os.fsync(file.fileno())
        return {name: os.fstat(file.fileno()).st_size for name, file in self._files.items()}

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
