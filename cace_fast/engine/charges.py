"""Physical charges, and Born charges from gradients of the latent charges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import pi, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from cace_fast.errors import PropertyNotImplementedError
from cace_fast.graph import AtomicGraph
from cace_fast.slab import Slab
from cace_fast.spec import EwaldTerm
from cace_fast.spec.units import E2_PER_INTERNAL


def charge_scale(term: EwaldTerm) -> float:
    """Return the charge in e of one internal unit, sqrt(w norm/90.0474), of an Ewald term.

    Equation 30 of ``docs/theory.md``.

    Raises
    ------
    PropertyNotImplementedError
        If the weight is negative.
    """
    scale = term.weight * term.ewald.norm_factor / E2_PER_INTERNAL
    if scale < 0:
        raise PropertyNotImplementedError(
            f"charges: the long-range energy has the negative weight {term.weight:g}, so its "
            "charges have no physical counterpart"
        )
    return sqrt(scale)


def physical_charges(q: Tensor, graph: AtomicGraph, term: EwaldTerm) -> Tensor:
    """Return the charges Q [n] float64 in e of latent charges ``q`` [n].

    See ``docs/theory.md``, eq. 30.

    Raises
    ------
    PropertyNotImplementedError
        As for :func:`charge_scale`.
    """
    return _neutral(q.to(torch.float64)[None] * charge_scale(term), graph)[0]


class ChargeDerivatives(NamedTuple):
    """How an engine differentiates the latent charges of its last evaluation.

    Attributes
    ----------
    gradients
        For weights [m, n] float64 it returns the gradients [m, n, 3] float64, in 1/A, of
        sum_i weights_i q_i with respect to positions.
    weighted
        It returns sum_j (r_j - r_i)_b dq_j/dr_ia [n, 3, 3] float64, images resolved
        (:func:`cace_fast.reference.images.weighted_gradients`). It comes last: the engine may have
        no gradients afterwards.
    """

    gradients: Callable[[Tensor], Tensor]
    weighted: Callable[[], Tensor]


def born_charges(
    q: Tensor, graph: AtomicGraph, term: EwaldTerm, slabs: Mapping[int, Slab], by: ChargeDerivatives
) -> Tensor:
    """Return Born charges Z*[i, a, b] [n, 3, 3] float64 in e, force along a in a field along b.

    Equation 33 of ``docs/theory.md`` in open systems and along the normal of a slab, equation 34 in
    periodic directions.

    Parameters
    ----------
    q
        Latent charges [n, n_q], in internal units.
    graph
        The systems.
    term
        The Ewald term of the charges.
    slabs
        The slabs among the systems, by number.
    by
        Derivatives of the charges.

    Raises
    ------
    PropertyNotImplementedError
        If there is more than one charge channel, or the weight of the term is negative.
    """
    _require_one_channel(q)
    charge, scale = physical_charges(q[:, 0].detach(), graph, term), charge_scale(term)
    found = torch.zeros((graph.n_atoms, 3, 3), dtype=torch.float64, device=charge.device)
    if not bool(graph.pbc.all()):
        # Q is q times the scale minus its mean; weights of Q become weights of q the same way
        weights = _neutral(graph.positions.detach().T * scale, graph)
        found = by.gradients(weights).permute(1, 2, 0).contiguous()  # [n, a, b]
    whole = graph.pbc.any(1)
    if bool(whole.any()):
        periodic = whole[graph.batch]
        of_dipole, local = found, scale * by.weighted()
        found = torch.where(periodic[:, None, None], local, of_dipole)
        for system, slab in slabs.items():
            here, n = graph.batch == system, slab.normal
            more = (of_dipole - local)[here] @ n  # along the normal
            found[here] += more[:, :, None] * n
    return found + torch.diag_embed(charge[:, None].expand(-1, 3))


def dephased_born_charges(
    q: Tensor, graph: AtomicGraph, term: EwaldTerm, slabs: Mapping[int, Slab], by: ChargeDerivatives
) -> Tensor:
    """Return Born charges as upstream has them, from the dephased polarisation of the cell.

    Equations 33 and 34a of ``docs/theory.md``; they depend on the cell. Arguments and errors as for
    :func:`born_charges`.
    """
    _require_one_channel(q)
    gradients = by.gradients
    charge, cells = physical_charges(q[:, 0].detach(), graph, term), _boxes(graph, slabs)
    of_atom, periodic = cells[graph.batch], graph.pbc[graph.batch].T
    places = (graph.positions.detach()[:, None, :] @ torch.linalg.inv(cells)[graph.batch])[:, 0].T
    cos, sin = torch.cos(2.0 * pi * places), torch.sin(2.0 * pi * places)
    # an open direction has s in P where a periodic one has sin(2 pi s)/(2 pi)
    weights = [torch.where(periodic, sin / (2.0 * pi), places)]
    turning = [g for g in range(3) if bool(periodic[g].any())]
    weights.append(cos[turning] / (2.0 * pi))
    # Q is q times the scale minus its mean; weights of Q become weights of q the same way
    of_charges = _neutral(torch.cat(weights) * charge_scale(term), graph)
    found = gradients(of_charges)
    along = found[:3]
    for k, g in enumerate(turning):
        dephased = found[g] * cos[g, :, None] - found[3 + k] * sin[g, :, None]
        along[g] = torch.where(periodic[g, :, None], dephased, found[g])
    own = torch.diag_embed(charge[:, None].expand(-1, 3))
    return own + torch.einsum("gna,ngb->nab", along, of_atom)


BORN_CHARGES = {"local": born_charges, "dephased": dephased_born_charges}


def _require_one_channel(q: Tensor) -> None:
    if q.shape[1] != 1:
        raise PropertyNotImplementedError(
            f"bec: a model with one charge channel is needed, this one has {q.shape[1]}"
        )


def _boxes(graph: AtomicGraph, slabs: Mapping[int, Slab]) -> Tensor:
    """Return the cells [n_systems, 3, 3] of polarisations, unit cells if open."""
    whole = graph.pbc.any(1)[:, None, None]
    unit = torch.eye(3, dtype=torch.float64, device=graph.cell.device)
    boxes = torch.where(whole, graph.cell, unit)
    for system, slab in slabs.items():
        boxes[system] = slab.cell
    return boxes


def _neutral(values: Tensor, graph: AtomicGraph) -> Tensor:
    """Return values [m, n] minus their means over each system."""
    count = torch.bincount(graph.batch, minlength=graph.n_systems).clamp(min=1)
    sums = values.new_zeros((len(values), graph.n_systems)).index_add(1, graph.batch, values)
    return values - (sums / count)[:, graph.batch]
