"""`cace-fast md`: molecular dynamics that survives being killed."""

from __future__ import annotations

import signal
from contextlib import closing
from typing import Annotated

import typer

from cace_fast.cli.common import (
    BackendOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ForceOption,
    KSet,
    MinDistOption,
    ModelArgument,
    SlabOption,
    StructureArgument,
    fingerprint,
    load_model,
    min_dist_of,
    note,
    progress,
)
from cace_fast.cli.field import FieldOption, FrequencyOption, PhaseOption, PulseOption, field_of
from cace_fast.cli.frames import keep_constraints, read_structure
from cace_fast.cli.integrators import Ensemble, Settings
from cace_fast.cli.signals import stopping
from cace_fast.cli.simulation import Simulation, digest
from cace_fast.errors import InputError

TERMINATED = 143  # as in a shell


def md(
    model: ModelArgument,
    structure: StructureArgument,
    output: Annotated[str, typer.Option(help="Beginning of the names of all files written.")],
    steps: Annotated[int, typer.Option(min=1, help="Steps of the whole run.")],
    ensemble: Annotated[
        Ensemble,
        typer.Option(help="nve: velocity Verlet; nvt: Langevin; npt: isotropic MTK barostat."),
    ] = Ensemble.nve,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="K; also of the first momenta, if there are none.")
    ] = 300.0,
    pressure: Annotated[float | None, typer.Option(help="GPa, for npt; 0 without it.")] = None,
    timestep: Annotated[float, typer.Option(help="fs.")] = 1.0,
    friction: Annotated[
        float | None, typer.Option(min=0.0, help="1/fs, for nvt; 0.01 without it.")
    ] = None,
    traj_every: Annotated[int, typer.Option(min=1, help="Steps between frames.")] = 100,
    log_every: Annotated[int, typer.Option(min=1, help="Steps between lines of the log.")] = 10,
    restart_every: Annotated[
        int, typer.Option(min=1, help="Steps between writes of the restart file.")
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of momenta and Langevin noise.")] = 0,
    device: DeviceOption = "auto",
    default_dtype: DtypeOption = Dtype.float32,
    backend: BackendOption = "auto",
    k_set: Annotated[
        KSet | None,
        typer.Option(
            help="Vectors k of a long-range sum: those of the first cell (frozen, the default with "
            "npt), or of every cell its own (sphere)."
        ),
    ] = None,
    slab_vacuum: SlabOption = None,
    min_dist: MinDistOption = "auto",
    field: FieldOption = None,
    field_frequency: FrequencyOption = 0.0,
    field_phase: PhaseOption = 0.0,
    field_pulse: PulseOption = None,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Continue this run; begin it where nothing is there yet."),
    ] = False,
    force: ForceOption = False,
) -> None:
    """Run molecular dynamics with ASE's integrators.

    Writes OUTPUT.extxyz (frames), OUTPUT.csv (energies) and OUTPUT.restart.npz. A run that is
    killed at any moment continues with --restart and gives the same positions and momenta, bit
    for bit, as one that was not, on the same machine with the same number of threads.

    At constant pressure the times of thermostat and barostat are 100 and 1000 time steps; begin
    with a structure that nvt has brought to equilibrium. More: docs/user/molecular_dynamics.md;
    errors and exit codes: docs/user/errors.md.
    """
    import torch

    from cace_fast.interfaces.ase import CACECalculator

    if not timestep > 0:
        raise InputError("--timestep", "a time above 0 fs", timestep)
    for name, value, owner in (
        ("--friction", friction, Ensemble.nvt),
        ("--pressure", pressure, Ensemble.npt),
    ):
        if value is not None and ensemble != owner:
            raise InputError(name, f"it with --ensemble {owner} alone", f"--ensemble {ensemble}")
    if restart and force:
        raise InputError("--force", "either --restart or --force", "both")
    if k_set is None:
        k_set = KSet.frozen if ensemble == Ensemble.npt else KSet.sphere
    external = field_of(field, field_frequency, field_phase, field_pulse)
    potential = load_model(
        model, device, default_dtype, backend, k_set=k_set.value, slab_vacuum=slab_vacuum
    )
    atoms = read_structure(structure)
    keep_constraints(atoms)
    dtype = str(potential.dtype).removeprefix("torch.")
    settings = Settings(
        ensemble=ensemble.value,
        temperature=temperature,
        pressure=pressure or 0.0,
        timestep=timestep,
        friction=0.01 if friction is None else friction,
        traj_every=traj_every,
        log_every=log_every,
        seed=seed,
        model=fingerprint(potential),
        precision=f"{dtype} {potential.backend} {potential.device}",
        structure=digest(atoms),
        threads=torch.get_num_threads(),
        k_set=k_set.value,
        slab_vacuum=slab_vacuum,
        field=None if external is None else str(external),
    )
    # with npt every step needs the stress: it is computed together with the forces
    stress = True if ensemble == Ensemble.npt else None
    calculator = CACECalculator(
        potential, compute_stress=stress, external_field=external, min_dist=min_dist_of(min_dist)
    )
    simulation = Simulation(atoms, calculator, settings, output)
    with closing(simulation.outputs):
        if restart and simulation.restart_file.exists():
            simulation.resume()
            if simulation.step > steps:
                expected = f"at least {simulation.step}, as many as are done"
                raise InputError("--steps", expected, steps)
            note(f"continuing {output} after step {simulation.step}")
        else:
            simulation.begin(force)
        if k_set == KSet.frozen and simulation.has_long_range:
            note("long range: the vectors k of the first cell, kept (--k-set frozen)")
        _run(simulation, steps, restart_every)


def _run(simulation: Simulation, steps: int, restart_every: int) -> None:
    started = simulation.step
    with progress("md", steps, "steps") as advance:
        advance(started)

        def on_step() -> None:
            if simulation.step % simulation.settings.log_every == 0:
                state = simulation.state()
                text = f"{state['temperature_K']:.0f} K, {state['total_eV']:.4f} eV"
                advance(simulation.settings.log_every, text)

        try:
            with stopping() as stop:
                simulation.run(steps, restart_every, on_step, stop)
            if stop.signal == signal.SIGINT:
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            note(f"interrupted after step {simulation.step}; --restart continues")
            raise
    if stop():
        note(f"terminated after step {simulation.step}; --restart continues")
        raise typer.Exit(TERMINATED)
    state = simulation.state()
    work = f", work of the field {state['work_eV']:.6f} eV" if "work_eV" in state else ""
    note(
        f"step {simulation.step}: {state['temperature_K']:.1f} K, potential "
        f"{state['potential_eV']:.6f} eV, total {state['total_eV']:.6f} eV{work}; wrote "
        f"{simulation.outputs.paths['trajectory']}, {simulation.outputs.paths['log']}, "
        f"{simulation.restart_file}"
    )
