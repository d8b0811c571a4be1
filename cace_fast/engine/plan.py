"""What the compiled engine has to evaluate for an energy, decided from the specification."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_double
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cace_fast.errors import InputError, UnsupportedModelError
from cace_fast.graph import AtomicGraph
from cace_fast.kernels.cpu import library
from cace_fast.kernels.heads import Extra, Head
from cace_fast.reference import model
from cace_fast.reference.atomic import FIXED_CHARGE_UNIT, fixed_charges, given_input
from cace_fast.reference.long_range import field_of
from cace_fast.spec import EnergyTerm, Ewald, FixedCharge, ModelSpec, Readout, taken_by


@dataclass
class Plan:
    """Heads (read-outs) and Ewald terms for the library.

    ``sources`` say what the heads take; ``modules`` are the Ewald modules of the terms, ``fixed``
    and ``charge_heads`` where their charges come from: a module of fixed charges, or the number of
    a head. ``kept`` are arrays that terms point to; ``problem`` what the caller has to choose
    before anything is evaluated.
    """

    spec: ModelSpec
    heads: list[library.Head] = field(default_factory=list)
    sources: list[Head] = field(default_factory=list)
    terms: list[library.LongRange] = field(default_factory=list)
    modules: list[Ewald] = field(default_factory=list)
    fixed: list[FixedCharge | None] = field(default_factory=list)
    charge_heads: list[int | None] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    problem: InputError | None = None

    def check(self) -> None:
        """Raise what keeps the plan from being evaluated."""
        if self.problem is not None:
            raise self.problem

    def check_elements(self, graph: AtomicGraph) -> None:
        """Raise InputError for atoms whose element has no fixed charge."""
        given = [extra.fixed for source in self.sources for extra in source.extras]
        for module in dict.fromkeys([*self.fixed, *given]):
            if module is not None:
                fixed_charges(module, self.spec.representation, graph.species)

    def extras(self, number: int, graph: AtomicGraph) -> Tensor | None:
        """Return the extra inputs [n, n_extra] float64 of a head, None where it has none."""
        parts = [self._extra(extra, graph) for extra in self.sources[number].extras]
        return torch.cat(parts, 1) if parts else None

    def all_extras(self, graph: AtomicGraph) -> list[library.Floats | None]:
        """Return the extra inputs [n, n_extra] of every head, None where it has none."""
        found = [self.extras(number, graph) for number in range(len(self.heads))]
        return [None if x is None else np.ascontiguousarray(x.numpy()) for x in found]

    def no_extras(self, n_atoms: int) -> list[library.Floats | None]:
        """Return zeros in the place of extra inputs, for what does not depend on them."""
        widths = [source.n_extra for source in self.sources]
        return [np.zeros((n_atoms, width)) if width else None for width in widths]

    def fields(self, graph: AtomicGraph) -> tuple[library.Floats, library.Ints] | None:
        """Return fields and directions [n_terms, n_systems]; None where the modules have them."""
        own = [(m.external_field, m.external_field_direction) for m in self.modules]
        if not any(isinstance(value, str) for pair in own for value in pair):
            return None
        ends = torch.bincount(graph.batch, minlength=graph.n_systems).cumsum(0).tolist()
        atoms = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
        found = [
            [field_of(m, graph.inputs, s) if s.stop > s.start else (0.0, 0) for s in atoms]
            for m in self.modules
        ]
        pairs = np.array(found, dtype=np.float64).reshape(len(found), len(atoms), 2)
        return np.ascontiguousarray(pairs[..., 0]), pairs[..., 1].astype(np.int64)

    def _extra(self, extra: Extra, graph: AtomicGraph) -> Tensor:
        if extra.fixed is not None:
            return fixed_charges(extra.fixed, self.spec.representation, graph.species)
        columns = [given_input(key, graph.inputs) for key in extra.keys]
        found = torch.cat([c.flatten(1) if c.dim() > 1 else c[:, None] for c in columns], 1)
        if found.shape[1] != extra.width:
            expected = f"{extra.width} numbers per atom in {', '.join(extra.keys)}"
            raise InputError("inputs", expected, found.shape[1])
        return found.to(torch.float64)


def plan_of(spec: ModelSpec, terms: Sequence[EnergyTerm], output_index: int | None) -> Plan:
    """Return what to evaluate for the sum of ``terms``.

    Raises
    ------
    UnsupportedModelError
        If a term needs what the library does not have.
    """
    plan = Plan(spec)
    energies: dict[tuple[int, int], int] = {}
    charges: dict[tuple[int, int], int] = {}
    for term in terms:
        if isinstance(term.module, Readout):
            _add_energy(plan, energies, term, output_index)
    for term in terms:
        if isinstance(term.module, Ewald):
            _add_long_range(plan, charges, term)
    return plan


def _add_energy(
    plan: Plan, heads: dict[tuple[int, int], int], term: EnergyTerm, output_index: int | None
) -> None:
    module = term.module
    assert isinstance(module, Readout)
    key = (term.submodel, term.index)
    if key in heads:
        plan.heads[heads[key]].energy_weight += term.weight
        return
    column = 0
    try:
        column = model.energy_column(module.n_out, output_index)
    except InputError as error:
        plan.problem = error
    heads[key] = _add_head(plan, *key)
    head = plan.heads[-1]
    head.energy_column, head.energy_weight = column, term.weight
    head.average = module.aggregation == "avg"


def _add_head(plan: Plan, submodel: int, index: int) -> int:
    """Append a head that gives neither energy nor charges yet; return its number."""
    n_features = plan.spec.representation.n_features
    plan.sources.append(Head(plan.spec.submodels[submodel], submodel, index, n_features))
    plan.heads.append(library.Head(submodel, index, -1, 0, 0, 0.0))
    return len(plan.heads) - 1


def _add_long_range(plan: Plan, heads: dict[tuple[int, int], int], term: EnergyTerm) -> None:
    module, sub = term.module, plan.spec.submodels[term.submodel]
    assert isinstance(module, Ewald)
    (taken,) = taken_by(sub, term.index)
    producer = None if taken.place is None else sub.modules[taken.place]
    native = library.LongRange(_ewald(module), term.weight, 0, 1, None)
    fixed, number = None, None
    if isinstance(producer, FixedCharge):
        fixed = producer
        table = dict(producer.charges)
        unit = FIXED_CHARGE_UNIT if producer.normalize else 1.0
        # elements without a charge are refused before evaluation
        values = [unit * table.get(z, 0.0) for z in plan.spec.representation.elements]
        array = (c_double * len(values))(*values)
        plan.kept.append(array)
        native.fixed = array
    elif taken.kind == "y":
        assert taken.place is not None
        key = (term.submodel, taken.place)
        if key not in heads:
            heads[key] = _add_head(plan, *key)
            plan.heads[-1].charges = 1
        number = heads[key]
        native.first_charge = _n_charges(plan, number)
        native.n_charges = plan.sources[number].n_out
    elif taken.kind == "input":
        raise UnsupportedModelError("charges that are an input of the structure")
    else:
        raise UnsupportedModelError(f"charges that are the {taken.kind} of another module")
    plan.terms.append(native)
    plan.modules.append(module)
    plan.fixed.append(fixed)
    plan.charge_heads.append(number)


def _n_charges(plan: Plan, number: int) -> int:
    """Return how many charges the heads before one give."""
    pairs = zip(plan.heads[:number], plan.sources, strict=False)
    return sum(source.n_out for head, source in pairs if head.charges)


def _ewald(module: Ewald) -> library.EwaldSpec:
    """Return the settings; fields that are inputs of the structures come with these."""
    field, direction = module.external_field, module.external_field_direction
    return library.EwaldSpec(
        dl=module.dl,
        sigma=module.sigma,
        norm=module.norm_factor,
        field=0.0 if isinstance(field, str) else float(field or 0.0),
        neutral_lambda=float(module.charge_neutral_lambda or 0.0),
        exponent=module.exponent,
        remove_self=module.remove_self_interaction,
        field_direction=0 if isinstance(direction, str) else int(direction or 0),
    )
