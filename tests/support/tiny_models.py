"""Small models with seeded weights that are smooth and hold atoms together, for tests of the rest.

The read-out has a strong repulsion and, with Gaussians, a weak attraction in the first invariant
(which is a sum over neighbours of a function of the distance), and small random weights
everywhere else: every part of a model acts, and molecular dynamics with it is tame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from ase import Atoms

from cace_fast.potential import Potential
from cace_fast.spec import (
    MLP,
    Add,
    Bchi,
    CutoffFunction,
    EnergyProgram,
    Ewald,
    FixedCharge,
    Forces,
    MessageStep,
    ModelSpec,
    OutputModule,
    Provenance,
    RadialBasis,
    Readout,
    Representation,
    SubModel,
    energy_terms,
    program_of,
)
from cace_fast.weights import Weights, expected_shapes

REPULSION, ATTRACTION = 10.0, -0.15  # eV for each directed pair at the top of its radial function


@dataclass(frozen=True)
class Tiny:
    """What varies between tiny models.

    ``steps`` holds one text for each message passing step, such as ``"M"`` or ``"M+Ar+Bchi"``;
    ``ewald_channels`` 0 means no long range, ``inputs`` are further per-atom numbers of the
    read-out, ``ewald`` are fields of the Ewald module.
    """

    elements: tuple[int, ...] = (8, 1)
    n_embedding: int = 2
    shared_embedding: bool = False
    cutoff: float = 4.0
    cutoff_kind: str = "polynomial"
    radial: str = "gaussian"
    n_rbf: int = 4
    n_radial: int = 3
    l_max: int = 2
    nu_max: int = 3
    steps: tuple[str, ...] = ()
    ewald_channels: int = 0
    ewald: dict[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    atomic_energies: tuple[tuple[int, float], ...] = ()


def tiny_spec(**options: Any) -> ModelSpec:
    """Return the specification of a tiny model; ``options`` are the fields of :class:`Tiny`."""
    tiny = Tiny(**options)
    rep = _representation(tiny)
    n_in = rep.n_features
    modules: list[OutputModule] = [
        Readout("E_sr", MLP((n_in + len(tiny.inputs), 8, 1)), features=("node_feats", *tiny.inputs))
    ]
    total = "E_sr"
    if tiny.ewald_channels:
        modules += [
            Readout("tot_q", MLP((n_in, 6, tiny.ewald_channels), bias=False), per_atom_key="q"),
            Ewald("q", "E_lr", **({"dl": 1.7, "sigma": 1.0} | tiny.ewald)),
            Add(("E_sr", "E_lr"), "CACE_energy"),
        ]
        total = "CACE_energy"
    modules.append(Forces(total, "CACE_forces", calc_stress=True))
    return ModelSpec(
        rep,
        (SubModel(tuple(modules), strain=True),),
        atomic_energies=tiny.atomic_energies,
        provenance=Provenance(licence="MIT", note="made for tests"),
    )


def tiny_program() -> tuple[ModelSpec, EnergyProgram]:
    """Return a model of several Ewald sums, two of the same charges, and a weighted energy."""
    spec = tiny_spec(l_max=1, n_rbf=2, n_radial=2, ewald_channels=2)
    short, charges = spec.submodels[0].modules[:2]
    field = {"external_field": 0.3, "external_field_direction": 1, "charge_neutral_lambda": 0.8}
    modules = (
        short, charges, FixedCharge("z", ((8, -0.8), (1, 0.4))),
        Ewald("q", "E_field", 1.7, 1.0, norm_factor=1.2, **field),
        Ewald("q", "E_plain", 2.1, 0.8, remove_self_interaction=True),
        Ewald("z", "E_fixed", 1.9, 0.9, external_field=-0.2, external_field_direction=2),
        Add(("E_sr", "E_field", "E_plain", "E_fixed"), "CACE_energy"),
        Forces("CACE_energy", "CACE_forces", calc_stress=True),
    )  # fmt: skip
    spec = replace(spec, submodels=(SubModel(modules, strain=True),))
    weights = (0.6, 0.7, -0.4, 1.3)
    terms = zip(energy_terms(spec), weights, strict=True)
    return spec, program_of(spec, [replace(term, weight=weight) for term, weight in terms])


def repeated(spec: ModelSpec) -> ModelSpec:
    """Return the model of :func:`tiny_program` with parts that count more than once."""
    features = ("E_sr", "E_sr", "E_field", "E_plain", "E_plain", "E_plain", "E_fixed", "E_fixed")
    (sub,) = spec.submodels
    modules = [replace(m, features=features) if isinstance(m, Add) else m for m in sub.modules]
    return replace(spec, submodels=(replace(sub, modules=tuple(modules)),))


def tiny_weights(spec: ModelSpec, seed: int = 1) -> Weights:
    """Return seeded float64 weights for a specification of :func:`tiny_spec`."""
    generator = torch.Generator().manual_seed(seed)
    rep = spec.representation
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in expected_shapes(spec).items():
        draw = torch.randn(shape, generator=generator, dtype=torch.float64)
        tensors[name] = _scale(name, shape) * draw
    _set_radial(tensors, rep)
    for name in ("embedding.sender", "embedding.receiver"):
        if name in tensors:
            tensors[name][:, 0] = 1.0  # channel 0 sees every pair alike
    if "outputs.0.1.linear.weight" in tensors:
        tensors["outputs.0.1.linear.weight"] *= 3.0
    own = tensors["mixing.0"]
    own[:, :2, 0] = 0.0
    own[0, 0, 0] = 1.0
    own[min(2, rep.radial.n_rbf - 1), min(1, rep.n_radial - 1), 0] = 1.0
    # features are flattened as [n_radial, n_B, C, T]: the first invariant of channel 0, stage 0
    stride = rep.n_invariants * rep.n_channels * rep.n_stages
    linear = tensors["outputs.0.0.linear.weight"]
    linear[0, 0] = REPULSION
    if rep.radial.kind == "gaussian" and rep.n_radial > 1:
        linear[0, stride] = ATTRACTION
    return Weights(spec, tensors)


def tiny_potential(seed: int = 1, dtype: str = "float64", **options: Any) -> Potential:
    """Return a tiny potential on the CPU; ``options`` are the fields of :class:`Tiny`."""
    spec = tiny_spec(**options)
    return Potential(spec, tiny_weights(spec, seed), device="cpu", dtype=dtype)


def tiny_structure(
    spec: ModelSpec, side: int = 2, seed: int = 2, spacing: float = 2.5, pbc: bool = True
) -> Atoms:
    """Return ``side``^3 atoms on a rattled simple cubic lattice, elements in turn, inputs set."""
    elements = spec.representation.elements
    n = side**3
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    positions = spacing * grid + rng.uniform(-0.2, 0.2, (n, 3))
    numbers = [elements[k % len(elements)] for k in range(n)]
    cell = spacing * side * np.eye(3) if pbc else None
    atoms = Atoms(numbers, positions=positions, cell=cell, pbc=pbc)
    for readout in spec.submodels[0].modules:
        if isinstance(readout, Readout):
            for name in readout.features:
                if name != "node_feats":
                    atoms.arrays[name] = rng.uniform(-1.0, 1.0, n)
    return atoms


def _representation(tiny: Tiny) -> Representation:
    prefactor = math.sqrt(2.0 / tiny.cutoff) if tiny.radial == "bessel" else 1.0
    cutoff = CutoffFunction(tiny.cutoff_kind, tiny.cutoff, p=5.0)
    base = Representation(
        tiny.elements, tiny.n_embedding, tiny.shared_embedding, tiny.cutoff,
        RadialBasis(tiny.radial, tiny.n_rbf, prefactor), cutoff,
        tiny.n_radial, tiny.l_max, tiny.nu_max, mp_norm_factor=0.3,
    )  # fmt: skip
    width = base.n_radial * base.n_invariants * base.n_channels
    steps = []
    for text in tiny.steps:
        parts = text.split("+")
        assert set(parts) <= {"M", "Ar", "Bchi"}, text
        bchi = None
        if "Bchi" in parts:
            n_out = base.n_bchi_weights(Bchi(False, False, MLP((width, 1))))
            bchi = Bchi(False, False, MLP((width, 5, n_out)))
        steps.append(MessageStep("M" in parts, "Ar" in parts, bchi))
    return Representation(
        tiny.elements, tiny.n_embedding, tiny.shared_embedding, tiny.cutoff,
        base.radial, cutoff, tiny.n_radial, tiny.l_max, tiny.nu_max, tuple(steps),
        mp_norm_factor=0.3,
    )  # fmt: skip


def _scale(name: str, shape: tuple[int, ...]) -> float:
    if name.startswith(("embedding.", "mixing.")):
        return 0.5
    if name.startswith("outputs.") or ".bchi." in name:
        return 0.3 / math.sqrt(shape[-1])
    return 0.3


def _set_radial(tensors: dict[str, torch.Tensor], rep: Representation) -> None:
    n, cutoff = rep.radial.n_rbf, rep.cutoff
    steps = torch.arange(n, dtype=torch.float64)
    if rep.radial.kind == "bessel":
        tensors["radial.frequencies"] = math.pi * (1.0 + steps) / cutoff
    elif rep.radial.kind == "gaussian":
        tensors["radial.offsets"] = 1.25 * steps
        tensors["radial.widths"] = torch.full((n,), 0.8, dtype=torch.float64)
    elif rep.radial.kind == "exponential":
        tensors["radial.ranges"] = 0.5 + 0.3 * steps
    for name in tensors:
        if name.endswith("inverse_range") or ".ar.inverse_range." in name:
            tensors[name] = 1.0 / cutoff + 0.1 * tensors[name] / cutoff
