"""Outputs of interrupted runs: how much is complete, and whether this command wrote them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from cace_fast.cli.common import REMEDY

if TYPE_CHECKING:
    from ase import Atoms

CLOSE = 1e-6  # A; extended xyz has eight decimals


class Expected(Protocol):
    """What a run writes; :class:`cace_fast.cli.evaluate.Writer` is one."""

    prefix: str
    skip_errors: bool

    @property
    def mark(self) -> str:
        """Text in the comment line of every frame: model and precision.

        See ``docs/user/evaluate_and_convert.md``.
        """

    def keys(self, atoms: Atoms) -> set[str]:
        """Return the keys with the prefix in the frame of a structure.

        See ``docs/user/evaluate_and_convert.md``.
        """


def resume(output: Path, frames: Iterator[Atoms], writer: Expected) -> tuple[int, int, int]:
    """Return the whole frames of ``output``, the frames of the input done, and its length.

    The length is that of the whole frames in bytes. ``docs/user/evaluate_and_convert.md`` says
    when a run continues.

    Parameters
    ----------
    output
        An extended xyz file.
    frames
        The structures to predict for; it is advanced past those that are done.
    writer
        What the run would write.

    Raises
    ------
    FileExistsError
        If the file is not the output of a run with the same structures, model and options.
    """
    done, read, end = 0, 0, 0
    with output.open("rb") as file:
        while (text := next_frame(file)) is not None:
            expected, read = next(frames, None), read + 1
            while writer.skip_errors and expected is not None and not _same(text, expected):
                expected, read = next(frames, None), read + 1
            _check(output, text, expected, writer, done)
            done, end = done + 1, file.tell()
        file.seek(end)
        tail = file.read(1 << 16)
    lines = tail.split(b"\n")
    # the last frame may be cut short; what is there has to come from this command
    foreign = bool(tail) and not lines[0].isdigit()
    foreign |= len(lines) > 2 and writer.mark.encode() not in lines[1]
    if foreign:
        raise FileExistsError(_not_own(output, "does not come from this command", done))
    return done, read, end


def count_frames(path: Path) -> int | None:
    """Return the number of frames of an xyz file; None for other formats, slow to count.

    See ``docs/user/evaluate_and_convert.md``.
    """
    if path.suffix not in (".xyz", ".extxyz"):
        return None
    count = 0
    with path.open("rb") as file:
        while next_frame(file) is not None:
            count += 1
    return count


def next_frame(file: IO[bytes]) -> str | None:
    """Return the text of the next whole frame; None at the end or where a frame is cut short.

    See ``docs/user/evaluate_and_convert.md``.
    """
    head = file.readline()
    if not head.endswith(b"\n") or not head.strip().isdigit():
        return None
    lines = [head] + [file.readline() for _ in range(1 + int(head))]
    if not lines[-1].endswith(b"\n"):
        return None
    return b"".join(lines).decode(errors="replace")


def _check(output: Path, text: str, expected: Atoms | None, writer: Expected, number: int) -> None:
    """Raise FileExistsError unless a frame is what the run would have written."""
    if expected is None:
        raise FileExistsError(_not_own(output, "has more frames than the input", number))
    if writer.mark not in text.split("\n", 2)[1]:
        raise FileExistsError(_not_own(output, "is of another model or other options", number))
    found = _parsed(text)
    keys = {key for key in (*found.info, *found.arrays) if key.startswith(writer.prefix)}
    if other := keys ^ writer.keys(expected):
        what = f"was written with other options ({', '.join(sorted(other))})"
        raise FileExistsError(_not_own(output, what, number))
    if not _same(text, expected):
        raise FileExistsError(_not_own(output, "holds another structure than the input", number))


def _parsed(text: str) -> Atoms:
    from ase.io.extxyz import read_extxyz

    found: list[Atoms] = list(read_extxyz(io.StringIO(text), index=slice(None)))
    return found[0]


def _same(text: str, expected: Atoms) -> bool:
    """Tell whether a frame holds the same atoms at the same positions."""
    import numpy as np

    found = _parsed(text)
    same = len(found) == len(expected) and np.array_equal(found.numbers, expected.numbers)
    return bool(same and np.allclose(found.positions, expected.positions, rtol=0.0, atol=CLOSE))


def _not_own(output: Path, what: str, number: int) -> str:
    return f"--output: {output} exists already and {what} (frame {number}). {REMEDY}"
