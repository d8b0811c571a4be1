"""Parts that several commands share: options, models, structures, checks of files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cace_fast.errors import InputError

if TYPE_CHECKING:
    from rich.progress import Progress

    from cace_fast.potential import Potential

Suffixes = tuple[str, ...]
XYZ = (".xyz", ".extxyz")
REMEDY = "Choose another name, or pass --force to overwrite."


class Dtype(StrEnum):
    """Working precisions (``docs/user/dtype.md``)."""

    float32 = "float32"
    float64 = "float64"


class KSet(StrEnum):
    """Which vectors k a long-range sum takes (``docs/theory.md``, "Variable cells")."""

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
    typer.Option(help="Vacuum of slabs with charges, A (docs/user/slabs.md); without it refused."),
]
MinDistOption = Annotated[
    str,
    typer.Option(
        "--min-dist",
        metavar="A|auto|none",
        help="Closer atoms are refused; auto: 0.35 times the sum of their covalent radii.",
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def load_model(model: str, device: str, dtype: str, backend: str, **long_range: Any) -> Potential:
    """Return the potential of a file or shipped name; options and errors are those of `load`.

    See ``docs/user/first_run.md``.
    """
    from cace_fast.loading import load

    return load(model, device=device, dtype=str(dtype), backend=backend, **long_range)


def min_dist_of(text: str) -> float | str | None:
    """Return the value of ``--min-dist``: a length in A, "auto" or None (``docs/user/errors.md``).

    Raises
    ------
    InputError
        For anything else.
    """
    word = text.strip().lower()
    if word in ("auto", "none"):
        return None if word == "none" else word
    try:
        value = float(word)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < float("inf"):
        raise InputError("--min-dist", "a length of at least 0 A, auto or none", repr(text))
    return value


def fingerprint(potential: Potential) -> str:
    """Return a SHA-256 of specification and tensors: equal for equal models, whatever the file.

    See ``docs/user/molecular_dynamics.md``.
    """
    import hashlib

    from cace_fast.spec import to_json

    digest = hashlib.sha256(to_json(potential.spec).encode())
    for name, tensor in sorted(potential.weights.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_input(path: Path, argument: str) -> None:
    """Raise an error unless ``path`` is a regular file (``docs/user/errors.md``).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    InputError
        If it is a folder, a pipe or a device, or no path at all.
    """
    if not _exists(path, argument):
        raise FileNotFoundError(f"{argument}: no such file: {path}")
    if not path.is_file():
        raise InputError(argument, "a file", f"{path}, a {_kind(path)}")


def check_output(
    path: Path, force: bool, argument: str = "--output", suffixes: Suffixes = ()
) -> None:
    """Raise an error unless ``path`` can be written; commands call it before they compute anything.

    The folder has to exist, the name has to end in one of ``suffixes``, if there are any, and the
    file must not exist without ``force`` (``docs/user/errors.md``, "Errors of files").

    Raises
    ------
    FileNotFoundError, FileExistsError, InputError
        If one of these is not so.
    """
    if suffixes and path.suffix not in suffixes:
        raise InputError(
            argument,
            f"a name that ends in {' or '.join(suffixes)}",
            str(path),
            "ASE converts it to other formats: 'ase convert'." if suffixes == XYZ else "",
        )
    if not _exists(path.parent, argument) or not path.parent.is_dir():
        raise FileNotFoundError(f"{argument}: no such folder: {path.parent}. Make it first.")
    if not _exists(path, argument):
        return
    if not path.is_file():
        raise InputError(argument, "a name for a file", f"{path}, a {_kind(path)}")
    if not force:
        raise FileExistsError(f"{argument}: {path} exists already. {REMEDY}")


def _exists(path: Path, argument: str) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError) as error:  # too long, or with a NUL character
        reason = error.strerror if isinstance(error, OSError) else str(error)
        got = f"{os.fspath(path)[:60]!r} ({reason})"
        raise InputError(argument, "a path of this system", got) from None


def _kind(path: Path) -> str:
    return "folder" if path.is_dir() else "pipe or device"


@contextlib.contextmanager
def progress(description: str, total: int | None, unit: str) -> Iterator[Callable[..., None]]:
    """Show a progress bar on stderr; yield its function ``advance(count, note="")``.

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
    """Print a message on stderr; stdout is for results."""
    typer.echo(f"cace-fast: {message}", err=True)
