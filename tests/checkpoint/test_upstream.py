"""Upstream models, as stand-ins in a file and in memory, become specification and tensors."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from support import upstream_like as u
from support.both_ways import N_FEATURES, both_ways, with_outputs

from cace_fast import checkpoint
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
    RadialBasis,
    Readout,
)
from cace_fast.weights import Weights


def single(model):
    """Return the short-range part of the combination that stands for all models here."""
    return model.models[0]


def test_a_combination_in_full(tmp_path):
    model = u.water_like(
        elements=(8, 1, 6), l_max=3, nu_max=3, steps=[("M", "Ar", "B"), ("Bcl",)], weight=0.25
    )
    spec, tensors = both_ways(model, tmp_path / "m.pth")
    rep = spec.representation
    assert rep.elements == (8, 1, 6)
    assert (rep.n_embedding, rep.n_channels, rep.n_radial) == (2, 4, 3)
    assert (rep.l_max, rep.nu_max, rep.cutoff, rep.shared_embedding) == (3, 3, 4.5, False)
    assert rep.radial == RadialBasis("bessel", 4, float(torch.tensor((2 / 4.5) ** 0.5)))
    assert rep.cutoff_function == CutoffFunction("polynomial", 4.5, p=5.0)
    assert rep.mp_norm_factor == 10**-0.5
    assert rep.steps == (
        MessageStep(True, True, Bchi(False, False, MLP((72, 16)))),
        MessageStep(False, False, Bchi(True, True, MLP((72, 1)))),
    )
    short, long = spec.submodels
    assert short.modules == (
        Readout("CACE_energy", MLP((216, 6, 4, 1))),
        Forces("CACE_energy", "CACE_forces"),
    )
    assert long.modules == (
        Readout("tot_q", MLP((216, 4, 3, 2), bias=False), per_atom_key="q"),
        Ewald("q", "ewald_potential", 2.0, 1.0, external_field_direction=0),
        Forces("ewald_potential", "ewald_forces"),
    )
    assert not short.strain
    assert spec.combination == Combination(
        ("CACE_energy", "CACE_forces"),
        (
            (("CACE_energy", "CACE_energy"), ("CACE_forces", "CACE_forces")),
            (("CACE_energy", "ewald_potential"), ("CACE_forces", "ewald_forces")),
        ),
        (1.0, 0.25),
    )
    parts = model.models[0].representation
    step = parts.message_passing_list[0]
    outnet = model.models[1].output_modules[0].outnet
    same = {
        "embedding.sender": parts.node_embedding_sender.embedding_weights,
        "embedding.receiver": parts.node_embedding_receiver.embedding_weights,
        "radial.frequencies": parts.radial_basis.bessel_weights,
        "mixing.3": parts.radial_transform.weights[3],
        "messages.0.memory.2": step[0].memory_coef[2],
        "messages.0.ar.prefactor.1": step[1].prefactor[1],
        "messages.0.ar.inverse_range.0": step[1].invr0[0],
        "messages.0.bchi.layers.0.weight": step[2].hnet[0].linear.weight,
        "messages.1.bchi.layers.0.bias": parts.message_passing_list[1][2].hnet[0].linear.bias,
        "outputs.1.0.layers.2.weight": outnet[2].linear.weight,
        "outputs.0.0.linear.bias": model.models[0].output_modules[0].linear_nn.linear.bias,
    }
    for name, tensor in same.items():
        assert tensors[name] is tensor, name  # the reference engine shares the parameters


def test_elements_are_in_the_order_of_the_embedding(tmp_path):
    spec, _ = both_ways(u.representation(elements=(17, 3, 9, 31)), tmp_path / "m.pth")
    assert spec.representation.elements == (17, 3, 9, 31)
    assert spec.submodels == ()
    assert spec.combination is None


def test_one_embedding_for_both_ends(tmp_path):
    spec, tensors = both_ways(u.representation(shared_embedding=True), tmp_path / "m.pth")
    assert spec.representation.shared_embedding
    assert "embedding.receiver" not in tensors


@pytest.mark.parametrize(("name", "expected"), [
    ("BesselRBF", RadialBasis("bessel", 4, float(torch.tensor((2 / 4.5) ** 0.5)))),
    ("GaussianRBF", RadialBasis("gaussian", 4)),
    ("GaussianRBFCentered", RadialBasis("gaussian", 4)),
    ("ExponentialDecayRBF", RadialBasis("exponential", 4, 1.5)),
])  # fmt: skip
@pytest.mark.parametrize("trainable", [True, False])
def test_radial_bases(tmp_path, name, expected, trainable):
    model = u.representation()
    model.radial_basis = u.radial_basis(name, u.Numbers(), 4, 4.5, trainable)
    spec, _ = both_ways(model, tmp_path / "m.pth")
    assert spec.representation.radial == expected


@pytest.mark.parametrize(("name", "expected"), [
    ("PolynomialCutoff", CutoffFunction("polynomial", 4.5, p=5.0)),
    ("CosineCutoff", CutoffFunction("cosine", 4.5)),
    ("MollifierCutoff", CutoffFunction("mollifier", 4.5, eps=float(torch.tensor(1e-7)))),
    ("SwitchFunction", CutoffFunction("switch", 4.5, switch_on=2.25)),
])  # fmt: skip
def test_cutoff_functions(tmp_path, name, expected):
    spec, _ = both_ways(u.representation(cutoff_kind=name), tmp_path / "m.pth")
    assert spec.representation.cutoff_function == expected


@pytest.mark.parametrize(("l_max", "nu_max"), [(1, 1), (2, 3), (3, 4), (4, 4), (5, 4), (6, 4)])
def test_degrees_and_orders(tmp_path, l_max, nu_max):
    model = u.representation(l_max=l_max, nu_max=nu_max, steps=[("B",)])
    spec, _ = both_ways(model, tmp_path / "m.pth")
    assert (spec.representation.l_max, spec.representation.nu_max) == (l_max, nu_max)
    assert spec.representation.n_invariants == u.N_INVARIANTS[l_max, nu_max]


@pytest.mark.parametrize("parts", [
    ("M",), ("Ar",), ("B",), ("Bc",), ("Bl",), ("Bcl",), ("M", "Ar"), ("M", "Ar", "Bcl"),
], ids="+".join)  # fmt: skip
def test_messages(tmp_path, parts):
    spec, _ = both_ways(u.representation(steps=[parts, ("B",)]), tmp_path / "m.pth")
    step = spec.representation.steps[0]
    assert (step.memory, step.ar) == ("M" in parts, "Ar" in parts)
    bchi = next((part for part in parts if part.startswith("B")), None)
    assert (step.bchi is not None) == (bchi is not None)
    if step.bchi is not None:
        assert (step.bchi.shared_l, step.bchi.shared_channels) == ("l" in bchi, "c" in bchi)
    assert spec.representation.n_stages == 3


def test_radial_weights_that_are_the_same_for_all_channels(tmp_path):
    model = u.representation()
    weights = torch.nn.ParameterList([torch.nn.Parameter(u.Numbers()(4, 3)) for _ in range(3)])
    model.radial_transform.weights = weights
    _, tensors = both_ways(model, tmp_path / "m.pth")
    assert tensors["mixing.1"].shape == (4, 3, 4)
    for channel in range(4):
        assert torch.equal(tensors["mixing.1"][:, :, channel], weights[1])


def test_other_output_modules(tmp_path):
    modules = [
        u.atomwise(u.Numbers(), N_FEATURES, "tot_q", per_atom_output_key="q"),
        u.ewald(exponent=6, compute_field=True, remove_self_interaction=True, dl=1, sigma=2),
        u.ewald(
            output_key="e2", external_field=0.5, external_field_direction=2,
            charge_neutral_lambda=0.1, aggregation_mode=None, norm_factor=2,
        ),
        u.ewald(output_key="e3", external_field="field", external_field_direction="direction"),
        u.make("cace.modules.feature_mix.FeatureAdd", feature_keys=["e2", "e3"], output_key="sum"),
        u.make("cace.modules.dipole.Polarization", charge_key="q", output_key="polarization",
               phase_key="phase", remove_mean=False, pbc=True, normalization_factor=0.5,
               output_index=1),
        u.make("cace.modules.grad.Grad", y_key="polarization", x_key="positions", output_key="bec"),
        u.make("cace.modules.dipole.Dephase", input_key="bec", phase_key="phase",
               output_key="CACE_bec"),
        u.make("cace.modules.fixed_charge.FixedCharge", charge_dict={8: -0.8, 1: 0.4},
               output_key="q0", normalize=False),
        u.forces("sum", calc_stress=True),
    ]  # fmt: skip
    spec, _ = both_ways(with_outputs(*modules, preprocess=True), tmp_path / "m.pth")
    assert spec.submodels[0].strain
    assert spec.submodels[0].modules[1:] == (
        Ewald("q", "ewald_potential", 1.0, 2.0, 6, True, compute_field=True,
              external_field_direction=0),
        Ewald("q", "e2", 2.0, 1.0, norm_factor=2.0, aggregation=None, external_field=0.5,
              external_field_direction=2, charge_neutral_lambda=0.1),
        Ewald("q", "e3", 2.0, 1.0, external_field="field", external_field_direction="direction"),
        Add(("e2", "e3"), "sum"),
        Polarization("q", "polarization", "phase", False, True, 0.5, 1),
        Grad("polarization", "positions", "bec"),
        Dephase("bec", "phase", "CACE_bec"),
        FixedCharge("q0", ((1, 0.4), (8, -0.8)), False),
        Forces("sum", "CACE_forces", calc_stress=True),
    )  # fmt: skip


def test_read_outs_of_several_features(tmp_path):
    readout = u.atomwise(
        u.Numbers(), N_FEATURES + 1, feature_key=["node_feats", "charge_states"],
        descriptor_output_key="x", aggregation_mode="avg",
    )  # fmt: skip
    spec, _ = both_ways(with_outputs(readout), tmp_path / "m.pth")
    found = spec.submodels[0].modules[0]
    assert found.features == ("node_feats", "charge_states")
    assert (found.descriptor_key, found.aggregation) == ("x", "avg")
    assert spec.representation.forward_features == ("charge_states",)


OLD = {
    "cace.modules.atomwise.Atomwise": (
        "bias", "descriptor_output_key", "feature_key", "post_process", "linear_nn"),
    u.REPRESENTATION: ("forward_features", "keep_node_features_A", "charge_spin_key"),
    "cace.modules.ewald.EwaldPotential": (
        "exponent", "compute_field", "external_field", "external_field_direction",
        "charge_neutral_lambda"),
    "cace.models.atomistic.NeuralNetworkPotential": ("do_postprocessing", "keep_graph"),
    "cace.modules.interaction.MessageBchi": ("nl", "nc", "shared_l"),
    "cace.models.combined.CombinePotential": ("operation",),
}  # fmt: skip


def test_old_files_lack_attributes(tmp_path):
    model = u.water_like(steps=[("Bcl",)])
    expected, _ = checkpoint.from_module(model)
    n_removed = 0
    for module in model.modules():
        path = f"{type(module).__module__}.{type(module).__qualname__}"
        for name in OLD.get(path, ()):
            n_removed += vars(module).pop(name, None) is not None
    spec, _ = both_ways(model, tmp_path / "m.pth")
    assert n_removed > 10
    long = expected.submodels[1]
    ewald = replace(long.modules[1], external_field_direction=None)
    modules = (long.modules[0], ewald, long.modules[2])
    expected = replace(expected, submodels=(expected.submodels[0], replace(long, modules=modules)))
    assert spec == expected


def test_weights_as_text_and_the_missing_function(tmp_path):
    model = u.water_like(weight="0.01")
    model.operation = u.default_operation
    spec, _ = both_ways(model, tmp_path / "m.pth")
    assert spec.combination.weights == (1.0, 0.01)


def test_files_of_the_fork_hold_strings_in_their_tables(tmp_path):
    model = single(u.water_like())
    model.representation.symmetrizer.vec_dict_allnu = {"1_2": [("1_0_0", 2)]}
    model.representation.angular_basis.lxlylz_dict = {0: ["0_0_0"]}
    for layer in model.output_modules[0].outnet:
        layer.batchnorm = torch.nn.Identity()
    expected, _ = checkpoint.from_module(single(u.water_like()))
    spec, _ = both_ways(model, tmp_path / "m.pth")
    assert spec == expected


def test_equal_representations_that_are_two_objects_are_one(tmp_path):
    model = u.water_like()
    expected, _ = checkpoint.from_module(model)
    model.models[1].representation = copy.deepcopy(model.models[0].representation)
    spec, _ = both_ways(model, tmp_path / "m.pth")
    assert spec == expected


def test_live_modules_may_be_float64_and_hold_numpy_numbers():
    import numpy as np

    model = u.water_like().double()
    model.models[0].representation.zs = [np.int64(z) for z in (8, 1, 6)]
    model.models[0].representation.mp_norm_factor = np.float64(0.5)
    model.models[0].representation.cutoff = torch.tensor(4.5)
    spec, tensors = checkpoint.from_module(model)
    assert spec.representation.mp_norm_factor == 0.5
    assert all(tensor.dtype == torch.float64 for tensor in tensors.values())
    assert isinstance(Weights(spec, tensors)["embedding.sender"], torch.nn.Parameter)
