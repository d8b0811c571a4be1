"""An energy program in the form that the compiled library takes."""

from __future__ import annotations

from collections.abc import Mapping
from ctypes import c_double

from cace_fast.kernels.cpu import interface, library
from cace_fast.kernels.cpu.evaluator import Evaluator
from cace_fast.spec import EnergyHead, EnergyProgram, Ewald, EwaldTerm, ModelSpec, to_json


def evaluator_of(
    spec: ModelSpec, program: EnergyProgram, tensors: Mapping[str, library.Floats], precision: int
) -> Evaluator:
    """Return an evaluator of a program in the library (decision 0016).

    Parameters
    ----------
    spec, program
        The model, and the program of its energy.
    tensors
        Its tensors, float64 arrays in C order; they are copied.
    precision
        32 or 64.

    Raises
    ------
    UnsupportedModelError
        If the library does not have a part of the model.
    NotLoadedError
        If the library is not here.
    """
    program.networks(spec)  # raises for charges and inputs that are not networks of the features
    heads = [_head(head) for head in program.heads]
    terms = [_term(term, program, spec) for term in program.terms]
    return Evaluator(to_json(spec), tensors, heads, terms, precision)


def _head(head: EnergyHead) -> interface.Head:
    if head.gives == "charges":
        return interface.Head(head.submodel, head.index, -1, 0, 1, 0.0)
    column = head.column or 0  # an open choice raises before anything is evaluated
    return interface.Head(head.submodel, head.index, column, head.average, 0, head.weight)


def _term(term: EwaldTerm, program: EnergyProgram, spec: ModelSpec) -> interface.LongRange:
    native = interface.LongRange(_ewald(term.ewald), term.weight, 0, 1, None)
    if term.fixed is not None:
        # elements without a charge are refused before evaluation
        values = term.fixed.of_elements(spec.representation.elements)
        native.fixed = (c_double * len(values))(*values)
    elif term.head is not None:
        native.first_charge = program.first_charge(term.head)
        native.n_charges = program.heads[term.head].n_out
    return native


def _ewald(module: Ewald) -> interface.EwaldSpec:
    """Return the settings; fields that are inputs come with the structures."""
    field, direction = module.external_field, module.external_field_direction
    return interface.EwaldSpec(
        dl=module.dl,
        sigma=module.sigma,
        norm=module.norm_factor,
        field=0.0 if isinstance(field, str) else float(field or 0.0),
        neutral_lambda=float(module.charge_neutral_lambda or 0.0),
        exponent=module.exponent,
        remove_self=module.remove_self_interaction,
        field_direction=0 if isinstance(direction, str) else int(direction or 0),
    )
