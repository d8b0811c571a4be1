"""Checks that what enters and leaves an engine is finite; errors say where it is not."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from math import isfinite
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from cace_fast.errors import CaceFastError, InputError, PropertyNotImplementedError
from cace_fast.geometry import check_finite, some
from cace_fast.graph import AtomicGraph, ModelOutput
from cace_fast.reference.atomic import columns_of
from cace_fast.spec import EnergyProgram

from .long_range import LongRange

BY_SYSTEM = ("energy", "virials")


class Sums(Protocol):
    """The Ewald sums of an engine and their settings, which the checks look at.

    See ``docs/theory.md``, 9.
    """

    program: EnergyProgram
    long_range: LongRange


P = ParamSpec("P")
E = TypeVar("E", bound=Sums)


def checked(
    evaluate: Callable[Concatenate[E, AtomicGraph, P], ModelOutput],
) -> Callable[Concatenate[E, AtomicGraph, P], ModelOutput]:
    """Make ``evaluate`` of an engine check its graph, and that its results are finite.

    It raises the errors of :func:`check_input` and :func:`check_output`.
    """

    @wraps(evaluate)
    def call(engine: E, graph: AtomicGraph, /, *args: P.args, **kwargs: P.kwargs) -> ModelOutput:
        check_input(engine, graph)
        return check_output(evaluate(engine, graph, *args, **kwargs))

    return call


def check_positions(positions: Tensor) -> None:
    """Raise InputError for positions [n, 3] that are not finite (``docs/user/errors.md``)."""
    if not _sums_are_finite([positions]):
        check_finite(torch.nonzero(~torch.isfinite(positions).all(1)).flatten().cpu().numpy())


def check_graph(graph: AtomicGraph) -> None:
    """Raise InputError for positions or cells of a graph that are not finite.

    See ``docs/user/errors.md``.
    """
    check_positions(graph.positions)
    if not (_sums_are_finite([graph.cell]) or bool(torch.isfinite(graph.cell).all())):
        raise InputError("cell", "finite numbers", graph.cell.tolist())


def check_input(engine: Sums, graph: AtomicGraph) -> None:
    """Raise InputError as :func:`check_graph` does, or for a box with too many vectors k."""
    check_graph(graph)
    if engine.program.terms:
        engine.long_range.check_size(graph, (t.ewald for t in engine.program.terms))


def require_atom_virials(program: EnergyProgram, wanted: Collection[str]) -> None:
    """Raise PropertyNotImplementedError for atoms' virials of an energy that has charges.

    See ``docs/conventions.md``, "Heat flux".
    """
    if "atom_virials" in wanted and program.terms:
        raise PropertyNotImplementedError(
            "atom_virials: this model has a long-range energy, which no sum over neighbours "
            "divides among atoms; 'virials' exists for every model"
        )


def check_output(output: ModelOutput) -> ModelOutput:
    """Return the results; raise CaceFastError, with the atoms, if they are not finite.

    ``docs/user/errors.md`` explains the error.
    """
    parts = {name: t for name, t in vars(output).items() if t is not None}
    if _sums_are_finite(parts.values()):
        return output
    for name, values in parts.items():
        rows = torch.isfinite(columns_of(values)).all(1)
        bad = torch.nonzero(~rows).flatten().cpu().numpy()
        if len(bad):
            who = "structures" if name in BY_SYSTEM else "atoms"
            raise CaceFastError(f"{name}: not finite for {who} {some(bad)} of this evaluation")
    return output


def _sums_are_finite(tensors: Collection[Tensor]) -> bool:
    """Tell whether each sum is finite, which it is only if all its terms are.

    The host waits for a device once. On the CPU numpy's calls are quicker, for few atoms.
    """
    if all(t.device.type == "cpu" for t in tensors):
        return all(isfinite(np.add.reduce(t.detach().numpy(), axis=None)) for t in tensors)
    sums = torch.stack([t.detach().sum(dtype=torch.float64) for t in tensors])
    return bool(torch.isfinite(sums).all())
