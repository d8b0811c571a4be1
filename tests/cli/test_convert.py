"""`cace-fast convert`: equal results, provenance, nothing overwritten or half written."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from support.command import cace_fast, succeed
from support.tiny_models import tiny_potential, tiny_spec, tiny_structure, tiny_weights

from cace_fast import weights
from cace_fast.loading import load
from cace_fast.model_files import read_model
from cace_fast.spec import ModelSpec, SubModel


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "old.safetensors"
    tiny_potential(ewald_channels=1, steps=("M",)).save(path)
    return path


def test_results_are_equal_and_provenance_is_kept(model, tmp_path):
    new = tmp_path / "new.safetensors"
    result = succeed("convert", model, new, "--licence", "CC-BY-4.0", "--note", "of a test")
    assert "equal bit for bit: tensors, features, energy, energies, forces, virials, latent_" in (
        result.stderr
    )
    spec = load(new, device="cpu").spec
    assert (spec.provenance.licence, spec.provenance.note) == ("CC-BY-4.0", "of a test")
    old, new = load(model, device="cpu"), load(new, device="cpu")
    atoms = tiny_structure(old.spec)
    first, second = old.compute(atoms), new.compute(atoms)
    assert first["energy"] == second["energy"]
    assert np.array_equal(first["forces"], second["forces"])


def test_a_missing_licence_is_said(model, tmp_path):
    spec, tensors = weights.load(model)
    bare = dataclasses.replace(spec, provenance=dataclasses.replace(spec.provenance, licence=""))
    weights.save(model, bare, tensors)
    assert "states no licence" in succeed("convert", model, tmp_path / "a.safetensors").stderr
    again = succeed("convert", model, tmp_path / "b.safetensors", "--license", "MIT")
    assert "states no licence" not in again.stderr


def test_nothing_is_overwritten_without_force(model, tmp_path):
    new = tmp_path / "new.safetensors"
    new.write_bytes(b"precious")
    result = cace_fast("convert", model, new)
    assert result.exit_code == 3
    assert f"OUTPUT: {new} exists already" in result.stderr
    assert new.read_bytes() == b"precious"
    succeed("convert", model, new, "--force")
    assert load(new, device="cpu").spec.representation.elements == (8, 1)


def test_names_of_outputs(model, tmp_path):
    result = cace_fast("convert", model, tmp_path / "new.pth")
    assert result.exit_code == 3
    assert "OUTPUT: expected a name that ends in .safetensors" in result.stderr


@pytest.mark.parametrize("what", ["tensor", "spec"])
def test_a_file_that_differs_is_not_kept(model, tmp_path, monkeypatch, what):
    honest = weights.save

    def careless(path, spec, tensors):
        if what == "tensor":
            tensors = {name: t * (1.0 + 1e-15) for name, t in tensors.items()}
        else:
            spec = dataclasses.replace(spec, energy_unit="meV")
        honest(path, spec, tensors)

    monkeypatch.setattr(weights, "save", careless)
    new = tmp_path / "new.safetensors"
    new.write_bytes(b"precious")
    result = cace_fast("convert", model, new, "--force")
    assert result.exit_code == 1
    assert "of the converted model differs" in result.stderr
    assert new.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.safetensors", "old.safetensors"]


@pytest.mark.parametrize(
    "name", ["water-mp0-sr", "licl-gaf3-sr0", "lode-cc-q1-lr", "alchemical-rep"]
)
def test_upstream_files(shared, tmp_path, name):
    path = shared / "data" / "upstream" / name / "model.pth"
    succeed("convert", path, tmp_path / "new.safetensors")
    (old, _), (new, _) = read_model(path), read_model(tmp_path / "new.safetensors")
    assert new == old
    assert new.provenance.source == "model.pth"


def test_models_without_a_clear_total_are_converted(tmp_path):
    """They compute on request of one of their energies; the conversion compares the first."""
    whole = tiny_spec()
    readout = whole.submodels[0].modules[0]
    modules = tuple(dataclasses.replace(readout, output_key=name) for name in ("one", "two"))
    spec = ModelSpec(whole.representation, (SubModel(modules),))
    tensors = dict(tiny_weights(whole))
    tensors |= {n.replace("outputs.0.0", "outputs.0.1"): t for n, t in tensors.items()}
    weights.save(tmp_path / "two.safetensors", spec, tensors)
    result = succeed("convert", tmp_path / "two.safetensors", tmp_path / "new.safetensors")
    assert "equal bit for bit: tensors, features, energy" in result.stderr
    text = succeed("info", tmp_path / "new.safetensors").stdout
    assert "one, two" in text
    assert "energy  " not in text.replace("energies", "")
