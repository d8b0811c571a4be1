"""Long range of a graph: one Ewald sum for each system, and what fields and penalties add."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cace_fast.errors import InputError
from cace_fast.graph import AtomicGraph
from cace_fast.reference.ewald import OWN_SPHERE, EwaldResult, Summation, ewald
from cace_fast.spec import Ewald
from cace_fast.spec.units import E2_PER_INTERNAL


def ewald_of(
    module: Ewald, q: Tensor, graph: AtomicGraph, how: Summation = OWN_SPHERE
) -> EwaldResult:
    """Return energies and potentials of the Ewald sum, each system by itself.

    See ``docs/theory.md``, 9.

    Parameters
    ----------
    module
        The Ewald module.
    q
        Charges [n, n_q], internal units.
    graph
        The systems; their inputs hold the field where the module takes it from there.
    how
        How periodic systems are summed.

    Returns
    -------
    EwaldResult
        Fields and penalties are part of the energies, but not of the potentials.

    Raises
    ------
    InputError
        As for :func:`boundary`, :func:`field_of` and :func:`cace_fast.reference.ewald.ewald`.
    """
    counts = torch.bincount(graph.batch, minlength=graph.n_systems).tolist()
    parts = []
    for number, (charges, positions) in enumerate(
        zip(q.split(counts), graph.positions.split(counts), strict=True)
    ):
        periodic, open_axis = boundary(graph.pbc[number].tolist(), how.slab_vacuum)
        one = ewald(
            charges,
            positions,
            graph.cell[number],
            module,
            periodic=periodic,
            how=how,
            open_axis=open_axis,
        )
        first = sum(counts[:number])
        atoms = slice(first, first + counts[number])
        # each entry of the result gets all of it: a periodic system has one for each channel, an
        # open one a single entry, which is shared among the channels here
        share = 1.0 if periodic else 1.0 / charges.shape[1]
        extra = share * _extras(module, charges, positions, graph.inputs, atoms)
        parts.append(EwaldResult(one.energies + extra, one.potential))
    return EwaldResult(*(torch.cat(column) for column in zip(*parts, strict=True)))


def boundary(pbc: Sequence[bool], slab_vacuum: float | None) -> tuple[bool, int | None]:
    """Return whether an Ewald sum is over k, and the open direction of a slab (sections 9 and 11).

    Raises
    ------
    InputError
        For a wire, and for a slab whose vacuum (in A) is not stated.
    """
    if all(pbc) or not any(pbc):
        return all(pbc), None
    if sum(pbc) == 2 and slab_vacuum is not None:
        return True, list(pbc).index(False)
    raise partly_periodic(list(pbc))


def partly_periodic(pbc: list[bool]) -> InputError:
    """Return the error of an Ewald model on a wire, or on a slab without a stated vacuum.

    See ``docs/theory.md``, section 11.
    """
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
    """Return what external field and neutrality penalty add to each atom [n, 1]."""
    extra: Tensor | float = 0.0
    q, r = q.to(torch.float64), r.to(torch.float64)
    if module.external_field is not None and module.exponent == 1 and len(q):
        field, direction = field_of(module, inputs, atoms)
        unit = (module.norm_factor / E2_PER_INTERNAL) ** 0.5
        extra = extra - field * unit * q.sum(1, keepdim=True) * r[:, direction : direction + 1]
    if module.charge_neutral_lambda is not None:
        extra = extra + module.charge_neutral_lambda * q.mean() ** 2 / max(1, len(q))
    return extra


def field_of(module: Ewald, inputs: Mapping[str, Tensor], atoms: slice) -> tuple[float, int]:
    """Return the external field of a structure in V/A, and its direction 0 to 2 (section 9).

    Parameters
    ----------
    module
        The Ewald module, which has them or names inputs.
    inputs
        Of the graph, [n, ...].
    atoms
        Those of the structure.

    Raises
    ------
    InputError
        If an input is missing, or is not one finite number for each structure, or the direction is
        not 0, 1 or 2.
    """
    field = _setting(module.external_field or 0.0, inputs, atoms)
    direction = _setting(module.external_field_direction or 0, inputs, atoms)
    if int(direction) not in (0, 1, 2):
        raise InputError(str(module.external_field_direction), "0, 1 or 2", direction)
    return field, int(direction)


def _setting(value: float | str, inputs: Mapping[str, Tensor], atoms: slice) -> float:
    """Return a number given as such, or as a per-structure input called by name."""
    if not isinstance(value, str):
        return float(value)
    expected = "one finite number for each structure, as this model's Ewald module takes it"
    if value not in inputs:
        remedy = f"Set atoms.info[{value!r}]."
        raise InputError(value, expected, "nothing", remedy)
    numbers = inputs[value][atoms].detach().reshape(-1)
    if not bool((numbers == numbers[0]).all()) or not bool(numbers.isfinite().all()):
        raise InputError(value, expected, numbers[:5].tolist())
    return float(numbers[0])
