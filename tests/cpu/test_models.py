"""Every kind of model: the compiled engine equals the reference, values and derivatives."""

from __future__ import annotations

from dataclasses import replace

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from support.paths import upstream_checkpoints
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights

from cace_fast import Potential
from cace_fast.model_files import read_model
from cace_fast.spec import (
    MLP,
    Bchi,
    Ewald,
    FixedCharge,
    MessageStep,
    ModelSpec,
    Readout,
    SubModel,
    energy_terms,
)
from cace_fast.structures import extra_inputs
from cace_fast.weights import Weights, expected_shapes

NAMES = ("energy", "energies", "energies_sr", "forces", "virials")
MODELS = {
    "plain": {},
    "bessel, cosine": {"radial": "bessel", "cutoff_kind": "cosine"},
    "exponential, mollifier": {"radial": "exponential", "cutoff_kind": "mollifier"},
    "chebyshev": {"radial": "chebyshev", "n_rbf": 8},
    "switch": {"cutoff_kind": "switch"},
    "one channel, shared": {"n_embedding": 1, "shared_embedding": True},
    "L 0": {"l_max": 0, "nu_max": 1},
    "L 2, nu 2": {"nu_max": 2},
    "L 3, nu 2": {"l_max": 3, "nu_max": 2},
    "L 3, nu 3": {"l_max": 3, "nu_max": 3},
    "L 4, nu 2": {"l_max": 4, "nu_max": 2},
    "L 4, nu 3": {"l_max": 4, "nu_max": 3},
    "L 4, nu 4": {"l_max": 4, "nu_max": 4},
    "L 6, nu 4": {"l_max": 6, "nu_max": 4, "n_embedding": 1},
    "many elements": {"elements": tuple(range(1, 26)), "n_embedding": 4},
    "odd sizes": {"n_rbf": 7, "n_radial": 5, "n_embedding": 3},
    "memory": {"steps": ("M",)},
    "Ar": {"steps": ("Ar",)},
    "Bchi": {"steps": ("Bchi",)},
    "all messages, two steps": {"steps": ("M+Ar+Bchi", "M+Bchi")},
    "charges": {"ewald_channels": 1},
    "four charges, self term removed": {
        "ewald_channels": 4,
        "ewald": {"remove_self_interaction": True, "norm_factor": 2.5},
    },
    "charges and messages": {"ewald_channels": 2, "steps": ("Ar+Bchi",)},
    "dispersion": {"ewald_channels": 1, "ewald": {"exponent": 6}},
    "field and neutrality": {
        "ewald_channels": 2,
        "ewald": {
            "external_field": 0.3, "external_field_direction": 1, "charge_neutral_lambda": 0.7,
        },
    },
    "further inputs": {"inputs": ("charge_states", "spin")},
}  # fmt: skip


def frames_of(spec, open_too=True):
    crystal = tiny_structure(spec, 3)
    found = [crystal, tiny_structure(spec, 1), tiny_structure(spec, 2, pbc=False)]
    return found if open_too else found[:2]


def compare(spec, weights, frames, dtype, names=NAMES):
    """Singles and the batch, against the float64 reference.

    float32 may lose what the reference loses in float32, four times, as in tests/ops.
    """
    engine = Potential(spec, weights, dtype=dtype, backend="cpu")
    oracle = Potential(spec, weights, dtype="float64", backend="reference")
    floor = Potential(spec, weights, dtype=dtype, backend="reference")
    eps = torch.finfo(engine.dtype).eps
    batch = engine.compute(frames, names)
    for atoms, in_batch in zip(frames, batch, strict=True):
        true, lost = oracle.compute(atoms, names), floor.compute(atoms, names)
        scale = max(1.0, *(float(np.abs(true[name]).max(initial=0.0)) for name in names))
        for got in (engine.compute(atoms, names), in_batch):
            for name in names:
                error = np.abs(got[name] - true[name]).max(initial=0.0)
                own = np.abs(lost[name] - true[name]).max(initial=0.0)
                # sums over up to 600 edges: 256 eps of the largest number around
                assert error <= max(4 * own, 256 * eps * scale), name
        features, want = engine.features(atoms), oracle.features(atoms)
        own = np.abs(floor.features(atoms) - want).max(initial=0.0)
        assert features.dtype == (np.float64 if dtype == "float64" else np.float32)
        size = np.abs(want).max(initial=0.0)
        assert np.abs(features - want).max(initial=0.0) <= max(4 * own, 64 * eps * size)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_reference(name, dtype):
    options = MODELS[name]
    spec = tiny_spec(**options)
    names = (*NAMES, "latent_charges") if "ewald_channels" in options else NAMES
    open_too = name != "dispersion"  # an open system has no sum of exponent 6
    compare(spec, tiny_weights(spec), frames_of(spec, open_too), dtype, names)


def remade(spec, submodel):
    """Return a model of the representation of ``spec`` with seeded weights everywhere."""
    made = ModelSpec(spec.representation, (submodel,))
    generator = torch.Generator().manual_seed(4)
    base = tiny_weights(spec)
    tensors = {}
    for name, shape in expected_shapes(made).items():
        draw = 0.2 * torch.randn(shape, generator=generator, dtype=torch.float64)
        draw = draw.abs() + 0.5 if name.endswith("variance") else draw
        tensors[name] = draw if name.startswith("outputs") else base[name]
    return made, Weights(made, tensors)


READOUTS = {
    activation: MLP((1, 6, 5, 1), activation=activation)
    for activation in ("silu", "relu", "tanh", "sigmoid", "elu", "gelu", "softplus", "mish")
} | {
    "linear only": MLP((1, 1)),
    "residual": MLP((1, 6, 6, 1), residual=True),
    "batch norm": MLP((1, 6, 5, 1), batch_norm=True),
    "residual and batch norm": MLP((1, 6, 5, 1), residual=True, batch_norm=True),
    "no bias": MLP((1, 6, 1), bias=False),
    "identity": MLP((1, 6, 1), activation="identity"),
}


@pytest.mark.parametrize("aggregation", ["sum", "avg"])
@pytest.mark.parametrize("name", READOUTS)
def test_read_outs(name, aggregation):
    spec = tiny_spec()
    network = READOUTS[name]
    mlp = MLP(
        (spec.representation.n_features, *network.widths[1:]), network.bias, network.activation,
        network.residual, network.batch_norm,
    )  # fmt: skip
    module = Readout("E", mlp, linear=name != "linear only", aggregation=aggregation)
    made, weights = remade(spec, SubModel((module,)))
    compare(made, weights, frames_of(spec), "float64")


@pytest.mark.parametrize("shared_l", [False, True])
@pytest.mark.parametrize("shared_channels", [False, True])
def test_sharing_of_bchi(shared_l, shared_channels):
    base = tiny_spec().representation
    probe = Bchi(shared_l, shared_channels, MLP((1, 1)))
    width = base.n_radial * base.n_invariants * base.n_channels
    mlp = MLP((width, 5, base.n_bchi_weights(probe)), activation="tanh")
    rep = replace(base, steps=(MessageStep(True, True, Bchi(shared_l, shared_channels, mlp)),))
    head = Readout("E", MLP((rep.n_features, 8, 1)))
    spec = ModelSpec(rep, (SubModel((head,)),))
    compare(spec, tiny_weights(spec), frames_of(spec), "float64")


def test_fixed_charges():
    spec = tiny_spec(ewald_channels=1)
    modules = list(spec.submodels[0].modules)
    modules[1] = FixedCharge("q", ((8, -0.8), (1, 0.4)))
    made = replace(spec, submodels=(replace(spec.submodels[0], modules=tuple(modules)),))
    kept = {k: v for k, v in tiny_weights(spec).items() if k in expected_shapes(made)}
    names = (*NAMES, "latent_charges")
    compare(made, Weights(made, kept), frames_of(spec), "float64", names)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("folder", upstream_checkpoints(), ids=lambda p: p.name)
def test_real_models(folder, dtype):
    spec, weights = read_model(folder / "model.pth")
    frames = ase.io.read(folder / "structures.xyz", index=":")
    frames = [a for a in frames if len(a) <= 36 and fits(spec, a)][:3]
    if not spec.submodels:
        engine = Potential(spec, weights, dtype=dtype, backend="cpu")
        oracle = Potential(spec, weights, dtype="float64", backend="reference")
        tolerance = 1e-10 if dtype == "float64" else 1e-5
        for atoms in frames:
            want = oracle.features(atoms)
            error = np.abs(engine.features(atoms) - want).max()
            assert error < tolerance * np.abs(want).max()
        return
    compare(spec, weights, frames, dtype)


def fits(spec, atoms):
    """Tell whether a model can evaluate the structure."""
    if any(k not in atoms.arrays and k not in atoms.info for k in extra_inputs(spec)):
        return False
    terms = energy_terms(spec) if spec.submodels else ()
    charged = any(isinstance(term.module, Ewald) for term in terms)
    return not charged or atoms.pbc.all() or not atoms.pbc.any()


def test_an_empty_structure():
    spec = tiny_spec()
    potential = Potential(spec, tiny_weights(spec), backend="cpu")
    found = potential.compute(Atoms(), NAMES)
    assert found["energy"] == 0.0
    assert found["forces"].shape == (0, 3)
    assert not found["virials"].any()
