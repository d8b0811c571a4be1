"""A model whose modules take each other's values of atoms, with keys that are written twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ase import Atoms

from cace_fast.spec import (
    MLP,
    Add,
    Ewald,
    FixedCharge,
    Forces,
    ModelSpec,
    OutputModule,
    Readout,
    SubModel,
)
from cace_fast.weights import Weights, expected_shapes
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights


def chained_spec(**options: Any) -> ModelSpec:
    """Return the specification; ``options`` are the fields of ``Tiny``."""
    base = tiny_spec(**({"l_max": 1, "n_rbf": 2, "n_radial": 2} | options))
    n = base.representation.n_features
    charges = Readout("tot_q", MLP((n, 4, 1), bias=False, activation="tanh"), per_atom_key="q")
    modules: tuple[OutputModule, ...] = (
        Readout("E", MLP((n, 6, 1))),
        charges,
        Ewald("q", "e1", 1.7, 1.0, remove_self_interaction=True),
        Readout("Ea", MLP((n + 3, 5, 1)), features=("spin", "node_feats", "q", "q"),
                descriptor_key="desc"),
        FixedCharge("z", ((8, -0.8), (1, 0.4))),
        Add(("q", "z", "dq", "q"), "q"),
        charges,  # equal settings, other weights: here q is written a third time
        Add(("q", "z"), "sum"),
        Readout("Eb", MLP((2, 3, 3, 1), residual=True, bias=False), features=("q", "sum")),
        Readout("Ec", MLP((n + 3, 1)), linear=False, features=("desc",)),
        Readout("w", MLP((2, 3, 2), activation="gelu"), features=("sum", "q"), aggregation=None),
        Ewald("w", "e2", 1.9, 0.8, norm_factor=1.3, charge_neutral_lambda=0.4,
              external_field=0.2, external_field_direction=1),
        Ewald("sum", "e3", 1.6, 1.1),
        Add(("E", "e1", "Ea"), "E"),
        Add(("E", "Eb", "Ec", "e2", "e3", "Eb"), "E"),
        Forces("E", "F", calc_stress=True),
    )  # fmt: skip
    return replace(base, submodels=(SubModel(modules, strain=True),))


def seeded_weights(spec: ModelSpec, seed: int = 4) -> Weights:
    """Return float64 weights, those of the representation as for tiny models."""
    generator = torch.Generator().manual_seed(seed)
    short = Readout("E", MLP((spec.representation.n_features, 8, 1)))
    base = tiny_weights(ModelSpec(spec.representation, (SubModel((short,)),)))
    tensors = {}
    for name, shape in expected_shapes(spec).items():
        draw = 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)
        tensors[name] = draw if name.startswith("outputs") or name not in base else base[name]
    return Weights(spec, tensors)


def structure(spec: ModelSpec, side: int = 2, pbc: bool = True, seed: int = 2) -> Atoms:
    """Return a structure with the inputs that the model takes."""
    atoms = tiny_structure(tiny_spec(), side, seed=seed, pbc=pbc)
    rng = np.random.default_rng(seed)
    atoms.arrays["spin"] = rng.uniform(-0.5, 0.5, len(atoms))
    atoms.arrays["dq"] = rng.uniform(-0.5, 0.5, (len(atoms), 1))  # as what it is added to
    return atoms
