"""The work of an electric field along a run of molecular dynamics, and the clock of the field."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ase import units

from cace_fast.errors import InputError
from cace_fast.interfaces.ase import CACECalculator

if TYPE_CHECKING:
    from ase.md.md import MolecularDynamics


class FieldWork:
    """Sets the time of a calculator at each step, and adds up the work of its field.

    The work is the integral of f.Z*.v over time, by the trapezoidal rule over the steps. Without a
    thermostat, ``atoms.get_total_energy() - calc.field_energy - work.work`` is constant, to the
    order of the integrator, in periodic and in open systems (``docs/theory.md``, section 10).

    Parameters
    ----------
    dynamics
        An integrator of ASE whose atoms have a :class:`cace_fast.CACECalculator` with an
        ``external_field``. This object attaches itself to it.

    Attributes
    ----------
    work
        In eV, since the object was made or :meth:`begin` was called.

    Raises
    ------
    InputError
        If there is no such calculator.
    """

    def __init__(self, dynamics: MolecularDynamics) -> None:
        calculator = dynamics.atoms.calc
        if not isinstance(calculator, CACECalculator) or calculator.field_of_time is None:
            raise InputError(
                "dynamics", "atoms with a CACECalculator that has an external_field", calculator
            )
        self._dynamics, self._calculator = dynamics, calculator
        self.begin()
        dynamics.attach(self)

    def begin(self, work: float = 0.0) -> None:
        """Start from the present state of the atoms, with ``work`` in eV done so far.

        See ``docs/theory.md``, section 10.
        """
        self.work = work
        self._calculator.time = self._time(self._dynamics.nsteps)
        self._calculator.results = {}
        self._calculator.atoms = None  # the results may belong to the field at another time
        self._dynamics.atoms.get_forces()
        self._arrive()

    def __call__(self) -> None:
        """Account for the step that was done; ASE calls it."""
        if self._dynamics.nsteps != self._step:  # ASE calls before the first step too
            before = self._power
            self._arrive()
            self.work += 0.5 * self._dynamics.dt * (before + self._power)

    def _arrive(self) -> None:
        """Note the power now, and give the next structure its time."""
        atoms, field = self._dynamics.atoms, self._calculator.field
        born = self._calculator.born_charges
        assert field is not None
        assert born is not None
        self._power = float((atoms.get_velocities() * (born @ field)).sum())
        self._step = int(self._dynamics.nsteps)
        self._calculator.time = self._time(self._step + 1)

    def _time(self, step: int) -> float:
        return float(step * self._dynamics.dt / units.fs)
