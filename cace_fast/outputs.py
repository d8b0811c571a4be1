"""Values that output modules write into the dictionary of a call, read-outs and sums excepted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import pi

import torch
from torch import Tensor

from .errors import InputError
from .graph import AtomicGraph
from .reference import model
from .reference.atomic import columns_of
from .reference.ewald import OWN_SPHERE, Summation
from .reference.long_range import ewald_of
from .spec import Dephase, Ewald, Forces, Grad, Polarization


@dataclass(frozen=True)
class Call:
    """The options of one call, as upstream names them.

    See ``docs/conventions.md``, "Input dictionary".
    """

    training: bool = False
    output_index: int | None = None
    how: Summation = OWN_SPHERE


Derivatives = Callable[[str], tuple[Tensor, Tensor | None]]


@dataclass
class State:
    """State that the modules of a sub-model share in a call (``docs/theory.md``, section 7).

    Attributes
    ----------
    graph, feats, positions
        The systems, their features [n, n_radial, n_B, C, T], and positions [n, 3] in A.
    strain
        [n_systems, 3, 3], zero, to differentiate by; None without stress.
    call
        The options.
    fast
        Returns dE/dr [n, 3] and dE/dstrain [n_systems, 3, 3] of an energy by its key; None for
        automatic differentiation.
    values
        The latest value of each key.
    lattice
        Lattice components of polarisations and their gradients, by key.
    """

    graph: AtomicGraph
    feats: Tensor
    positions: Tensor
    strain: Tensor | None
    call: Call
    fast: Derivatives | None = None  # of energies; without it by autograd
    values: dict[str, Tensor] = field(default_factory=dict)
    lattice: dict[str, Tensor] = field(default_factory=dict)


def value_of(state: State, key: str) -> Tensor:
    """Return the latest value of a key, of an earlier module or of the inputs (section 7).

    Raises
    ------
    InputError
        If no module and no input has it.
    """
    if key in state.values:
        return state.values[key]
    if key in state.graph.inputs:
        return state.graph.inputs[key].to(state.feats)
    known = ", ".join([*state.values, *state.graph.inputs])
    raise InputError(
        f"data[{key!r}]", f"an input or an earlier output (there are {known})", "nothing"
    )


def ewald(module: Ewald, state: State) -> None:
    """Write the energies of an Ewald sum, and its potentials if they are asked for (section 9).

    Energies are [n_systems] in eV, or [n_systems, n_q] without aggregation; potentials [n, n_q].

    Raises
    ------
    InputError
        If the charges are missing or cannot be summed, or open and periodic structures would have
        results of different shapes.
    """
    q = value_of(state, module.feature_key)
    q = columns_of(q)
    result = ewald_of(module, q, state.graph, state.call.how)
    energy = model.by_system(result.energies, state.graph)
    periodic = state.graph.pbc.any(1)
    if module.aggregation == "sum":
        energy = energy.sum(1)
    elif not bool(periodic.all()) and q.shape[1] > 1:
        # a periodic structure has an energy for each channel, an open one a single energy
        if bool(periodic.any()):
            expected = "open or periodic structures only: this model's output has other shapes for"
            raise InputError("data['cell']", f"{expected} each", "both")
        energy = energy.sum(1, keepdim=True)
    state.values[module.output_key] = energy.to(state.feats)
    if module.compute_field:
        state.values[f"{module.feature_key}_field"] = result.potential.to(state.feats)


def forces(module: Forces, state: State, stress: bool) -> None:
    """Write forces of the present value of an energy, and with ``stress`` virials and stress.

    Forces are [n, 3] in eV/A, virials in eV and stress in eV/A^3 [n_systems, 3, 3], each with a
    last axis for an energy of several columns (``docs/theory.md``, equation 25).

    Raises
    ------
    InputError
        If the energy is missing.
    """
    energy = value_of(state, module.energy_key)
    columns = energy.flatten(1).unbind(1) if energy.dim() > 1 else (energy,)
    gradients = [_derivatives(module.energy_key, column, state) for column in columns]
    forces = torch.stack([-g[0] for g in gradients], -1)
    if module.calc_forces:
        state.values[module.forces_key] = forces if energy.dim() > 1 else forces[..., 0]
    if state.strain is not None and stress:
        per_strain = torch.stack([g[1] for g in gradients], -1).to(state.feats)
        per_strain = per_strain if energy.dim() > 1 else per_strain[..., 0]
        volume = torch.linalg.det(state.graph.cell.detach()).abs().to(per_strain)
        volume = torch.where(volume > 0, volume, torch.nan)  # an open system has no stress
        shape = (-1, *[1] * (per_strain.dim() - 1))
        state.values[module.virial_key] = -per_strain
        state.values[module.stress_key] = per_strain / volume.reshape(shape)


def _derivatives(key: str, energy: Tensor, state: State) -> tuple[Tensor, ...]:
    if state.fast is not None:
        return tuple(x for x in state.fast(key) if x is not None)
    leaves = [state.positions] + ([state.strain] if state.strain is not None else [])
    if not energy.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(
        energy.sum(),
        leaves,
        create_graph=state.call.training,
        retain_graph=True,
        materialize_grads=True,
    )


def polarization(module: Polarization, state: State) -> None:
    """Write P [n_systems, 3] in e A, its phase, and its lattice components (equations 31 and 32).

    Raises
    ------
    InputError
        If the charges are missing or have several channels.
    """
    graph = state.graph
    q = value_of(state, module.charge_key).reshape(graph.n_atoms, -1).to(torch.float64)
    if q.shape[1] != 1:
        raise InputError(module.charge_key, "one charge channel for a polarisation", q.shape[1])
    if module.remove_mean:
        count = torch.bincount(graph.batch, minlength=graph.n_systems).clamp(min=1)
        q = q - (model.by_system(q, graph) / count[:, None])[graph.batch]
    q = q * module.normalization_factor
    pick = slice(None) if module.output_index is None else module.output_index
    if not module.pbc or not bool(graph.pbc.all()):
        total, phase = model.by_system(q * graph.positions, graph), q.new_zeros(())
        state.lattice.pop(module.output_key, None)
    else:
        inverse = torch.linalg.inv(graph.cell)[graph.batch]
        angle = 2.0 * pi * torch.einsum("nx,nxk->nk", graph.positions, inverse)
        phase = torch.polar(torch.ones_like(angle), angle)
        lattice = model.by_system(q * phase, graph) / (2.0j * pi)
        state.lattice[module.output_key] = lattice
        total = torch.einsum("sk,skx->sx", lattice, graph.cell.to(lattice.dtype))
    state.values[module.output_key] = total[:, pick]
    if module.phase_key is not None:
        state.values[module.phase_key] = phase[:, pick].detach() if phase.dim() else phase


def _gradient(y: Tensor, x: Tensor, state: State) -> Tensor:
    """Return dy/dx [N, 3, ...] of a real or complex output, summed over structures."""
    columns = y.flatten(1).unbind(1) if y.dim() > 1 else (y,)
    found = []
    for column in columns:
        parts = [column.real, column.imag] if column.is_complex() else [column]
        grads = [
            torch.autograd.grad(
                p.sum(),
                x,
                create_graph=state.call.training,
                retain_graph=True,
                materialize_grads=True,
            )[0].to(torch.float64)
            for p in parts
        ]
        found.append(torch.complex(*grads) if len(grads) == 2 else grads[0])
    return torch.stack(found, -1) if y.dim() > 1 else found[0]


def gradient_output(module: Grad, state: State) -> None:
    """Write the gradient [n, 3, ...] of an output with respect to positions (section 10).

    Raises
    ------
    InputError
        If the output is missing, or the gradient is by something else.
    """
    if module.x_key != "positions":
        raise InputError("Grad.x_key", "'positions'", repr(module.x_key))
    state.values[module.output_key] = _gradient(
        value_of(state, module.y_key), state.positions, state
    )
    lattice = state.lattice.pop(module.y_key, None)
    state.lattice.pop(module.output_key, None)
    if lattice is not None:
        state.lattice[module.y_key] = lattice
        state.lattice[module.output_key] = _gradient(lattice, state.positions, state)


def dephase(module: Dephase, state: State) -> None:
    """Write Re(dP/dr conj phase) [n, 3, 3] in e, each lattice component with its own phase.

    See ``docs/theory.md``, equation 34.

    Raises
    ------
    InputError
        If the gradient or the phase is missing, or one component is asked for in a cell
        with angles.
    """
    value, cell = value_of(state, module.input_key), state.graph.cell
    if module.input_key not in state.lattice:
        state.values[module.output_key] = value.real if value.is_complex() else value
        return
    phase = value_of(state, module.phase_key).conj()
    if value.dim() != 3:
        if bool((cell - torch.diag_embed(cell.diagonal(dim1=1, dim2=2))).any()):
            expected = "all three components of a polarisation to dephase in a cell with angles"
            raise InputError(module.input_key, expected, "one of them")
        state.values[module.output_key] = (value * phase[:, None]).real
        return
    turned = (state.lattice[module.input_key] * phase[:, None, :]).real
    mixed = torch.einsum("nak,nkx->nax", turned, cell[state.graph.batch])
    state.values[module.output_key] = mixed
