"""Model files by path or shipped name."""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from pathlib import Path

from . import checkpoint, weights
from .spec import ModelSpec
from .weights import Weights


def read_model(path: str | os.PathLike[str]) -> tuple[ModelSpec, Weights]:
    """Return specification and tensors of a model file or shipped name (``docs/conventions.md``).

    Raises
    ------
    FileNotFoundError
        If there is neither a file nor a shipped potential of that name.
    CheckpointError, UnsupportedModelError
        If the file cannot be read, or holds a part that cace-fast does not provide.
    """
    place = Path(path)
    try:
        weights.require_regular(place)
    except FileNotFoundError:
        if os.fspath(path) in shipped():
            with as_file(files("cace_fast.models") / f"{os.fspath(path)}.safetensors") as own:
                return weights.load(own)
        raise FileNotFoundError(
            f"{place}: no such file, and no shipped potential of that name "
            f"(shipped: {', '.join(shipped()) or 'none'})"
        ) from None
    if place.suffix == ".safetensors":
        return weights.load(place)
    spec, tensors = checkpoint.read(place)
    return spec, Weights(spec, tensors)


def shipped() -> tuple[str, ...]:
    """Return the names of the potentials that come with cace-fast.

    See ``docs/developer/demo_potential.md``.
    """
    found = (entry.name for entry in files("cace_fast.models").iterdir())
    return tuple(
        sorted(n.removesuffix(".safetensors") for n in found if n.endswith(".safetensors"))
    )
