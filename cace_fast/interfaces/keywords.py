"""What the keywords of the calculator mean: models, keys of outputs, a field."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from cace_fast import checkpoint
from cace_fast.committee import Committee
from cace_fast.electric_field import FieldOfTime, OscillatingField, vector_of
from cace_fast.errors import InputError
from cace_fast.model_files import read_model
from cace_fast.potential import Potential
from cace_fast.spec import Ewald, Forces, ModelSpec, Polarization, Readout, total_energy_key
from cace_fast.weights import Weights

Model = str | os.PathLike[str] | Potential | nn.Module
OPTIONS = {  # keywords that the calculator passes to Potential, and their names there
    "device": "device",
    "default_dtype": "dtype",
    "backend": "backend",
    "energy_key": "energy_key",
    "output_index": "output_index",
    "slab_vacuum": "slab_vacuum",
}


def models_of(model_path: Model | Sequence[Model]) -> list[Model]:
    """Return each model that ``model_path`` names (``docs/user/coming-from-upstream.md``).

    Raises
    ------
    FileNotFoundError
        If no file matches a pattern.
    InputError
        If there is no model.
    """
    if (
        isinstance(model_path, str)
        and glob.has_magic(model_path)
        and not os.path.exists(model_path)
    ):
        found = sorted(glob.glob(model_path))
        if not found:
            raise FileNotFoundError(f"model_path: no file matches {model_path!r}")
        return list(found)
    if isinstance(model_path, str | os.PathLike | Potential | nn.Module):
        return [model_path]
    if not model_path:
        raise InputError("model_path", "a model, or several", "an empty list")
    return list(model_path)


def potential_of(model: Model, keywords: dict[str, Any]) -> Potential:
    """Return the potential of one model.

    A Potential keeps its own settings, unless another than the default is asked for.

    Raises
    ------
    CaceFastError
        As for :func:`cace_fast.load`.
    """
    options = {OPTIONS[name]: value for name, value in keywords.items() if name in OPTIONS}
    if isinstance(model, Potential):
        usual = {"device": "auto", "dtype": "float32", "backend": "auto"}
        asked = {n: v for n, v in options.items() if v is not None and v != usual.get(n)}
        return model.replace(**asked) if asked else model
    if isinstance(model, nn.Module):
        spec, tensors = checkpoint.from_module(model)
        snapshot = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        return Potential(spec, Weights(spec, snapshot), **options)
    return Potential(*read_model(model), **options)


def settings_of(potential: Potential) -> dict[str, Any]:
    """Return the keywords of the calculator that say where and how a potential runs.

    See ``docs/user/coming-from-upstream.md``.
    """
    dtype = str(potential.dtype).removeprefix("torch.")
    return {"device": str(potential.device), "default_dtype": dtype, "backend": potential.backend}


def changed_potential(
    potential: Potential | Committee, keywords: dict[str, Any]
) -> Potential | Committee:
    """Return a potential with the changed keywords; itself if none has changed.

    See ``docs/user/coming-from-upstream.md``.

    Raises
    ------
    InputError, BackendUnavailableError
        If an option is out of its range or the backend cannot run.
    """
    options = {OPTIONS[name]: value for name, value in keywords.items() if name in OPTIONS}
    if not options:
        return potential
    if "device" in options:  # the backend of the old one may not exist there
        options = {"backend": "auto"} | options
    if isinstance(potential, Potential):
        return potential.replace(**options)
    return Committee([member.replace(**options) for member in potential.members])


def check_keys(
    spec: ModelSpec, energy_key: str | None, forces_key: str | None, charge_key: str | None
) -> None:
    """Raise InputError for keys that the file lacks, or forces of another energy.

    See ``docs/user/coming-from-upstream.md``.
    """
    if forces_key is not None:
        reported = energy_key if energy_key is not None else total_energy_key(spec)
        own = _energy_of_forces(spec, forces_key)
        if reported not in own:
            expected = f"forces of the energy {reported!r}"
            got = f"{forces_key!r}, forces of {own[0]!r}" if own else f"unknown key {forces_key!r}"
            raise InputError(
                "forces_key", expected, got, "Pass energy_key and forces_key together."
            )
    if charge_key is not None:
        keys = [
            m.feature_key for sub in spec.submodels for m in sub.modules if isinstance(m, Ewald)
        ]
        per_atom = [
            m.per_atom_key for sub in spec.submodels for m in sub.modules if isinstance(m, Readout)
        ]
        if charge_key not in [*keys, *per_atom]:
            raise InputError("charge_key", f"one of {', '.join(keys) or 'none'}", repr(charge_key))


def _energy_of_forces(spec: ModelSpec, forces_key: str) -> list[str]:
    """Return the names of the energies whose gradient ``forces_key`` is."""
    combination = spec.combination
    if combination is not None and forces_key in combination.names:
        of_first = dict(combination.keys[0])
        own = _energy_of_forces_in(spec, 0, of_first[forces_key])
        return [name for name in combination.names if of_first[name] in own]
    found = []
    for number in range(len(spec.submodels)):
        found += _energy_of_forces_in(spec, number, forces_key)
    return found


def _energy_of_forces_in(spec: ModelSpec, number: int, forces_key: str) -> list[str]:
    modules = spec.submodels[number].modules
    return [m.energy_key for m in modules if isinstance(m, Forces) and m.forces_key == forces_key]


def field_of_time(
    field: float | Sequence[float] | FieldOfTime | None, spec: ModelSpec
) -> FieldOfTime | None:
    """Return the electric field [3] as a function of time in fs (``docs/user/electric_fields.md``).

    Raises
    ------
    InputError
        If the field is not three finite numbers, or one for a model with one field direction.
    """
    if field is None or callable(field):
        return field
    vector = field
    if isinstance(field, int | float):
        directions = {
            m.output_index
            for sub in spec.submodels
            for m in sub.modules
            if isinstance(m, Polarization) and m.output_index is not None
        }
        if len(directions) != 1:
            raise InputError("external_field", "three numbers for this model", field)
        vector = np.eye(3)[directions.pop()] * field
    return OscillatingField(tuple(vector_of("external_field", vector).tolist()))
