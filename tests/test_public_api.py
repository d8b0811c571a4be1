"""The public names and signatures are a promise: a change here is a change for every user."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest

import cace_fast

POSITIONAL, KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
REQUIRED = inspect.Parameter.empty


def test_public_names():
    assert cace_fast.__all__ == [
        "BackendUnavailableError",
        "CACECalculator",
        "CaceFastError",
        "CheckpointError",
        "FieldWork",
        "InputError",
        "ModelSpec",
        "OscillatingField",
        "Potential",
        "PropertyNotImplementedError",
        "SpecError",
        "UnknownElementError",
        "UnsupportedModelError",
        "VerificationError",
        "__version__",
        "accelerate",
        "load",
    ]


@pytest.mark.parametrize("name", cace_fast.__all__)
def test_every_public_name_is_there(name):
    assert getattr(cace_fast, name) is getattr(cace_fast, name)
    assert name in dir(cace_fast)


def test_every_error_class_is_public():
    from cace_fast import errors

    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, cace_fast.CaceFastError)
    }
    assert classes <= set(cace_fast.__all__)
    assert all(issubclass(getattr(errors, name), cace_fast.CaceFastError) for name in classes)


def test_unknown_names_are_refused():
    with pytest.raises(AttributeError, match="module 'cace_fast' has no attribute 'laod'"):
        cace_fast.laod  # noqa: B018


def parameters(function) -> list[tuple[str, object, object]]:
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in found]


def test_signature_of_load():
    assert parameters(cace_fast.load) == [
        ("path", POSITIONAL, REQUIRED),
        ("device", KEYWORD, "auto"),
        ("dtype", KEYWORD, "float32"),
        ("backend", KEYWORD, "auto"),
        ("verify", KEYWORD, False),
        ("long_range_tolerance", KEYWORD, None),
        ("k_set", KEYWORD, "sphere"),
        ("long_range", KEYWORD, "auto"),
        ("slab_vacuum", KEYWORD, None),
        ("born_charges", KEYWORD, "local"),
    ]


def test_signature_of_the_calculator():
    """Upstream's keywords in upstream's order, so that positional calls still work; then ours."""
    got = parameters(cace_fast.CACECalculator)
    charge_unit = dict((name, default) for name, _, default in got)["charge_unit"]
    assert charge_unit == pytest.approx(90.0474**-0.5, rel=1e-12)
    assert got == [
        ("model_path", POSITIONAL, REQUIRED),
        ("device", POSITIONAL, "auto"),
        ("energy_units_to_eV", POSITIONAL, 1.0),
        ("length_units_to_A", POSITIONAL, 1.0),
        ("electric_field_unit", POSITIONAL, 1.0),
        ("compute_stress", POSITIONAL, None),
        ("energy_key", POSITIONAL, None),
        ("forces_key", POSITIONAL, None),
        ("stress_key", POSITIONAL, None),
        ("charge_key", POSITIONAL, None),
        ("charge_unit", POSITIONAL, charge_unit),
        ("bec_key", POSITIONAL, "bec"),
        ("data_key", POSITIONAL, None),
        ("external_field", POSITIONAL, None),
        ("keep_neutral", POSITIONAL, True),
        ("atomic_energies", POSITIONAL, None),
        ("output_index", POSITIONAL, None),
        ("default_dtype", KEYWORD, "float32"),
        ("backend", KEYWORD, "auto"),
        ("skin", KEYWORD, 1.0),
        ("min_dist", KEYWORD, "auto"),
        ("slab_vacuum", KEYWORD, None),
    ]


def test_a_misspelt_keyword_of_the_calculator_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'energy_kye'"):
        cace_fast.CACECalculator("model.pth", energy_kye="CACE_energy")


@pytest.mark.parametrize("name", ["compute", "features", "forward", "hessian"])
def test_methods_of_a_potential(name):
    assert inspect.isfunction(getattr(cace_fast.Potential, name))


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a new interpreter holds after ``statement``."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


@pytest.mark.parametrize(
    "statement",
    [
        "import cace_fast",
        "import cace_fast; cace_fast.__version__; dir(cace_fast)",
        "from cace_fast import ModelSpec, CheckpointError",
    ],
)
def test_import_is_light(statement):
    heavy = {"torch", "triton", "ase", "numpy", "scipy", "safetensors", "vesin", "rich"}
    loaded = loaded_by(statement)
    assert "cace_fast" in loaded
    assert not loaded & heavy


def test_upstream_is_never_imported():
    assert not loaded_by("from cace_fast import load, CACECalculator, accelerate") & {"cace", "les"}
