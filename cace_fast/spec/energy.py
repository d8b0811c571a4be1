"""Which modules make up the total energy of a model, and with which weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

from cace_fast.errors import InputError, UnsupportedModelError

from .keys import chain
from .model import ModelSpec, SubModel
from .outputs import Add, Ewald, Forces, Polarization, Readout, written_keys

COMMON_ENERGY_NAMES = ("CACE_energy", "energy")


@dataclass(frozen=True)
class EnergyTerm:
    """One read-out or Ewald sum that enters the energy with ``weight``.

    See ``docs/theory.md``, section 7.

    ``submodel`` and ``index`` say where the module stands in the specification.
    """

    submodel: int
    index: int
    weight: float
    module: Readout | Ewald


def energy_terms(
    spec: ModelSpec, key: str | None = None, *, submodel: int | None = None
) -> tuple[EnergyTerm, ...]:
    """Return the terms of the energy called ``key``, or of the total energy (section 7).

    A key of a combined model is the weighted sum over its sub-models; a key of one sub-model is
    that part alone, without its weight. With ``submodel``, ``key`` is a key of that sub-model.

    Raises
    ------
    InputError
        If no module writes ``key``.
    UnsupportedModelError
        If ``key`` is None and the total energy is ambiguous, or forces are those of an earlier
        value of its key; or if ``key`` names something else than an energy.
    """
    if key is None:
        key = total_energy_key(spec)
        _require_forces_of(spec, key)
    if submodel is not None:
        return _resolve(spec.submodels[submodel], submodel, key, 1.0)
    combination = spec.combination
    if combination is not None and key in combination.names:
        return tuple(
            term
            for number, (keys, weight) in enumerate(
                zip(combination.keys, combination.weights, strict=True)
            )
            for term in _resolve(spec.submodels[number], number, dict(keys)[key], float(weight))
        )
    for number in reversed(range(len(spec.submodels))):
        if spec.submodels[number].producer(key) is not None:
            return _resolve(spec.submodels[number], number, key, 1.0)
    raise InputError("energy_key", f"one of {', '.join(energy_keys(spec)) or 'none'}", repr(key))


def energy_keys(spec: ModelSpec) -> tuple[str, ...]:
    """Return every key that names an energy of the model, totals first (section 7)."""
    names = list(spec.combination.names) if spec.combination is not None else []
    for sub in spec.submodels:
        names += [m.output_key for m in sub.modules if isinstance(m, Readout | Ewald | Add)]
    forces = {m.forces_key for sub in spec.submodels for m in sub.modules if isinstance(m, Forces)}
    combined = _combined_forces_names(spec, forces)
    return tuple(name for name in dict.fromkeys(names) if name not in combined)


def _combined_forces_names(spec: ModelSpec, forces: set[str]) -> set[str]:
    if spec.combination is None:
        return forces
    return {name for keys in spec.combination.keys for name, own in keys if own in forces}


def total_energy_key(spec: ModelSpec) -> str:
    """Return the key of the energy whose gradient the model's forces are (sections 7 and 8).

    Raises
    ------
    UnsupportedModelError
        If there is no energy, or there are several and nothing to choose by.
    """
    candidates = (
        spec.combination.names if spec.combination is not None else _single_candidates(spec)
    )
    good = [name for name in candidates if _is_energy(spec, name)]
    if len(good) == 1:
        return good[0]
    for name in COMMON_ENERGY_NAMES:
        if name in good:
            return name
    raise UnsupportedModelError(
        f"the total energy of this model is not clear: candidates are {good or 'none'}; "
        f"pass energy_key, one of {', '.join(energy_keys(spec)) or 'none'}"
    )


def _single_candidates(spec: ModelSpec) -> tuple[str, ...]:
    """Return energies that forces are taken of, or energies that no other module consumes."""
    if not spec.submodels:
        return ()
    modules = spec.submodels[0].modules
    differentiated = [m.energy_key for m in modules if isinstance(m, Forces) and m.calc_forces]
    if differentiated:
        return (differentiated[-1],)
    used = {key for m in modules if isinstance(m, Add) for key in m.features}
    charges = {m.feature_key for m in modules if isinstance(m, Ewald)}
    charges |= {m.charge_key for m in modules if isinstance(m, Polarization)}
    return tuple(
        m.output_key
        for m in modules
        if isinstance(m, Readout | Ewald | Add)
        and m.output_key not in used
        and not charges & set(written_keys(m))
    )


def _is_energy(spec: ModelSpec, name: str) -> bool:
    """Tell whether ``name`` is made of energies (not forces, charges or Born charges) only."""
    for sub, key in _owners(spec, name):
        place = sub.producer(key)
        module = None if place is None else sub.modules[place]
        if not isinstance(module, Readout | Ewald | Add) or module.output_key != key:
            return False
        differentiated = any(isinstance(m, Forces) and m.energy_key == key for m in sub.modules)
        used_as_charge = isinstance(module, Readout) and any(
            isinstance(m, Ewald) and m.feature_key in written_keys(module) for m in sub.modules
        )
        if used_as_charge and not differentiated:
            return False
    return True


def _require_forces_of(spec: ModelSpec, name: str) -> None:
    """Raise UnsupportedModelError if forces are not of the last value of the total energy."""
    for sub, key in _owners(spec, name):
        for index, module in enumerate(sub.modules):
            mine = isinstance(module, Forces) and module.calc_forces and module.energy_key == key
            if mine and sub.producer(key, index) != sub.producer(key):
                raise UnsupportedModelError(
                    f"output module {index} takes forces of {key!r}, which a later module changes; "
                    "pass energy_key to evaluate the last value, with forces of its own"
                )


def _owners(spec: ModelSpec, name: str) -> list[tuple[SubModel, str]]:
    """Return the sub-models that give the energy ``name``, and what it is called there."""
    if spec.combination is None:
        return [(spec.submodels[0], name)]
    pairs = zip(spec.submodels, spec.combination.keys, strict=True)
    return [(sub, dict(keys)[name]) for sub, keys in pairs]


def _resolve(sub: SubModel, number: int, key: str, weight: float) -> tuple[EnergyTerm, ...]:
    """Return the read-outs and Ewald sums of an energy, each once, in the order of the modules."""
    weights: dict[int, float] = {_place(sub, number, key): weight}
    last = max(weights)
    for index in range(last, -1, -1):  # a sum takes earlier modules: one pass is enough
        module = sub.modules[index]
        if index in weights and isinstance(module, Add):
            own = weights.pop(index)
            for part in module.features:
                place = _place(sub, number, part, index)
                weights[place] = weights.get(place, 0.0) + own
    if not all(isfinite(found) for found in weights.values()):
        raise UnsupportedModelError(f"sub-model {number}: {key!r} counts a part too often")
    terms = []
    for index in sorted(weights):
        module = sub.modules[index]
        assert isinstance(module, Readout | Ewald)
        chain(sub, [index])  # raises for values that are not per atom
        terms.append(EnergyTerm(number, index, weights[index], module))
    return tuple(terms)


def _place(sub: SubModel, number: int, key: str, before: int | None = None) -> int:
    """Return the place of the module that gives an energy; UnsupportedModelError if none does."""
    place = sub.producer(key, before)
    module = None if place is None else sub.modules[place]
    if isinstance(module, Readout | Ewald | Add) and module.output_key == key:
        assert place is not None
        return place
    raise UnsupportedModelError(
        f"sub-model {number}: {key!r} is not an energy (written by "
        f"{type(module).__name__ if module is not None else 'no module'}"
        f"{'' if before is None else f' before output module {before}'})"
    )
