"""A specification to and from JSON text."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, get_args

from cace_fast.errors import SpecError

from .model import Combination, ModelSpec, Provenance, SubModel
from .outputs import OutputModule
from .representation import (
    MLP,
    Bchi,
    CutoffFunction,
    MessageStep,
    RadialBasis,
    Representation,
)

FORMAT_VERSION = 1

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
    """Return ``spec`` as JSON text with the format's version number."""
    return json.dumps({"version": FORMAT_VERSION, "model": _encode(spec)}, allow_nan=False)


def from_json(text: str) -> ModelSpec:
    """Return the specification that :func:`to_json` wrote.

    Raises
    ------
    SpecError
        If the text is not JSON, has another version, or a field is missing, unknown or wrong.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SpecError("specification", "JSON text", f"an error: {error}") from None
    version = content.get("version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise SpecError(
            "version",
            f"{FORMAT_VERSION}",
            repr(version),
            "Write the file again with this version.",
        )
    try:
        spec = _decode(content.get("model"), "model")
    except RecursionError:
        raise SpecError("model", "a specification", "deeply nested text") from None
    if not isinstance(spec, ModelSpec):
        raise SpecError("model", "a ModelSpec", type(spec).__name__)
    return spec
