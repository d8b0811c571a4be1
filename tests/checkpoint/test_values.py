"""Models whose sums or numbers make no sense, or much work: a value, or a typed error at once."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from support import upstream_like as u
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights

import cace_fast
from cace_fast import checkpoint, weights
from cace_fast.errors import CheckpointError, SpecError, UnsupportedModelError
from cace_fast.spec import Add, FixedCharge, SubModel, energy_terms, from_json, to_json

# -- sums of sums ------------------------------------------------------------------------------


def _sums(path: Path, adds):
    rep = u.representation()
    modules = [u.atomwise(u.Numbers(1), u.n_features(rep), "E0")]
    modules += [
        u.make("cace.modules.feature_mix.FeatureAdd", feature_keys=list(keys), output_key=key)
        for keys, key in adds
    ]
    u.save(u.potential(rep, *modules, u.forces(adds[-1][1])), path)
    return checkpoint.read(path)[0]


def test_sums_that_double_count_what_they_hold(tmp_path):
    spec = _sums(tmp_path / "m.pth", [((f"E{k}",) * 2, f"E{k + 1}") for k in range(30)])
    (term,) = energy_terms(spec)
    assert (term.index, term.weight) == (0, 2.0**30)


def test_a_long_row_of_sums(tmp_path):
    spec = _sums(tmp_path / "m.pth", [((f"E{k}",), f"E{k + 1}") for k in range(1500)])
    assert [(t.index, t.weight) for t in energy_terms(spec)] == [(0, 1.0)]


def test_a_running_sum(tmp_path):
    spec = _sums(tmp_path / "m.pth", [(("E0", "E0"), "E0"), (("E0", "E0", "E0"), "E0")])
    assert [(t.index, t.weight) for t in energy_terms(spec)] == [(0, 6.0)]


@pytest.mark.parametrize("adds", [
    [(("E0", "E2"), "E1"), (("E1",), "E2")],
    [(("E0", "mine"), "mine")],
])  # fmt: skip
def test_a_true_cycle_is_refused(tmp_path, adds):
    """A module finds no such value when it runs: upstream stops there too."""
    spec = _sums(tmp_path / "m.pth", adds)
    with pytest.raises(UnsupportedModelError, match="written by no module before output"):
        energy_terms(spec)


def test_sums_beyond_numbers_are_refused(tmp_path):
    spec = _sums(tmp_path / "m.pth", [((f"E{k}",) * 10, f"E{k + 1}") for k in range(400)])
    with pytest.raises(UnsupportedModelError, match="counts a part too often"):
        energy_terms(spec)


def test_the_work_of_sums_is_bounded():
    with pytest.raises(SpecError, match="at most 10000 output modules that take 100000 keys"):
        SubModel(tuple(Add(("E",) * 1000, f"E{k}") for k in range(101)))


def test_values_of_atoms_are_summed_without_recursion():
    """The same for charges: 1 500 sums in a row, of which each counts the one before twice."""
    spec = tiny_spec(ewald_channels=1)
    modules = list(spec.submodels[0].modules)
    charges = replace(modules[1], per_atom_key="q0")
    sums = [Add((f"q{k}",) if k > 20 else (f"q{k}", f"q{k}"), f"q{k + 1}") for k in range(1500)]
    row = (modules[0], charges, *sums, replace(modules[2], feature_key="q1500"), *modules[3:])
    spec = replace(spec, submodels=(replace(spec.submodels[0], modules=row),))
    potential = cace_fast.Potential(spec, tiny_weights(spec), backend="reference", dtype="float64")
    atoms = tiny_structure(spec)
    got = potential.compute(atoms, ("latent_charges",))["latent_charges"]
    plain = tiny_spec(ewald_channels=1)
    one = cace_fast.Potential(plain, tiny_weights(plain), backend="reference", dtype="float64")
    want = one.compute(atoms, ("latent_charges",))["latent_charges"]
    torch.testing.assert_close(torch.tensor(got), 2.0**21 * torch.tensor(want), rtol=1e-12, atol=0)


# -- values ------------------------------------------------------------------------------------


def _set(*path_and_value):
    *path, last, value = path_and_value

    def change(content):
        at = content["model"]
        for key in path:
            at = at[key]
        at[last] = value

    return change


def _module(k):
    return ("submodels", 0, "modules", k)


FIXED = {"type": "FixedCharge", "output_key": "z", "charges": [[1, 10**400]], "normalize": True}
VALUES = {
    "huge cutoff": _set("representation", "cutoff", 10**400),
    "cutoff 1e9": _set("representation", "cutoff", 1e9),
    "cutoff 1e-300": _set("representation", "cutoff", 1e-300),
    "cutoff of the function": _set("representation", "cutoff_function", "cutoff", 1e9),
    "cutoff nan": lambda c: json.dumps(c).replace('"cutoff": 4.0', '"cutoff": NaN'),
    "cutoff infinite": lambda c: json.dumps(c).replace('"cutoff": 4.0', '"cutoff": 1e400'),
    "true cutoff": _set("representation", "cutoff", True),
    "huge factor": _set("representation", "mp_norm_factor", 10**400),
    "huge eps": _set("representation", "cutoff_function", "eps", -(10**400)),
    "p": _set("representation", "cutoff_function", "p", 1e300),
    "element 10^9": _set("representation", "elements", [10**9]),
    "element true": _set("representation", "elements", [True, 8]),
    "exponent 1.0": _set(*_module(2), "exponent", 1.0),
    "exponent true": _set(*_module(2), "exponent", True),
    "dl 1e300": _set(*_module(2), "dl", 1e300),
    "dl 1e-300": _set(*_module(2), "dl", 1e-300),
    "sigma 0": _set(*_module(2), "sigma", 0),
    "direction 1.0": _set(*_module(2), "external_field_direction", 1.0),
    "field 10^400": _set(*_module(2), "external_field", 10**400),
    "field nan": lambda c: json.dumps(c).replace('"external_field": null', '"external_field": NaN'),
    "width 8.0": _set(*_module(1), "mlp", "widths", [8.0, 1]),
    "list as kind": _set("representation", "radial", "kind", ["bessel"]),
    "list as activation": _set(*_module(0), "mlp", "activation", [["silu"]]),
    "atomic energies of one": _set("atomic_energies", [[1]]),
    "atomic energies as text": _set("atomic_energies", [["H", 1.0]]),
    "atomic energies of 10^400": _set("atomic_energies", [[1, 10**400]]),
    "atomic energies twice": _set("atomic_energies", [[1, 1.0], [1, 2.0]]),
    "atomic energies of lists": _set("atomic_energies", [[1, [1.0]]]),
    "fixed charge of 10^400": lambda c: c["model"]["submodels"][0]["modules"].append(FIXED),
    "combination as text": _set("combination", "x"),
    "a key of node_feats": _set(*_module(0), "output_key", "node_feats"),
    "a read-out with one key twice": _set(*_module(1), "per_atom_key", "tot_q"),
    "empty feature": _set(*_module(0), "features", ["node_feats", ""]),
    "deep": lambda c: '{"version": 1, "model": ' + '{"a": ' * 400 + "1" + "}" * 401,
    "deep lists": lambda c: '{"version": 1, "model": ' + "[" * 900 + "]" * 900 + "}",
    "digits": lambda c: json.dumps(c).replace('"cutoff": 4.0', '"cutoff": ' + "9" * 5000),
}


@pytest.mark.parametrize("name", VALUES)
def test_senseless_values_are_typed_errors(name):
    content = json.loads(to_json(tiny_spec(ewald_channels=1)))
    changed = VALUES[name](content) or content
    text = changed if isinstance(changed, str) else json.dumps(changed)
    with pytest.raises(SpecError) as caught:
        from_json(text)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("keys", [
    [], [[]], [["E"]], [[["E"]]], [[["E", 1]]], [[["E", "E", "E"]]], [[[["E"], "E"]]], ["EE"], 3,
    [[["E", ["E"]]]],
])  # fmt: skip
def test_malformed_keys_of_a_combination(keys):
    content = json.loads(to_json(tiny_spec()))
    content["model"]["combination"] = {
        "type": "Combination", "names": ["E"], "keys": keys, "weights": [1.0]
    }  # fmt: skip
    with pytest.raises(SpecError):
        from_json(json.dumps(content))


def test_weights_of_eight_bits_are_refused():
    spec = tiny_spec()
    tensors = dict(tiny_weights(spec))
    tensors["mixing.0"] = tensors["mixing.0"].to(torch.float8_e4m3fn)
    with pytest.raises(cace_fast.errors.InputError, match=r"expected a floating tensor.*float8"):
        weights.Weights(spec, tensors)


def test_atoms_of_any_number_are_told_at_once():
    spec = tiny_spec()
    potential = cace_fast.Potential(spec, tiny_weights(spec))
    atoms = Atoms("H")
    atoms.numbers = np.array([10**9])
    start = time.process_time()
    with pytest.raises(cace_fast.errors.UnknownElementError, match="Z=1000000000"):
        potential.compute(atoms)
    assert time.process_time() - start < 5.0


def test_a_fixed_charge_of_any_number_in_a_file(tmp_path):
    rep = u.representation(forward_features=["atomic_numbers"])
    fixed = u.make(
        "cace.modules.fixed_charge.FixedCharge", charge_dict={1: 10**400}, output_key="q",
        normalize=True, atomic_numbers_key="atomic_numbers",
    )  # fmt: skip
    u.save(u.potential(rep, fixed), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="charge_dict"):
        checkpoint.read(tmp_path / "m.pth")
    with pytest.raises(SpecError, match=r"FixedCharge\.charges: expected one finite number"):
        FixedCharge("q", ((1, float("inf")),))
