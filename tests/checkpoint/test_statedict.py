"""Files of state dicts: settings from names and shapes, and options of the caller."""

from __future__ import annotations

import re

import pytest
import torch
from support import upstream_like as u

from cace_fast import checkpoint
from cace_fast.errors import CheckpointError, InputError, UnsupportedModelError

SHORT = [
    {"type": "Atomwise", "output_key": "CACE_energy"},
    {"type": "Forces", "energy_key": "CACE_energy", "forces_key": "CACE_forces"},
]
LONG = [
    {"type": "Atomwise", "output_key": "tot_q", "per_atom_output_key": "q"},
    {
        "type": "EwaldPotential", "dl": 2, "sigma": 1.0, "remove_self_interaction": False,
        "feature_key": "q", "output_key": "ewald_potential",
    },
    {"type": "Forces", "energy_key": "ewald_potential", "forces_key": "ewald_forces"},
]  # fmt: skip
FACTOR = 10**-0.5


def written(path, model, **others):
    torch.save({"model_state_dict": model.state_dict(), **others}, path)
    return path


def short_range(**options):
    rep = u.representation(**options)
    return u.potential(rep, u.atomwise(u.Numbers(), u.n_features(rep)), u.forces())


@pytest.mark.parametrize("options", [
    {}, {"shared_embedding": True}, {"l_max": 4, "nu_max": 4}, {"n_embedding": 1},
    {"steps": [("B",)]}, {"steps": [("M", "Ar", "Bcl"), ("Bc",)]}, {"steps": [("M",), ("Ar",)]},
    {"radial": "GaussianRBF", "cutoff_kind": "CosineCutoff"},
    {"radial": "GaussianRBFCentered", "cutoff_kind": "MollifierCutoff"},
    {"radial": "ExponentialDecayRBF", "cutoff_kind": "SwitchFunction"},
    {"cutoff": 5.29},
], ids=str)  # fmt: skip
def test_shapes_tell_the_representation(tmp_path, options):
    model = short_range(**options)
    expected, tensors = checkpoint.from_module(model)
    spec, found = checkpoint.read(
        written(tmp_path / "c.pt", model),
        mp_norm_factor=FACTOR, activation="silu", outputs=[SHORT],
    )  # fmt: skip
    got, want = spec.representation, expected.representation
    if not want.steps:
        assert got.mp_norm_factor == 1.0
        object.__setattr__(got, "mp_norm_factor", FACTOR)
    if options.get("n_embedding") == 1:
        assert got.n_channels == 1
    assert got == want
    assert spec.submodels[0].modules == expected.submodels[0].modules
    assert spec.submodels[0].outputs == ("CACE_energy", "CACE_forces")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_combination_with_averaged_weights(tmp_path):
    model, averaged = (
        u.water_like(steps=[("B",)], weight=0.25),
        u.water_like(steps=[("B",)], seed=9),
    )
    ema = {"n_averaged": torch.tensor(3)}
    ema |= {f"module.{name}": tensor for name, tensor in averaged.state_dict().items()}
    path = written(tmp_path / "c.pt", model, model_ema_state_dict=ema, model_swa_state_dict=None)
    options = {
        "mp_norm_factor": FACTOR,
        "activation": "silu",
        "outputs": [SHORT, LONG],
        "potential_keys": model.potential_keys,
    }
    for name, source in (("model", model), ("ema", averaged)):
        spec, tensors = checkpoint.read(path, weights=name, **options)
        _, expected = checkpoint.from_module(source)
        assert spec.combination.weights == (1.0, 0.25)
        assert all(torch.equal(tensors[n], t) for n, t in expected.items()), name
    with pytest.raises(InputError, match=r"weights \(one of model, ema\): expected a value"):
        checkpoint.read(path, **options)
    with pytest.raises(InputError, match="weights: expected one of model, ema, got 'swa'"):
        checkpoint.read(path, weights="swa", **options)


def test_lightning(tmp_path):
    model = short_range(steps=[("B",)])
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    state["losses.0.scale"] = torch.ones(1)
    torch.save(
        {"epoch": 3, "state_dict": state, "loops": {"fit": {}}, "callbacks": {}},
        tmp_path / "l.ckpt",
    )
    spec, tensors = checkpoint.read(
        tmp_path / "l.ckpt", mp_norm_factor=FACTOR, activation="tanh", outputs=[SHORT]
    )
    _, expected = checkpoint.from_module(model)
    assert spec.submodels[0].modules[0].mlp.activation == "tanh"
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("prefix", [
    "_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.",
])  # fmt: skip
@pytest.mark.parametrize("place", ["model_state_dict", "state_dict", "model_ema_state_dict"])
def test_names_of_compiled_and_parallel_training(tmp_path, prefix, place):
    model = short_range(steps=[("B",)])
    _, expected = checkpoint.from_module(model)
    if place == "state_dict":
        prefix = f"{prefix}model." if not prefix.startswith("model.") else prefix
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({place: state}, tmp_path / "c.pt")
    options = {"mp_norm_factor": FACTOR, "activation": "silu", "outputs": [SHORT]}
    _, tensors = checkpoint.read(tmp_path / "c.pt", **options)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


def test_parts_that_were_compiled_alone(tmp_path):
    model = short_range(steps=[("B",)])
    _, expected = checkpoint.from_module(model)
    state = {
        name.replace("representation.", "representation._orig_mod.", 1): tensor
        for name, tensor in model.state_dict().items()
    }
    torch.save(state, tmp_path / "c.pt")
    options = {"mp_norm_factor": FACTOR, "activation": "silu", "outputs": [SHORT]}
    _, tensors = checkpoint.read(tmp_path / "c.pt", **options)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in expected.items())


def test_a_bare_state_dict_and_a_bare_representation(tmp_path):
    rep = u.representation(l_max=3, nu_max=3)
    torch.save(rep.state_dict(), tmp_path / "c.pt")
    with pytest.raises(InputError, match=r"^max_nu: expected a value"):
        checkpoint.read(tmp_path / "c.pt")
    spec, _ = checkpoint.read(tmp_path / "c.pt", max_nu=3)
    assert (spec.representation.l_max, spec.representation.nu_max) == (3, 3)
    assert spec.submodels == ()


def test_every_missing_argument_is_named_at_once(tmp_path):
    path = written(tmp_path / "c.pt", u.water_like(steps=[("B",)]))
    with pytest.raises(InputError) as caught:
        checkpoint.read(path)
    names = re.match("(.*): expected a value", str(caught.value)).group(1).split(", ")
    assert sorted(names) == ["activation", "mp_norm_factor", "outputs", "potential_keys"]
    with pytest.raises(
        InputError, match=r"outputs\[0\]\[1\]\['dl'\], outputs\[0\]\[1\]\['sigma'\]"
    ):
        checkpoint.read(
            written(tmp_path / "d.pt", short_range()),
            activation="silu",
            outputs=[[SHORT[0], {k: v for k, v in LONG[1].items() if k not in ("dl", "sigma")}]],
        )


def test_extra_features_of_the_input(tmp_path):
    rep = u.representation(forward_features=["charge_states"], l_max=3, nu_max=3)
    keys = ["node_feats", "charge_states"]
    readout = u.atomwise(u.Numbers(), u.n_features(rep) + 1, feature_key=keys)
    model = u.potential(rep, readout, u.forces())
    spec, _ = checkpoint.read(
        written(tmp_path / "c.pt", model),
        activation="silu",
        outputs=[[{**SHORT[0], "feature_key": keys}, SHORT[1]]],
    )
    assert spec.representation.forward_features == ("charge_states",)
    assert spec.representation.nu_max == 3


def test_batch_norm_is_seen_in_the_names(tmp_path):
    rep = u.representation()
    model = u.potential(rep, u.atomwise(u.Numbers(), u.n_features(rep), use_batchnorm=True))
    expected, _ = checkpoint.from_module(model)
    spec, tensors = checkpoint.read(
        written(tmp_path / "c.pt", model), activation="silu", outputs=[SHORT[:1]]
    )
    assert spec.submodels[0].modules == expected.submodels[0].modules
    assert "outputs.0.0.layers.0.norm.mean" in tensors


WRONG = {
    "activation": ({"activation": "step"}, "activation: expected one of silu, relu"),
    "weights": ({"weights": "best"}, "weights: expected one of model, ema, swa, got 'best'"),
    "sub-models": ({"outputs": [SHORT, LONG]}, "outputs: expected one list for each of 1"),
    "type": ({"outputs": [[{"type": "Metal"}]]}, r"outputs\[0\]\[0\]\['type'\]: expected one of"),
    "order": ({"outputs": [SHORT[::-1]]}, r"outputs\[0\]\[0\]\['type'\]: expected 'Atomwise'"),
    "no weights": (
        {"outputs": [[*SHORT, SHORT[0]]]}, r"outputs\[0\]\[2\]\['type'\]: expected a module wi"),
    "too few": ({"outputs": [[]]}, r"outputs\[0\]: expected all output modules that have weights"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(tmp_path, name):
    given, message = WRONG[name]
    options = {"activation": "silu", "outputs": [SHORT]} | given
    with pytest.raises(InputError, match=message):
        checkpoint.read(written(tmp_path / "c.pt", short_range()), **options)


def test_values_are_checked_as_those_of_a_file_are(tmp_path):
    outputs = [[*SHORT, {**LONG[1], "dl": "2"}]]
    path = written(tmp_path / "c.pt", short_range())
    with pytest.raises(CheckpointError, match=r"output_modules\.2 .*'dl' is '2', expected"):
        checkpoint.read(path, activation="silu", outputs=outputs)


def test_options_are_refused_where_the_file_tells_everything(tmp_path):
    u.save(short_range(), tmp_path / "m.pth")
    with pytest.raises(InputError, match="activation: expected nothing, because the file holds it"):
        checkpoint.read(tmp_path / "m.pth", activation="silu")


BROKEN = {
    "no model": ({"a": 1}, CheckpointError, "without model_state_dict or state_dict"),
    "empty": ({}, CheckpointError, "without model_state_dict or state_dict"),
    "a tensor": ({"model_state_dict": torch.ones(3)}, CheckpointError, "not of a CACE model"),
    "numbers": ({"model_state_dict": {"a": 1}}, CheckpointError, "dictionary of named tensors"),
    "other model": (
        {"model_state_dict": {"weight": torch.ones(2)}}, CheckpointError, "not of a CACE model"),
    "through a tensor": (
        {"model_state_dict": {"a": torch.ones(2), "a.b": torch.ones(2)}},
        CheckpointError, "'a.b' goes through a tensor"),
    "two things": (
        {"model_state_dict": {"a.b": torch.ones(2), "a": torch.ones(2)}},
        CheckpointError, "'a' stands for two things"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_dictionaries_that_are_no_models(tmp_path, name):
    root, error, message = BROKEN[name]
    torch.save(root, tmp_path / "c.pt")
    with pytest.raises(error, match=message):
        checkpoint.read(tmp_path / "c.pt", activation="silu", outputs=[SHORT])


LAYER = "output_modules.0.outnet.0."
CHANGES = {
    "residual": (
        lambda s: {n.replace(LAYER, LAYER + "dense1."): t for n, t in s.items()},
        UnsupportedModelError, "not a stack of dense layers; residual"),
    "a gap": (
        lambda s: {n: t for n, t in s.items() if ".weights.1" not in n},
        CheckpointError, "a list of modules or weights has a gap"),
    "no weight": (
        lambda s: {n: t for n, t in s.items() if n != LAYER + "linear.weight"},
        CheckpointError, "a dense layer has no weight matrix"),
    "no radial basis": (
        lambda s: {n: t for n, t in s.items() if "radial_basis" not in n},
        UnsupportedModelError, "radial basis has unknown tensors"),
    "no cutoff": (
        lambda s: {n: t for n, t in s.items() if "cutoff_fn" not in n},
        UnsupportedModelError, "cutoff function has unknown tensors"),
    "width": (
        lambda s: {n: t[:, :-3] if n == LAYER + "linear.weight" else t for n, t in s.items()},
        UnsupportedModelError, "invariants for max_l = 2 belong to no correlation order"),
    "no radius": (
        lambda s: {n: t for n, t in s.items() if n != "representation.cutoff_fn.cutoff"},
        CheckpointError, "the cutoff function has no cutoff radius"),
    "no radial weights": (
        lambda s: {n: t for n, t in s.items() if "radial_transform" not in n},
        CheckpointError, "the representation has no radial weights"),
    "a tensor for a module": (
        lambda s: {n: t for n, t in s.items() if "cutoff_fn" not in n}
        | {"representation.cutoff_fn": torch.ones(1)},
        CheckpointError, "'cutoff_fn' is a tensor where modules are expected"),
    "no elements": (
        lambda s: {n: t for n, t in s.items() if "index_map" not in n},
        CheckpointError, "has no tensor 'index_map'"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_incomplete_state_dicts(tmp_path, name):
    change, error, message = CHANGES[name]
    torch.save({"model_state_dict": change(short_range().state_dict())}, tmp_path / "c.pt")
    with pytest.raises(error, match=message):
        checkpoint.read(tmp_path / "c.pt", activation="silu", outputs=[SHORT])
