"""Keywords that are set after the calculator was made, and those beside a potential."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import golden
from support.tiny_models import tiny_potential

from cace_fast import CACECalculator, InputError, Potential, load

GOLDEN = Potential(*golden.model(), dtype="float64", backend="reference")


def prepared(potential=GOLDEN, kind="periodic", **options):
    atoms = golden.atoms(kind)
    atoms.calc = CACECalculator(potential, **options)
    return atoms


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("energy_units_to_eV", 2.0),
        ("length_units_to_A", 2.0),
        ("skin", 0.3),
        ("min_dist", None),
        ("default_dtype", "float32"),
        ("backend", "reference"),
        ("atomic_energies", {8: -1.0}),
        ("compute_stress", True),
        ("external_field", [0.0, 0.1, 0.0]),
        ("charge_unit", 2.0),
    ],
)
def test_keywords_may_be_set_later(keyword, value):
    potential = tiny_potential(ewald_channels=1, elements=(8, 1, 6))
    atoms = prepared(potential)
    atoms.get_forces()
    atoms.get_charges()
    assert atoms.calc.set(**{keyword: value}) == {keyword: value}
    assert atoms.calc.set(**{keyword: value}) == {}
    assert atoms.calc.results == {}
    other = prepared(potential.replace(dtype=value) if "dtype" in keyword else potential)
    fresh = CACECalculator(other.calc.potential, **{keyword: value})
    assert atoms.calc.potential.backend == fresh.potential.backend
    assert atoms.calc.potential.dtype == fresh.potential.dtype
    assert atoms.calc._list.skin == fresh._list.skin
    other.calc = fresh
    for name in ("forces", "energies", "charges"):
        np.testing.assert_array_equal(
            atoms.calc.get_property(name, atoms), fresh.get_property(name, other)
        )
    assert ("stress" in atoms.calc.results) == (keyword == "compute_stress")


def test_what_cannot_be_set_is_refused_and_changes_nothing():
    atoms = prepared()
    want = atoms.get_forces()
    with pytest.raises(InputError, match=r"set: expected keywords among device.* got model_path"):
        atoms.calc.set(model_path="copper-emt", skin=3.0, x=1)
    for wrong in ({"skin": -1.0}, {"default_dtype": "float16"}, {"energy_key": "no"},
                  {"min_dist": -1}, {"external_field": [1.0]}):  # fmt: skip
        with pytest.raises(InputError):
            atoms.calc.set(keep_neutral=False, **wrong)
    assert atoms.calc.keep_neutral
    assert atoms.calc._list.skin == 1.0
    assert set(atoms.calc.results) >= {"forces"}
    np.testing.assert_array_equal(atoms.get_forces(), want)


def test_a_potential_that_was_given_is_changed_on_request_only():
    plain = CACECalculator(GOLDEN).potential
    assert plain is GOLDEN
    other = CACECalculator(load("copper-emt"), default_dtype="float64", backend="reference")
    assert (other.potential.dtype, other.potential.backend) == (torch.float64, "reference")
    single = tiny_potential(ewald_channels=1, dtype="float32")
    assert single.replace(dtype="float64").long_range.tolerance == 1e-10
    both = CACECalculator([tiny_potential(seed=seed) for seed in (1, 2)])
    assert both.set(default_dtype="float32") == {"default_dtype": "float32"}
    assert {member.dtype for member in both.potential.members} == {torch.float32}
