"""The whole model in plain torch: features, and the energy terms made of them.

It reads like ``docs/theory.md``: moments -> contraction -> (messages -> contraction) -> read-outs
and long range. Everything is differentiable twice with respect to positions, cell and weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from cace_fast.graph import AtomicGraph
from cace_fast.reference.atomic import Values
from cace_fast.reference.contraction import contraction
from cace_fast.reference.ewald import OWN_SPHERE, Summation
from cace_fast.reference.messages import messages
from cace_fast.reference.moments import moments
from cace_fast.spec import EnergyProgram, EwaldTerm, ModelSpec, Representation


class Energies(NamedTuple):
    """Energy [n] of each atom in eV, float64: read-outs alone, long range alone (section 7)."""

    short_range: Tensor
    long_range: Tensor


def features(graph: AtomicGraph, weights: Mapping[str, Tensor], spec: Representation) -> Tensor:
    """Return the invariants [n, n_radial, n_B, C, T] of every generation (equation 21).

    They have the dtype of ``weights``, which holds the tensors of ``docs/conventions.md``.
    """
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


def energies(
    graph: AtomicGraph,
    feats: Tensor,
    weights: Mapping[str, Tensor],
    spec: ModelSpec,
    program: EnergyProgram,
    how: Summation = OWN_SPHERE,
) -> Energies:
    """Return the energy [n] of every atom in eV, float64, as the program says (sections 7 and 9).

    Parameters
    ----------
    graph, feats, weights, spec
        The structures, their features [n, n_radial, n_B, C, T], and the model.
    program
        Read-outs and Ewald sums with their weights.
    how
        How periodic systems are summed.

    Raises
    ------
    InputError
        If ``output_index`` has to choose an energy first, or a module cannot take the inputs of the
        structures (:class:`cace_fast.reference.atomic.Values`).
    """
    program.check()
    zero = graph.positions.new_zeros(graph.n_atoms, dtype=torch.float64)
    short, long = zero, zero
    numbers = {h.submodel for h in program.heads} | {t.submodel for t in program.terms}
    values = {s: Values(graph, feats, weights, spec, s, how) for s in numbers}
    for head in program.heads:
        if head.gives == "energy":
            y = values[head.submodel].outputs(head.index).to(torch.float64)
            divisor = _n_atoms(graph) if head.average else 1.0
            short = short + head.weight * y[:, head.column] / divisor
    for term in program.terms:
        long = long + term.weight * values[term.submodel].ewald(term.index).energies.sum(1)
    return Energies(short, long)


def _n_atoms(graph: AtomicGraph) -> Tensor:
    """Return the number of atoms of each atom's system [n] float64."""
    return torch.bincount(graph.batch, minlength=graph.n_systems)[graph.batch].to(torch.float64)


def charges_of(
    graph: AtomicGraph,
    feats: Tensor,
    weights: Mapping[str, Tensor],
    spec: ModelSpec,
    term: EwaldTerm,
) -> Tensor:
    """Return the latent charges q [n, n_q] of an Ewald term, in internal units (section 9).

    Raises
    ------
    InputError
        As for :meth:`cace_fast.reference.atomic.Values.charges`.
    """
    return Values(graph, feats, weights, spec, term.submodel).charges(term.index)


def by_system(values: Tensor, graph: AtomicGraph) -> Tensor:
    """Return the sum of per-atom ``values`` [n, ...] over each system, [n_systems, ...].

    See ``docs/theory.md``, equation 24.
    """
    out = values.new_zeros(graph.n_systems, *values.shape[1:])
    return out.index_add(0, graph.batch, values)


def with_gradients(graph: AtomicGraph, strain: Tensor | None = None) -> AtomicGraph:
    """Return the graph with positions [n, 3] in A as a leaf that requires gradients (equation 25).

    ``strain`` [n_systems, 3, 3] deforms positions and cells.
    """
    leaf = replace(graph, positions=graph.positions.detach().requires_grad_(True))
    return leaf if strain is None else leaf.strained(strain)
