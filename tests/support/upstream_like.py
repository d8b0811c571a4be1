"""Upstream's modules as stand-ins with the documented state.

Written from the specification of checkpoints (section 6) alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import pi, sqrt
from typing import Any

import torch
from torch.nn.functional import silu

from .stand_ins import Numbers, default_operation, importable, make, save, stand_in

# one name for tests: these and the functions below
__all__ = ["Numbers", "default_operation", "importable", "make", "save", "stand_in"]

REPRESENTATION = "cace.representations.cace_representation.Cace"


def dense(numbers, n_in, n_out, activation=silu, bias=True, batchnorm=None):
    linear = torch.nn.Linear(n_in, n_out, bias=bias, device="meta")
    linear.weight = torch.nn.Parameter(numbers(n_out, n_in))
    if bias:
        linear.bias = torch.nn.Parameter(numbers(n_out))
    modules: dict[str, Any] = {"linear": linear}
    attributes: dict[str, Any] = {"use_batchnorm": batchnorm is not None}
    if activation is None:
        modules["activation"] = torch.nn.Identity()
    else:
        attributes["activation"] = activation
    if batchnorm is not None:
        modules["batchnorm"] = batchnorm
    return make("cace.modules.blocks.Dense", modules=modules, **attributes)


def norm(numbers, width):
    made = torch.nn.BatchNorm1d(width)
    made.weight.data = numbers(width)
    made.bias.data = numbers(width)
    made.running_mean = numbers(width)
    made.running_var = numbers(width).square() + 0.5
    return made.eval()


def mlp(numbers, widths: Sequence[int], activation=silu, bias=True, batchnorm=False):
    layers = []
    for k, (n_in, n_out) in enumerate(pairwise(widths)):
        last = k == len(widths) - 2
        normed = norm(numbers, n_out) if batchnorm and not last else None
        layers.append(dense(numbers, n_in, n_out, None if last else activation, bias, normed))
    return torch.nn.Sequential(*layers)


def radial_basis(kind, numbers, n_rbf, cutoff, trainable=True):
    rc = {"cutoff": torch.tensor(float(cutoff))}
    if kind == "BesselRBF":
        frequencies = torch.arange(1, n_rbf + 1) * (pi / cutoff) + 0.01 * numbers(n_rbf)
        tensors = {"bessel_weights": frequencies}
        rest = {"prefactor": torch.tensor(sqrt(2.0 / cutoff)), **rc}
    elif kind == "GaussianRBF":
        tensors = {
            "offsets": torch.linspace(0.8, cutoff, n_rbf),
            "widths": torch.full((n_rbf,), 0.4),
        }
        rest = rc
    elif kind == "GaussianRBFCentered":
        tensors = {"widths": torch.linspace(1.0, cutoff, n_rbf)}
        rest = {"offsets": torch.zeros(n_rbf), **rc}
    else:
        tensors = {"r0": torch.arange(1, n_rbf + 1) * (cutoff / (n_rbf + 1))}
        rest = {"prefactor": torch.tensor(1.5), **rc}
    parameters, buffers = (tensors, rest) if trainable else ({}, {**tensors, **rest})
    path = f"cace.modules.radial.{kind}"
    return make(path, parameters=parameters, buffers=buffers, n_rbf=n_rbf, trainable=trainable)


def cutoff_function(kind, cutoff):
    buffers = {
        "PolynomialCutoff": {"p": torch.tensor(5.0), "cutoff": torch.tensor(float(cutoff))},
        "CosineCutoff": {"cutoff": torch.tensor(float(cutoff))},
        "MollifierCutoff": {"cutoff": torch.tensor(float(cutoff)), "eps": torch.tensor(1e-7)},
        "SwitchFunction": {
            "switch_on": torch.tensor(0.5 * cutoff),
            "switch_off": torch.tensor(float(cutoff)),
        },
    }[kind]
    return make(f"cace.modules.cutoff.{kind}", buffers=buffers)


def _parameter_list(numbers, count, *shape):
    return torch.nn.ParameterList([torch.nn.Parameter(numbers(*shape)) for _ in range(count)])


N_INVARIANTS = {
    (1, 1): 1, (1, 2): 2, (2, 1): 1, (2, 2): 3, (2, 3): 4, (3, 2): 4, (3, 3): 6, (3, 4): 7,
    (4, 3): 9, (4, 4): 13, (5, 4): 22, (6, 4): 36,
}  # fmt: skip  # model.md 6


def message_step(numbers, parts, l_max, n_radial, n_channels, n_invariants):
    """Return one step; ``parts`` may name 'M', 'Ar' and 'B' (plus 'c', 'l': what it shares)."""
    step = torch.nn.ModuleList([None, None, None])
    if "M" in parts:
        coefficients = _parameter_list(numbers, l_max + 1, n_radial, n_channels)
        step[0] = make("cace.modules.interaction.NodeMemory", modules={"memory_coef": coefficients})
    if "Ar" in parts:
        lists = {
            name: _parameter_list(numbers, l_max + 1, n_radial, n_channels)
            for name in ("prefactor", "invr0")
        }
        step[1] = make("cace.modules.interaction.MessageAr", modules=lists)
    bchi = next((part for part in parts if part.startswith("B")), None)
    if bchi is not None:
        nl, nc = 1 if "l" in bchi else l_max + 1, 1 if "c" in bchi else n_channels
        hnet = mlp(numbers, [n_radial * n_invariants * n_channels, nl * nc])
        buffers = {} if "l" in bchi else {"l_matrix": torch.zeros(l_max + 1, 4)}
        step[2] = make(
            "cace.modules.interaction.MessageBchi",
            modules={"hnet": hnet},
            buffers=buffers,
            shared_l="l" in bchi,
            shared_channels="c" in bchi,
            nl=nl,
            nc=nc,
        )
    return step


def representation(
    elements=(8, 1, 6),
    n_embedding=2,
    n_rbf=4,
    n_radial=3,
    l_max=2,
    nu_max=2,
    steps=(),
    cutoff=4.5,
    radial="BesselRBF",
    cutoff_kind="PolynomialCutoff",
    shared_embedding=False,
    seed=0,
    **attributes,
):
    numbers = Numbers(seed)
    n_channels, n_invariants = n_embedding**2, N_INVARIANTS[l_max, nu_max]
    index_map = torch.full((max(elements) + 1,), -1, dtype=torch.int64)
    index_map[list(elements)] = torch.arange(len(elements))
    embeddings = [
        make(
            "cace.modules.type.NodeEmbedding",
            parameters={"embedding_weights": numbers(len(elements), n_embedding)},
        )
        for _ in range(2)
    ]
    groups = torch.zeros(l_max + 1, 2, dtype=torch.int64)
    modules = {
        "node_onehot": make(
            "cace.modules.type.NodeEncoder",
            buffers={"index_map": index_map},
            num_classes=len(elements),
        ),
        "node_embedding_sender": embeddings[0],
        "node_embedding_receiver": embeddings[0] if shared_embedding else embeddings[1],
        "edge_coding": make("cace.modules.type.EdgeEncoder", directed=True),
        "radial_basis": radial_basis(radial, numbers, n_rbf, cutoff),
        "cutoff_fn": cutoff_function(cutoff_kind, cutoff),
        "angular_basis": make("cace.modules.angular.AngularComponent", l_max=l_max),
        "radial_transform": make(
            "cace.modules.radial_transform.SharedRadialLinearTransform",
            modules={"weights": _parameter_list(numbers, l_max + 1, n_rbf, n_radial, n_channels)},
            buffers={"angular_dim_groups": groups},
            max_l=l_max,
        ),
        "symmetrizer": make(
            "cace.modules.symmetrize_basis.Symmetrizer", max_nu=nu_max, max_l=l_max
        ),
        "message_passing_list": torch.nn.ModuleList(
            [
                message_step(numbers, parts, l_max, n_radial, n_channels, n_invariants)
                for parts in steps
            ]
        ),
    }
    settings = {
        "zs": list(elements),
        "nz": len(elements),
        "cutoff": cutoff,
        "max_l": l_max,
        "max_nu": nu_max,
        "mp_norm_factor": 1.0 / sqrt(10.0),
        "num_message_passing": len(steps),
        "device": torch.device("cpu"),
        "forward_features": [],
        "keep_node_features_A": False,
    } | attributes
    return make(REPRESENTATION, modules=modules, **settings)


def n_features(rep) -> int:
    """Return the length of the flattened features of a representation made here."""
    weights = rep.radial_transform.weights[0]
    n_invariants = N_INVARIANTS[rep.max_l, rep.max_nu]
    return weights.shape[1] * weights.shape[2] * n_invariants * (len(rep.message_passing_list) + 1)


def atomwise(numbers, n_in, output_key="CACE_energy", n_hidden=(6, 4), n_out=1, **options):
    linear, bias = options.pop("add_linear_nn", True), options.pop("bias", True)
    activation = options.pop("activation", silu)
    batchnorm = options.pop("use_batchnorm", False)
    settings: dict[str, Any] = {
        "feature_key": "node_feats",
        "output_key": output_key,
        "per_atom_output_key": None,
        "descriptor_output_key": None,
        "aggregation_mode": "sum",
        "add_linear_nn": linear,
        "bias": bias,
        "n_in": n_in,
        "n_out": n_out,
        "n_hidden": list(n_hidden),
        "n_layers": len(n_hidden) + 1,
        "activation": activation,
        "residual": False,
        "use_batchnorm": batchnorm,
        "post_process": None,
        "model_outputs": [output_key],
    } | options
    modules = {"outnet": mlp(numbers, [n_in, *n_hidden, n_out], activation, bias, batchnorm)}
    if linear:
        normed = norm(numbers, n_out) if batchnorm else None
        modules["linear_nn"] = dense(numbers, n_in, n_out, None, bias, normed)
    else:
        settings["linear_nn"] = None
    return make("cace.modules.atomwise.Atomwise", modules=modules, **settings)


def ewald(feature_key="q", output_key="ewald_potential", **options):
    settings = {
        "dl": 2,
        "sigma": 1.0,
        "exponent": 1,
        "remove_self_interaction": False,
        "feature_key": feature_key,
        "output_key": output_key,
        "aggregation_mode": "sum",
        "norm_factor": 1.0,
        "external_field": None,
        "external_field_direction": 0,
        "compute_field": False,
        "charge_neutral_lambda": None,
    } | options
    return make("cace.modules.ewald.EwaldPotential", **settings)


def forces(energy_key="CACE_energy", forces_key="CACE_forces", calc_stress=False):
    return make(
        "cace.modules.forces.Forces",
        calc_forces=True,
        calc_stress=calc_stress,
        energy_key=energy_key,
        forces_key=forces_key,
        stress_key="stress",
        virial_key="virials",
    )


def potential(rep, *output_modules, preprocess=False):
    inputs = [make("cace.modules.preprocess.Preprocess")] if preprocess else []
    return make(
        "cace.models.atomistic.NeuralNetworkPotential",
        modules={
            "representation": rep,
            "input_modules": torch.nn.ModuleList(inputs),
            "output_modules": torch.nn.ModuleList(output_modules),
            "postprocessors": torch.nn.ModuleList(),
        },
        model_outputs=["CACE_energy", "CACE_forces"],
        required_derivatives=["positions"],
        do_postprocessing=False,
        keep_graph=False,
    )


def combination(models, keys):
    made = make(
        "cace.models.combined.CombinePotential",
        modules={"models": torch.nn.ModuleList(models)},
        potential_keys=keys,
        out_keys=[name for name in keys[0] if name != "weight"],
    )
    made.operation = made.default_operation
    return made


def water_like(seed=0, weight=0.5, **options):
    """Return a combination of a short-range and a long-range part on one representation."""
    rep = representation(seed=seed, **options)
    numbers, n_in = Numbers(seed + 1), n_features(rep)
    short = potential(rep, atomwise(numbers, n_in), forces())
    charges = atomwise(
        numbers, n_in, "tot_q", n_hidden=(4, 3), n_out=2, per_atom_output_key="q", bias=False
    )
    long = potential(rep, charges, ewald(), forces("ewald_potential", "ewald_forces"))
    return combination(
        [short, long],
        [
            {"CACE_energy": "CACE_energy", "CACE_forces": "CACE_forces"},
            {"CACE_energy": "ewald_potential", "CACE_forces": "ewald_forces", "weight": weight},
        ],
    )
