"""Keys mean their latest value, places identify modules, values of atoms are taken."""

from __future__ import annotations

import json
from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from support.chained import chained_spec, seeded_weights, structure
from support.dictionaries import dictionary
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights

from cace_fast import InputError, Potential, UnsupportedModelError, load
from cace_fast.forward import Forward
from cace_fast.spec import (
    MLP,
    Add,
    Ewald,
    FixedCharge,
    Forces,
    Grad,
    Polarization,
    Readout,
    SubModel,
    chain,
    energy_terms,
    taken_by,
    total_energy_key,
)
from cace_fast.structures import extra_inputs

SPEC = chained_spec()
NAMES = ("energy", "energies", "energies_sr", "forces", "virials")
BOTH = pytest.mark.parametrize("backend", ["reference", "cpu"])


def frames():
    return [structure(SPEC, 3), structure(SPEC, 1), structure(SPEC, 2, pbc=False)]


def test_terms_of_keys_that_are_written_twice():
    places = [(t.index, t.weight) for t in energy_terms(SPEC)]
    assert places == [(0, 1), (2, 1), (3, 1), (8, 2), (9, 1), (11, 1), (12, 1)]
    sub = SPEC.submodels[0]
    assert [sub.producer("q", k) for k in (1, 2, 5, 6, 7)] == [None, 1, 1, 5, 6]
    assert sub.producer("q") == 6
    assert sub.producer("nobody") is None
    assert [t.place for t in taken_by(sub, 5)] == [1, 4, None, 1]
    assert chain(sub, [2]) == (1, 2)
    assert chain(sub, [9]) == (1, 3, 9)
    assert chain(sub, [11]) == (4, 6, 7, 10, 11)
    assert extra_inputs(SPEC) == ("spin",)  # dq goes into a value of q that nothing takes
    reordered = replace(sub, modules=(*sub.modules[:6], *sub.modules[7:]))
    assert extra_inputs(replace(SPEC, submodels=(reordered,))) == ("spin", "dq")


@BOTH
@pytest.mark.parametrize("without", [None, 6])
def test_compute_gives_what_modules_give_in_turn(backend, without):
    """`compute` equals the dictionary call, which runs one module after the other."""
    spec = SPEC
    if without is not None:
        modules = SPEC.submodels[0].modules
        row = modules[:without] + modules[without + 1 :]
        spec = replace(SPEC, submodels=(SubModel(row, strain=True),))
    weights = seeded_weights(spec)
    potential = Potential(spec, weights, dtype="float64", backend=backend)
    forward = Forward(spec, weights.to("cpu", torch.float64))
    for atoms in frames():
        got = potential.compute(atoms, NAMES)
        out = forward(dictionary(atoms, potential.cutoff, extra=("spin", "dq")))
        assert got["energy"] == pytest.approx(float(out["E"].detach()), rel=1e-12)
        np.testing.assert_allclose(got["forces"], out["F"].detach(), rtol=0, atol=1e-11)
        np.testing.assert_allclose(got["virials"], out["virials"][0].detach(), rtol=0, atol=1e-10)
        assert got["energies"].sum() == pytest.approx(got["energy"], rel=1e-12)
    batch = potential.compute(frames(), NAMES)
    for one, many in zip((potential.compute(a, NAMES) for a in frames()), batch, strict=True):
        for name in NAMES:
            np.testing.assert_allclose(many[name], one[name], rtol=0, atol=1e-11)


@BOTH
def test_forces_are_the_gradient(backend):
    potential = Potential(SPEC, seeded_weights(SPEC), dtype="float64", backend=backend)
    for pbc in (True, False):
        atoms = structure(SPEC, 2, pbc=pbc)
        forces = potential.compute(atoms, ("forces",))["forces"]
        for i, x in ((0, 0), (3, 1), (7, 2)):
            energies = []
            for step in (1e-4, -1e-4):
                moved = atoms.copy()
                moved.positions[i, x] += step
                energies.append(potential.compute(moved)["energy"])
            slope = (energies[1] - energies[0]) / 2e-4
            assert forces[i, x] == pytest.approx(slope, abs=1e-7)


def test_float32_of_the_compiled_engine():
    weights = seeded_weights(SPEC)
    true = Potential(SPEC, weights, dtype="float64", backend="reference")
    fast = Potential(SPEC, weights, dtype="float32", backend="cpu")
    for atoms in frames():
        want, got = true.compute(atoms, NAMES), fast.compute(atoms, NAMES)
        for name in NAMES:
            scale = max(1.0, float(np.abs(want[name]).max()))
            assert np.abs(got[name] - want[name]).max() < 2e-5 * scale, name


@BOTH
def test_two_modules_of_equal_settings_keep_their_weights(backend):
    """The smallest case: the last one of two read-outs with one key is the energy."""
    spec = tiny_spec()
    short, forces = spec.submodels[0].modules
    one = tiny_weights(spec)
    twice = replace(spec, submodels=(SubModel((short, short, forces)),))
    tensors = dict(one)
    for name in one:
        if name.startswith("outputs.0.0."):
            tensors[name.replace("outputs.0.0.", "outputs.0.1.")] = one[name]
            tensors[name] = 3.0 * one[name]
    atoms = tiny_structure(spec)
    got = Potential(twice, type(one)(twice, tensors), dtype="float64", backend=backend)
    want = Potential(spec, one, dtype="float64", backend="reference")
    assert got.compute(atoms)["energy"] == pytest.approx(want.compute(atoms)["energy"], rel=1e-12)


def test_missing_and_wrong_inputs_are_named():
    for backend in ("reference", "cpu"):
        potential = Potential(SPEC, seeded_weights(SPEC), backend=backend)
        atoms = structure(SPEC)
        del atoms.arrays["spin"]
        with pytest.raises(InputError, match=r"spin: expected .* Set atoms.arrays\['spin'\]"):
            potential.compute(atoms)
        atoms.arrays["spin"] = np.ones((len(atoms), 2))
        with pytest.raises(InputError, match=r"inputs: expected .* numbers per atom in .*spin"):
            potential.compute(atoms)


def _with(*modules):
    spec = tiny_spec(ewald_channels=1)
    own = spec.submodels[0].modules
    return replace(spec, submodels=(SubModel((*own[:2], *modules)),))


N = tiny_spec().representation.n_features
WRONG = {
    "charges of a structure": (
        _with(Ewald("tot_q", "E", 2.0, 1.0), Forces("E", "F")),
        r"output module 2 takes 'tot_q' for each atom, which output module 1 .Readout. gives"),
    "features of a structure": (
        _with(Readout("E", MLP((N + 1, 1)), features=("node_feats", "tot_q")), Forces("E", "F")),
        "takes 'tot_q' for each atom"),
    "an energy of an Ewald sum": (
        _with(Ewald("q", "e", 2.0, 1.0), Readout("E", MLP((1, 1)), features=("e",)),
              Forces("E", "F")), "takes 'e' for each atom, which output module 2 .Ewald. gives"),
    "a polarisation": (
        _with(Polarization("q", "P"), Readout("E", MLP((3, 1)), features=("P",)),
              Forces("E", "F")), "takes 'P' for each atom"),
    "a gradient in a sum": (
        _with(Grad("E_sr", "positions", "g"), Add(("E_sr", "g"), "E"), Forces("E", "F")),
        "'g' is not an energy"),
    "forces of an earlier energy": (
        _with(Forces("E_sr", "F"), Add(("E_sr", "E_sr"), "E_sr")),
        "takes forces of 'E_sr', which a later module changes"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_value_of_atoms_is_refused_when_the_potential_is_made(name):
    spec, message = WRONG[name]
    with pytest.raises(UnsupportedModelError, match=message):
        Potential(spec, seeded_weights(spec), backend="reference")


def test_the_last_value_can_be_asked_for():
    spec = _with(Forces("E_sr", "F"), Add(("E_sr", "E_sr"), "E_sr"))
    assert total_energy_key(spec) == "E_sr"
    assert [t.weight for t in energy_terms(spec, "E_sr")] == [2.0]


def test_potentials_of_charges_as_features():
    """The field key of an Ewald sum is a value of atoms; only the reference takes it."""
    spec = _with(
        Ewald("q", "e", 1.7, 1.0, compute_field=True),
        Readout("Ef", MLP((N + 1, 4, 1)), features=("q_field", "node_feats")),
        Add(("e", "Ef"), "E"), Forces("E", "F"),
    )  # fmt: skip
    weights = seeded_weights(spec)
    potential = Potential(spec, weights, dtype="float64")
    assert potential.backend == "reference"
    assert "takes what a module Ewald gives" in potential.backend_note
    forward = Forward(spec, weights.to("cpu", torch.float64))
    for pbc in (True, False):
        atoms = tiny_structure(tiny_spec(), pbc=pbc)
        got = potential.compute(atoms, ("energy", "forces"))
        out = forward(dictionary(atoms, potential.cutoff))
        assert got["energy"] == pytest.approx(float(out["E"].detach()), rel=1e-10)
        np.testing.assert_allclose(got["forces"], out["F"].detach(), rtol=0, atol=1e-9)


def test_fixed_charges_that_an_element_lacks():
    modules = list(SPEC.submodels[0].modules)
    modules[4] = FixedCharge("z", ((8, -0.8),))
    spec = replace(SPEC, submodels=(SubModel(tuple(modules)),))
    for backend in ("reference", "cpu"):
        potential = Potential(spec, seeded_weights(spec), backend=backend)
        with pytest.raises(InputError, match=r"elements with a fixed charge, got \[1\]"):
            potential.compute(structure(spec))


@BOTH
@pytest.mark.parametrize("n_q", [1, 3])
def test_fields_of_structures_in_one_batch(backend, n_q):
    """Field and direction as inputs equal the same as numbers; open systems count them once."""
    keys = {"external_field": "f", "external_field_direction": "way"}
    spec = tiny_spec(ewald_channels=n_q, ewald=keys | {"charge_neutral_lambda": 0.3})
    weights = tiny_weights(spec)
    potential = Potential(spec, weights, dtype="float64", backend=backend)
    batch = [tiny_structure(spec, 2, pbc=pbc, seed=s) for s, pbc in enumerate((True, False, True))]
    want = []
    for number, atoms in enumerate(batch):
        f, way = 0.3 - 0.2 * number, number % 3
        atoms.info |= {"f": f, "way": way}
        fixed = {"external_field": f, "external_field_direction": way}
        one = tiny_spec(ewald_channels=n_q, ewald=fixed | {"charge_neutral_lambda": 0.3})
        same = Potential(one, weights, dtype="float64", backend="reference")
        want.append(same.compute(atoms, ("energy", "energies", "forces", "virials")))
        none = tiny_spec(ewald_channels=n_q)
        bare = Potential(none, weights, dtype="float64", backend="reference")
        plain = bare.compute(atoms, ("energy", "latent_charges"))
        q, times = plain["latent_charges"], n_q if atoms.pbc.any() else 1
        expected = -f * (q.sum(1) @ atoms.positions[:, way]) / 90.0474**0.5 + 0.3 * q.mean() ** 2
        assert want[-1]["energy"] - plain["energy"] == pytest.approx(times * expected, abs=1e-12)
    for got, true in zip(potential.compute(batch, tuple(want[0])), want, strict=True):
        for name, value in true.items():
            np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-11, err_msg=name)
    for value in (3, -1, 0.5 + 3):
        batch[0].info["way"] = value
        with pytest.raises(InputError, match="way: expected 0, 1 or 2"):
            potential.compute(batch[0])
    batch[0].info["way"] = 0
    batch[0].info.pop("f")
    batch[0].arrays["f"] = np.arange(8.0)
    with pytest.raises(InputError, match="f: expected one finite number for each structure"):
        potential.compute(batch[0])


NEW = ("born-open", "ewald-field-keys", "feature-chain", "key-order", "readout-residual-nobias")


@pytest.mark.parametrize("name", NEW)
def test_dictionary_outputs_of_synthetic_models(shared, name):
    """Key for key what upstream returned, shapes and numbers of all outputs."""
    folder = shared / "data" / "synthetic" / name
    if not folder.is_dir():
        pytest.skip("there is no folder data/synthetic")
    meta = json.loads((folder / "meta.json").read_text())
    with np.load(folder / "reference.npz") as file:
        reference = dict(file)
    potential = load(folder / "model.pth", dtype="float64", backend="reference")
    names = extra_inputs(potential.spec)
    for atoms, entry in zip(
        ase.io.read(folder / "structures.xyz", ":"), meta["structures"], strict=True
    ):
        for key in names:
            if key not in atoms.arrays:
                atoms.arrays[key] = np.full(len(atoms), float(atoms.info[key]))
        data = dictionary(atoms, potential.cutoff, extra=names)
        forward = Forward(potential.spec, potential.weights.to("cpu", torch.float64))
        got = forward(data, like_upstream=True)
        prefix = f"{entry['key']}/out/"
        want = {f.removeprefix(prefix): reference[f] for f in reference if f.startswith(prefix)}
        if not atoms.pbc.any():
            want.pop("stress", None)
            got.pop("stress", None)
        assert set(got) == set(want)
        for out, value in want.items():
            found = got[out].detach().numpy()
            assert found.shape == value.shape, out
            np.testing.assert_allclose(found, value, rtol=1e-8, atol=2e-8, err_msg=out)


@pytest.mark.parametrize("n_q", [1, 2])
def test_shapes_of_energies_that_are_not_summed_over_channels(n_q):
    """A periodic structure has one for each channel, an open one a single one."""
    spec = tiny_spec(ewald_channels=n_q, ewald={"aggregation": None})
    modules = spec.submodels[0].modules
    spec = replace(spec, submodels=(SubModel(modules[:3]),))
    forward = Forward(spec, tiny_weights(spec).to("cpu", torch.float64))
    summed = tiny_spec(ewald_channels=n_q)
    summed = replace(summed, submodels=(SubModel((*modules[:2], summed.submodels[0].modules[2])),))
    total = Forward(summed, tiny_weights(spec).to("cpu", torch.float64))
    both = [tiny_structure(spec, pbc=pbc) for pbc in (True, False)]
    for atoms, width in zip(both, (n_q, 1), strict=True):
        data = dictionary(atoms, 4.0)
        found = forward(data)["E_lr"]
        assert found.shape == (1, width)
        torch.testing.assert_close(found.sum(1), total(data)["E_lr"], rtol=1e-12, atol=1e-12)
    if n_q > 1:
        with pytest.raises(InputError, match=r"open or periodic structures only"):
            forward(dictionary(both, 4.0))
