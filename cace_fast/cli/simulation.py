"""The run behind `cace-fast md`: integrator, outputs and restarts."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cace_fast.cli.common import REMEDY, append_whole, frames_to_bytes, with_results
from cace_fast.cli.restart import Restart, restore, state_of
from cace_fast.errors import InputError, PropertyNotImplementedError
from cace_fast.spec import Ewald

if TYPE_CHECKING:
    from ase import Atoms
    from ase.md.md import MolecularDynamics

    from cace_fast.engine import LongRange
    from cace_fast.interfaces.ase import CACECalculator

HEADER = "step,time_fs,temperature_K,potential_eV,kinetic_eV,total_eV,volume_A3\n"
K_CELL = "long_range.reference_cell"  # in the restart file
MAY_CHANGE = ("threads",)  # settings that a continued run may have otherwise


class Ensemble(StrEnum):
    """What a run holds constant besides the number of atoms."""

    nve = "nve"
    nvt = "nvt"
    npt = "npt"


@dataclass(frozen=True)
class Settings:
    """What decides a run: a continued one has to have the same.

    Attributes
    ----------
    ensemble
        nve (velocity Verlet), nvt (Langevin) or npt (isotropic Martyna-Tobias-Klein).
    temperature, pressure, timestep, friction
        In K, GPa, fs and 1/fs.
    traj_every, log_every
        Steps between frames and lines.
    seed
        Of the random numbers: first momenta and Langevin noise.
    model, precision, structure
        What is run: hashes of model and structure, dtype, backend and device.
    threads
        Number of threads of torch.
    k_set
        Which vectors k a long-range sum takes.
    """

    ensemble: str
    temperature: float
    pressure: float
    timestep: float
    friction: float
    traj_every: int
    log_every: int
    seed: int
    model: str
    precision: str
    structure: str
    threads: int
    k_set: str


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


class Simulation:
    """A run that can be killed at any moment and continued, bit for bit as if it had not been.

    Parameters
    ----------
    atoms
        The structure; momenta of zero are drawn from the temperature.
    calculator
        Its calculator.
    settings
        What to run.
    prefix
        Beginning of the names of all files.
    """

    def __init__(
        self, atoms: Atoms, calculator: CACECalculator, settings: Settings, prefix: str
    ) -> None:
        self.atoms, self.calculator, self.settings = atoms, calculator, settings
        self.outputs = Outputs(prefix)
        self.restart_file = Path(f"{prefix}.restart.npz")
        self.random = np.random.default_rng(settings.seed)
        if not atoms.get_momenta().any():
            draw_momenta(atoms, settings.temperature, self.random)
        atoms.calc = calculator
        self.dynamics = integrator(atoms, settings, self.random)

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.dynamics.nsteps)

    @property
    def has_long_range(self) -> bool:
        """Whether the model has an Ewald sum."""
        modules = (m for sub in self.calculator.potential.spec.submodels for m in sub.modules)
        return any(isinstance(module, Ewald) for module in modules)

    def begin(self, force: bool) -> None:
        """Begin a new run; FileExistsError if there are files of one and ``force`` is false."""
        if force:
            self.restart_file.unlink(missing_ok=True)
            self.outputs.remove()
        for path in (self.restart_file, *self.outputs.paths.values()):
            if path.exists():
                raise FileExistsError(
                    f"--output: {path} exists already. Pass --restart to continue its run. {REMEDY}"
                )
        self._save(dict.fromkeys(self.outputs.paths, 0))
        self.outputs.open(dict.fromkeys(self.outputs.paths, 0))

    def resume(self) -> None:
        """Continue from the restart file, outputs cut to where it was written.

        Raises
        ------
        InputError
            If the file is damaged or of a run with other settings.
        """
        saved = Restart.load(self.restart_file)
        for name, now in asdict(self.settings).items():
            before = saved.settings.get(name)
            if before != now and name not in MAY_CHANGE:
                raise InputError(
                    f"--restart: {name}", f"{before} as in the run to be continued", now,
                    "Begin another run with another --output.",
                )  # fmt: skip
        k_cell = saved.arrays.pop(K_CELL, None)
        if k_cell is not None:
            self._sums().reference_cell = k_cell
        restore(self.atoms, self.dynamics, saved.arrays)
        self.random.bit_generator.state = saved.random
        self.calculator.reset_neighbors()
        self.atoms.get_forces()  # all results in one evaluation, as the run had them
        self.outputs.open(saved.lengths)

    def run(self, steps: int, restart_every: int, on_step: Callable[[], None]) -> None:
        """Run until ``steps`` steps are done in all, and leave a restart file."""
        if self.step == 0:
            self._write()
        while self.step < steps:
            self.dynamics.run(1)
            self._write()
            if self.step % restart_every == 0 or self.step == steps:
                self._save(self.outputs.lengths())
            on_step()

    def state(self) -> dict[str, float]:
        """Return time, temperature and energies of the current step."""
        self.atoms.get_forces()  # so that frames have them from the first one on
        potential = float(self.atoms.get_potential_energy())
        kinetic = float(self.atoms.get_kinetic_energy())
        return {
            "time_fs": self.step * self.settings.timestep,
            "temperature_K": float(self.atoms.get_temperature()),
            "potential_eV": potential,
            "kinetic_eV": kinetic,
            "total_eV": potential + kinetic,
            "volume_A3": float(self.atoms.cell.volume),
        }

    def _k_cell(self) -> NDArray[np.float64]:
        """Return the cell whose vectors k are kept: the first one of the run."""
        sums = self._sums()
        if sums.reference_cell is None:
            sums.reference_cell = np.array(self.atoms.cell[:])
        return sums.reference_cell

    def _sums(self) -> LongRange:
        from cace_fast.potential import Potential  # brings torch: only when a run begins

        potential = self.calculator.potential
        assert isinstance(potential, Potential)
        return potential.long_range

    def _write(self) -> None:
        if self.step % self.settings.log_every == 0:
            head = HEADER if self.step == 0 else ""
            line = ",".join([str(self.step), *(repr(value) for value in self.state().values())])
            self.outputs.append("log", f"{head}{line}\n".encode())
        if self.step % self.settings.traj_every == 0:
            frame = with_results(self.atoms)
            frame.info["step"] = self.step
            self.outputs.append("trajectory", frames_to_bytes([frame]))

    def _save(self, lengths: dict[str, int]) -> None:
        arrays = state_of(self.atoms, self.dynamics)
        if self.settings.k_set == "frozen" and np.all(self.atoms.pbc):
            arrays[K_CELL] = self._k_cell()
        Restart(
            step=self.step,
            settings=asdict(self.settings),
            lengths=lengths,
            random=dict(self.random.bit_generator.state),
            arrays=arrays,
        ).save(self.restart_file)
        # a continued run searches neighbours anew: so does this one, that both stay equal
        self.calculator.reset_neighbors()


def integrator(atoms: Atoms, settings: Settings, random: np.random.Generator) -> MolecularDynamics:
    """Return ASE's integrator for an ensemble.

    Raises
    ------
    PropertyNotImplementedError
        For constant pressure of a structure that is not periodic in all directions, or with an
        ASE that is too old for it.
    """
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.verlet import VelocityVerlet

    dt = settings.timestep * units.fs
    if settings.ensemble == Ensemble.nve:
        return VelocityVerlet(atoms, dt)
    if settings.ensemble == Ensemble.nvt:
        friction = settings.friction / units.fs
        return Langevin(
            atoms, dt, temperature_K=settings.temperature, friction=friction, fixcm=False,
            rng=random,
        )  # fmt: skip
    if not np.all(atoms.pbc):
        raise PropertyNotImplementedError(
            "--ensemble npt: needs a structure that is periodic in three directions, this one has "
            f"pbc {np.asarray(atoms.pbc).tolist()}. Use nvt, or give it a periodic cell."
        )
    try:
        from ase.md.nose_hoover_chain import IsotropicMTKNPT
    except ImportError as error:
        raise PropertyNotImplementedError(
            "--ensemble npt: this version of ASE lacks IsotropicMTKNPT. Update ASE, or use nvt."
        ) from error

    return IsotropicMTKNPT(
        atoms, dt, temperature_K=settings.temperature, pressure_au=settings.pressure * units.GPa,
        tdamp=100.0 * dt, pdamp=1000.0 * dt,
    )  # fmt: skip


def draw_momenta(atoms: Atoms, temperature: float, random: np.random.Generator) -> None:
    """Draw momenta from the Maxwell-Boltzmann distribution, the centre of mass at rest."""
    from ase import units

    masses = atoms.get_masses()[:, None]
    momenta = np.sqrt(masses * units.kB * temperature) * random.standard_normal((len(atoms), 3))
    momenta -= masses * momenta.sum(axis=0) / masses.sum()
    atoms.set_momenta(momenta)


def digest(atoms: Atoms) -> str:
    """Return a hash of a structure: everything that a run depends on."""
    import hashlib

    arrays: dict[str, Any] = {"cell": atoms.cell[:], "pbc": atoms.pbc, **atoms.arrays}
    total = hashlib.sha256(repr([str(c) for c in atoms.constraints]).encode())
    for name in sorted(arrays):
        total.update(name.encode())
        total.update(np.ascontiguousarray(arrays[name]).tobytes())
    for name in sorted(atoms.info):
        total.update(f"{name}={atoms.info[name]!r}".encode())
    return total.hexdigest()
