"""`cace-fast verify`: whether a model gives the right numbers on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cace_fast.cli.common import (
    BackendOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    JsonOption,
    ModelArgument,
    SlabOption,
    load_model,
)
from cace_fast.cli.frames import read_structure

if TYPE_CHECKING:
    from cace_fast.verification import Check


def verify(
    model: ModelArgument,
    structure: Annotated[
        Path | None,
        typer.Argument(help="A file that ASE reads; by default one is made from the elements."),
    ] = None,
    device: DeviceOption = "auto",
    default_dtype: DtypeOption = Dtype.float32,
    backend: BackendOption = "auto",
    slab_vacuum: SlabOption = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the dynamics.")] = 100,
    as_json: JsonOption = False,
) -> None:
    """Check a model against the float64 reference, its own energy, symmetries and dynamics.

    The exit code is 1 if a deviation is above its limit. More: docs/user/first_run.md; errors and
    exit codes: docs/user/errors.md.
    """
    from cace_fast.verification import verify as run

    potential = load_model(model, device, default_dtype, backend, slab_vacuum=slab_vacuum)
    atoms = None if structure is None else read_structure(structure)
    if not as_json:
        print(f"{potential!r}, {structure or 'on a structure made from its elements'}")
        print(f"{'check':<44} {'value':>10} {'limit':>10} unit")
    report = run(potential, atoms, steps=steps, on_check=None if as_json else _show)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        made = [check for check in report.checks if not check.skipped]
        failed = len(report.failures)
        print(f"{failed} of {len(made)} checks FAILED" if failed else f"all {len(made)} checks ok")
    if not report.ok:
        raise typer.Exit(1)


def _show(check: Check) -> None:
    color = None if check.skipped else "green" if check.ok else "red"
    typer.secho(str(check), fg=color, bold=not check.ok)
