"""A specification to and from JSON text."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, TypeVar, get_args

from cace_fast.errors import SpecError, UnsupportedModelError

from .checks import shown
from .heads import Extra
from .model import Combination, ModelSpec, Provenance, SubModel
from .outputs import OutputModule, Readout
from .program import EnergyHead, EnergyProgram, EwaldTerm
from .representation import MLP, Bchi, CutoffFunction, MessageStep, RadialBasis, Representation
from .rule import energy_program, energy_programs

FORMAT_VERSION = 1  # a specification alone
FILE_VERSION = 2  # a specification and the programs of its energies

Found = TypeVar("Found")

_CLASSES: dict[str, type] = {
    cls.__name__: cls
    for cls in (
        RadialBasis,
        CutoffFunction,
        MLP,
        Bchi,
        MessageStep,
        Representation,
        Combination,
        SubModel,
        Provenance,
        ModelSpec,
        Extra,
        EnergyHead,
        EwaldTerm,
        EnergyProgram,
        *get_args(OutputModule),
    )
}


def _encode(value: Any) -> Any:
    if type(value).__name__ in _CLASSES:
        return {
            "type": type(value).__name__,
            **{f.name: _encode(getattr(value, f.name)) for f in fields(value)},
        }
    return [_encode(item) for item in value] if isinstance(value, tuple) else value


def _decode(value: Any, where: str) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, f"{where}[{k}]") for k, item in enumerate(value))
    if not isinstance(value, dict):
        return value
    name = value.get("type")
    if not isinstance(name, str) or name not in _CLASSES:
        raise SpecError(where, f"a type among {', '.join(sorted(_CLASSES))}", repr(name))
    cls = _CLASSES[name]
    known = {field.name for field in fields(cls)}
    unknown = set(value) - known - {"type"}
    if unknown:
        raise SpecError(
            f"{where}.{name}",
            f"fields among {', '.join(sorted(known))}",
            ", ".join(sorted(unknown)),
        )
    arguments = {
        key: _decode(item, f"{where}.{key}") for key, item in value.items() if key != "type"
    }
    try:
        return cls(**arguments)
    except TypeError as error:  # a required field is absent
        raise SpecError(f"{where}.{name}", "all required fields", str(error)) from None


def to_json(spec: ModelSpec) -> str:
    """Return ``spec`` as JSON text with the format's version number.

    See ``docs/conventions.md``, "Tensors of a model".
    """
    return json.dumps({"version": FORMAT_VERSION, "model": _encode(spec)}, allow_nan=False)


def from_json(text: str) -> ModelSpec:
    """Return the specification that :func:`to_json` wrote.

    Raises
    ------
    SpecError
        If the text is not JSON, has another version, or a field is missing, unknown or wrong.
    """
    return _model(_content(text, "specification", (FORMAT_VERSION,)))


def file_to_json(spec: ModelSpec) -> str:
    """Return the text of a model file: the specification, and the program of every energy.

    Raises
    ------
    UnsupportedModelError
        As for :func:`energy_programs`.
    """
    content = {
        "version": FILE_VERSION,
        "model": _encode(spec),
        "total": _total(spec),
        "programs": [_encode(program) for program in energy_programs(spec)],
    }
    return json.dumps(content, allow_nan=False)


def file_from_json(text: str) -> ModelSpec:
    """Return the specification of a model file, of version 1 or 2.

    Raises
    ------
    SpecError
        As for :func:`from_json`, and if a program is not the one that the specification gives.
    """
    content = _content(text, "specification", (FORMAT_VERSION, FILE_VERSION))
    spec = _model(content)
    if content["version"] == FILE_VERSION:
        _check_programs(spec, content)
    return spec


def _total(spec: ModelSpec) -> str | None:
    """Return the key of the total energy; None where there is none or it is not clear."""
    try:
        return energy_program(spec).energy_key or None
    except UnsupportedModelError:
        return None


def _check_programs(spec: ModelSpec, content: dict[str, Any]) -> None:
    """Raise SpecError unless the programs of a file are those of its specification."""
    remedy = "The file was changed: convert the original again with 'cace-fast convert'."
    unknown = set(content) - {"version", "model", "total", "programs"}
    if unknown:
        raise SpecError("file", "version, model, total and programs", shown(sorted(unknown)))
    given = content.get("programs")
    if not isinstance(given, list):
        raise SpecError("programs", "a list of programs", shown(given), remedy)
    number = 0
    for number, program in enumerate(energy_programs(spec), start=1):
        where, key = f"programs[{number - 1}]", program.energy_key
        if number > len(given):
            raise SpecError("programs", f"one of the energy {key!r}", "none", remedy)
        if _decoded(given[number - 1], where, EnergyProgram) != program:
            expected = f"what the specification makes of the energy {key!r}"
            raise SpecError(where, expected, "another program", remedy)
    if len(given) > number:
        raise SpecError("programs", f"{number} programs", len(given), remedy)
    if content.get("total", "") != _total(spec):
        raise SpecError("total", repr(_total(spec)), shown(content.get("total", "")), remedy)


def program_to_json(program: EnergyProgram) -> str:
    """Return an energy program as JSON text (``docs/conventions.md``, "Tensors of a model")."""
    return json.dumps(_encode(program), allow_nan=False)


def program_from_json(text: str) -> EnergyProgram:
    """Return the program that :func:`program_to_json` wrote.

    Raises
    ------
    SpecError
        If the text is not JSON, a field is missing, unknown or wrong, or fields contradict
        each other.
    """
    return _decoded(_parsed(text, "energy program"), "program", EnergyProgram)


def readout_to_json(readout: Readout) -> str:
    """Return a read-out as JSON text (``docs/conventions.md``, "Tensors of a model")."""
    return json.dumps(_encode(readout), allow_nan=False)


def readout_from_json(text: str) -> Readout:
    """Return the read-out that :func:`readout_to_json` wrote.

    Raises
    ------
    SpecError
        If the text is not JSON, or a field is missing, unknown or wrong.
    """
    return _decoded(_parsed(text, "read-out"), "readout", Readout)


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError(name, "JSON text", f"an error: {error}") from None


def _content(text: str, name: str, versions: tuple[int, ...]) -> dict[str, Any]:
    content = _parsed(text, name)
    version = content.get("version") if isinstance(content, dict) else None
    if type(version) is not int or version not in versions:
        raise SpecError(
            "version",
            " or ".join(map(str, versions)),
            shown(version),
            "Write the file again with this version.",
        )
    assert isinstance(content, dict)
    return content


def _model(content: dict[str, Any]) -> ModelSpec:
    return _decoded(content.get("model"), "model", ModelSpec)


def _decoded(value: Any, where: str, kind: type[Found]) -> Found:
    try:
        found = _decode(value, where)
    except RecursionError:
        raise SpecError(where, "a specification", "deeply nested text") from None
    if not isinstance(found, kind):
        article = "an" if kind.__name__[0] in "AE" else "a"
        raise SpecError(where, f"{article} {kind.__name__}", type(found).__name__)
    return found
