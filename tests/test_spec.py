"""Specifications: JSON and back, what is refused, which modules make up the energy."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import golden
from support.cases import with_step

from cace_fast import ModelSpec, SpecError, UnsupportedModelError
from cace_fast.errors import InputError
from cace_fast.spec import (
    MLP,
    Add,
    Bchi,
    Combination,
    CutoffFunction,
    Dephase,
    Ewald,
    FixedCharge,
    Forces,
    Grad,
    MessageStep,
    Polarization,
    Provenance,
    RadialBasis,
    Readout,
    SubModel,
    energy_keys,
    energy_terms,
    from_json,
    to_json,
    total_energy_key,
)

GOLDEN = golden.model()[0]
REP = GOLDEN.representation
N = REP.n_features
SHORT = SubModel((Readout("CACE_energy", MLP((N, 4, 1))), Forces("CACE_energy", "CACE_forces")))
LONG = SubModel(
    (
        Readout("tot_q", MLP((N, 4, 1)), per_atom_key="q"),
        Ewald("q", "ewald", 2.0, 1.0),
        Forces("ewald", "ewald_forces"),
    )
)
PAIRS = (
    (("CACE_energy", "CACE_energy"), ("CACE_forces", "CACE_forces")),
    (("CACE_energy", "ewald"), ("CACE_forces", "ewald_forces")),
)
COMBINED = ModelSpec(
    REP, (SHORT, LONG), Combination(("CACE_energy", "CACE_forces"), PAIRS, (1.0, 0.02))
)
EVERYTHING = ModelSpec(
    replace(REP, forward_features=("charge_states",)),
    (
        SubModel(
            (
                Readout("E", MLP((N + 1, 8, 8, 1), residual=True, batch_norm=True),
                        features=("node_feats", "charge_states"), aggregation="avg"),
                FixedCharge("q0", ((1, 0.4), (8, -0.8), (6, 0.1))),
                Ewald("q0", "e6", 2.0, 1.0, 6, external_field="f", external_field_direction=2),
                Polarization("q0", "P", "phase", pbc=True),
                Grad("P", "positions", "dP"),
                Dephase("dP", "phase", "bec"),
                Add(("E", "e6"), "total"),
                Forces("total", "F", calc_stress=True),
            ),
            strain=True,
            outputs=("total", "F"),
        ),
    ),
    atomic_energies=((1, -0.5), (8, -2.0)),
    provenance=Provenance("a", "b", "MIT", "c\n\"d\""),
)  # fmt: skip


@pytest.mark.parametrize("spec", [GOLDEN, COMBINED, EVERYTHING, ModelSpec(REP)])
def test_json_and_back(spec):
    again = from_json(to_json(spec))
    assert again == spec
    assert to_json(again) == to_json(spec)
    assert hash(again) == hash(spec)
    assert str(spec).count("Representation(") == 1


@given(st.floats(1e-3, 1e3), st.floats(allow_nan=False, allow_infinity=False), st.text())
@settings(max_examples=100, deadline=None)
def test_numbers_and_text_survive(sigma, norm, note):
    sub = SubModel((FixedCharge("q", ((1, norm),)), Ewald("q", "e", 1.0, sigma, norm_factor=norm)))
    spec = ModelSpec(REP, (sub,), provenance=Provenance(note=note))
    assert from_json(to_json(spec)) == spec


def rep(**fields):
    """A change of fields of the representation."""
    return lambda content: content["model"]["representation"].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(version=2), "version: expected 1, got 2"),
        (lambda c: c.pop("model"), "model: expected a ModelSpec"),
        (lambda c: c["model"].update(type="os.system"), "expected a type among"),
        (lambda c: c["model"].update(extra=1), "expected fields among .*, got extra"),
        (lambda c: c["model"]["representation"].pop("l_max"), "all required fields"),
        (rep(l_max=7), "l_max: expected an integer from 0 to 6, got 7"),
        (rep(l_max=True), "l_max: expected an integer"),
        (rep(n_radial=10**9), "n_radial: expected an integer from 1"),
        (rep(cutoff=-1.0), "cutoff: expected a number from 0.01 to 1000, got -1.0"),
        (rep(cutoff=None), "cutoff: expected a number from 0.01"),
        (rep(elements=[1, 1]), "elements: expected distinct"),
        (
            lambda c: c["model"]["representation"]["radial"].update(kind="spline"),
            "kind: expected one of 'bessel'",
        ),
        (lambda c: c["model"].update(submodels=[1]), "submodels: expected a tuple"),
    ],
)
def test_hostile_json_is_refused(change, message):
    content = json.loads(to_json(GOLDEN))
    change(content)
    with pytest.raises(SpecError, match=message):
        from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": 1}', "[" * 100_000])
def test_other_text_is_refused(text):
    with pytest.raises(SpecError):
        from_json(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP((4,)), "MLP.widths: expected a tuple of at least 2"),
        (lambda: MLP((4, 0)), "MLP.widths: expected positive"),
        (lambda: MLP((4, 3, 1), residual=True), "MLP.residual: expected an odd number of layers"),
        (lambda: MLP((4, 1), activation="exec"), "MLP.activation: expected one of 'silu'"),
        (lambda: RadialBasis("bessel", 0), "RadialBasis.n_rbf"),
        (
            lambda: CutoffFunction("switch", 3.0, switch_on=3.5),
            "switch_on: expected less than cutoff",
        ),
        (
            lambda: CutoffFunction("polynomial", float("nan")),
            "CutoffFunction.cutoff: expected a number from 0.01 to 1000, got nan",
        ),
        (lambda: Ewald("q", "e", 2.0, 1.0, exponent=3), "Ewald.exponent: expected 1 or 6, got 3"),
        (lambda: Ewald("", "e", 2.0, 1.0), "Ewald.feature_key: expected a non-empty name"),
        (lambda: Readout("E", MLP((4, 1)), aggregation="max"), "Readout.aggregation"),
        (lambda: Polarization("q", "P", output_index=3), "Polarization.output_index"),
        (lambda: MessageStep(bchi=3), "MessageStep.bchi"),
        (
            lambda: replace(REP, steps=(MessageStep(bchi=Bchi(True, True, MLP((5, 1)))),)),
            "Bchi.mlp.widths: expected 84 inputs and 1 outputs",
        ),
        (
            lambda: ModelSpec(REP, (SubModel((Readout("E", MLP((5, 1))),)),)),
            f"Readout.mlp.widths: expected {N} inputs, got 5",
        ),
        (lambda: ModelSpec(REP, (SHORT, LONG)), "ModelSpec.submodels: expected 1 sub-models"),
        (lambda: Combination(("E",), ((("F", "E"),),), (1.0,)), "Combination.keys"),
        (lambda: Combination(("E",), ((("E", "E"),),), (1.0, 2.0)), "Combination.weights"),
    ],
)
def test_wrong_fields_are_refused(make, message):
    with pytest.raises(SpecError, match=message):
        make()


def test_derived_sizes():
    assert (REP.n_channels, REP.n_monomials, REP.n_invariants, REP.n_stages, N) == (
        4,
        20,
        7,
        2,
        168,
    )
    shared = with_step(False, False, (True, False)).steps[0].bchi
    assert with_step(False, False, (True, False)).n_bchi_weights(shared) == 4
    residual = MLP((10, 6, 6, 6, 4, 1), residual=True)
    assert residual.layer_shapes == ((6, 10), (6, 6), (4, 6), (4, 4), (1, 4))
    assert residual.skip_shapes == ((10, 6), (6, 4))


def terms_of(spec, key=None):
    return [(t.submodel, t.index, t.weight) for t in energy_terms(spec, key)]


def test_energy_of_a_single_potential():
    assert total_energy_key(GOLDEN) == "total"
    assert terms_of(GOLDEN) == [(0, 0, 1.0), (0, 2, 1.0)]
    assert terms_of(GOLDEN, "ewald") == [(0, 2, 1.0)]


def test_energy_of_a_combination():
    assert total_energy_key(COMBINED) == "CACE_energy"
    assert terms_of(COMBINED) == [(0, 0, 1.0), (1, 1, 0.02)]
    assert terms_of(COMBINED, "ewald") == [(1, 1, 1.0)]
    assert "CACE_forces" not in energy_keys(COMBINED)
    with pytest.raises(InputError, match=r"energy_key: expected one of CACE_energy.*got 'E'"):
        energy_terms(COMBINED, "E")


def test_energy_without_forces_modules():
    readout = Readout("E", MLP((N, 4, 1)))
    assert total_energy_key(ModelSpec(REP, (SubModel((readout,)),))) == "E"
    charges = SubModel((readout, *LONG.modules[:2], Add(("E", "ewald"), "all")))
    assert total_energy_key(ModelSpec(REP, (charges,))) == "all"
    unclear = SubModel((readout, replace(readout, output_key="E2")))
    with pytest.raises(UnsupportedModelError, match=r"not clear: candidates are \['E', 'E2'\]"):
        total_energy_key(ModelSpec(REP, (unclear,)))


def test_forces_are_no_energy():
    with pytest.raises(UnsupportedModelError, match=r"'CACE_forces' is not an energy"):
        energy_terms(COMBINED, "CACE_forces")
