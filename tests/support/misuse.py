"""The model files that ``tests/cpu/misuse.cpp`` takes."""

from __future__ import annotations

from pathlib import Path

from cace_fast import Potential
from support.tiny_models import tiny_spec, tiny_weights

KINDS = {
    "short.safetensors": {},
    "messages.safetensors": {"steps": ("M+Ar+Bchi", "Bchi")},
    "charges.safetensors": {"ewald_channels": 1},
}


def models(folder: Path) -> list[Path]:
    """Write them into a folder: short range, two message passing steps, charges."""
    for name, options in KINDS.items():
        spec = tiny_spec(**options)
        Potential(spec, tiny_weights(spec), dtype="float64", backend="reference").save(
            folder / name
        )
    return [folder / name for name in KINDS]
