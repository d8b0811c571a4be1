"""`cace-fast relax`: the nearest minimum of the energy."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cace_fast.cli.common import (
    XYZ,
    BackendOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ForceOption,
    MinDistOption,
    ModelArgument,
    SlabOption,
    StructureArgument,
    check_output,
    load_model,
    min_dist_of,
    note,
    progress,
)
from cace_fast.cli.frames import frames_to_bytes, keep_constraints, read_structure, with_results
from cace_fast.errors import InputError, PropertyNotImplementedError
from cace_fast.files import write_whole

if TYPE_CHECKING:
    from ase import Atoms


class Optimizer(StrEnum):
    """Optimizers of ASE by the names of ``--optimizer`` (``docs/user/evaluate_and_convert.md``)."""

    fire = "fire"
    bfgs = "bfgs"
    lbfgs = "lbfgs"


def relax(
    model: ModelArgument,
    structure: StructureArgument,
    output: Annotated[Path, typer.Option(help="The extended xyz file to write.")],
    optimizer: Annotated[Optimizer, typer.Option(help="fire, bfgs or lbfgs.")] = Optimizer.fire,
    fmax: Annotated[float, typer.Option(help="Largest force allowed, eV/A.")] = 0.01,
    steps: Annotated[int, typer.Option(min=1, help="Most steps.")] = 1000,
    cell: Annotated[bool, typer.Option("--cell", help="Relax the cell too.")] = False,
    device: DeviceOption = "auto",
    default_dtype: DtypeOption = Dtype.float64,
    backend: BackendOption = "auto",
    slab_vacuum: SlabOption = None,
    min_dist: MinDistOption = "auto",
    force: ForceOption = False,
) -> None:
    """Relax a structure, and its cell on request.

    Float64 is the default here: forces near a minimum are small differences of large numbers.
    The last structure is written even if it has not converged; the exit code is then 1.
    More: docs/user/evaluate_and_convert.md; errors and exit codes: docs/user/errors.md.
    """
    from cace_fast.interfaces.ase import CACECalculator

    if not fmax > 0:
        raise InputError("--fmax", "a force above 0 eV/A", fmax)
    check_output(output, force, suffixes=XYZ)
    potential = load_model(model, device, default_dtype, backend, slab_vacuum=slab_vacuum)
    atoms = read_structure(structure)
    keep_constraints(atoms)
    atoms.calc = CACECalculator(
        potential, compute_stress=True if cell else None, min_dist=min_dist_of(min_dist)
    )
    with progress("relax", steps, "steps") as advance:
        converged, done = minimise(atoms, optimizer, (fmax, steps), cell, advance)
    write_whole(output, lambda file: file.write(frames_to_bytes([with_results(atoms)])))
    largest = float((atoms.get_forces() ** 2).sum(1).max() ** 0.5)
    note(
        f"{'converged' if converged else 'NOT converged'} after {done} steps: energy "
        f"{atoms.get_potential_energy():.6f} eV, largest force {largest:.2g} eV/A; wrote {output}"
    )
    if not converged:
        raise typer.Exit(1)


def minimise(
    atoms: Atoms, optimizer: Optimizer, limits: tuple[float, int], cell: bool, advance: Any
) -> tuple[bool, int]:
    """Relax ``atoms`` in place; return whether it converged and the number of steps.

    ``docs/user/evaluate_and_convert.md``, "Relax", describes it.

    Parameters
    ----------
    atoms
        With a calculator.
    optimizer
        Which one.
    limits
        Largest force in eV/A, most steps.
    cell
        Whether the cell relaxes too.
    advance
        Called with the number of steps and a text after each step.

    Raises
    ------
    PropertyNotImplementedError
        For the cell of a structure that is not periodic in three directions.
    """
    import numpy as np
    from ase.filters import FrechetCellFilter
    from ase.optimize import BFGS, FIRE, LBFGS

    if cell and not np.all(atoms.pbc):
        raise PropertyNotImplementedError(
            "--cell: needs a structure that is periodic in three directions, this one has pbc "
            f"{np.asarray(atoms.pbc).tolist()}. Leave --cell out, or give it a periodic cell."
        )
    kind = {Optimizer.fire: FIRE, Optimizer.bfgs: BFGS, Optimizer.lbfgs: LBFGS}[optimizer]
    fmax, steps = limits
    target = FrechetCellFilter(atoms) if cell else atoms
    run = kind(target, logfile=None)
    converged = False
    for number, found in enumerate(run.irun(fmax=fmax, steps=steps)):
        converged = bool(found)
        if number:
            advance(1, f"{atoms.get_potential_energy():.4f} eV")
    return converged, int(run.nsteps)
