"""What reading one file may cost, and the exception that says it would cost more.

Source: docs/user/security.md.
"""

from __future__ import annotations

import time

MIB = 1 << 20

MEMORY_FACTOR = 4  # memory allowed: this times the file's size ...
MEMORY_BASE = 256 * MIB  # ... plus this
SECONDS = 10.0  # processor time of the thread, whatever else slows the machine
INFLATED_BYTES = 1024 * MIB  # all entries of the archive together, after inflation
ENTRIES = 16384
DIRECTORY_BYTES = 4 * MIB  # the archive's own list of entries
PICKLE_BYTES = 16 * MIB  # real files: below 30 kB
STRING_BYTES = 1 * MIB  # one string; real files: below 100 bytes
DEPTH = 200
EXPANDED_NODES = 5_000_000  # nodes of the object graph when every shared object is copied out
TENSOR_DIMENSIONS = 8


class Refused(Exception):
    """The file holds something that is not allowed; the caller adds the place in the file.

    See ``docs/user/security.md``.
    """


def short(value: object) -> str:
    """Return a value of a file as short text, of numbers and containers their size.

    See ``docs/user/security.md``.
    """
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return f"a number of {value.bit_length()} bits"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, str):
        return ascii(value if len(value) <= 60 else value[:57] + "...")
    if isinstance(value, list | tuple | dict | set):
        return f"a {type(value).__name__} of {len(value)}"
    return f"a {type(value).__name__}"


class Budget:
    """Counts memory and processor time of the thread that reads one file.

    See ``docs/user/security.md``.

    The memory is a ledger, not a measurement: every object is charged more than CPython needs
    for it *before* it is made, and nothing is ever credited back.

    Parameters
    ----------
    file_bytes
        Size of the file on disk.
    """

    def __init__(self, file_bytes: int) -> None:
        self.memory_limit = MEMORY_FACTOR * file_bytes + MEMORY_BASE
        self.memory_used = 0
        self._deadline = time.thread_time() + SECONDS

    def charge(self, n_bytes: int) -> None:
        """Account for ``n_bytes`` that are about to be allocated.

        Raises
        ------
        Refused
            If the limit of memory (``docs/user/security.md``) is exceeded.
        """
        self.memory_used += n_bytes
        if self.memory_used > self.memory_limit:
            raise Refused(
                f"reading on would need more than {self.memory_limit // MIB} MB of memory "
                f"({MEMORY_FACTOR} x file size + {MEMORY_BASE // MIB} MB), which no genuine "
                "model does"
            )

    def check_time(self) -> None:
        """Raise `Refused` when the file has taken more than 10 s (``docs/user/security.md``)."""
        if time.thread_time() > self._deadline:
            raise Refused(
                f"reading took more than {SECONDS:g} s of processor time, which no genuine model "
                "does"
            )
