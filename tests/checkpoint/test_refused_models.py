"""Models that cace-fast does not provide, and models that contradict themselves."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support import upstream_like as u

from cace_fast import checkpoint
from cace_fast.errors import CheckpointError, UnsupportedModelError

N_FEATURES = u.n_features(u.representation())


def short_range(**options):
    rep = u.representation(**options)
    return u.potential(rep, u.atomwise(u.Numbers(), u.n_features(rep)), u.forces())


def refused(model, path, error, message):
    """Check that a model is refused from memory and from a file, with the same words."""
    with pytest.raises(error, match=message) as live:
        checkpoint.from_module(model)
    u.save(model, path)
    with pytest.raises(error, match=message) as filed:
        checkpoint.read(path)
    assert type(live.value) is type(filed.value) is error
    assert str(filed.value) == f"{path}: {live.value}"


def with_part(place, part):
    """Return a change of a short-range model that replaces one part of its representation."""

    def change(model):
        setattr(model.representation, place, part)

    return change


def with_setting(place, **settings):
    def change(model):
        target = model.get_submodule(place)
        for name, value in settings.items():
            setattr(target, name, value)

    return change


def in_slot(slot, path):
    def change(model):
        model.representation.message_passing_list[0][slot] = u.make(path)

    return change


def with_output(path, **attributes):
    def change(model):
        model.output_modules.append(u.make(path, **attributes))

    return change


def with_input(model):
    model.input_modules.append(u.make("cace.modules.preprocess.Other"))


READOUT = "output_modules.0"
UNSUPPORTED = {
    "MessageArMLP": (in_slot(1, "cace.modules.interaction.MessageArMLP"), "MessageArMLP"),
    "MessageBA": (in_slot(2, "cace.modules.interaction.MessageBA"), "MessageBA"),
    "FeatureInteract": (with_output("cace.modules.feature_mix.FeatureInteract"), "FeatureInteract"),
    "ChargeEq": (with_output("cace.modules.charge_eq.ChargeEq"), "ChargeEq"),
    "MetalWall": (with_output("cace.modules.metal_wall.MetalWall"), "MetalWall"),
    "MetalWallQEQ": (with_output("cace.modules.metal_wall.MetalWallQEQ"), "MetalWallQEQ"),
    "LesWrapper": (with_output("cace.modules.les_wrapper.LesWrapper"), "LesWrapper"),
    "ElementEncoder": (
        with_part("node_onehot", u.make("cace.modules.type.ElementEncoder")), "ElementEncoder"),
    "interpolation": (
        with_part("node_onehot", u.make("cace.modules.type.NodeEncoder_with_interpolation")),
        "NodeEncoder_with_interpolation"),
    "InterIntra": (
        with_part("edge_coding", u.make("cace.modules.type.EdgeEncoder_InterIntra")),
        "EdgeEncoder_InterIntra"),
    "undirected": (with_setting("representation.edge_coding", directed=False), "undirected edges"),
    "charge_spin_key": (with_setting("representation", charge_spin_key="spin"), "charge_spin_key"),
    "other monomials": (
        with_part("angular_basis", u.make("cace.modules.angular.AngularComponent_GPU")),
        "AngularComponent_GPU"),
    "other representation": (
        lambda model: setattr(model, "representation", u.make(u.REPRESENTATION + "2")),
        r"Cace2\): is not the representation that cace-fast provides"),
    "other embedding": (
        with_part("node_embedding_sender", u.make("cace.modules.type.Other")), "type.Other"),
    "other radial basis": (
        with_part("radial_basis", u.make("cace.modules.radial.ChebyshevRBF")),
        r"ChebyshevRBF\): is not a radial basis that is provided; known are Bessel"),
    "other cutoff": (
        with_part("cutoff_fn", u.make("cace.modules.cutoff.StepCutoff")),
        r"StepCutoff\): is not a cutoff function that is provided; known are polynomial"),
    "other transform": (
        with_part("radial_transform", u.make("cace.modules.radial_transform.Other")),
        "radial_transform.Other"),
    "nu = 5": (with_setting("representation", max_nu=5), "max_nu = 5; provided are"),
    "other input": (with_input, "preprocess.Other"),
    "postprocessors": (with_setting("", do_postprocessing=True), "postprocessors"),
    "never built readout": (with_setting(READOUT, outnet=None), "never built; run the model once"),
    "never built linear": (with_setting(READOUT, linear_nn=None), "never built"),
    "never built hnet": (
        with_setting("representation.message_passing_list.0.2", hnet=None), "hnet was never built"),
    "post_process": (with_setting(READOUT, post_process=torch.nn.functional.relu), "post_process"),
    "grad by cell": (
        with_output("cace.modules.grad.Grad", y_key="y", x_key="cell", output_key="z"), "'cell'"),
    "exponent 3": (
        with_output("cace.modules.ewald.EwaldPotential", exponent=3), "exponent 3; provided are"),
    "eps of a norm": (
        with_setting(READOUT + ".outnet.0", batchnorm=torch.nn.BatchNorm1d(6, eps=1e-3).eval()),
        "eps"),
    "a norm in one layer": (
        with_setting(READOUT + ".outnet.0", batchnorm=torch.nn.BatchNorm1d(6).eval()),
        "batch norm in some layers only"),
    "last activation": (
        with_setting(READOUT + ".outnet.2", activation=torch.nn.Tanh()), "followed by something"),
    "two activations": (
        with_setting(READOUT + ".outnet.1", activation=torch.nn.Tanh()),
        r"several activations in one network \(silu, tanh\)"),
    "no bias in one layer": (
        with_setting(READOUT + ".outnet.1.linear", bias=None), "bias in some layers only"),
    "activation in the linear part": (
        with_setting(READOUT + ".linear_nn", activation=torch.nn.Tanh()), "has an activation"),
    "not a stack": (with_setting(READOUT, outnet=torch.nn.Identity()), "is not a stack of layers"),
    "other layer": (
        with_setting(READOUT + ".outnet", **{"1": torch.nn.Identity()}), "is not a layer"),
}  # fmt: skip


NUMBERS = u.Numbers()


def block(**modules):
    return u.make("cace.modules.blocks.ResidualBlock", modules=modules)


def in_readout(*layers):
    def change(model):
        model.output_modules[0].outnet = torch.nn.Sequential(*layers)

    return change


def layer(n_in, n_out, activation=torch.nn.functional.silu):
    return u.dense(NUMBERS, n_in, n_out, activation)


UNSUPPORTED |= {
    "linear part of another class": (
        with_setting(READOUT, linear_nn=torch.nn.Identity()), "is not a dense layer"),
    "linear of another class": (
        with_setting(READOUT + ".outnet.0", linear=torch.nn.Identity()), "is not a linear layer"),
    "blocks and layers": (
        in_readout(block(a=layer(9, 9), b=layer(9, 9)), layer(9, 9), layer(9, 1, None)),
        "residual blocks and plain layers are mixed"),
    "block of one layer": (
        in_readout(block(a=layer(9, 9)), layer(9, 1, None)), "1 layers and 0 skips instead of 2"),
    "block without a way round": (
        in_readout(block(a=layer(9, 5), b=layer(5, 5)), layer(5, 1, None)), "no layer to skip"),
    "block of something else": (
        in_readout(block(a=layer(9, 9), b=torch.nn.Tanh()), layer(9, 1, None)),
        r"activation\.Tanh\): is not a layer that is provided"),
    "norm with nothing but numbers": (
        with_setting(READOUT + ".outnet.2", batchnorm=torch.nn.BatchNorm1d(1, affine=False).eval()),
        "followed by something"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_parts_that_are_not_provided_are_named(tmp_path, name):
    change, message = UNSUPPORTED[name]
    model = short_range(steps=[("M", "Ar", "B")])
    change(model)
    refused(model, tmp_path / "m.pth", UnsupportedModelError, message)


@pytest.mark.parametrize("l_max", [7])
def test_degrees_beyond_six(tmp_path, l_max, monkeypatch):
    monkeypatch.setitem(u.N_INVARIANTS, (l_max, 2), l_max + 1)
    model = short_range(l_max=l_max)
    refused(model, tmp_path / "m.pth", UnsupportedModelError, "max_l = 7 .* provided are max_l up")


def test_other_modules_are_no_models(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"Linear\): is not a model that cace-fast"):
        checkpoint.from_module(torch.nn.Linear(2, 2))
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pth")
    with pytest.raises(UnsupportedModelError, match=r"Linear\): is not a model that cace-fast"):
        checkpoint.read(tmp_path / "m.pth")


def other_operation(model):
    model.operation = torch.nn.functional.relu


def nested(model):
    model.models[1] = u.combination([model.models[0]], [{"CACE_energy": "CACE_energy"}])


def two_representations(model):
    model.models[1].representation = u.representation(seed=5)


def other_method(model):
    model.operation = model.forward


def no_operation(model):
    model.operation = "sum"


COMBINED = {
    "method": (other_method, r"combined by cace\.models\.combined\.CombinePotential\._forward"),
    "text": (no_operation, "combined by 'sum'; only their weighted"),
    "operation": (other_operation, r"combined by torch\.nn\.functional\.relu; only their weighted"),
    "nested": (nested, "CombinePotential.*is not a NeuralNetworkPotential"),
    "two": (two_representations, "combinations with several representations are not provided"),
}


@pytest.mark.parametrize("name", COMBINED)
def test_combinations_that_are_not_provided(tmp_path, name):
    change, message = COMBINED[name]
    model = u.water_like()
    change(model)
    refused(model, tmp_path / "m.pth", UnsupportedModelError, message)


def without(place, name):
    def change(model):
        delattr(model.get_submodule(place), name)

    return change


def with_tensor(place, name, value):
    def change(model):
        target = model.get_submodule(place)
        if name in target._parameters:
            target._parameters[name] = torch.nn.Parameter(value)
        else:
            target._buffers[name] = value

    return change


REP, NAN = "representation", float("nan")
BROKEN = {
    "no cutoff": (without(REP, "cutoff"), "representation .*: has no attribute 'cutoff'"),
    "cutoff text": (with_setting(REP, cutoff="5"), "'cutoff' is '5', expected a finite number"),
    "cutoff nan": (with_setting(REP, cutoff=NAN), "'cutoff' is nan, expected a finite number"),
    "cutoff negative": (with_setting(REP, cutoff=-1.0), r"Representation\.cutoff: expected"),
    "huge factor": (with_setting(REP, mp_norm_factor=10**400), "'mp_norm_factor' is a number of"),
    "true order": (with_setting(REP, max_nu=True), "'max_nu' is True, expected a whole number"),
    "other zs": (with_setting(REP, zs=[8, 6, 1]), "index_map and zs name different elements"),
    "zs number": (with_setting(REP, zs=3), "index_map and zs name different elements"),
    "max_l": (with_setting(REP, max_l=3), "max_l is not the number of radial weights minus one"),
    "steps": (with_setting(REP, num_message_passing=2), "is not the number of steps"),
    "symmetrizer": (with_setting(REP + ".symmetrizer", max_nu=3), "max_nu differs"),
    "index_map": (
        with_tensor(REP + ".node_onehot", "index_map", torch.tensor([-1, 0, 2])),
        "does not number the elements from 0"),
    "index_map twice": (
        with_tensor(REP + ".node_onehot", "index_map", torch.tensor([-1, 0, 0])),
        "does not number the elements from 0"),
    "index_map floats": (
        with_tensor(REP + ".node_onehot", "index_map", torch.tensor([0.0])), "whole numbers"),
    "embedding rows": (
        with_tensor(REP + ".node_embedding_sender", "embedding_weights", torch.ones(2, 2)),
        r"shape \(2, 2\), expected one row for each of 3 elements"),
    "embedding width": (
        with_tensor(REP + ".node_embedding_receiver", "embedding_weights", torch.ones(3, 4)),
        r"weights\['embedding.receiver'\]: expected .* shape \(3, 2\), got"),
    "mixing shape": (
        with_tensor(REP + ".radial_transform.weights", "1", torch.ones(4, 3, 5)),
        r"weights of degree 1 have shape \(4, 3, 5\), expected \(4, radial channels, 4\)"),
    "mixing order": (
        with_tensor(REP + ".radial_transform.weights", "2", torch.ones(4, 2, 4)),
        r"weights\['mixing.2'\]: expected a floating tensor of shape \(4, 3, 4\)"),
    "memory shape": (
        with_tensor(REP + ".message_passing_list.0.0.memory_coef", "0", torch.ones(1, 1)),
        r"weights\['messages.0.memory.0'\]"),
    "memory gap": (
        without(REP + ".message_passing_list.0.0.memory_coef", "2"),
        r"weights\['messages.0.memory.2'\]: .* got missing"),
    "NaN": (
        with_tensor(REP + ".radial_basis", "bessel_weights", torch.full((4,), NAN)),
        r"weights\['radial.frequencies'\]: expected finite numbers"),
    "prefactor vector": (
        with_tensor(REP + ".radial_basis", "prefactor", torch.ones(2)), "'prefactor' has 2 elem"),
    "NaN prefactor": (
        with_tensor(REP + ".radial_basis", "prefactor", torch.tensor(NAN)), "RadialBasis.pref"),
    "no p": (without(REP + ".cutoff_fn", "p"), "cutoff_fn .*: has no attribute 'p'"),
    "hnet width": (
        with_setting(REP + ".message_passing_list.0.2", nl=2), "gives 12 numbers instead of 8"),
    "hnet input": (
        with_tensor(REP + ".message_passing_list.0.2.hnet.0.linear", "weight", torch.ones(12, 7)),
        "Bchi.mlp.widths: expected 36 inputs and 12 outputs"),
    "width": (
        with_tensor(READOUT + ".outnet.0.linear", "weight", torch.ones(6, 5)),
        "linear part does not have the widths"),
    "inner width": (
        with_tensor(READOUT + ".outnet.1.linear", "weight", torch.ones(4, 5)),
        r"weights\['outputs.0.0.layers.1.weight'\]"),
    "weight vector": (
        with_tensor(READOUT + ".outnet.1.linear", "weight", torch.ones(4)), "1 dimensions"),
    "residual flag": (with_setting(READOUT, residual=True), "residual contradicts the layers"),
    "norm flag": (with_setting(READOUT, use_batchnorm=True), "use_batchnorm contradicts"),
    "no output key": (with_setting(READOUT, output_key=None), "'output_key' is None, expected a"),
    "aggregation": (with_setting(READOUT, aggregation_mode="max"), "expected 'sum', 'avg' or None"),
    "feature list": (with_setting(READOUT, feature_key=[1]), "expected a name or a list of names"),
    "flag": (with_setting("output_modules.1", calc_forces=1), "is 1, expected true or false"),
    "no layers": (in_readout(), "has no layers"),
    "direction 3": (
        with_output("cace.modules.ewald.EwaldPotential", feature_key="q", output_key="e", dl=1,
                    sigma=1, remove_self_interaction=False, norm_factor=1, aggregation_mode="sum",
                    external_field_direction=3),
        "'external_field_direction' is 3, expected 0, 1, 2 or a key"),
    "charges": (
        with_output("cace.modules.fixed_charge.FixedCharge", charge_dict={"O": 1.0}),
        "'charge_dict' is a dict of 1, expected a charge for each atomic number"),
    "no mixing": (
        with_setting(REP + ".radial_transform", weights=torch.nn.ParameterList()), "no weights"),
    "no representation": (without("", "representation"), "no sub-module 'representation'"),
    "empty output": (with_setting("output_modules", **{"1": None}), "output module 1 is empty"),
    "empty step": (
        with_setting(REP + ".message_passing_list", **{"0": None}), "passing step is empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_contradictions_are_named(tmp_path, name):
    change, message = BROKEN[name]
    model = short_range(steps=[("M", "Ar", "B")])
    change(model)
    refused(model, tmp_path / "m.pth", CheckpointError, message)


def keys(value):
    def change(model):
        model.potential_keys = value

    return change


ONE = {"CACE_energy": "CACE_energy", "CACE_forces": "CACE_forces"}
KEYS = {
    "one for two": (keys([ONE]), "is a list of 1, expected a list of 2 dictionaries"),
    "text": (keys("CACE_energy"), "expected a list of 2 dictionaries"),
    "no dictionary": (keys([ONE, 3]), "expected a list of dictionaries of names"),
    "number as key": (keys([ONE, {"CACE_energy": 1}]), "expected a list of dictionaries of names"),
    "weight text": (keys([ONE, {**ONE, "weight": "much"}]), "expected a number as 'weight'"),
    "weight nan": (keys([ONE, {**ONE, "weight": NAN}]), "Combination.weights: expected finite"),
    "weight none": (keys([ONE, {**ONE, "weight": None}]), "expected a number as 'weight'"),
    "out_keys": (keys([ONE, {"CACE_energy": "ewald_potential"}]), "out_keys are not the names"),
}


@pytest.mark.parametrize("name", KEYS)
def test_contradictory_combinations(tmp_path, name):
    change, message = KEYS[name]
    model = u.water_like()
    change(model)
    refused(model, tmp_path / "m.pth", CheckpointError, message)


def test_a_combination_of_nothing(tmp_path):
    model = u.water_like()
    model.models = torch.nn.ModuleList()
    refused(model, tmp_path / "m.pth", CheckpointError, "has no sub-models, too many")


def test_other_roots_are_no_models(tmp_path):
    torch.save([1, 2], tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="holds a list of 2, not a model"):
        checkpoint.read(tmp_path / "m.pth")


def test_objects_that_can_be_called_are_no_activations():
    readout = u.atomwise(NUMBERS, N_FEATURES, activation=partial(torch.nn.functional.elu, alpha=2))
    with pytest.raises(UnsupportedModelError, match=r"activation functools\.partial is not prov"):
        checkpoint.from_module(u.potential(u.representation(), readout))
