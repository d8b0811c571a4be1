"""The potential: properties, their definitions by differences, refusals, files."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from support import golden
from support.paths import REPOSITORY, upstream_checkpoints
from support.physics import displaced, strained
from support.structures import water
from support.tiny_models import tiny_potential

import cace_fast
from cace_fast import (
    BackendUnavailableError,
    CheckpointError,
    InputError,
    Potential,
    PropertyNotImplementedError,
    UnknownElementError,
    load,
)
from cace_fast.properties import PROPERTIES
from cace_fast.spec import Add, ModelSpec, Readout
from cace_fast.weights import Weights


def golden_potential(**options):
    return Potential(*golden.model(), **({"dtype": "float64", "backend": "reference"} | options))


@pytest.fixture(scope="module")
def charged():
    """A model with one charge channel."""
    return tiny_potential(ewald_channels=1, dtype="float64")


def test_names_shapes_and_types(charged):
    atoms = water(False)
    without = {"stress", "atom_virials", "heat_flux"}  # of a molecule, of a model with charges
    names = [n for n in PROPERTIES if n not in without]
    got = charged.compute(atoms, names)
    assert list(got) == names
    assert isinstance(got["energy"], float)
    shapes = {
        "energies": (6,),
        "energies_sr": (6,),
        "energies_lr": (6,),
        "forces": (6, 3),
        "virials": (3, 3),
        "latent_charges": (6, 1),
        "charges": (6,),
        "dipole": (3,),
        "bec": (6, 3, 3),
    }
    for name, shape in shapes.items():
        assert got[name].shape == shape
        assert got[name].dtype == np.float64
    assert got["energies"].sum() == pytest.approx(got["energy"], abs=1e-12)
    parts = got["energies_sr"] + got["energies_lr"]
    np.testing.assert_allclose(parts, got["energies"], rtol=0, atol=1e-13)
    assert np.abs(got["energies_lr"]).min() > 0
    np.testing.assert_allclose(got["charges"], got["latent_charges"][:, 0] / math.sqrt(90.0474))


def test_only_what_was_asked_for_is_computed(charged, monkeypatch):
    calls = []
    engine = charged._engine
    plain = engine.evaluate

    def spied(graph, wanted=(), **options):
        calls.append(list(wanted))
        return plain(graph, wanted, **options)

    monkeypatch.setattr(engine, "evaluate", spied)
    charged.compute(water(True), ("energy",))
    charged.compute(water(True), ("forces", "stress"))
    assert calls == [[], ["forces", "virials"]]


def test_stress_is_the_strain_derivative_over_the_volume():
    potential, atoms = golden_potential(), golden.atoms("periodic")
    stress = potential.compute(atoms, ("stress",))["stress"]
    h = 1e-4
    for i, k in ((0, 0), (0, 1), (2, 1)):
        high, low = (potential.compute(strained(atoms, i, k, s * h))["energy"] for s in (1, -1))
        assert stress[i, k] == pytest.approx((high - low) / (2 * h) / atoms.get_volume(), abs=1e-8)


def test_slab_stress_and_its_refusals():
    potential = tiny_potential(dtype="float64")
    slab = water(True)
    slab.pbc = (True, True, False)
    got = potential.compute(slab, ("stress", "virials"))
    np.testing.assert_allclose(got["stress"], -got["virials"] / slab.get_volume(), rtol=1e-14)
    wire, bare = water(True), water(True)
    wire.pbc, bare.pbc = (True, False, False), (True, True, False)
    bare.set_cell(bare.cell * np.array([[1], [1], [0]]))
    for atoms in (wire, bare, water(False)):
        with pytest.raises(PropertyNotImplementedError, match="stress: defined for structures"):
            potential.compute(atoms, ("stress",))
        assert np.isfinite(potential.compute(atoms, ("virials",))["virials"]).all()


def test_short_range_in_slabs_and_wires_is_smooth_in_the_vacuum():
    potential = tiny_potential(dtype="float64")
    for pbc in ((True, True, False), (False, True, False)):
        atoms = water(True)
        atoms.pbc = pbc
        energy = potential.compute(atoms)["energy"]
        atoms.set_cell(atoms.cell * np.where(pbc, 1.0, 3.0)[:, None])
        assert potential.compute(atoms)["energy"] == pytest.approx(energy, abs=1e-12)


def test_hessian_by_differences_of_forces():
    potential, atoms = golden_potential(), golden.atoms("periodic")
    hessian = potential.hessian(atoms)
    assert hessian.shape == (5, 3, 5, 3)
    np.testing.assert_allclose(hessian, hessian.transpose(2, 3, 0, 1), rtol=0, atol=1e-10)
    h = 1e-4
    high, low = (potential.compute(displaced(atoms, 2, 1, s * h))["forces"] for s in (1, -1))
    np.testing.assert_allclose(hessian[2, 1], -(high - low) / (2 * h), rtol=0, atol=2e-6)


def test_no_atoms_one_atom_no_edges():
    potential = golden_potential()
    assert potential.compute(Atoms(), ("energy", "forces"))["forces"].shape == (0, 3)
    lone = potential.compute(Atoms("O"), ("energy", "forces"))
    far = potential.compute(Atoms("O2", [[0, 0, 0], [0, 0, 50.0]]))
    assert np.isfinite(lone["energy"])
    assert not lone["forces"].any()
    assert far["forces"].shape == (2, 3)


def test_input_of_every_layout():
    potential = golden_potential()
    atoms = golden.atoms("periodic")
    want = potential.compute(atoms)["forces"]
    strided = np.asfortranarray(np.repeat(atoms.positions, 2, axis=0))[::2]
    moved = atoms.copy()
    moved.arrays["positions"] = strided
    np.testing.assert_array_equal(potential.compute(moved)["forces"], want)
    moved.arrays["positions"] = atoms.positions.astype(np.float32)
    np.testing.assert_allclose(potential.compute(moved)["forces"], want, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda a: a.set_atomic_numbers([8, 1, 26, 1, 8]),
            UnknownElementError,
            r"numbers: expected elements among H, C, O, got Fe \(atoms 2\)",
        ),
        (lambda a: a.set_atomic_numbers([8, 1, 0, 1, 8]), UnknownElementError, "got Z=0"),
        (
            lambda a: a.positions.__setitem__((3, 1), np.nan),
            InputError,
            "positions: expected finite numbers, got NaN or infinity for atoms 3",
        ),
        (
            lambda a: a.positions.__setitem__(1, a.positions[0] + 0.01),
            InputError,
            "atoms at least 0.339 A apart, got atoms 0 and 1 at 0.017",
        ),
        (lambda a: a.set_cell(np.zeros((3, 3))), InputError, "cell: expected independent"),
    ],
)
def test_refused_structures(change, error, message):
    atoms = golden.atoms("periodic")
    change(atoms)
    with pytest.raises(error, match=message):
        golden_potential().compute(atoms)
    with pytest.raises(error, match="structure 1: "):
        golden_potential().compute([golden.atoms("open"), atoms])


def test_further_inputs_from_info_or_arrays():
    potential = tiny_potential(inputs=("charge_states",), dtype="float64")
    atoms = water(False)
    with pytest.raises(InputError, match=r"charge_states: .*Set atoms.arrays\['charge_states'\]"):
        potential.compute(atoms)
    atoms.arrays["charge_states"] = np.full(6, 0.5)
    from_array = potential.compute(atoms)["energy"]
    del atoms.arrays["charge_states"]
    atoms.info["charge_states"] = 0.5
    assert potential.compute(atoms)["energy"] == from_array
    atoms.info["charge_states"] = -0.5
    assert potential.compute(atoms)["energy"] != from_array
    for wrong in ("many", np.ones(4) * np.nan):
        atoms.info["charge_states"] = wrong
        with pytest.raises(InputError, match="charge_states: expected"):
            potential.compute(atoms)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "float16"}, InputError, "dtype: expected 'float32' or 'float64', got 'float16'"),
        ({"device": "toaster"}, InputError, "device: expected 'auto' or a device"),
        ({"backend": "fortran"}, InputError, "backend: expected one of auto, reference, cpu"),
        ({"backend": "triton"}, BackendUnavailableError, "'triton' is not available here"),
        ({"k_set": "cube"}, InputError, "k_set: expected one of sphere, frozen, got 'cube'"),
        ({"long_range": "fmm"}, InputError, "long_range: expected one of auto, direct, mesh"),
        ({"long_range_tolerance": 2.0}, InputError, "long_range_tolerance: expected"),
        ({"energy_key": "enthalpy"}, InputError, "energy_key: expected one of .*total"),
    ],
)  # fmt: skip
def test_refused_options(options, error, message):
    with pytest.raises(error, match=message):
        golden_potential(**options)


def test_refused_properties():
    potential = golden_potential()
    with pytest.raises(InputError, match=r"properties: expected names among energy.*got entropy"):
        potential.compute(golden.atoms("open"), ("energy", "entropy"))
    with pytest.raises(InputError, match="properties: expected a tuple of names"):
        potential.compute(golden.atoms("open"), "energy")


def test_bare_descriptor():
    spec, weights = golden.model()
    bare = ModelSpec(spec.representation)
    tensors = {k: v for k, v in weights.items() if not k.startswith("outputs")}
    potential = Potential(bare, Weights(bare, tensors), dtype="float64", backend="reference")
    want = golden_potential().features(golden.atoms("open"))
    np.testing.assert_array_equal(potential.features(golden.atoms("open")), want)
    with pytest.raises(PropertyNotImplementedError, match="bare descriptor"):
        potential.compute(golden.atoms("open"))


def test_average_and_several_outputs():
    """Aggregation by the mean, and a choice among several energies."""
    spec, weights = golden.model()
    sub = spec.submodels[0]
    modules = tuple(
        replace(m, aggregation="avg") if isinstance(m, Readout) and m.output_key == "E" else m
        for m in sub.modules
    )
    mean = ModelSpec(spec.representation, (replace(sub, modules=modules),))
    full = golden_potential(energy_key="E").compute(golden.atoms("open"), ("energy", "energies"))
    part = Potential(mean, weights, dtype="float64", energy_key="E").compute(golden.atoms("open"))
    assert part["energy"] == pytest.approx(full["energy"] / 5, abs=1e-14)
    with pytest.raises(InputError, match="output_index: expected 0 to 1"):
        golden_potential(energy_key="tot_q").compute(golden.atoms("open"))
    second = golden_potential(energy_key="tot_q", output_index=1).compute(golden.atoms("open"))
    q = golden_potential().compute(golden.atoms("open"), ("latent_charges",))["latent_charges"]
    assert second["energy"] == pytest.approx(q[:, 1].sum(), abs=1e-13)


def test_atomic_energies_of_the_file():
    with_them = tiny_potential(atomic_energies=((8, -3.0), (1, -0.5)), dtype="float64")
    without = tiny_potential(dtype="float64")
    a, b = (p.compute(water(True), ("energy", "energies")) for p in (with_them, without))
    assert a["energy"] - b["energy"] == pytest.approx(-8.0, abs=1e-12)
    np.testing.assert_allclose(a["energies"] - b["energies"], [-3, -0.5, -0.5] * 2)


def test_save_and_load_are_exact(tmp_path, charged):
    charged.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", dtype="float64")
    assert again.spec == charged.spec
    names = ("energy", "forces", "stress", "latent_charges", "bec")
    a, b = (p.compute(water(True), names) for p in (charged, again))
    for name in names:
        np.testing.assert_array_equal(a[name], b[name])


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file, and no shipped potential"):
        load(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="a folder, expected a model file"):
        load(tmp_path)
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load(tmp_path / "text.safetensors")


def test_load_with_verification(tmp_path, charged):
    charged.save(tmp_path / "model.safetensors")
    assert isinstance(load(tmp_path / "model.safetensors", verify=True), Potential)


@pytest.mark.parametrize("folder", upstream_checkpoints()[:3], ids=lambda f: f.name)
def test_own_format_of_recorded_checkpoints(folder, tmp_path):
    potential = load(folder / "model.pth")
    potential.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.spec == potential.spec
    assert len(again.spec.provenance.sha256) == 64
    for name, tensor in potential.weights.items():
        assert torch.equal(again.weights[name], tensor)
    start = time.perf_counter()
    load(tmp_path / "model.safetensors")
    assert time.perf_counter() - start < 1.0  # milliseconds in fact; a second means a mistake


def test_global_state_is_left_alone():
    code = (
        "import torch; torch.set_default_dtype(torch.float64); torch.manual_seed(3);"
        "before = torch.get_rng_state(); import cace_fast; from support import golden;"
        "p = cace_fast.Potential(*golden.model()); p.compute(golden.atoms('periodic'));"
        "assert torch.get_default_dtype() == torch.float64;"
        "assert torch.equal(before, torch.get_rng_state())"
    )
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, env=environment)


def test_default_dtype_of_torch_has_no_influence():
    want = golden_potential(dtype="float32").compute(golden.atoms("periodic"))
    try:
        torch.set_default_dtype(torch.float64)
        got = golden_potential(dtype="float32").compute(golden.atoms("periodic"))
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(got["forces"], want["forces"])


def test_prints_readably():
    text = str(golden_potential().spec)
    assert "elements=(8, 1, 6)" in text
    assert "Ewald(" in text
    assert repr(golden_potential()) == (
        "Potential(H C O, cutoff 3.5 A, backend 'reference' on 'cpu', float64)"
    )
    assert cace_fast.ModelSpec is ModelSpec
    assert any(isinstance(m, Add) for m in golden.model()[0].submodels[0].modules)


def test_the_old_name_of_replace_warns(charged):
    with pytest.warns(DeprecationWarning, match="Potential.replace"):
        twin = charged.changed(dtype="float32")
    assert twin.dtype == torch.float32
