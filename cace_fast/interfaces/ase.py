"""ASE calculator, with the keywords of upstream's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.calculator import PropertyNotImplementedError as AseNotImplementedError
from ase.stress import full_3x3_to_voigt_6_stress

from cace_fast.committee import Committee
from cace_fast.electric_field import FieldOfTime, Vector, neutral, vector_of
from cace_fast.engine import VerletList
from cace_fast.errors import InputError, PropertyNotImplementedError
from cace_fast.min_dist import AUTO, MinDist, check_min_dist
from cace_fast.potential import Potential
from cace_fast.properties import CHARGE_UNIT, isolated_energies
from cace_fast.structures import extra_inputs

from .keywords import Model, check_keys, field_of_time, models_of, potential_of


class NotAvailableError(PropertyNotImplementedError, AseNotImplementedError):
    """A property that this model or structure does not have, as ASE expects to see it."""


class CACECalculator(Calculator):
    """Energies, forces and stress of a CACE potential for ASE.

    ``results`` hold ASE's own names only; everything else is at ``calc.potential.compute``.
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
        True: with every force evaluation; None: when asked for; False: never.
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
        See :func:`cace_fast.load`.
    skin
        Verlet skin in A.
    min_dist
        Shortest distance allowed between two atoms in A; ``"auto"``: 0.35 times the sum of their
        covalent radii; None allows any.
    slab_vacuum
        Vacuum of slabs with charges in A (docs/slabs.md); None refuses them, and leaves a
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
    """

    implemented_properties = [  # noqa: RUF012 - ASE declares it so
        "energy", "free_energy", "energies", "forces", "stress", "charges", "dipole",
        "born_effective_charges",
    ]  # fmt: skip

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
        options = {
            "device": device, "dtype": default_dtype, "backend": backend, "energy_key": energy_key,
            "output_index": output_index, "slab_vacuum": slab_vacuum,
        }  # fmt: skip
        members = [potential_of(model, options) for model in models_of(model_path)]
        self.potential = members[0] if len(members) == 1 else Committee(members)
        self.energy_unit, self.length_unit = float(energy_units_to_eV), float(length_units_to_A)
        self.charge_unit, self.compute_stress = float(charge_unit), compute_stress
        check_min_dist(min_dist)
        self.keep_neutral, self.min_dist = keep_neutral, min_dist
        self.atomic_energies = {int(z): float(e) for z, e in (atomic_energies or {}).items()}
        spec = self.potential.spec
        check_keys(spec, energy_key, forces_key, charge_key)
        names = extra_inputs(spec)
        self._inputs = {n: (data_key or {}).get(n, n) for n in names}
        self.field_of_time = field_of_time(external_field, spec)
        self._field_unit, self.time, self.field_energy = float(electric_field_unit), 0.0, 0.0
        self.field: Vector | None = None
        sorts = isinstance(self.potential, Potential) and self.potential.sorts_pairs
        self._list = VerletList(self.potential.cutoff, skin, in_order=not sorts)
        self._seen: dict[str, Any] = {}

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Return what changed since the last calculation, further inputs included.

        Exact comparison in a tenth of the time of ASE's own, which costs more than the forces of a
        small molecule. ``tol`` is ASE's and has no use here.
        """
        old = self.atoms
        if old is None or len(old) != len(atoms):
            return list(all_changes)
        pairs = {
            "positions": (old.positions, atoms.positions),
            "numbers": (old.numbers, atoms.numbers),
            "cell": (old.cell.array, atoms.cell.array),
            "pbc": (old.pbc, atoms.pbc),
        }
        changes = [name for name, (a, b) in pairs.items() if not bool((a == b).all())]
        for name in ("initial_charges", "initial_magmoms"):
            if not _same(old.arrays.get(name), atoms.arrays.get(name)):
                changes.append(name)
        if any(not _same(self._seen.get(k), _lookup(atoms, k)) for k in self._inputs.values()):
            changes.append("inputs")
        return changes

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """Return one of :attr:`implemented_properties`; see ASE.

        Without the copies of the structure that ASE's own makes in every step, which cost more than
        the forces of a small molecule.
        """
        if name not in self.implemented_properties:
            raise NotAvailableError(f"{name}: not a property of this calculator")
        changes = [] if atoms is None else self.check_state(atoms)
        if changes:
            self.results = {}
        if name not in self.results:
            if not allow_calculation:
                return None
            self.calculate(atoms, [name], changes)
        if name not in self.results:
            raise NotAvailableError(f"{name}: this structure or model does not have it")
        found = self.results[name]
        return found.copy() if isinstance(found, np.ndarray) else found

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute ``properties`` of ``atoms`` into ``results``; see ASE."""
        if atoms is not None:
            self._remember(atoms, system_changes)
        current = self.atoms
        if current is None:
            raise InputError("atoms", "a structure", None)
        if self.field_of_time is not None and (system_changes or self.field is None):
            field = vector_of("external_field", self.field_of_time(self.time))
            self.field = field * self._field_unit
        wanted = self._wanted(properties, current)
        self._seen = {k: _copy(_lookup(current, k)) for k in self._inputs.values()}
        try:
            (found,) = self.potential.evaluate(
                [current], wanted, edges=self._list, inputs=self._inputs, min_dist=self.min_dist
            )
        except PropertyNotImplementedError as error:
            raise NotAvailableError(str(error)) from error
        self.results.update(self._results(found, current))

    def reset_neighbors(self) -> None:
        """Search neighbours anew at the next calculation."""
        self._list.reset()

    def _remember(self, atoms: Atoms, changes: Sequence[str]) -> None:
        """Copy the structure, or what has changed of it, so that later changes are seen."""
        old = self.atoms
        if old is None or len(old) != len(atoms) or not set(changes) <= {"positions", "cell"}:
            self.atoms = atoms.copy()
            return
        old.positions[:] = atoms.positions
        old.cell[:] = atoms.cell.array

    def _wanted(self, properties: Sequence[str], atoms: Atoms) -> list[str]:
        """Return the properties of the potential that ASE's ``properties`` need."""
        wanted = {"energy", "energies"}
        wanted |= {"forces", "charges", "dipole"} & set(properties)
        if "stress" in properties and self.compute_stress is False:
            raise NotAvailableError("stress: switched off by compute_stress=False")
        if "stress" in properties:
            wanted.add("stress")
        if self.compute_stress and np.sum(atoms.pbc) >= 2 and "forces" in wanted:
            wanted.add("stress")
        if "born_effective_charges" in properties or (
            self.field is not None and "forces" in wanted
        ):
            wanted.add("bec")
        if self.field is not None and not np.any(atoms.pbc):
            wanted.add("dipole")
        return sorted(wanted)

    def _results(self, found: Mapping[str, Any], atoms: Atoms) -> dict[str, Any]:
        """Return ASE's names and units for what the potential found."""
        per_length = self.energy_unit / self.length_unit
        energy, energies = found["energy"], found["energies"]
        if self.atomic_energies:
            isolated = isolated_energies(self.atomic_energies, atoms.numbers)
            energy, energies = energy + float(isolated.sum()), energies + isolated
        results: dict[str, Any] = {
            "energy": energy * self.energy_unit,
            "free_energy": energy * self.energy_unit,
            "energies": energies * self.energy_unit,
        }
        self.field_energy = 0.0
        if self.field is not None and "dipole" in found:
            self.field_energy = -float(found["dipole"] @ self.field) * self.length_unit
            for name, share in (("energy", 1), ("free_energy", 1), ("energies", len(atoms))):
                results[name] = results[name] + self.field_energy / share
        if "stress" in found:
            stress = found["stress"] * self.energy_unit / self.length_unit**3
            results["stress"] = full_3x3_to_voigt_6_stress(stress)
        if "charges" in found:
            results["charges"] = found["charges"] / CHARGE_UNIT * self.charge_unit
        if "dipole" in found:
            results["dipole"] = found["dipole"]
        if "bec" in found:
            bec = found["bec"]
            results["born_effective_charges"] = neutral(bec) if self.keep_neutral else bec
        if "forces" in found:
            forces = found["forces"] * per_length
            if self.field is not None:
                forces = forces + results["born_effective_charges"] @ self.field
            results["forces"] = forces
        return results


def _lookup(atoms: Atoms | None, key: str) -> Any:
    return None if atoms is None else atoms.info.get(key, atoms.arrays.get(key))


def _copy(value: Any) -> Any:
    return None if value is None else np.array(value, copy=True)


def _same(old: Any, new: Any) -> bool:
    if old is None or new is None:
        return old is new
    return bool(np.array_equal(old, np.asarray(new)))
