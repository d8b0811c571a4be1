"""Upstream's dictionaries: its inputs come in, the outputs of a file's modules go out.

Only here do string keys name tensors. The outputs are differentiable with respect to positions and
weights. A fast engine computes features and forces where there is one, and the reference where
derivatives of forces are wanted; derivatives of outputs always come from the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import outputs
from .engine import LongRange
from .errors import CaceFastError, UnsupportedModelError
from .graph import AtomicGraph
from .inference import Inference, differentiable
from .input_dictionary import graph_of_dict, tensor_of
from .outputs import Call, State
from .process import ordinary, ordinary_tensor
from .reference import model
from .reference.atomic import fixed_charges, readout_input, sum_of
from .reference.readout import readout
from .spec import (
    Add,
    Ewald,
    FixedCharge,
    Forces,
    Grad,
    ModelSpec,
    OutputModule,
    Polarization,
    Readout,
    SubModel,
    written_keys,
)


class _Asked(NamedTuple):
    """The options of one call."""

    training: bool
    compute_stress: bool | None
    output_index: int | None
    like_upstream: bool


class Forward:
    """Runs a specification on upstream's input dictionary (``docs/conventions.md``).

    Parameters
    ----------
    spec, weights
        The model; the outputs have the dtype of the weights.
    long_range
        How to sum the long range.
    inference
        The fast engines of these weights; None for the reference alone.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Mapping[str, Tensor],
        long_range: LongRange | None = None,
        inference: Inference | None = None,
    ) -> None:
        self.spec, self.weights, self.inference = spec, weights, inference
        self.long_range = LongRange() if long_range is None else long_range

    @classmethod
    def of(
        cls, spec: ModelSpec, weights: Mapping[str, Tensor], long_range: LongRange, backend: str
    ) -> Forward:
        """Return an instance with the engines of a backend, for constant weights.

        See ``docs/developer/decisions``, 0020.
        """
        return cls(spec, weights, long_range, Inference(spec, weights, backend, long_range))

    @ordinary
    def __call__(
        self,
        data: Mapping[str, Tensor],
        *,
        training: bool = False,
        compute_stress: bool | None = None,
        output_index: int | None = None,
        like_upstream: bool = False,
    ) -> dict[str, Tensor]:
        """Return the outputs; see :meth:`cace_fast.potential.Potential.forward`.

        With ``like_upstream`` reported parts have their weight, and stress is computed when
        upstream does.
        """
        data = {k: ordinary_tensor(v) if isinstance(v, Tensor) else v for k, v in data.items()}
        call = _Asked(training, compute_stress, output_index, like_upstream)
        fast = self.inference
        if fast is None or training or not fast.serves(output_index):
            return self._by_reference(data, self.weights, call)
        with torch.no_grad():
            found = self._by_engine(data, call, fast)
        tensors = {k: v for k, v in data.items() if isinstance(v, Tensor)}
        names = [k for k, v in tensors.items() if v.requires_grad]
        own = [k for k, v in self.weights.items() if v.requires_grad]
        if not torch.is_grad_enabled() or not (names or own):
            return found

        def again(leaves: Sequence[Tensor]) -> dict[str, Tensor]:
            given = data | dict(zip(names, leaves, strict=False))
            weights = dict(self.weights) | dict(zip(own, leaves[len(names) :], strict=True))
            return self._by_reference(given, weights, call)

        leaves = [tensors[k] for k in names] + [self.weights[k] for k in own]
        fixed = self._derivatives_among(found)
        return differentiable({k: v for k, v in found.items() if k not in fixed}, again, leaves) | {
            k: found[k] for k in fixed
        }

    def _by_engine(
        self, data: Mapping[str, Tensor], asked: _Asked, fast: Inference
    ) -> dict[str, Tensor]:
        """Return the outputs as numbers."""
        positions = tensor_of(data, "positions").detach()
        graph = self._graph(data, positions)
        stress = self._wants_stress(asked)
        strain = torch.zeros_like(graph.cell) if stress else None
        how = self.long_range.summation(graph, twice=False, cheapest=True)
        call = Call(False, asked.output_index, how)
        feats = fast.features(graph)

        def state_of(number: int) -> State:
            def derivatives(key: str) -> tuple[Tensor, Tensor | None]:
                found, of_strain = fast.derivatives(
                    number, key, graph, asked.output_index, stress=stress
                )
                return found.to(positions), of_strain

            return State(graph, feats, positions, strain, call, derivatives)

        return self._outputs(state_of, self.weights, asked)

    def _by_reference(
        self, data: Mapping[str, Tensor], weights: Mapping[str, Tensor], asked: _Asked
    ) -> dict[str, Tensor]:
        """Return the outputs of plain torch."""
        grad_mode = torch.is_grad_enabled()
        with torch.enable_grad():
            positions = tensor_of(data, "positions")
            if not positions.requires_grad:
                positions = positions.detach().requires_grad_(True)
            graph = self._graph(data, positions)
            stress = self._wants_stress(asked)
            strain = torch.zeros_like(graph.cell, requires_grad=True) if stress else None
            moved = graph if strain is None else graph.strained(strain)
            feats = model.features(moved, weights, self.spec.representation)
            how = self.long_range.summation(graph, twice=asked.training, cheapest=True)
            call = Call(asked.training, asked.output_index, how)

            def state_of(_number: int) -> State:
                return State(moved, feats, positions, strain, call)

            out = self._outputs(state_of, weights, asked)
        return out if grad_mode else {key: value.detach() for key, value in out.items()}

    def _outputs(
        self, state_of: Callable[[int], State], weights: Mapping[str, Tensor], asked: _Asked
    ) -> dict[str, Tensor]:
        """Return the outputs of all sub-models, each run from its state."""
        results = []
        for number, sub in enumerate(self.spec.submodels):
            results.append(self._run(number, sub, state_of(number), weights, asked))
            _check_finite(results[-1], without=_forces_stress(sub))
        return self._combine(results, asked.like_upstream)

    def _graph(self, data: Mapping[str, Tensor], positions: Tensor) -> AtomicGraph:
        graph = graph_of_dict(data, positions, self.spec)
        modules = (m for sub in self.spec.submodels for m in sub.modules)
        self.long_range.check_size(graph, modules)
        return graph

    def _derivatives_among(self, out: Mapping[str, Tensor]) -> set[str]:
        """Return the keys of outputs that are derivatives of energies."""
        keys = [
            {
                key
                for module in sub.modules
                if isinstance(module, Forces)
                for key in (module.forces_key, module.virial_key, module.stress_key)
            }
            for sub in self.spec.submodels
        ]
        found = {"stress"}.union(*keys)
        if self.spec.combination is not None:
            pairs = zip(keys, self.spec.combination.keys, strict=True)
            found |= {name for known, names in pairs for name, own in names if own in known}
        return found & set(out)

    def _wants_stress(self, call: _Asked) -> bool:
        """Tell whether to compute stress: on request, and where the file declares it."""
        asked = call.compute_stress
        declared = {key for sub in self.spec.submodels if sub.strain for key in _stress_keys(sub)}
        if not call.like_upstream:
            return bool(declared) if asked is None else asked
        default = self.spec.combination is None
        always = bool(declared & {"stress", "CACE_stress"})
        return bool(declared) and (always or (default if asked is None else asked))

    def _run(
        self, number: int, sub: SubModel, state: State, weights: Mapping[str, Tensor], asked: _Asked
    ) -> dict[str, Tensor]:
        for index, module in enumerate(sub.modules):
            prefix = f"outputs.{number}.{index}"
            given = isinstance(module, Forces) and module.calc_stress and sub.strain
            self._apply(module, prefix, state, weights, given or not asked.like_upstream)
        written = [key for module in sub.modules for key in written_keys(module)]
        wanted = [key for key in written if not sub.outputs or key in sub.outputs]
        wanted += () if asked.like_upstream else _forces_stress(sub)
        if self.spec.combination is not None:
            wanted += [own for _, own in self.spec.combination.keys[number]]
        return {key: state.values[key] for key in wanted if key in state.values}

    def _combine(self, results: list[dict[str, Tensor]], like_upstream: bool) -> dict[str, Tensor]:
        combination = self.spec.combination
        if combination is None:
            return results[0] if results else {}
        out: dict[str, Tensor] = {}
        sums: dict[str, Tensor] = {}
        pairs = list(zip(results, combination.keys, combination.weights, strict=True))
        for result, keys, weight in pairs:
            scaled = dict(result)
            for name, own in keys:
                if name in combination.names:
                    if own not in result:
                        raise UnsupportedModelError(f"{name!r}: no module gives its part {own!r}")
                    part = weight * result[own]
                    sums[name] = sums[name] + part if name in sums else part
                    if like_upstream:
                        scaled[own] = part
            out.update(scaled)
        stresses = [(r["stress"], w) for r, _, w in pairs if "stress" in r]
        if not like_upstream and len(stresses) == len(pairs):
            sums["stress"] = torch.stack([w * s for s, w in stresses]).sum(0)
        return out | sums

    def _apply(
        self,
        module: OutputModule,
        prefix: str,
        state: State,
        weights: Mapping[str, Tensor],
        stress: bool,
    ) -> None:
        values = state.values
        if isinstance(module, Readout):
            _readout(module, prefix, state, weights)
        elif isinstance(module, Ewald):
            outputs.ewald(module, state)
        elif isinstance(module, Add):
            values[module.output_key] = sum_of(
                [outputs.value_of(state, key) for key in module.features]
            )
        elif isinstance(module, Forces):
            outputs.forces(module, state, stress)
        elif isinstance(module, FixedCharge):
            charges = fixed_charges(module, self.spec.representation, state.graph.species)
            values[module.output_key] = charges.to(state.feats)
        elif isinstance(module, Polarization):
            outputs.polarization(module, state)
        elif isinstance(module, Grad):
            outputs.gradient_output(module, state)
        else:
            outputs.dephase(module, state)


def _readout(module: Readout, prefix: str, state: State, weights: Mapping[str, Tensor]) -> None:
    graph, values = state.graph, state.values
    parts = [
        state.feats if key == "node_feats" else outputs.value_of(state, key).to(state.feats)
        for key in module.features
    ]
    x = readout_input(module, parts)
    y = readout(x, weights, module, prefix)
    if module.per_atom_key is not None:
        values[module.per_atom_key] = y
    if module.descriptor_key is not None:
        values[module.descriptor_key] = x
    if module.aggregation is None:
        values[module.output_key] = y
        return
    total = model.by_system(y.to(torch.float64), graph)
    if module.aggregation == "avg":
        count = torch.bincount(graph.batch, minlength=graph.n_systems).clamp(min=1)
        total = total / count[:, None]
    if state.call.output_index is not None and total.shape[1] > 1:
        total = total[:, state.call.output_index]
    elif total.shape[1] == 1:
        total = total[:, 0]
    values[module.output_key] = total.to(y.dtype)


def _check_finite(found: Mapping[str, Tensor], without: Collection[str]) -> None:
    """Raise CaceFastError for outputs that are not finite; the stress of an open system is NaN."""
    bad = [key for key, value in found.items() if not bool(torch.isfinite(value).all())]
    if set(bad) - set(without):
        raise CaceFastError(f"{min(set(bad) - set(without))}: not finite")


def _stress_keys(sub: SubModel) -> tuple[str, ...]:
    return tuple(m.stress_key for m in sub.modules if isinstance(m, Forces) and m.calc_stress)


def _forces_stress(sub: SubModel) -> tuple[str, ...]:
    return tuple(m.stress_key for m in sub.modules if isinstance(m, Forces))
