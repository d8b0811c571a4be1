"""Engines: the backends that evaluate a model, and what they keep between evaluations."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cace_fast.errors import (
    BackendUnavailableError,
    CaceFastError,
    InputError,
    UnsupportedModelError,
)
from cace_fast.kernels import backend as kernels
from cace_fast.spec import EnergyProgram, ModelSpec
from cace_fast.weights import Weights

from .batch import Batch
from .charges import physical_charges
from .checks import check_graph
from .cpu import CpuEngine
from .device_dtype import find_device, find_dtype
from .long_range import LongRange
from .protocol import Engine
from .reference import ReferenceEngine
from .verlet import VerletList

__all__ = [
    "BACKENDS",
    "Batch",
    "CpuEngine",
    "Engine",
    "LongRange",
    "ReferenceEngine",
    "VerletList",
    "check_graph",
    "choose_backend",
    "find_device",
    "find_dtype",
    "make_engine",
    "physical_charges",
]

BACKENDS = ("reference", "cpu", "triton")


def choose_backend(name: str, device: torch.device | str = "cpu") -> str:
    """Return the backend that ``name`` means on a device; ``auto`` is the best one there is.

    ``docs/user/install.md`` lists the backends.

    Raises
    ------
    InputError
        If there is no backend of that name.
    BackendUnavailableError
        If it was asked for by name and cannot run here.
    """
    return _candidates(name, torch.device(device))[0]


def _candidates(name: str, device: torch.device) -> list[str]:
    """Return the backends to try, the best one first."""
    states = kernels.states()
    here = [s.name for s in states if s.available and device.type in s.devices]
    usable = [*here, "reference"]
    if name == "auto":
        return usable
    if name not in BACKENDS:
        raise InputError("backend", f"one of auto, {', '.join(BACKENDS)}", repr(name))
    if name not in usable:
        state = next(s for s in states if s.name == name)
        reason = state.reason or f"it does not serve the device {str(device)!r}"
        remedy = state.remedy or f"Use device={state.devices[0]!r}."
        raise BackendUnavailableError(name, reason, usable, remedy)
    return [name]


def make_engine(
    spec: ModelSpec,
    weights: Weights,
    program: EnergyProgram,
    *,
    backend: str,
    device: torch.device,
    dtype: torch.dtype,
    long_range: LongRange | None = None,
) -> Engine:
    """Return an engine for a model, with the weights on ``device`` in ``dtype`` (decision 0018).

    Parameters
    ----------
    spec, weights
        The model.
    program
        Read-outs and Ewald sums of the energy.
    backend
        ``"auto"`` or the name of a backend. ``"auto"`` takes the next one where a backend refuses
        the model; ``note`` of the engine then says why.
    device, dtype
        Where the weights go; float32 or float64.
    long_range
        How to sum the long range.

    Raises
    ------
    InputError, BackendUnavailableError
        See :func:`choose_backend`.
    UnsupportedModelError
        If the backend was asked for by name and does not have a part of the model.
    """
    reference = ReferenceEngine(spec, weights.to(device, dtype), program, long_range)
    missing = (s for s in kernels.states() if device.type in s.devices and not s.available)
    note = "; ".join(f"{s.name}: {s.reason}" for s in missing) if backend == "auto" else ""
    for name in _candidates(backend, device):
        if name == "reference":
            break
        try:
            return _engine_class(name)(reference)
        except CaceFastError as error:
            if backend == "auto":  # for any reason; the reference raises if the model is at fault
                note = f"{name}: {error}"
                continue
            if isinstance(error, UnsupportedModelError):
                raise UnsupportedModelError(f"backend {name!r}: {error}") from None
            raise
    reference.note = note
    return reference


def _engine_class(name: str) -> Callable[[ReferenceEngine], Engine]:
    if name == "cpu":
        return CpuEngine
    from .triton import TritonEngine  # imports triton, which not every machine has

    return TritonEngine
