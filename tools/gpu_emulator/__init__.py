"""Proof of the GPU kernels without a GPU: an emulator of their compiled code, and its tools.

``CACE_FAST_EMULATE=sm_90`` in the environment, for tests only, lets ``backend="triton"`` take CPU
tensors: kernels are compiled for that GPU and their PTX is run here (docs/developer/kernels.md).
This is a package of development: no wheel has it (docs/developer/decisions/0015).
"""

from __future__ import annotations

import os

from gpu_emulator.driver import EmulatedDriver, activate, active, emulate
from gpu_emulator.machine import Launch, Machine
from gpu_emulator.ptx import PtxError

VARIABLE = "CACE_FAST_EMULATE"


def from_environment() -> EmulatedDriver | None:
    """Return the emulated driver in use; start the one that ``CACE_FAST_EMULATE`` names, if any.

    Raises
    ------
    InputError
        The variable names an unknown architecture.
    """
    if active() is None and (architecture := os.environ.get(VARIABLE)):
        activate(architecture)
    return active()


__all__ = [
    "VARIABLE",
    "EmulatedDriver",
    "Launch",
    "Machine",
    "PtxError",
    "activate",
    "active",
    "emulate",
    "from_environment",
]
