"""The border to upstream's dictionaries: its inputs in, the outputs of a file's modules out.

Only here do string keys name tensors. Derivatives are taken by automatic differentiation through
the reference, so the outputs are differentiable with respect to positions and weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import pi

import torch
from torch import Tensor

from .engine import LongRange
from .errors import InputError, UnsupportedModelError
from .graph import AtomicGraph
from .reference import model
from .reference.ewald import OWN_SPHERE, Summation
from .reference.readout import readout
from .spec import (
    Add,
    Dephase,
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
from .structures import extra_inputs, species_of, trim

REQUIRED = ("positions", "atomic_numbers", "edge_index")


@dataclass(frozen=True)
class Call:
    """The options of one call, as upstream names them."""

    training: bool = False
    output_index: int | None = None
    how: Summation = OWN_SPHERE


@dataclass
class State:
    """What the modules of one sub-model share while they run."""

    graph: AtomicGraph
    feats: Tensor
    positions: Tensor
    strain: Tensor | None
    call: Call
    values: dict[str, Tensor] = field(default_factory=dict)
    lattice: dict[str, Tensor] = field(default_factory=dict)


class Forward:
    """Runs a specification on upstream's input dictionary.

    Parameters
    ----------
    spec, weights
        The model; the outputs have the dtype of the weights.
    long_range
        How to sum the long range.
    """

    def __init__(
        self, spec: ModelSpec, weights: Mapping[str, Tensor], long_range: LongRange | None = None
    ) -> None:
        self.spec, self.weights = spec, weights
        self.long_range = LongRange() if long_range is None else long_range

    def __call__(
        self,
        data: Mapping[str, Tensor],
        *,
        training: bool = False,
        compute_stress: bool | None = None,
        output_index: int | None = None,
        like_upstream: bool = False,
    ) -> dict[str, Tensor]:
        """Return the outputs; ``like_upstream`` scales parts by their weight and keeps its stress.

        See :meth:`cace_fast.potential.Potential.forward`.
        """
        grad_mode = torch.is_grad_enabled()
        with torch.enable_grad():
            positions = _tensor(data, "positions")
            if not positions.requires_grad:
                positions = positions.detach().requires_grad_(True)
            graph = graph_of_dict(data, positions, self.spec)
            stress = self._wants_stress(compute_stress, like_upstream)
            strain = torch.zeros_like(graph.cell, requires_grad=True) if stress else None
            moved = graph if strain is None else graph.strained(strain)
            feats = model.features(moved, self.weights, self.spec.representation)
            how = self.long_range.summation(graph, twice=training, cheapest=True)
            call = Call(training, output_index, how)
            results = []
            for number, sub in enumerate(self.spec.submodels):
                state = State(moved, feats, positions, strain, call)
                results.append(self._run(number, sub, state, like_upstream))
            out = self._combine(results, like_upstream)
        return out if grad_mode else {key: value.detach() for key, value in out.items()}

    def _wants_stress(self, asked: bool | None, like_upstream: bool) -> bool:
        """Tell whether to compute stress: on request, and where the file declares it."""
        declared = {key for sub in self.spec.submodels if sub.strain for key in _stress_keys(sub)}
        if not like_upstream:
            return bool(declared) if asked is None else asked
        default = self.spec.combination is None
        always = bool(declared & {"stress", "CACE_stress"})
        return bool(declared) and (always or (default if asked is None else asked))

    def _run(
        self, number: int, sub: SubModel, state: State, like_upstream: bool
    ) -> dict[str, Tensor]:
        for index, module in enumerate(sub.modules):
            prefix = f"outputs.{number}.{index}"
            given = isinstance(module, Forces) and module.calc_stress and sub.strain
            self._apply(module, prefix, state, given or not like_upstream)
        written = [key for module in sub.modules for key in written_keys(module)]
        wanted = [key for key in written if not sub.outputs or key in sub.outputs]
        wanted += () if like_upstream else _forces_stress(sub)
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

    def _apply(self, module: OutputModule, prefix: str, state: State, stress: bool) -> None:
        values = state.values
        if isinstance(module, Readout):
            self._readout(module, prefix, state)
        elif isinstance(module, Ewald):
            _ewald(module, state)
        elif isinstance(module, Add):
            values[module.output_key] = sum_of([_value(state, key) for key in module.features])
        elif isinstance(module, Forces):
            _forces(module, state, stress)
        elif isinstance(module, FixedCharge):
            charges = model.fixed_charges(module, self.spec.representation, state.graph.species)
            values[module.output_key] = charges.to(state.feats)
        elif isinstance(module, Polarization):
            _polarization(module, state)
        elif isinstance(module, Grad):
            _gradient_output(module, state)
        else:
            _dephase(module, state)

    def _readout(self, module: Readout, prefix: str, state: State) -> None:
        graph, values = state.graph, state.values
        inputs = {**graph.inputs, **values}
        x = model.readout_input(module, state.feats, inputs)
        y = readout(x, self.weights, module, prefix)
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


def graph_of_dict(data: Mapping[str, Tensor], positions: Tensor, spec: ModelSpec) -> AtomicGraph:
    """Return the graph of upstream's input dictionary (docs/conventions.md, "Input dictionary").

    A structure is open where its cell is zero and periodic where it is not singular.
    """
    for key in REQUIRED:
        _tensor(data, key)
    device, n = positions.device, positions.shape[0]
    batch = data.get("batch")
    batch = torch.zeros(n, dtype=torch.int64, device=device) if batch is None else batch
    ptr = data.get("ptr")
    n_systems = len(ptr) - 1 if ptr is not None else int(batch.max()) + 1 if n else 1
    raw = data.get("cell")
    cell = torch.zeros(n_systems, 3, 3) if raw is None else raw.detach()
    if cell.numel() != 9 * n_systems:
        raise InputError("data['cell']", f"{n_systems} cells of 3 x 3", tuple(cell.shape))
    cell = cell.to(device, torch.float64).reshape(n_systems, 3, 3)
    volume = torch.linalg.det(cell).abs()
    open_ = (cell == 0).flatten(1).all(1)
    if bool((~open_ & ~(volume > 0)).any()):
        raise InputError("data['cell']", "zero or three independent vectors", cell.tolist())
    senders, receivers = data["edge_index"][0], data["edge_index"][1]
    shifts = _unit_shifts(data, cell, batch, receivers, open_)
    if len(receivers) and not bool((receivers[1:] >= receivers[:-1]).all()):
        order = torch.argsort(receivers, stable=True)
        senders, receivers, shifts = senders[order], receivers[order], shifts[order]
    names = {*extra_inputs(spec), *spec.representation.forward_features}
    species = species_of(data["atomic_numbers"].cpu().numpy(), spec.representation)
    graph = AtomicGraph(
        positions=positions.to(torch.float64),
        species=torch.from_numpy(species).to(device),
        cell=cell,
        pbc=(~open_)[:, None].expand(-1, 3),
        batch=batch,
        senders=senders,
        receivers=receivers,
        shifts=shifts,
        inputs={key: _per_atom(data[key], batch, n) for key in names if key in data},
    )
    return trim(graph, spec.representation)


def _unit_shifts(
    data: Mapping[str, Tensor], cell: Tensor, batch: Tensor, receivers: Tensor, open_: Tensor
) -> Tensor:
    """Return integer shifts, from ``unit_shifts`` or from the Cartesian ``shifts``."""
    if "unit_shifts" in data:
        return data["unit_shifts"].detach().round().to(cell.device, torch.int64)
    if "shifts" not in data:
        raise InputError("data['shifts']", "shifts or unit_shifts for each edge", "neither")
    full = torch.where(
        open_[:, None, None], torch.eye(3, dtype=cell.dtype, device=cell.device), cell
    )
    inverse = torch.linalg.inv(full)[batch[receivers]]
    return torch.einsum("ex,exk->ek", data["shifts"].detach().to(cell), inverse).round().long()


def _per_atom(value: Tensor, batch: Tensor, n: int) -> Tensor:
    """Return an input with one row for each atom; one number for each structure is spread."""
    return value if value.dim() and len(value) == n else value.reshape(-1)[batch]


def _tensor(data: Mapping[str, Tensor], key: str) -> Tensor:
    if key not in data or not isinstance(data[key], Tensor):
        raise InputError(f"data[{key!r}]", "a tensor", type(data.get(key)).__name__)
    return data[key]


def _value(state: State, key: str) -> Tensor:
    if key in state.values:
        return state.values[key]
    if key in state.graph.inputs:
        return state.graph.inputs[key].to(state.feats)
    known = ", ".join([*state.values, *state.graph.inputs])
    raise InputError(
        f"data[{key!r}]", f"an input or an earlier output (there are {known})", "nothing"
    )


def sum_of(parts: list[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape."""
    shapes = {tuple(p.shape) for p in parts}
    if len(shapes) > 1:
        raise InputError("outputs to add", "equal shapes", sorted(shapes))
    return torch.stack(parts).sum(0)


def _ewald(module: Ewald, state: State) -> None:
    q = _value(state, module.feature_key)
    q = q.reshape(len(q), -1)
    result = model.ewald_of(module, q, state.graph, state.call.how)
    energy = model.by_system(result.energies, state.graph)
    energy = energy.sum(1) if module.aggregation == "sum" else energy
    state.values[module.output_key] = energy.to(state.feats)
    if module.compute_field:
        state.values[f"{module.feature_key}_field"] = result.potential.to(state.feats)


def _forces(module: Forces, state: State, stress: bool) -> None:
    energy = _value(state, module.energy_key)
    columns = energy.flatten(1).unbind(1) if energy.dim() > 1 else (energy,)
    gradients = [_derivatives(column, state) for column in columns]
    forces = torch.stack([-g[0] for g in gradients], -1)
    if module.calc_forces:
        state.values[module.forces_key] = forces if energy.dim() > 1 else forces[..., 0]
    if state.strain is not None and stress:
        per_strain = torch.stack([g[1] for g in gradients], -1).to(state.feats)
        per_strain = per_strain if energy.dim() > 1 else per_strain[..., 0]
        volume = torch.linalg.det(state.graph.cell.detach()).abs().to(per_strain)
        volume = torch.where(volume > 0, volume, torch.nan)  # an open system has no stress
        shape = (-1, *[1] * (per_strain.dim() - 1))
        state.values[module.virial_key] = -per_strain
        state.values[module.stress_key] = per_strain / volume.reshape(shape)


def _derivatives(energy: Tensor, state: State) -> tuple[Tensor, ...]:
    leaves = [state.positions] + ([state.strain] if state.strain is not None else [])
    if not energy.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(
        energy.sum(), leaves, create_graph=state.call.training, retain_graph=True,
        materialize_grads=True,
    )  # fmt: skip


def _polarization(module: Polarization, state: State) -> None:
    """Write P (docs/theory.md, equations 31 and 32), its phase, and its lattice components."""
    graph = state.graph
    q = _value(state, module.charge_key).reshape(graph.n_atoms, -1).to(torch.float64)
    if q.shape[1] != 1:
        raise InputError(module.charge_key, "one charge channel for a polarisation", q.shape[1])
    if module.remove_mean:
        count = torch.bincount(graph.batch, minlength=graph.n_systems).clamp(min=1)
        q = q - (model.by_system(q, graph) / count[:, None])[graph.batch]
    q = q * module.normalization_factor
    pick = slice(None) if module.output_index is None else module.output_index
    if not module.pbc or not bool(graph.pbc.all()):
        total = model.by_system(q * graph.positions, graph)
        phase = torch.ones_like(graph.positions, dtype=torch.complex128)
    else:
        inverse = torch.linalg.inv(graph.cell)[graph.batch]
        angle = 2.0 * pi * torch.einsum("nx,nxk->nk", graph.positions, inverse)
        phase = torch.polar(torch.ones_like(angle), angle)
        lattice = model.by_system(q * phase, graph) / (2.0j * pi)
        state.lattice[module.output_key] = lattice
        total = torch.einsum("sk,skx->sx", lattice, graph.cell.to(lattice.dtype))
    state.values[module.output_key] = total[:, pick]
    if module.phase_key is not None:
        state.values[module.phase_key] = phase.detach()


def _gradient(y: Tensor, x: Tensor, state: State) -> Tensor:
    """Return dy/dx [N, 3, ...] of a real or complex output, summed over structures."""
    columns = y.flatten(1).unbind(1) if y.dim() > 1 else (y,)
    found = []
    for column in columns:
        parts = [column.real, column.imag] if column.is_complex() else [column]
        grads = [
            torch.autograd.grad(
                p.sum(), x, create_graph=state.call.training, retain_graph=True,
                materialize_grads=True,
            )[0].to(torch.float64)
            for p in parts
        ]  # fmt: skip
        found.append(torch.complex(*grads) if len(grads) == 2 else grads[0])
    return torch.stack(found, -1) if y.dim() > 1 else found[0]


def _gradient_output(module: Grad, state: State) -> None:
    if module.x_key != "positions":
        raise InputError("Grad.x_key", "'positions'", repr(module.x_key))
    state.values[module.output_key] = _gradient(_value(state, module.y_key), state.positions, state)
    if module.y_key in state.lattice:
        state.lattice[module.output_key] = _gradient(
            state.lattice[module.y_key], state.positions, state
        )


def _dephase(module: Dephase, state: State) -> None:
    """Write Re(dP/dr conj phase), each lattice component with its own phase before mixing."""
    phase = _value(state, module.phase_key).conj()
    if module.input_key not in state.lattice:
        value = _value(state, module.input_key)
        state.values[module.output_key] = value.real if value.is_complex() else value
        return
    turned = (state.lattice[module.input_key] * phase[:, None, :]).real
    mixed = torch.einsum("nak,nkx->nax", turned, state.graph.cell[state.graph.batch])
    if _value(state, module.input_key).dim() != 3:
        expected = "all three components of a polarisation to dephase"
        raise InputError(module.input_key, expected, "one of them")
    state.values[module.output_key] = mixed


def _stress_keys(sub: SubModel) -> tuple[str, ...]:
    return tuple(m.stress_key for m in sub.modules if isinstance(m, Forces) and m.calc_stress)


def _forces_stress(sub: SubModel) -> tuple[str, ...]:
    return tuple(m.stress_key for m in sub.modules if isinstance(m, Forces))
