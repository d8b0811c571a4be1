"""Heat a copper crystal with the shipped potential, compare it with EMT, and draw what happened.

    make demo
    python examples/demo_copper.py --steps 600 --out copper.png

A crystal of 256 atoms is held at 300 K, heated to 1 200 K, and then left to itself at constant
energy. Every tenth step is compared with ASE's EMT, which the potential was fitted to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.verlet import VelocityVerlet
from copper_picture import draw
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import cace_fast
from cace_fast.neighbors import neighbor_list

COLD, HOT = 300.0, 1200.0  # K
TIME_STEP = 5.0  # fs
FRICTION = 0.01  # 1/fs
LATTICE_CONSTANT = 3.64  # A: between those of the cold and the hot crystal
EVERY = 10  # steps between two records
BINS = np.arange(1.5, 6.5, 0.04)  # A, of the radial distribution function

Floats = NDArray[np.float64]


@dataclass
class Record:
    """What is noted during the run: one number of each list every ``EVERY`` steps."""

    time: list[float] = field(default_factory=list)  # ps
    temperature: list[float] = field(default_factory=list)  # K
    energy: list[float] = field(default_factory=list)  # potential energy, eV/atom
    total: list[float] = field(default_factory=list)  # with kinetic energy, eV/atom
    emt: list[float] = field(default_factory=list)  # EMT's potential energy, eV/atom
    forces: list[Floats] = field(default_factory=list)  # eV/A
    emt_forces: list[Floats] = field(default_factory=list)
    histogram: dict[str, list[Floats]] = field(default_factory=dict)  # g(r) by phase
    begins: dict[str, int] = field(default_factory=dict)  # first record of each phase
    seconds: float = 0.0  # spent in dynamics, comparison left out
    steps: int = 0

    def phase(self, name: str) -> slice:
        """Return which records belong to a phase."""
        later = [start for start in self.begins.values() if start > self.begins[name]]
        return slice(self.begins[name], min(later, default=len(self.time)))

    def drift(self) -> float:
        """Return the slope of the total energy in the phase of constant energy, meV/atom/ps."""
        own = self.phase("hot")
        if len(self.time[own]) < 2:
            return 0.0
        return 1e3 * float(np.polyfit(self.time[own], self.total[own], 1)[0])


def radial_distribution(atoms: Atoms) -> Floats:
    """Return g(r) [n_bins]: how many more neighbours there are than in a gas of this density."""
    edges = neighbor_list(atoms.positions, atoms.cell[:], atoms.pbc, float(BINS[-1]))
    d = (
        atoms.positions[edges.receivers]
        - atoms.positions[edges.senders]
        + edges.shifts @ atoms.cell[:]
    )
    counts, _ = np.histogram(np.linalg.norm(d, axis=1), BINS)
    shells = 4.0 / 3.0 * np.pi * np.diff(BINS**3)
    return np.asarray(counts / len(atoms) / shells * atoms.get_volume() / len(atoms))


def note(atoms: Atoms, phase: str, record: Record) -> None:
    """Add the present state to the record, with what EMT says about it."""
    n = len(atoms)
    twin = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc, calculator=EMT())
    record.time.append(record.steps * TIME_STEP / 1000.0)
    record.temperature.append(atoms.get_temperature())
    record.energy.append(atoms.get_potential_energy() / n)
    record.total.append(atoms.get_total_energy() / n)
    record.emt.append(twin.get_potential_energy() / n)
    record.forces.append(atoms.get_forces())
    record.emt_forces.append(twin.get_forces())
    record.histogram.setdefault(phase, []).append(radial_distribution(atoms))


@dataclass(frozen=True)
class Phase:
    """One part of the run: its name, its steps, and what drives the atoms."""

    name: str
    steps: int
    dynamics: MolecularDynamics
    target: Callable[[float], float]  # temperature of the thermostat after a fraction of the phase


def phases(atoms: Atoms, steps: int) -> Iterator[Phase]:
    """Yield the phases, having given the atoms velocities for the first."""
    rng = np.random.default_rng(1)
    # twice the temperature, for half of it goes into the potential energy
    spread = np.sqrt(2.0 * units.kB * COLD * atoms.get_masses())
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * spread[:, None])
    dt, friction = TIME_STEP * units.fs, FRICTION / units.fs
    bath = Langevin(atoms, dt, temperature_K=COLD, friction=friction, fixcm=False, rng=rng)
    lengths = [max(EVERY, EVERY * round(share * steps / EVERY)) for share in (0.25, 0.4, 0.35)]
    yield Phase("cold", lengths[0], bath, lambda _: COLD)
    yield Phase("heating", lengths[1], bath, lambda x: COLD + (HOT - COLD) * min(1.0, 1.25 * x))
    yield Phase("hot", lengths[2], VelocityVerlet(atoms, dt), lambda _: HOT)


def simulate(atoms: Atoms, steps: int, console: Console) -> Record:
    """Run all phases behind a progress bar."""
    record = Record()
    columns = (
        TextColumn("{task.description:9s}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"),
        TimeRemainingColumn(), TextColumn("{task.fields[state]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as progress:
        for phase in phases(atoms, steps):
            record.begins[phase.name] = len(record.time)
            task = progress.add_task(phase.name, total=phase.steps, state="")
            for done in range(EVERY, phase.steps + 1, EVERY):
                if isinstance(phase.dynamics, Langevin):
                    phase.dynamics.set_temperature(temperature_K=phase.target(done / phase.steps))
                start = time.perf_counter()
                phase.dynamics.run(EVERY)
                record.seconds += time.perf_counter() - start
                record.steps += EVERY
                note(atoms, phase.name, record)
                state = f"{record.temperature[-1]:5.0f} K  {record.energy[-1]:8.4f} eV/atom"
                progress.update(task, completed=done, state=state)
    return record


def rms(values: object) -> float:
    """Return the root of the mean square."""
    return float(np.sqrt(np.mean(np.square(np.asarray(values)))))


def report(record: Record, n: int, console: Console) -> None:
    """Print the result as a table."""
    off = 1e3 * (np.array(record.energy) - np.array(record.emt))
    wrong = 1e3 * (np.array(record.forces) - np.array(record.emt_forces))
    per_step = record.seconds / record.steps
    frames, size = len(off), 1e3 * rms(record.emt_forces)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name in ("cold", "hot"):
        values = record.temperature[record.phase(name)]
        mean = np.mean(values[len(values) // 2 :])
        table.add_row(f"temperature, {name}", f"{mean:.0f} K", "second half of the phase")
    table.add_row("energy drift", f"{record.drift():+.3f} meV/atom/ps", "at constant energy, hot")
    table.add_row("energy - EMT", f"{rms(off):.2f} meV/atom", f"RMS of {frames} frames")
    table.add_row("", f"{off[-1]:+.2f} meV/atom", "in the last frame")
    table.add_row(
        "forces - EMT",
        f"{rms(wrong):.1f} meV/A",
        f"RMS of {frames} frames; forces: {size:.0f} meV/A",
    )
    table.add_row("", f"{rms(wrong[-1]):.1f} meV/A", "RMS in the last frame")
    a_day = 86.4e-3 / per_step * TIME_STEP
    table.add_row(
        "speed",
        f"{1e6 * per_step / n:.1f} us/atom/step",
        f"{a_day:.1f} ns a day at {TIME_STEP:g} fs",
    )
    console.print(table)


def main(
    steps: Annotated[int, typer.Option(min=30, help="steps of 5 fs in all")] = 1500,
    out: Annotated[Path, typer.Option(help="where to save the picture")] = Path(
        "demo-output/demo_copper.png"
    ),
    quick: Annotated[bool, typer.Option(help="32 atoms and 60 steps, to see that it runs")] = False,
) -> None:
    """Heat a copper crystal with the shipped potential and compare it with EMT."""
    console = Console()
    calculator = cace_fast.CACECalculator("copper-emt")
    atoms = bulk("Cu", "fcc", a=LATTICE_CONSTANT, cubic=True) * ((2, 2, 2) if quick else (4, 4, 4))
    atoms.calc = calculator
    console.print(f"{len(atoms)} copper atoms, {calculator.potential}")
    record = simulate(atoms, 60 if quick else steps, console)
    report(record, len(atoms), console)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw(record, BINS, out, LATTICE_CONSTANT)
    console.print(f"picture: {out}")


if __name__ == "__main__":
    typer.run(main)
