"""Energy programs as data: made by rule, printed, in JSON, and refused if inconsistent."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from support import golden
from support.tiny_models import tiny_program, tiny_spec

from cace_fast import InputError, SpecError, UnsupportedModelError
from cace_fast.spec import (
    Add,
    Combination,
    Ewald,
    ModelSpec,
    SubModel,
    energy_keys,
    energy_program,
    energy_programs,
    program_from_json,
    program_to_json,
)

GOLDEN, _ = golden.model()
CHARGED = tiny_spec(ewald_channels=1)
SEVERAL, WEIGHTED = tiny_program()


def test_the_rule():
    program = WEIGHTED
    energy, charges = program.heads
    assert (energy.gives, energy.index, energy.column, energy.weight) == ("energy", 0, 0, 0.6)
    assert (charges.gives, charges.index, charges.n_out, charges.column) == ("charges", 1, 2, None)
    sums = [(t.index, t.weight, t.charges, t.head) for t in program.terms]
    # two sums of the same charges share a head
    assert sums == [(3, 0.7, "head", 1), (4, -0.4, "head", 1), (5, 1.3, "fixed", None)]
    assert program.terms[2].fixed.charges == ((8, -0.8), (1, 0.4))
    assert program.terms[0].ewald == SEVERAL.submodels[0].modules[3]
    assert program.charge_unit is None  # of three sums
    assert program.first_charge(1) == 0
    isolated = ((1, -13.6), (8, 2.0))
    total = energy_program(replace(CHARGED, atomic_energies=isolated))
    assert total.energy_key == "CACE_energy"
    assert total.charge_unit == math.sqrt(1.0 / 90.0474)
    assert total.isolated == isolated


def test_weights_of_a_combination_count():
    program = energy_program(golden_combined(), "E")
    assert [(h.submodel, h.index, h.weight) for h in program.heads] == [(0, 0, 0.25), (1, 0, 0.75)]


def golden_combined():
    """Two sub-models with weights."""
    first = SubModel((GOLDEN.submodels[0].modules[0],))
    keys = ((("E", "E"),),) * 2
    both = Combination(("E",), keys, (0.25, 0.75))
    return replace(GOLDEN, submodels=(first, first), combination=both)


def test_several_energies_of_a_readout_are_chosen_by_their_number():
    open_choice = energy_program(GOLDEN, "tot_q")
    assert open_choice.heads[0].column is None
    with pytest.raises(InputError, match="output_index: expected 0 to 1"):
        open_choice.check()
    assert energy_program(GOLDEN, "tot_q", -1).heads[0].column == 1
    energy_program(GOLDEN, "tot_q", 1).check()
    with pytest.raises(InputError, match="output_index: expected less than 2, got 2"):
        energy_program(GOLDEN, "tot_q", 2).check()


def test_a_bare_descriptor_has_none():
    bare = ModelSpec(GOLDEN.representation)
    assert energy_program(bare).heads == ()
    assert list(energy_programs(bare)) == []


def test_one_program_for_each_energy():
    for spec in (GOLDEN, CHARGED, SEVERAL):
        found = {program.energy_key: program for program in energy_programs(spec)}
        assert tuple(found) == energy_keys(spec)
        assert all(program == energy_program(spec, key) for key, program in found.items())


def test_what_cannot_be_evaluated_has_no_program():
    (sub,) = GOLDEN.submodels
    broken = replace(sub, modules=(*sub.modules, Add(("nowhere",), "strange")))
    spec = replace(GOLDEN, submodels=(broken,))
    with pytest.raises(UnsupportedModelError):
        energy_program(spec, "strange")
    assert [p.energy_key for p in energy_programs(spec)] == ["E", "tot_q", "ewald", "total"]


@pytest.mark.parametrize("spec", [GOLDEN, CHARGED, SEVERAL])
def test_json_and_text(spec):
    for program in [*energy_programs(spec), WEIGHTED, energy_program(spec, None, 0)]:
        again = program_from_json(program_to_json(program))
        assert again == program
        assert repr(program) == repr(again)
        assert len(str(program).split("\n")) > 1
    text = str(energy_program(CHARGED))
    assert "energy_key='CACE_energy'" in text
    assert "gives='charges'" in text


def head(**fields):
    """A change of fields of the first head."""
    return lambda content: content["heads"][0].update(fields)


def term(number=0, **fields):
    """A change of fields of a term."""
    return lambda content: content["terms"][number].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (head(column=1), "EnergyHead.column: expected an integer from 0 to 0"),
        (head(column=None), "column: expected 0, as output_index says"),
        (head(n_out=2), "column: expected None, as output_index says, got 0"),
        (head(weight="1"), "weight: expected a finite number"),
        (head(gives="forces"), "gives: expected one of 'energy', 'charges'"),
        (head(gives="charges"), "column: expected nothing for charges"),
        (head(submodel=-1), "submodel: expected an integer from 0"),
        (head(extras=[1]), "extras: expected a tuple"),
        (head(index=10**9), "index: expected an integer from 0"),
        (head(color="red"), "expected fields among .*, got color"),
        (term(head=0), "EwaldTerm.head: expected the number of a head that gives charges, got 0"),
        (term(head=2), "EwaldTerm.head: expected the number of a head that gives charges, got 2"),
        (term(head=None), "EwaldTerm.head: expected an integer"),
        (term(charges="fixed"), "EwaldTerm.head: expected nothing"),
        (term(2, fixed=None), "EwaldTerm.fixed: expected a FixedCharge"),
        (term(index=4), "terms: expected each module once"),
        (term(weight=None), "weight: expected a finite number"),
        (lambda c: c.update(charge_unit=0.1), "charge_unit: expected None, as the terms say"),
        (lambda c: c["heads"].reverse(), "heads: expected energies before charges"),
        (lambda c: c["heads"].append(c["heads"][1]), "heads: expected each module once"),
        (lambda c: c.update(isolated=[[1, "x"]]), "isolated: expected one finite number"),
        (lambda c: c.update(output_index=0.5), "output_index: expected an integer or nothing"),
        (lambda c: c.update(type="ModelSpec"), "ModelSpec: expected fields among"),
        (lambda c: c.pop("energy_key"), "all required fields"),
    ],
)
def test_what_is_inconsistent_is_refused(change, message):
    content = json.loads(program_to_json(WEIGHTED))
    change(content)
    with pytest.raises(SpecError, match=message):
        program_from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", "[" * 100_000])
def test_other_text_is_refused(text):
    with pytest.raises(SpecError):
        program_from_json(text)


def test_sources_of_charges_that_only_the_reference_sums():
    module = Ewald("z", "E_z", 1.7, 1.0)
    (sub,) = GOLDEN.submodels
    spec = replace(GOLDEN, submodels=(replace(sub, modules=(*sub.modules, module)),))
    program = energy_program(spec, "E_z")
    assert [(t.charges, t.head) for t in program.terms] == [("input", None)]
    with pytest.raises(UnsupportedModelError, match="charges that are an input of the structure"):
        program.networks(spec)
    assert program_from_json(program_to_json(program)) == program


def test_numbers_of_energies_are_integers_of_any_kind():
    assert energy_program(GOLDEN, "tot_q", np.int64(1)) == energy_program(GOLDEN, "tot_q", 1)
    with pytest.raises(InputError, match="output_index: expected an integer or None, got '1'"):
        energy_program(GOLDEN, "tot_q", "1")


def test_a_line_for_each_part():
    assert WEIGHTED.parts() == [
        "0.6 x read-out 0.0",
        "0.7 x Ewald sum 0.3 of charges of module 0.1",
        "-0.4 x Ewald sum 0.4 of charges of module 0.1",
        "1.3 x Ewald sum 0.5 of fixed charges",
    ]
    assert energy_program(GOLDEN, "tot_q").parts() == ["1 x read-out 0.1, number output_index"]
    assert energy_program(GOLDEN, "tot_q", 1).parts() == ["1 x read-out 0.1, number 1"]


def sums_of_sums(n):
    """A model of n read-outs, and n sums, each of one read-out and the sum before it."""
    readout = GOLDEN.submodels[0].modules[0]
    modules = [
        replace(readout, output_key=f"E{k}", per_atom_key=None, descriptor_key=None)
        for k in range(n)
    ]
    sums = [Add((f"E{k}", f"S{k - 1}") if k else ("E0",), f"S{k}") for k in range(n)]
    return replace(GOLDEN, submodels=(SubModel((*modules, *sums)),))


def test_files_do_not_blow_up():
    with pytest.raises(UnsupportedModelError, match="a file of 2000 energies, more than 1000"):
        list(energy_programs(sums_of_sums(1000)))
    with pytest.raises(UnsupportedModelError, match="more than 100000 parts"):
        list(energy_programs(sums_of_sums(480)))
    assert len(energy_program(sums_of_sums(1000), "S999").heads) == 1000  # may still be evaluated
