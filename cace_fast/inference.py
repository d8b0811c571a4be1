"""Upstream's outputs by a fast engine; plain torch computes their derivatives when they are wanted.

An engine computes features and the derivatives of energies; the reference computes the rest, which
is small (read-outs of given features, sums over structures). When an output is differentiated, the
reference runs as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .engine import Engine, LongRange, make_engine
from .errors import InputError, UnsupportedModelError
from .graph import AtomicGraph
from .spec import (
    Dephase,
    EnergyProgram,
    Forces,
    Grad,
    ModelSpec,
    Readout,
    energy_column,
    energy_terms,
    program_of,
)
from .weights import Weights

Outputs = dict[str, Tensor]


class Inference:
    """The engines that compute a model's features, and forces of each of its energies.

    They serve :class:`cace_fast.forward.Forward` (decision 0020).

    Parameters
    ----------
    spec, weights
        The model, on the device and in the dtype to compute with. Engines take a copy: later
        changes of the weights are not seen.
    backend
        As for :func:`cace_fast.engine.make_engine`.
    long_range
        How to sum the long range.
    """

    def __init__(
        self, spec: ModelSpec, weights: Mapping[str, Tensor], backend: str, long_range: LongRange
    ) -> None:
        self._spec, self._backend, self._long_range = spec, backend, long_range
        self._weights = {name: t.detach() for name, t in weights.items()}
        self._engines: dict[EnergyProgram, Engine] = {}
        self._programs: dict[int | None, dict[tuple[int, str], EnergyProgram] | None] = {}

    def serves(self, output_index: int | None) -> bool:
        """Tell whether a fast engine computes all forces among the outputs (decision 0020)."""
        if output_index not in self._programs:
            self._programs[output_index] = self._programs_of(output_index)
        return self._programs[output_index] is not None

    def _programs_of(self, output_index: int | None) -> dict[tuple[int, str], EnergyProgram] | None:
        """Return the programs of all energies that forces are taken of; None without engines."""
        found: dict[tuple[int, str], EnergyProgram] = {}
        try:
            for number, module in self._derivatives():
                key = module.energy_key
                terms = energy_terms(self._spec, key, submodel=number)
                for term in terms:
                    if isinstance(term.module, Readout):
                        energy_column(term.module.n_out, output_index)
                    elif term.module.aggregation != "sum":
                        raise UnsupportedModelError("forces of every channel of an Ewald sum")
                found[number, key] = program_of(self._spec, terms, output_index, key)
            programs = list(found.values()) or [program_of(self._spec, ())]
            if any(self._engine(p).backend == "reference" for p in programs):
                return None
        except (UnsupportedModelError, InputError):
            return None
        return found

    def _derivatives(self) -> Iterator[tuple[int, Forces]]:
        """Yield every module of forces with its sub-model.

        Raises
        ------
        UnsupportedModelError
            For derivatives that no engine computes.
        """
        for number, sub in enumerate(self._spec.submodels):
            for index, module in enumerate(sub.modules):
                if isinstance(module, Grad | Dephase):
                    raise UnsupportedModelError("derivatives of other outputs than energies")
                if isinstance(module, Forces):
                    key = module.energy_key
                    if sub.producer(key, index) != sub.producer(key):
                        raise UnsupportedModelError("forces of an energy before it is complete")
                    yield number, module

    def _engine(self, program: EnergyProgram) -> Engine:
        if program not in self._engines:
            like = self._weights["embedding.sender"]
            self._engines[program] = make_engine(
                self._spec,
                Weights(self._spec, self._weights),
                program,
                backend=self._backend,
                device=like.device,
                dtype=like.dtype,
                long_range=self._long_range,
            )
        return self._engines[program]

    def features(self, graph: AtomicGraph) -> Tensor:
        """Return the invariants [n, n_radial, n_B, C, T] in the working dtype (equation 21)."""
        if not self._engines:
            self._engine(program_of(self._spec, ()))
        return next(iter(self._engines.values())).features(graph)

    def derivatives(
        self, number: int, key: str, graph: AtomicGraph, output_index: int | None, *, stress: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return dE/dr [n, 3] in eV/A and, with ``stress``, dE/dstrain [n_systems, 3, 3] in eV.

        E is the energy ``key`` of the sub-model ``number``; :meth:`serves` was called before.

        Raises
        ------
        InputError, CaceFastError
            As for :meth:`cace_fast.engine.protocol.Engine.evaluate`.
        """
        programs = self._programs[output_index]
        assert programs is not None
        wanted = ("forces", "virials") if stress else ("forces",)
        found = self._engine(programs[number, key]).evaluate(graph, wanted)
        assert found.forces is not None
        return -found.forces, None if found.virials is None else -found.virials


class _Differentiable(torch.autograd.Function):
    """Values as they are, with the derivatives of what ``again(leaves)`` returns."""

    @staticmethod
    def forward(
        ctx: Any,
        again: Callable[[Sequence[Tensor]], Sequence[Tensor]],
        values: Sequence[Tensor],
        *leaves: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.again = again
        ctx.save_for_backward(*leaves)
        return tuple(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        leaves, higher = ctx.saved_tensors, torch.is_grad_enabled()
        with torch.enable_grad():
            pairs = [
                (y, g)
                for y, g in zip(ctx.again(leaves), grads, strict=True)
                if g is not None and y.requires_grad
            ]
            found = (
                torch.autograd.grad(
                    [y for y, _ in pairs],
                    leaves,
                    [g for _, g in pairs],
                    create_graph=higher,
                    materialize_grads=True,
                )
                if pairs
                else tuple(map(torch.zeros_like, leaves))
            )
        return None, None, *found


def differentiable(
    values: Outputs, again: Callable[[Sequence[Tensor]], Outputs], leaves: Sequence[Tensor]
) -> Outputs:
    """Return ``values`` whose derivatives, of any order, are those of the results of ``again``.

    ``again`` takes the ``leaves`` to differentiate by (decision 0020).
    """
    names = list(values)

    def in_order(leaves: Sequence[Tensor]) -> list[Tensor]:
        found = again(leaves)
        return [found[name] for name in names]

    got = _Differentiable.apply(in_order, list(values.values()), *leaves)  # type: ignore[no-untyped-call]
    return dict(zip(names, got, strict=True))
