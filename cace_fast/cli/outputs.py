"""Output files of a run, to which whole frames and lines are appended."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path

from cace_fast.errors import InputError
from cace_fast.files import append_whole


class Outputs:
    """Trajectory and log, appended to in whole frames and lines.

    ``docs/user/molecular_dynamics.md`` describes both.

    Parameters
    ----------
    prefix
        The files are ``prefix.extxyz`` and ``prefix.csv``.
    """

    def __init__(self, prefix: str) -> None:
        self.paths = {"trajectory": Path(f"{prefix}.extxyz"), "log": Path(f"{prefix}.csv")}
        self._files: dict[str, FileIO] = {}

    def remove(self) -> None:
        """Delete the files (``docs/user/molecular_dynamics.md``)."""
        for path in self.paths.values():
            path.unlink(missing_ok=True)

    def open(self, lengths: dict[str, int]) -> None:
        """Open the files for appending, cut to ``lengths`` bytes, and lock them.

        See ``docs/user/molecular_dynamics.md``.

        Raises
        ------
        InputError
            If one of them is shorter, or another run has them open; they stay as they are.
        """
        for name, path in self.paths.items():
            size = path.stat().st_size if path.exists() else 0
            if size < lengths[name]:
                got = f"{size} bytes in {path}"
                raise InputError("--restart", f"at least {lengths[name]} bytes", got)
        try:
            for name, path in self.paths.items():
                self._files[name] = open(path, "ab", buffering=0)  # noqa: SIM115 - see close()
                _lock(self._files[name], path)
        except BaseException:
            self.close()
            raise
        for name, file in self._files.items():
            file.truncate(lengths[name])

    def check_free(self) -> None:
        """Raise InputError if another run has one of the files open.

        See ``docs/user/molecular_dynamics.md``.
        """
        for path in self.paths.values():
            if path.exists():
                with open(path, "ab", buffering=0) as file:
                    _lock(file, path)

    def append(self, name: str, data: bytes) -> None:
        """Append ``data`` to one of the files, "trajectory" or "log".

        See ``docs/user/molecular_dynamics.md``.

        Raises
        ------
        OSError
            If it cannot be written; nothing of it is in the file then.
        """
        append_whole(self._files[name], data)

    def lengths(self) -> dict[str, int]:
        """Return the length of each file in bytes, after its data have reached the disk.

        See ``docs/user/molecular_dynamics.md``.
        """
        for file in self._files.values():
            os.fsync(file.fileno())
        return {name: os.fstat(file.fileno()).st_size for name, file in self._files.items()}

    def close(self) -> None:
        """Close the files (``docs/user/molecular_dynamics.md``)."""
        for file in self._files.values():
            file.close()
        self._files = {}


def _lock(file: FileIO, path: Path) -> None:
    """Reserve a file for this process until it is closed; InputError if another one has it."""
    try:
        import fcntl
    except ImportError:  # Windows has no lock that ends with the process
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            "--output",
            "files that no other run writes",
            f"{path}, which one has open",
            "Wait until it has ended, or choose another name.",
        ) from None
    except OSError:  # a file system without locks
        return
