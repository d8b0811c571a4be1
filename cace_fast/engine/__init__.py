"""Engines: which backend evaluates a model, and the state that evaluation keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from cace_fast.errors import BackendUnavailableError, InputError
from cace_fast.graph import AtomicGraph, ModelOutput
from cace_fast.kernels import backend as kernels
from cace_fast.spec import EnergyTerm, ModelSpec
from cace_fast.weights import Weights

from .precision import find_device, find_dtype
from .reference import ReferenceEngine, physical_charges
from .skin import VerletList

__all__ = [
    "BACKENDS",
    "Engine",
    "ReferenceEngine",
    "VerletList",
    "choose_backend",
    "find_device",
    "find_dtype",
    "make_engine",
    "physical_charges",
]

BACKENDS = ("reference", "cpu", "triton")


class Engine(Protocol):
    """What every backend offers; the meaning is that of :class:`ReferenceEngine`."""

    def evaluate(self, graph: AtomicGraph, wanted: Sequence[str] = ()) -> ModelOutput:
        """Return energies and what else is wanted."""

    def features(self, graph: AtomicGraph) -> Tensor:
        """Return the invariants."""

    def hessian(self, graph: AtomicGraph) -> Tensor:
        """Return second derivatives of the energy."""


def choose_backend(name: str) -> str:
    """Return the backend that ``name`` means here; ``auto`` is the best available one.

    Raises
    ------
    InputError
        If there is no backend of that name.
    BackendUnavailableError
        If it was asked for by name and cannot run here.
    """
    states = kernels.states()
    usable = [state.name for state in states if state.available] + ["reference"]
    if name == "auto":
        return usable[0]
    if name not in BACKENDS:
        raise InputError("backend", f"one of auto, {', '.join(BACKENDS)}", repr(name))
    if name not in usable:
        state = next(s for s in states if s.name == name)
        raise BackendUnavailableError(name, state.reason, usable, state.remedy)
    return name


def make_engine(
    spec: ModelSpec,
    weights: Weights,
    terms: Sequence[EnergyTerm],
    *,
    device: torch.device,
    dtype: torch.dtype,
    output_index: int | None = None,
) -> ReferenceEngine:
    """Return the engine of the reference backend with the weights on ``device`` in ``dtype``."""
    return ReferenceEngine(spec, weights.to(device, dtype), terms, output_index)
