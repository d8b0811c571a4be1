"""Fast, safe inference for CACE interatomic potentials.

The public names are loaded on first use: ``import cace_fast`` alone loads neither torch nor ase.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cace_fast.electric_field import OscillatingField
    from cace_fast.errors import (
        BackendUnavailableError,
        CaceFastError,
        CheckpointError,
        InputError,
        PropertyNotImplementedError,
        SpecError,
        UnknownElementError,
        UnsupportedModelError,
        VerificationError,
    )
    from cace_fast.interfaces.accelerate import accelerate
    from cace_fast.interfaces.ase import CACECalculator
    from cace_fast.interfaces.field_work import FieldWork
    from cace_fast.loading import load
    from cace_fast.potential import Potential
    from cace_fast.spec import ModelSpec

__version__ = "0.1.0.dev0"

__all__ = [
    "BackendUnavailableError",
    "CACECalculator",
    "CaceFastError",
    "CheckpointError",
    "FieldWork",
    "InputError",
    "ModelSpec",
    "OscillatingField",
    "Potential",
    "PropertyNotImplementedError",
    "SpecError",
    "UnknownElementError",
    "UnsupportedModelError",
    "VerificationError",
    "__version__",
    "accelerate",
    "load",
]

_HOME = {
    "CACECalculator": "cace_fast.interfaces.ase",
    "FieldWork": "cace_fast.interfaces.field_work",
    "ModelSpec": "cace_fast.spec",
    "OscillatingField": "cace_fast.electric_field",
    "Potential": "cace_fast.potential",
    "accelerate": "cace_fast.interfaces.accelerate",
    "load": "cace_fast.loading",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'cace_fast' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME.get(name, "cace_fast.errors")), name)
    globals()[name] = value  # so that the next access does not call this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
