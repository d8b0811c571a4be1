"""ASE calculator, with the keywords of upstream's calculator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.calculator import PropertyNotImplementedError as AseNotImplementedError

from cace_fast.committee import Committee
from cace_fast.electric_field import FieldOfTime, Vector, add_field_energy, neutral, vector_of
from cace_fast.engine import VerletList
from cace_fast.errors import InputError, PropertyNotImplementedError
from cace_fast.min_dist import AUTO, MinDist, check_min_dist
from cace_fast.potential import Potential
from cace_fast.process import Lock
from cace_fast.properties import CHARGE_UNIT, has_stress, isolated_energies
from cace_fast.structures import extra_inputs

from .keywords import (
    Model,
    changed_potential,
    check_keys,
    field_of_time,
    models_of,
    potential_of,
    settings_of,
)
from .results import in_units
from .structure_inputs import changes_of, copy_of, input_of, is_same, remembered


class NotAvailableError(PropertyNotImplementedError, AseNotImplementedError):
    """A property that this model or structure does not have; ASE's error too.

    See ``docs/user/errors.md``.
    """


class CACECalculator(Calculator):
    """Energies, forces and stress of a CACE potential for ASE.

    ``results`` hold ASE's own names only; everything else is at ``calc.potential.compute``. Energy
    and forces are computed together; stress, charges and dipole along with them once they were
    asked for, where the structure has them. One calculator may be used by several threads, which
    wait for each other; what they read of ``results`` themselves may be another's.
    Keywords up to ``output_index`` are upstream's, in its order; keys left at None mean the
    total of the model.

    Parameters
    ----------
    model_path
        A file, a shipped name, a :class:`~cace_fast.Potential`, an upstream module in memory, or
        several of them (a list, or a pattern like ``"model-*.pth"``): a committee, whose mean is
        in ``results`` and whose spread ``calc.potential.compute`` gives.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ...
    energy_units_to_eV, length_units_to_A
        Units of the model's energies and lengths.
    electric_field_unit
        Factor on ``external_field`` that makes it V/A.
    compute_stress
        True: always; None: as soon as it was asked for once; False: never.
    energy_key, forces_key
        Which outputs of the file to report.
    stress_key, bec_key
        Accepted for compatibility; stress and Born charges belong to the energy reported.
    charge_key
        Key of the latent charges, where the file has several.
    charge_unit
        e per internal unit of charge.
    data_key
        Where to find further inputs of the model: its name -> name in ``atoms.info`` or
        ``atoms.arrays``.
    external_field
        Electric field [3], a number for models with one field direction, or a function that
        returns the field at a time in fs: adds Z* f to the forces, and -f.P to the energy of open
        systems (equal shares of it to ``energies``). Periodic ones have no field energy, and
        stress is without field in either. See :class:`cace_fast.FieldWork`.
    keep_neutral
        Remove the mean of the Born charges before the field acts.
    atomic_energies
        Energies of isolated atoms by atomic number, in model units, added to the energy.
    output_index
        Which energy, for a read-out that gives several.
    default_dtype
        ``"float32"`` or ``"float64"``.
    backend
        See :func:`cace_fast.load`. A :class:`~cace_fast.Potential` that was given keeps its device,
        precision and backend unless another than the default is asked for.
    skin
        Verlet skin in A.
    min_dist
        Shortest distance allowed between two atoms in A; ``"auto"``: 0.35 times the sum of their
        covalent radii; None allows any.
    slab_vacuum
        Vacuum of slabs with charges in A (docs/user/slabs.md); None refuses them, and leaves a
        :class:`~cace_fast.Potential` that was given as it is.

    Attributes
    ----------
    field_of_time
        The field as a function of time in fs; None without one.
    time
        In fs: of the next structure that is calculated, for a field that depends on time.
    field
        Field [3] in V/A of the last structure; None before it, and without a field.
    field_energy
        -f.P in eV that its energy holds: 0 unless it is open and in a field.
    born_charges
        Its Born charges [n, 3, 3] in e that the field acts on; None without a field.
    """

    implemented_properties = [  # noqa: RUF012 - ASE declares it so
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
        "charges",
        "dipole",
        "born_effective_charges",
    ]

    def __init__(
        self,
        model_path: Model | Sequence[Model],
        device: str = "auto",
        energy_units_to_eV: float = 1.0,
        length_units_to_A: float = 1.0,
        electric_field_unit: float = 1.0,
        compute_stress: bool | None = None,
        energy_key: str | None = None,
        forces_key: str | None = None,
        stress_key: str | None = None,
        charge_key: str | None = None,
        charge_unit: float = CHARGE_UNIT,
        bec_key: str = "bec",
        data_key: Mapping[str, str] | None = None,
        external_field: float | Sequence[float] | FieldOfTime | None = None,
        keep_neutral: bool = True,
        atomic_energies: Mapping[int, float] | None = None,
        output_index: int | None = None,
        *,
        default_dtype: str = "float32",
        backend: str = "auto",
        skin: float = 1.0,
        min_dist: MinDist = AUTO,
        slab_vacuum: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        keywords: dict[str, Any] = {
            "device": device,
            "energy_units_to_eV": energy_units_to_eV,
            "length_units_to_A": length_units_to_A,
            "electric_field_unit": electric_field_unit,
            "compute_stress": compute_stress,
            "energy_key": energy_key,
            "forces_key": forces_key,
            "stress_key": stress_key,
            "charge_key": charge_key,
            "charge_unit": charge_unit,
            "bec_key": bec_key,
            "data_key": data_key,
            "external_field": external_field,
            "keep_neutral": keep_neutral,
            "atomic_energies": atomic_energies,
            "output_index": output_index,
            "default_dtype": default_dtype,
            "backend": backend,
            "skin": skin,
            "min_dist": min_dist,
            "slab_vacuum": slab_vacuum,
        }
        models = models_of(model_path)
        members = [potential_of(model, keywords) for model in models]
        if isinstance(models[0], Potential):  # its settings, not the defaults
            keywords |= settings_of(members[0])
        self.time, self._lock = 0.0, Lock(self)
        self._take(members[0] if len(members) == 1 else Committee(members), keywords)

    def __getstate__(self) -> dict[str, Any]:
        """Return what copies take: all but the lock."""
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = Lock(self)

    def set(self, **changes: Any) -> dict[str, Any]:
        """Change keywords, all but the model, and forget the results; see ASE.

        Returns
        -------
        dict
            The keywords that have changed.

        Raises
        ------
        InputError
            For an unknown keyword or a value out of its range; nothing has changed then.
        """
        if not changes:  # ASE calls it without changes in its constructor
            return {}
        unknown = sorted(changes.keys() - self._keywords.keys())
        if unknown:
            expected = f"keywords among {', '.join(self._keywords)}"
            remedy = "For another model make another CACECalculator."
            raise InputError("set", expected, ", ".join(unknown), remedy)
        new = {k: v for k, v in changes.items() if not is_same(self._keywords[k], v)}
        with self._lock:
            if new:
                self._take(changed_potential(self.potential, new), self._keywords | new)
        return new

    def _take(self, potential: Potential | Committee, keywords: dict[str, Any]) -> None:
        """Take a potential and keywords; nothing changes if they make no sense."""
        k, spec = keywords, potential.spec
        check_keys(spec, k["energy_key"], k["forces_key"], k["charge_key"])
        check_min_dist(k["min_dist"])
        field = field_of_time(k["external_field"], spec)
        sorts = isinstance(potential, Potential) and potential.sorts_pairs
        edges = VerletList(potential.cutoff, k["skin"], in_order=not sorts)
        isolated = {int(z): float(e) for z, e in (k["atomic_energies"] or {}).items()}
        units = [float(k[n]) for n in ("energy_units_to_eV", "length_units_to_A", "charge_unit")]
        field_unit = float(k["electric_field_unit"])
        self.results, self.atoms = {}, None
        self._seen: dict[str, Any] = {}
        self._keywords, self.potential, self._list = keywords, potential, edges
        self.energy_unit, self.length_unit, self.charge_unit = units
        self.compute_stress, self.keep_neutral = k["compute_stress"], k["keep_neutral"]
        self.min_dist, self.atomic_energies = k["min_dist"], isolated
        self._inputs = {n: (k["data_key"] or {}).get(n, n) for n in extra_inputs(spec)}
        self._habits = {"stress"} if k["compute_stress"] else set[str]()
        self.field_of_time, self._field_unit, self.field_energy = field, field_unit, 0.0
        self.field: Vector | None = None
        self.born_charges: Vector | None = None

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Return the names of what changed since the last calculation, further inputs too; see ASE.

        The comparison is exact and takes a tenth of the time of ASE's, which costs more than the
        forces of a small molecule. ``tol`` is ASE's and has no use here.
        """
        return changes_of(self.atoms, atoms, self._seen, self._inputs.values())

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """Return one of :attr:`implemented_properties` in ASE's units (eV, A, e); see ASE.

        It leaves out the copies of the structure that ASE makes in every step, which cost more
        than the forces of a small molecule.

        Raises
        ------
        NotAvailableError
            If the model or the structure does not have the property.
        InputError
            If the structure cannot be evaluated (``docs/user/errors.md``).
        """
        if name not in self.implemented_properties:
            raise NotAvailableError(f"{name}: not a property of this calculator")
        with self._lock:
            changes = [] if atoms is None else self.check_state(atoms)
            if changes:
                self.results = {}
            if name not in self.results:
                if not allow_calculation:
                    return None
                self._calculate(atoms, [name], changes)
            found = self.results[name]
            return found.copy() if isinstance(found, np.ndarray) else found

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute ``properties`` of ``atoms`` and set ``results``; see ASE.

        Raises
        ------
        NotAvailableError, InputError
            As for :meth:`get_property`.
        """
        with self._lock:
            changes = [] if atoms is None else self.check_state(atoms)
            if changes or system_changes:
                self.results = {}
            self._calculate(atoms, properties, changes)

    def _calculate(
        self, atoms: Atoms | None, properties: Sequence[str], changes: Sequence[str]
    ) -> None:
        """Add to ``results``, which are empty or belong to this structure."""
        if atoms is not None:
            self.atoms = remembered(self.atoms, atoms, changes)
        current = self.atoms
        if current is None:
            raise InputError("atoms", "a structure", None)
        if self.field_of_time is not None and (not self.results or self.field is None):
            field = vector_of("external_field", self.field_of_time(self.time))
            self.field = field * self._field_unit
        wanted = self._wanted(properties, current)
        self._seen = {k: copy_of(input_of(current, k)) for k in self._inputs.values()}
        try:
            (found,) = self.potential.evaluate(
                [current], wanted, edges=self._list, inputs=self._inputs, min_dist=self.min_dist
            )
        except PropertyNotImplementedError as error:
            raise NotAvailableError(str(error)) from error
        results = self._results(found, current)
        if "born_effective_charges" in properties:
            results["born_effective_charges"] = self._born(found)
        self.results.update(results)
        self._habits |= {"stress", "charges", "dipole"} & set(properties)

    def reset_neighbors(self, positions: Vector | None = None, cell: Vector | None = None) -> None:
        """Search neighbours again at the next calculation.

        See ``docs/user/molecular_dynamics.md``, "Restart".

        With positions [n, 3] and cell [3, 3] in A, neighbours of the last structure are searched
        there at once, and used as long as the skin allows. A continued run so has the list of the
        first run.

        Raises
        ------
        InputError
            For positions or a cell that cannot be searched.
        """
        with self._lock:
            self._list.reset()
            if positions is not None and cell is not None and self.atoms is not None:
                self._list(positions, cell, self.atoms.pbc)

    @property
    def neighbors_made_for(self) -> tuple[Vector, Vector] | None:
        """Positions [n, 3] and cell [3, 3] in A of the last neighbour search; None before it.

        See ``docs/user/molecular_dynamics.md``.
        """
        made = self._list.made_for
        return None if made is None else (made[0], made[1])

    def _wanted(self, properties: Sequence[str], atoms: Atoms) -> list[str]:
        """Return the properties of the potential that ASE's ``properties`` need."""
        asked = set(properties)
        unknown = sorted(asked.difference(self.implemented_properties))
        if unknown:
            raise NotAvailableError(f"{', '.join(unknown)}: no property of this calculator")
        if "stress" in asked and self.compute_stress is False:
            raise NotAvailableError("stress: switched off by compute_stress=False")
        is_open = not np.any(atoms.pbc)
        wanted = {"energy", "energies", "forces"} | (asked & {"charges", "stress", "dipole"})
        habits = set(self._habits - wanted)
        if "stress" in habits and not has_stress(atoms):
            habits.remove("stress")
        wanted |= habits if is_open else habits - {"dipole"}
        if "born_effective_charges" in asked or self.field is not None:
            wanted.add("bec")
        if self.field is not None and is_open:
            wanted.add("dipole")
        return sorted(wanted)

    def _results(self, found: Mapping[str, Any], atoms: Atoms) -> dict[str, Any]:
        """Return ASE's names and units for the results of the potential."""
        units = (self.energy_unit, self.length_unit, self.charge_unit)
        isolated = None
        if self.atomic_energies:
            isolated = isolated_energies(self.atomic_energies, atoms.numbers)
        results = in_units(found, units, isolated)
        self.field_energy = 0.0
        if self.field is not None and "dipole" in found:
            self.field_energy = -float(found["dipole"] @ self.field) * self.length_unit
            add_field_energy(results, self.field_energy, len(atoms))
        if self.field is not None:
            self.born_charges = self._born(found)
            results["forces"] = results["forces"] + self.born_charges @ self.field
        return results

    def _born(self, found: Mapping[str, Any]) -> Vector:
        """Return Born charges [n, 3, 3] in e, neutral unless this is switched off."""
        bec: Vector = found["bec"]
        return neutral(bec) if self.keep_neutral else bec
