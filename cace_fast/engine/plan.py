"""What the compiled engine has to evaluate for an energy, decided from the specification."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import c_double
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cace_fast.errors import InputError, UnsupportedModelError
from cace_fast.graph import AtomicGraph
from cace_fast.kernels.cpu import library
from cace_fast.reference import model
from cace_fast.spec import EnergyTerm, Ewald, FixedCharge, ModelSpec, Readout


@dataclass
class Plan:
    """Heads (read-outs) and Ewald terms for the library.

    ``modules`` are the heads' read-outs; ``fixed`` the modules of fixed charges; ``kept`` arrays
    that terms point to; ``problem`` what the caller has to choose before anything is evaluated.
    """

    n_features: int
    heads: list[library.Head] = field(default_factory=list)
    modules: list[Readout] = field(default_factory=list)
    terms: list[library.LongRange] = field(default_factory=list)
    fixed: list[FixedCharge] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)
    problem: InputError | None = None

    def check(self) -> None:
        """Raise what keeps the plan from being evaluated."""
        if self.problem is not None:
            raise self.problem

    def all_extras(self, graph: AtomicGraph) -> list[library.Floats | None]:
        """Return the extra inputs [n, n_extra] of every head, None where it has none."""
        return [self._extras(module, graph) for module in self.modules]

    def no_extras(self, n_atoms: int) -> list[library.Floats | None]:
        """Return zeros in the place of extra inputs, for what does not depend on them."""
        widths = [module.mlp.widths[0] - self.n_features for module in self.modules]
        return [np.zeros((n_atoms, width)) if width else None for width in widths]

    def _extras(self, module: Readout, graph: AtomicGraph) -> library.Floats | None:
        names = [key for key in module.features if key != "node_feats"]
        if not names:
            return None
        columns = model.input_columns(module, names, graph.inputs)
        found = np.concatenate([c.double().numpy() for c in columns], axis=1)
        model.check_width(module, self.n_features + found.shape[1])
        return np.ascontiguousarray(found)


def plan_of(spec: ModelSpec, terms: Sequence[EnergyTerm], output_index: int | None) -> Plan:
    """Return what to evaluate for the sum of ``terms``.

    Raises
    ------
    UnsupportedModelError
        If a term needs what the library does not have.
    """
    plan = Plan(spec.representation.n_features)
    heads: dict[tuple[int, int], int] = {}
    for term in terms:
        if isinstance(term.module, Readout):
            _add_energy(plan, heads, term, output_index)
    first_charge: dict[tuple[int, int], int] = {}
    for term in terms:
        if isinstance(term.module, Ewald):
            _add_long_range(plan, heads, first_charge, term, spec)
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
    heads[key] = _add_head(plan, key, module)
    head = plan.heads[-1]
    head.energy_column, head.energy_weight = column, term.weight
    head.average = module.aggregation == "avg"


def _add_head(plan: Plan, key: tuple[int, int], module: Readout) -> int:
    """Append a head that gives neither energy nor charges yet; return its number."""
    if "node_feats" not in module.features:
        raise UnsupportedModelError("a read-out that does not take the features")
    before = module.features.index("node_feats")
    n_extra = module.mlp.widths[0] - plan.n_features
    if before and n_extra != len(module.features) - 1:
        raise UnsupportedModelError(
            "a read-out with inputs of several numbers in front of the features"
        )
    plan.heads.append(library.Head(*key, -1, 0, 0, before, 0.0))
    plan.modules.append(module)
    return len(plan.heads) - 1


def _add_long_range(
    plan: Plan,
    heads: dict[tuple[int, int], int],
    first_charge: dict[tuple[int, int], int],
    term: EnergyTerm,
    spec: ModelSpec,
) -> None:
    module = term.module
    assert isinstance(module, Ewald)
    sub = spec.submodels[term.submodel]
    producer = sub.producer(module.feature_key)
    native = library.LongRange(_ewald(module), term.weight, 0, 1, None)
    if isinstance(producer, FixedCharge):
        table = dict(producer.charges)
        unit = model.FIXED_CHARGE_UNIT if producer.normalize else 1.0
        # elements without a charge are refused before evaluation
        values = [unit * table.get(z, 0.0) for z in spec.representation.elements]
        array = (c_double * len(values))(*values)
        plan.kept.append(array)
        plan.fixed.append(producer)
        native.fixed = array
    elif isinstance(producer, Readout) and producer.per_atom_key == module.feature_key:
        key = (term.submodel, sub.modules.index(producer))
        if key not in first_charge:
            if key in heads:
                raise UnsupportedModelError("a read-out that gives energies and charges at once")
            first_charge[key] = _n_charges(plan)
            heads[key] = _add_head(plan, key, producer)
            plan.heads[-1].charges = 1
        native.first_charge, native.n_charges = first_charge[key], producer.n_out
    else:
        raise UnsupportedModelError("charges that are an input of the structure")
    plan.terms.append(native)


def _n_charges(plan: Plan) -> int:
    pairs = zip(plan.heads, plan.modules, strict=True)
    return sum(module.n_out for head, module in pairs if head.charges)


def _ewald(module: Ewald) -> library.EwaldSpec:
    settings = (module.external_field, module.external_field_direction)
    if any(isinstance(value, str) for value in settings):
        raise UnsupportedModelError("an external field that is an input of the structure")
    return library.EwaldSpec(
        dl=module.dl,
        sigma=module.sigma,
        norm=module.norm_factor,
        field=float(module.external_field or 0.0),
        neutral_lambda=float(module.charge_neutral_lambda or 0.0),
        exponent=module.exponent,
        remove_self=module.remove_self_interaction,
        field_direction=int(module.external_field_direction or 0),
    )
