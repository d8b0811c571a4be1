"""Inputs of structures that an energy program takes: extra inputs, fixed charges, fields."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cace_fast.errors import InputError
from cace_fast.graph import AtomicGraph
from cace_fast.reference.atomic import columns_of, fixed_charges, given_input
from cace_fast.reference.long_range import field_of
from cace_fast.spec import EnergyHead, EnergyProgram, Extra, Representation


def check_elements(program: EnergyProgram, spec: Representation, graph: AtomicGraph) -> None:
    """Raise InputError for atoms whose element has no fixed charge.

    See ``docs/theory.md``, section 7.
    """
    given = [extra.fixed for head in program.heads for extra in head.extras or ()]
    for module in dict.fromkeys([*(term.fixed for term in program.terms), *given]):
        if module is not None:
            fixed_charges(module, spec, graph.species)


def extra_inputs(head: EnergyHead, spec: Representation, graph: AtomicGraph) -> Tensor | None:
    """Return the extra inputs [n, n_extra] float64 of a head, None where it has none (section 7).

    Raises
    ------
    InputError
        If the structures lack an input, or its width is wrong.
    """
    parts = [_extra(extra, spec, graph) for extra in head.extras or ()]
    return torch.cat(parts, 1) if parts else None


def _extra(extra: Extra, spec: Representation, graph: AtomicGraph) -> Tensor:
    if extra.fixed is not None:
        return fixed_charges(extra.fixed, spec, graph.species)
    columns = [given_input(key, graph.inputs) for key in extra.keys]
    found = torch.cat([columns_of(c) for c in columns], 1)
    if found.shape[1] != extra.width:
        expected = f"{extra.width} numbers per atom in {', '.join(extra.keys)}"
        raise InputError("inputs", expected, found.shape[1])
    return found.to(torch.float64)


def fields(
    program: EnergyProgram, graph: AtomicGraph
) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    """Return external fields in V/A and directions 0 to 2, each [n_terms, n_systems] (section 9).

    They are float64 and int64; None if the modules hold the fields themselves.

    Raises
    ------
    InputError
        As for :func:`cace_fast.reference.long_range.field_of`.
    """
    if not any(term.ewald.takes_field for term in program.terms):
        return None
    ends = torch.bincount(graph.batch, minlength=graph.n_systems).cumsum(0).tolist()
    atoms = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]
    found = [
        [field_of(t.ewald, graph.inputs, s) if s.stop > s.start else (0.0, 0) for s in atoms]
        for t in program.terms
    ]
    pairs = np.array(found, dtype=np.float64).reshape(len(found), len(atoms), 2)
    return np.ascontiguousarray(pairs[..., 0]), pairs[..., 1].astype(np.int64)
