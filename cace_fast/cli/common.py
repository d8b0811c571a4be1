"""What several commands share: their options, models, structures, files that appear whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from enum import StrEnum
from io import FileIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from cace_fast.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms
    from rich.progress import Progress

    from cace_fast.potential import Potential

REMEDY = "Choose another name, or pass --force to overwrite."


class Dtype(StrEnum):
    """Working precisions."""

    float32 = "float32"
    float64 = "float64"


class KSet(StrEnum):
    """Which vectors k a long-range sum takes."""

    sphere = "sphere"
    frozen = "frozen"


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A model file (.pth, .safetensors), or the name of a shipped one."
    ),
]
StructureArgument = Annotated[
    Path, typer.Argument(metavar="STRUCTURE", help="A file that ASE reads; its last frame counts.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
DtypeOption = Annotated[Dtype, typer.Option("--default-dtype", help="Working precision.")]
BackendOption = Annotated[str, typer.Option(help="auto, reference, cpu or triton.")]
SlabOption = Annotated[
    float | None,
    typer.Option(help="A of vacuum of slabs with charges (docs/slabs.md); without it refused."),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def load_model(model: str, device: str, dtype: str, backend: str, **long_range: Any) -> Potential:
    """Return the potential of a file or shipped name; ``long_range`` are options of `load`."""
    from cace_fast.potential import load

    return load(model, device=device, dtype=str(dtype), backend=backend, **long_range)


def fingerprint(potential: Potential) -> str:
    """Return a hash of specification and tensors: equal for equal models, whatever the file."""
    import hashlib

    from cace_fast.spec import to_json

    digest = hashlib.sha256(to_json(potential.spec).encode())
    for name, tensor in sorted(potential.weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_structure(path: Path, argument: str = "STRUCTURE") -> Atoms:
    """Return the last frame of a file."""
    *_, last = read_structures(path, argument)
    return last


def read_structures(path: Path, argument: str = "STRUCTURE") -> Iterator[Atoms]:
    """Yield the frames of a file, one after the other.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    InputError
        If ASE cannot read it, or it holds no frame.
    """
    from ase.io import iread

    if not path.exists():
        raise FileNotFoundError(f"{argument}: no such file: {path}")
    count = 0
    frames = iread(os.fspath(path), index=":")
    while True:
        try:
            atoms = next(frames, None)
        except Exception as error:  # readers of ASE raise whatever they meet
            got = f"{type(error).__name__}: {error} (frame {count} of {path})"
            raise InputError(argument, "a file of structures that ASE reads", got) from error
        if atoms is None:
            break
        count += 1
        yield atoms
    if not count:
        raise InputError(argument, "a file with at least one structure", f"none in {path}")


def refuse_existing(path: Path, force: bool, argument: str = "--output") -> None:
    """Raise FileExistsError if ``path`` exists and ``force`` is not given."""
    if path.exists() and not force:
        raise FileExistsError(f"{argument}: {path} exists already. {REMEDY}")


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file such that it appears whole or not at all, also if the power fails.

    ``write`` gets a binary file beside the place, which is flushed to disk and then moved there.
    """
    part = path.with_name(path.name + ".part")
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
    """Append to a file without a buffer; if that is interrupted nothing of ``data`` stays in it."""
    place = os.fstat(file.fileno()).st_size
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except BaseException:
        os.ftruncate(file.fileno(), place)
        raise


def frames_to_bytes(frames: list[Atoms]) -> bytes:
    """Return structures as the text of an extended xyz file."""
    import io

    from ase.io.extxyz import write_extxyz

    text = io.StringIO()
    write_extxyz(text, frames)
    return text.getvalue().encode()


def with_results(atoms: Atoms) -> Atoms:
    """Return a copy that is written with the results of its calculator.

    Entries of the structure with the same names, which came with its file, give way. Born charges
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


@contextlib.contextmanager
def progress(description: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar on stderr; yields ``advance(count, note="")``.

    Nothing is shown where stderr is not a terminal.
    """
    bar = _bar(unit)
    with bar:
        task = bar.add_task(description, total=total, note="")

        def advance(count: int, note: str = "") -> None:
            bar.update(task, advance=count, note=note)

        yield advance


def _bar(unit: str) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns: list[Any] = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    ]
    return Progress(*columns, console=console, disable=not console.is_terminal)


def note(message: str) -> None:
    """Tell something on stderr, so that stdout holds results only."""
    typer.echo(f"cace-fast: {message}", err=True)
