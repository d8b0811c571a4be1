"""The structure and the model that the operations are timed on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from ase.build import bulk
from torch import Tensor

from cace_fast.neighbors import neighbor_list
from cace_fast.spec import (
    MLP,
    Bchi,
    CutoffFunction,
    Ewald,
    MessageStep,
    ModelSpec,
    RadialBasis,
    Readout,
    Representation,
    SubModel,
)
from cace_fast.weights import expected_shapes

CUTOFF = 5.5
REPEATS = (4, 4, 4)  # of a cubic cell of four atoms: 256 atoms


@dataclass(frozen=True)
class System:
    """Inputs of the operations: about 70 neighbours within 5.5 A, as in liquid water."""

    positions: Tensor
    cell: Tensor
    vectors: Tensor
    senders: Tensor
    receivers: Tensor
    species: Tensor

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.positions)


def crystal(dtype: torch.dtype) -> System:
    """Return a rattled crystal of two elements at water's density of 0.1 atoms per A^3."""
    atoms = bulk("Cu", "fcc", a=40.0 ** (1 / 3), cubic=True) * REPEATS
    atoms.rattle(0.15, seed=1)
    cell = np.asarray(atoms.cell)
    edges = neighbor_list(atoms.positions, cell, atoms.pbc, CUTOFF)
    vectors = atoms.positions[edges.receivers] - atoms.positions[edges.senders]
    vectors = vectors + edges.shifts @ cell
    return System(
        torch.as_tensor(atoms.positions, dtype=dtype),
        torch.as_tensor(cell, dtype=dtype),
        torch.as_tensor(vectors, dtype=dtype),
        torch.as_tensor(edges.senders),
        torch.as_tensor(edges.receivers),
        torch.arange(len(atoms)) % 2,
    )


def specification() -> ModelSpec:
    """Return a model of the usual size: l_max 3, nu_max 3, 12 radial functions, 9 channels."""
    radial = RadialBasis("bessel", 6, math.sqrt(2.0 / CUTOFF))
    cutoff = CutoffFunction("polynomial", CUTOFF, 5.0)
    size = (12, 3, 3)
    plain = Representation((1, 8), 3, False, CUTOFF, radial, cutoff, *size)
    width = plain.n_radial * plain.n_invariants * plain.n_channels
    network = Bchi(False, False, MLP((width, 4 * 9), bias=False))
    steps = (MessageStep(memory=True, ar=True, bchi=network),)
    full = Representation(
        (1, 8), 3, False, CUTOFF, radial, cutoff, *size, steps=steps, mp_norm_factor=0.1
    )
    head = Readout("energy", MLP((2 * width, 32, 16, 1)))
    return ModelSpec(full, (SubModel((head,)),))


def ewald_specification() -> Ewald:
    """Return the long-range part with upstream's usual width and resolution."""
    return Ewald("q", "energy_lr", dl=2.0, sigma=1.0)


def random_weights(spec: ModelSpec, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return tensors of the right shapes, scaled so that nothing overflows."""
    generator = torch.Generator().manual_seed(2)
    weights = {}
    for name, shape in expected_shapes(spec).items():
        scale = 1.0 / math.sqrt(max(shape[-1] if shape else 1, 1))
        weights[name] = (scale * torch.randn(shape, generator=generator)).to(dtype)
    n_rbf = spec.representation.radial.n_rbf
    frequencies = math.pi / CUTOFF * torch.arange(1, n_rbf + 1)
    return weights | {"radial.frequencies": frequencies.to(dtype)}
