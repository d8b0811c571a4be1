"""The whole model in plain torch: features, and the energy terms made of them.

Reads like ``docs/theory.md``: moments -> contraction -> (messages -> contraction) -> read-outs and
long range. Everything is differentiable twice with respect to positions, cell and weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from cace_fast.errors import InputError, UnsupportedModelError
from cace_fast.graph import AtomicGraph
from cace_fast.reference.contraction import contraction
from cace_fast.reference.ewald import (
    E2_PER_INTERNAL,
    OWN_SPHERE,
    EwaldResult,
    Summation,
    ewald,
)
from cace_fast.reference.messages import messages
from cace_fast.reference.moments import moments
from cace_fast.reference.readout import readout
from cace_fast.spec import EnergyTerm, Ewald, FixedCharge, ModelSpec, Readout, Representation

FIXED_CHARGE_UNIT = 9.48933  # internal units per e in fixed-charge modules, as in the files


class Energies(NamedTuple):
    """Energy of each atom in eV, float64: read-outs alone, long range alone."""

    short_range: Tensor
    long_range: Tensor


def features(graph: AtomicGraph, weights: Mapping[str, Tensor], spec: Representation) -> Tensor:
    """Return the invariants [n, n_radial, n_B, C, T] of every generation (equation 21)."""
    vectors = graph.vectors().to(weights["embedding.sender"].dtype)
    edges = (vectors, graph.senders, graph.receivers, graph.species, weights, spec)
    a = moments(*edges)
    b = contraction(a, spec.l_max, spec.nu_max)
    generations = [b]
    for step in range(len(spec.steps)):
        a = messages(a, b, *edges, step)
        b = contraction(a, spec.l_max, spec.nu_max)
        generations.append(b)
    return torch.stack(generations, -1)


def readout_of(
    module: Readout, prefix: str, feats: Tensor, graph: AtomicGraph, weights: Mapping[str, Tensor]
) -> Tensor:
    """Return the outputs y [n, n_out] of one read-out, further inputs appended as it lists them."""
    return readout(readout_input(module, feats, graph.inputs), weights, module, prefix)


def readout_input(module: Readout, feats: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the flattened inputs x [n, n_in] of one read-out, in the order that it lists."""
    columns = input_columns(module, module.features, {**inputs, "node_feats": feats})
    x = torch.cat(columns, 1) if len(columns) > 1 else columns[0]
    check_width(module, x.shape[1])
    return x


def input_columns(
    module: Readout, names: Sequence[str], inputs: Mapping[str, Tensor]
) -> list[Tensor]:
    """Return the inputs called ``names``, each as [n, width] in the dtype of the features."""
    columns = []
    for key in names:
        if key not in inputs:
            raise InputError(
                key, "a per-atom input that this model's read-out takes", "nothing",
                f"Set atoms.arrays[{key!r}] or atoms.info[{key!r}].",
            )  # fmt: skip
        value = inputs[key].to(inputs.get("node_feats", inputs[key]))
        columns.append(value.flatten(1) if value.dim() > 1 else value[:, None])
    return columns


def check_width(module: Readout, n_in: int) -> None:
    """Raise InputError unless a read-out takes ``n_in`` numbers per atom."""
    if n_in != module.mlp.widths[0]:
        expected = f"{module.mlp.widths[0]} numbers per atom in {', '.join(module.features)}"
        raise InputError("inputs", expected, n_in)


def energies(
    graph: AtomicGraph,
    feats: Tensor,
    weights: Mapping[str, Tensor],
    spec: ModelSpec,
    terms: Sequence[EnergyTerm],
    output_index: int | None = None,
    how: Summation = OWN_SPHERE,
) -> Energies:
    """Return the energy of every atom, the sum of the weighted ``terms``."""
    zero = graph.positions.new_zeros(graph.n_atoms, dtype=torch.float64)
    short, long = zero, zero
    for term in terms:
        if isinstance(term.module, Ewald):
            result = long_range(graph, feats, weights, spec, term, how)
            long = long + term.weight * result.energies.sum(1)
        else:
            prefix = f"outputs.{term.submodel}.{term.index}"
            y = readout_of(term.module, prefix, feats, graph, weights).to(torch.float64)
            short = short + term.weight * _column(y, output_index) / _divisor(term.module, graph)
    return Energies(short, long)


def _column(y: Tensor, output_index: int | None) -> Tensor:
    return y[:, energy_column(y.shape[1], output_index)]


def energy_column(n_out: int, output_index: int | None) -> int:
    """Return which of ``n_out`` outputs of a read-out is the energy."""
    if output_index is None and n_out != 1:
        expected = f"0 to {n_out - 1}: this model has several energies"
        raise InputError("output_index", expected, output_index)
    column = 0 if n_out == 1 or output_index is None else output_index
    if not -n_out <= column < n_out:
        raise InputError("output_index", f"less than {n_out}", output_index)
    return column % n_out


def _divisor(module: Readout, graph: AtomicGraph) -> Tensor | float:
    """Return 1, or the number of atoms of each atom's system where the read-out averages."""
    if module.aggregation != "avg":
        return 1.0
    return torch.bincount(graph.batch, minlength=graph.n_systems)[graph.batch].to(torch.float64)


def charges_of(
    graph: AtomicGraph,
    feats: Tensor,
    weights: Mapping[str, Tensor],
    spec: ModelSpec,
    submodel: int,
    key: str,
) -> Tensor:
    """Return the latent charges q [n, n_q] called ``key`` in a sub-model, in internal units."""
    sub = spec.submodels[submodel]
    module = sub.producer(key)
    if isinstance(module, Readout) and key == module.per_atom_key:
        return readout_of(
            module, f"outputs.{submodel}.{sub.modules.index(module)}", feats, graph, weights
        )
    if isinstance(module, FixedCharge):
        return fixed_charges(module, spec.representation, graph.species).to(feats)
    if key in graph.inputs:
        return graph.inputs[key].to(feats).reshape(graph.n_atoms, -1)
    raise UnsupportedModelError(
        f"sub-model {submodel}: no module gives the charges {key!r} per atom"
    )


def fixed_charges(module: FixedCharge, spec: Representation, species: Tensor) -> Tensor:
    """Return the charge of each atom's element [n, 1] float64, internal units."""
    table = dict(module.charges)
    missing = [z for z in spec.elements if z not in table]
    unit = FIXED_CHARGE_UNIT if module.normalize else 1.0
    values = torch.tensor([unit * table.get(z, 0.0) for z in spec.elements], dtype=torch.float64)
    used = {spec.elements[k] for k in species.unique().tolist()}
    if used & set(missing):
        raise InputError("numbers", "elements with a fixed charge", sorted(used & set(missing)))
    return values.to(species.device)[species][:, None]


def long_range(
    graph: AtomicGraph,
    feats: Tensor,
    weights: Mapping[str, Tensor],
    spec: ModelSpec,
    term: EnergyTerm,
    how: Summation = OWN_SPHERE,
) -> EwaldResult:
    """Return the Ewald energies of every atom and channel, without the term's weight."""
    module = term.module
    assert isinstance(module, Ewald)
    q = charges_of(graph, feats, weights, spec, term.submodel, module.feature_key)
    return ewald_of(module, q, graph, how)


def ewald_of(
    module: Ewald, q: Tensor, graph: AtomicGraph, how: Summation = OWN_SPHERE
) -> EwaldResult:
    """Return the Ewald energies of charges ``q`` [n, n_q], each system of the graph by itself."""
    counts = torch.bincount(graph.batch, minlength=graph.n_systems).tolist()
    parts = []
    for number, (charges, positions) in enumerate(
        zip(q.split(counts), graph.positions.split(counts), strict=True)
    ):
        periodic, open_axis = boundary(graph.pbc[number].tolist(), how.slab_vacuum)
        one = ewald(
            charges, positions, graph.cell[number], module, periodic=periodic, how=how,
            open_axis=open_axis,
        )  # fmt: skip
        first = sum(counts[:number])
        extra = _extras(
            module, charges, positions, graph.inputs, slice(first, first + counts[number])
        )
        parts.append(EwaldResult(one.energies + extra, one.potential))
    return EwaldResult(*(torch.cat(column) for column in zip(*parts, strict=True)))


def boundary(pbc: Sequence[bool], slab_vacuum: float | None) -> tuple[bool, int | None]:
    """Return whether an Ewald sum is over k, and the open direction of a slab.

    Raises
    ------
    InputError
        For a wire, and for a slab whose vacuum is not stated.
    """
    if all(pbc) or not any(pbc):
        return all(pbc), None
    if sum(pbc) == 2 and slab_vacuum is not None:
        return True, list(pbc).index(False)
    raise partly_periodic(list(pbc))


def partly_periodic(pbc: list[bool]) -> InputError:
    """Return the error of an Ewald model on a wire, or on a slab without a stated vacuum."""
    return InputError(
        "pbc",
        "all or no directions periodic for a model with an Ewald sum",
        pbc,
        "State the vacuum of the slab by slab_vacuum=..., or make it periodic in all directions."
        if sum(pbc) == 2
        else "Make the wire periodic in all directions, with enough vacuum, or use a short-range "
        "model.",
    )


def _extras(
    module: Ewald, q: Tensor, r: Tensor, inputs: Mapping[str, Tensor], atoms: slice
) -> Tensor | float:
    """Return what external field and neutrality penalty add to each atom and channel."""
    extra: Tensor | float = 0.0
    q, r = q.to(torch.float64), r.to(torch.float64)
    if module.external_field is not None and module.exponent == 1:
        field = _setting(module.external_field, inputs, atoms)
        direction = int(_setting(module.external_field_direction or 0, inputs, atoms))
        unit = (module.norm_factor / E2_PER_INTERNAL) ** 0.5
        extra = extra - field * unit * q.sum(1, keepdim=True) * r[:, direction : direction + 1]
    if module.charge_neutral_lambda is not None:
        extra = extra + module.charge_neutral_lambda * q.mean() ** 2 / max(1, len(q))
    return extra


def _setting(value: float | str, inputs: Mapping[str, Tensor], atoms: slice) -> float:
    """Return a number given as such, or as a per-structure input called by name."""
    if not isinstance(value, str):
        return float(value)
    if value not in inputs:
        raise InputError(
            value, "a number for each structure, as this model's Ewald module takes it", "nothing"
        )
    return float(inputs[value][atoms].reshape(-1)[0])


def by_system(values: Tensor, graph: AtomicGraph) -> Tensor:
    """Return the sum of per-atom ``values`` [n, ...] over each system, [n_systems, ...]."""
    out = values.new_zeros(graph.n_systems, *values.shape[1:])
    return out.index_add(0, graph.batch, values)


def with_gradients(graph: AtomicGraph, strain: Tensor | None = None) -> AtomicGraph:
    """Return the graph with positions as a leaf that requires gradients, strained by ``strain``."""
    leaf = replace(graph, positions=graph.positions.detach().requires_grad_(True))
    return leaf if strain is None else leaf.strained(strain)
