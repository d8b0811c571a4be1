"""The run of `cace-fast md`: steps, log and frames, restarts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cace_fast.cli.common import REMEDY, check_output
from cace_fast.cli.frames import frames_to_bytes, with_results
from cace_fast.cli.integrators import Ensemble, Settings, draw_momenta, integrator
from cace_fast.cli.outputs import Outputs
from cace_fast.cli.restart import Restart, restore, state_of
from cace_fast.errors import CaceFastError, InputError
from cace_fast.spec import Ewald

if TYPE_CHECKING:
    from ase import Atoms
    from ase.md.md import MolecularDynamics

    from cace_fast.engine import LongRange
    from cace_fast.interfaces.ase import CACECalculator
    from cace_fast.interfaces.field_work import FieldWork

K_CELL = "long_range.reference_cell"  # these two in the restart file
WORK = "field.work"
LIST = ("list.positions", "list.cell")  # if interrupted between restart writes
MAY_CHANGE = ("threads",)  # settings that a continued run may change
MOST_EXPANSION = 3.0  # of the volume at constant pressure, and compression
MOST_KELVIN, MOST_ENERGY = 1e5, 100.0  # K, or ten times the bath's; eV for each atom, of change


class Simulation:
    """A run that can be killed at any moment and continued, bit for bit as if it had not been.

    ``docs/user/molecular_dynamics.md`` describes its files and its end.

    Parameters
    ----------
    atoms
        The structure; if its momenta are zero, they are drawn at the temperature.
    calculator
        Its calculator.
    settings
        What to run.
    prefix
        Beginning of the names of all files.

    Raises
    ------
    InputError, PropertyNotImplementedError
        As for :func:`cace_fast.cli.integrators.integrator`.
    """

    def __init__(
        self, atoms: Atoms, calculator: CACECalculator, settings: Settings, prefix: str
    ) -> None:
        self.atoms, self.calculator, self.settings = atoms, calculator, settings
        self.outputs = Outputs(prefix)
        self.restart_file = Path(f"{prefix}.restart.npz")
        self.random = np.random.default_rng(settings.seed)
        self.first_volume = float(atoms.cell.volume)
        self.first_energy: float | None = None
        if not atoms.get_momenta().any():
            draw_momenta(atoms, settings.temperature, self.random)
        atoms.calc = calculator
        self.dynamics = integrator(atoms, settings, self.random)
        self.field = _work_of(self.dynamics, calculator)

    @property
    def step(self) -> int:
        """Number of steps done (``docs/user/molecular_dynamics.md``)."""
        return int(self.dynamics.nsteps)

    @property
    def has_long_range(self) -> bool:
        """Whether the model has an Ewald sum (``docs/theory.md``, section 9)."""
        modules = (m for sub in self.calculator.potential.spec.submodels for m in sub.modules)
        return any(isinstance(module, Ewald) for module in modules)

    def begin(self, force: bool) -> None:
        """Begin a new run (``docs/user/molecular_dynamics.md``).

        Raises
        ------
        FileExistsError
            If there are files of a run and ``force`` is false.
        InputError
            If another run writes these files, or the structure is refused.
        """
        paths = (self.restart_file, *self.outputs.paths.values())
        for path in paths:
            check_output(path, force=True)
        self.outputs.check_free()
        self.atoms.get_forces()  # errors of model or structure come before any file is written
        if force:
            self.restart_file.unlink(missing_ok=True)
            self.outputs.remove()
        for path in paths:
            if path.exists() and self.restart_file.exists():
                raise FileExistsError(
                    f"--output: {path} exists already. Pass --restart to continue its run. {REMEDY}"
                )
            if path.exists() and path.stat().st_size > 0:
                raise FileExistsError(
                    f"--output: {path} exists already, without {self.restart_file}, from which a "
                    f"run could continue. {REMEDY}"
                )
        self.outputs.open(dict.fromkeys(self.outputs.paths, 0))
        self._save(dict.fromkeys(self.outputs.paths, 0))

    def resume(self) -> None:
        """Continue from the restart file; outputs are cut to their length at that step.

        See ``docs/user/molecular_dynamics.md``.

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
                    f"--restart: {name}",
                    f"{before} as in the run to be continued",
                    now,
                    "Begin another run with another --output.",
                )
        if saved.lengths.keys() != self.outputs.paths.keys():
            got = f"{self.restart_file}: lengths of {', '.join(saved.lengths)}"
            raise InputError("--restart", "a restart file of cace-fast md", got)
        k_cell = saved.take(K_CELL, (3, 3))
        if k_cell is not None:
            self._sums().reference_cell = k_cell
        work = saved.take(WORK, ())
        shapes = ((len(self.atoms), 3), (3, 3))
        searched = [saved.take(name, shape) for name, shape in zip(LIST, shapes, strict=True)]
        restore(self.atoms, self.dynamics, saved, self.random)
        self.atoms.get_forces()
        self.calculator.reset_neighbors(*searched)
        self.calculator.results = {}
        if self.field is not None and work is not None:
            self.field.begin(work.item())
        self.atoms.get_forces()  # all results in one evaluation, as in the first run
        self.outputs.open(saved.lengths)

    def run(
        self,
        steps: int,
        restart_every: int,
        on_step: Callable[[], None],
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run until ``steps`` steps are done in all or ``stop()``, and leave a restart file.

        ``docs/user/molecular_dynamics.md``, "A run that stops with an error", has the limits.

        Raises
        ------
        InputError
            If the volume at constant pressure leaves its limits; the last restart file stays.
        CaceFastError
            If temperature or energy explode; the last restart file stays.
        """
        if self.step == 0:
            self._write()
        while self.step < steps:
            self.dynamics.run(1)
            self._write()
            self._check()
            ended = stop()  # called once: a signal may come between two calls
            if self.step % restart_every == 0 or self.step == steps:
                self._save(self.outputs.lengths())
            elif ended:
                self._save(self.outputs.lengths(), in_between=True)
            on_step()
            if ended:
                return

    def state(self) -> dict[str, float]:
        """Return the columns of the log for the current step (``docs/user/molecular_dynamics.md``).

        Time, temperature, energies and volume; at constant pressure also the pressure, kinetic
        part included, and the quantity that the integrator conserves; in an electric field the
        field, its energy (in the potential energy of open systems) and its work so far. Units are
        part of the names.
        """
        from ase.md.nose_hoover_chain import IsotropicMTKNPT

        self.atoms.get_forces()  # so that the first frame has them too
        potential = float(self.atoms.get_potential_energy())
        kinetic = float(self.atoms.get_kinetic_energy())
        found = {
            "time_fs": self.step * self.settings.timestep,
            "temperature_K": float(self.atoms.get_temperature()),
            "potential_eV": potential,
            "kinetic_eV": kinetic,
            "total_eV": potential + kinetic,
            "volume_A3": float(self.atoms.cell.volume),
        }
        if isinstance(self.dynamics, IsotropicMTKNPT):
            found["pressure_GPa"] = pressure(self.atoms)
            found["conserved_eV"] = self.dynamics.get_conserved_energy()
        if self.field is not None and self.calculator.field is not None:
            for axis, value in zip("xyz", self.calculator.field.tolist(), strict=True):
                found[f"field_{axis}_V_A"] = value
            found["field_eV"] = self.calculator.field_energy
            found["work_eV"] = self.field.work
        return found

    def _check(self) -> None:
        """Raise an error for a run whose results mean nothing any more."""
        kelvin = float(self.atoms.get_temperature())
        energy = float(self.atoms.get_potential_energy()) / len(self.atoms)
        self.first_energy = energy if self.first_energy is None else self.first_energy
        most = max(MOST_KELVIN, 10.0 * self.settings.temperature)
        if not (kelvin <= most and abs(energy - self.first_energy) <= MOST_ENERGY):
            raise CaceFastError(
                f"the run has exploded: {kelvin:.3g} K, energy changed by "
                f"{energy - self.first_energy:.3g} eV for each atom after step {self.step}. The "
                "time step is too long (--timestep), the structure is far from equilibrium "
                "(cace-fast relax), or the model does not hold it together"
            )
        if self.settings.ensemble != Ensemble.npt:
            return
        volume = float(self.atoms.cell.volume)
        change = max(volume / self.first_volume, self.first_volume / volume)
        if change > MOST_EXPANSION:
            raise InputError(
                "--ensemble npt",
                f"a volume within a factor of {MOST_EXPANSION:g} of the first, "
                f"{self.first_volume:.0f} A^3",
                f"{volume:.0f} A^3 after step {self.step}, at "
                f"{self.atoms.get_temperature():.0f} K and {pressure(self.atoms):.2f} GPa",
                "The structure is far from equilibrium, or the model does not hold it together: "
                "run --ensemble nvt first and begin with its last frame.",
            )

    def _sums(self) -> LongRange:
        from cace_fast.potential import Potential  # brings torch: only when a run begins

        potential = self.calculator.potential
        assert isinstance(potential, Potential)
        return potential.long_range

    def _write(self) -> None:
        if self.step % self.settings.log_every == 0:
            state = self.state()
            head = ",".join(["step", *state]) + "\n" if self.step == 0 else ""
            line = ",".join([str(self.step), *(repr(value) for value in state.values())])
            self.outputs.append("log", f"{head}{line}\n".encode())
        if self.step % self.settings.traj_every == 0:
            frame = with_results(self.atoms)
            frame.info["step"] = self.step
            self.outputs.append("trajectory", frames_to_bytes([frame]))

    def _save(self, lengths: dict[str, int], *, in_between: bool = False) -> None:
        """Write the restart file; with ``in_between`` the run goes on as if nothing was written."""
        arrays = state_of(self.atoms, self.dynamics)
        if (k_cell := self._sums().reference_cell) is not None:  # of a frozen set
            arrays[K_CELL] = k_cell
        if self.field is not None:
            arrays[WORK] = np.array(self.field.work)
        if in_between and (made := self.calculator.neighbors_made_for) is not None:
            arrays |= dict(zip(LIST, made, strict=True))
        Restart(
            step=self.step,
            settings=asdict(self.settings),
            lengths=lengths,
            random=dict(self.random.bit_generator.state),
            arrays=arrays,
        ).save(self.restart_file)
        if in_between:
            return
        # a continued run searches neighbours again; this run does too, so that both stay equal
        self.calculator.reset_neighbors()
        if self.field is not None:  # the last bits of Born charges depend on the order of the list
            self.field.begin(self.field.work)


def _work_of(dynamics: MolecularDynamics, calculator: CACECalculator) -> FieldWork | None:
    from cace_fast.interfaces.field_work import FieldWork  # brings torch: only when a run begins

    return FieldWork(dynamics) if calculator.field_of_time is not None else None


def pressure(atoms: Atoms) -> float:
    """Return the pressure in GPa, kinetic part included (``docs/user/molecular_dynamics.md``)."""
    from ase import units

    stress = atoms.get_stress(include_ideal_gas=True)
    return float(-stress[:3].mean() / units.GPa)


def digest(atoms: Atoms) -> str:
    """Return a SHA-256 of a structure: everything that a run depends on.

    See ``docs/user/molecular_dynamics.md``.
    """
    import hashlib

    arrays: dict[str, Any] = {"cell": atoms.cell[:], "pbc": atoms.pbc, **atoms.arrays}
    total = hashlib.sha256(repr([str(c) for c in atoms.constraints]).encode())
    for name in sorted(arrays):
        total.update(name.encode())
        total.update(np.ascontiguousarray(arrays[name]).tobytes())
    for name in sorted(atoms.info):
        total.update(f"{name}={atoms.info[name]!r}".encode())
    return total.hexdigest()
