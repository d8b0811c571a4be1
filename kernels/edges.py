"""Edges by segments, and parameters of radial functions, as kernels of both backends take them.

Arrays are component-major and contiguous, [component, lane]; lanes are edges, segments or atoms.
Their number may be a capacity: elements behind the last lane are empty
(docs/developer/kernels.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from cace_fast.kernels.formulas import BASES, Parameter
from cace_fast.spec import Representation


class Edges(NamedTuple):
    """Directed edges sorted by receiver and the sender's element (``docs/developer/kernels.md``).

    Index arrays are int32. A *segment* is a run of edges with one receiver and one element of
    senders; only segments with edges exist, so elements cost nothing. Padding segments begin and
    end at the last edge.

    Attributes
    ----------
    vectors
        [3, E] d in A, from sender to receiver. Beyond the cutoff is allowed, 0 is not.
    sender, receiver
        [E] atoms.
    seg_first
        [S + 1] first edge of each segment.
    seg_atom, seg_species
        [S] its receiver and element, 0 in padding.
    atom_first
        [n + 1] first segment of each atom.
    sent_first, sent_edge
        [n + 1], [E]: the edges that each atom sends, ascending.
    """

    vectors: Tensor
    sender: Tensor
    receiver: Tensor
    seg_first: Tensor
    seg_atom: Tensor
    seg_species: Tensor
    atom_first: Tensor
    sent_first: Tensor
    sent_edge: Tensor


class Order(NamedTuple):
    """Edges in the order of the kernels, int64; names as in :class:`Edges`.

    ``order`` [E] is the index of each edge in the given order; ``seg_count`` [S] counts the edges
    of each segment.
    """

    order: Tensor
    sender: Tensor
    receiver: Tensor
    seg_count: Tensor
    seg_atom: Tensor
    seg_species: Tensor
    sent_edge: Tensor


def in_order(
    senders: Tensor, receivers: Tensor, species: Tensor, n_species: int, image: Tensor | None = None
) -> Order:
    """Return edges [E] sorted by receiver, sender's element, sender, and ``image`` [E] if given.

    ``species`` is [n] int64 (``docs/developer/kernels.md``, segments).
    """
    segment = receivers * n_species + species[senders]
    key = segment * max(len(species), 1) + senders
    if image is None:
        order = torch.argsort(key, stable=True)
    else:  # least significant key first: the second, stable sort keeps the order of the first
        order = torch.argsort(image, stable=True)
        order = order[torch.argsort(key[order], stable=True)]
    segments, count = torch.unique_consecutive(segment[order], return_counts=True)
    sender = senders[order]
    return Order(
        order,
        sender,
        receivers[order],
        count,
        segments // n_species,
        segments % n_species,
        torch.argsort(sender, stable=True),
    )


def edges_of(
    vectors: Tensor, senders: Tensor, receivers: Tensor, species: Tensor
) -> tuple[Edges, Tensor]:
    """Return edges given in any order, and the order [n_edges] that they got.

    ``vectors`` are [n_edges, 3] in A, ``senders`` and ``receivers`` [n_edges], ``species`` [n]
    int64 (``docs/developer/kernels.md``).
    """
    n = species.shape[0]
    found = in_order(senders, receivers, species, int(species.max()) + 1 if n else 1)
    return Edges(
        vectors=vectors[found.order].T.contiguous(),
        sender=found.sender.int(),
        receiver=found.receiver.int(),
        seg_first=_offsets(found.seg_count),
        seg_atom=found.seg_atom.int(),
        seg_species=found.seg_species.int(),
        atom_first=_offsets(torch.bincount(found.seg_atom, minlength=n)),
        sent_first=_offsets(torch.bincount(senders, minlength=n)),
        sent_edge=found.sent_edge.int(),
    ), found.order


def _offsets(count: Tensor) -> Tensor:
    """Return the begin of each group of ``count``, and the end of the last, int32."""
    return torch.nn.functional.pad(count.cumsum(0), (1, 0)).int()


def radial_table(spec: Representation, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the parameters of radial and cutoff functions as kernels read them, [2 n_b + 4].

    They are a_n and b_n as ``formulas.BASES`` defines them for each basis; then the prefactor, r_c
    in A, 1/r_c, and the mollifier's eps or the begin of the switch (equations 3 to 9), in the
    dtype of the weights.
    """
    like = weights["embedding.sender"]
    cutoff, basis = spec.cutoff_function, BASES[spec.radial.kind]
    none = like.new_zeros(spec.radial.n_rbf, dtype=torch.float64)
    columns = [none if p is None else _column(p, weights) for p in (basis.a, basis.b)]
    extra = cutoff.eps if cutoff.kind == "mollifier" else cutoff.switch_on
    rest = [spec.radial.prefactor, cutoff.cutoff, 1.0 / cutoff.cutoff, extra]
    tail = torch.tensor(rest, dtype=torch.float64, device=like.device)
    return torch.cat([*columns, tail]).to(like)


def _column(parameter: Parameter, weights: Mapping[str, Tensor]) -> Tensor:
    tensor = weights[f"radial.{parameter.tensor}"].double()
    return 1.0 / tensor if parameter.inverse else tensor


def by_radial_weights(
    spec: Representation, weights: Mapping[str, Tensor], by_table: Tensor
) -> dict[str, Tensor]:
    """Return dE/dweight [n_b] of the radial functions' tensors.

    ``by_table`` [2 n_b] has dE/da_n and dE/db_n; a_n and b_n are the weights of equations 3 to 5 or
    their inverses.
    """
    basis, found = BASES[spec.radial.kind], {}
    for parameter, gradient in zip((basis.a, basis.b), by_table.chunk(2), strict=True):
        if parameter is None:
            continue
        name = f"radial.{parameter.tensor}"
        squares = weights[name].to(gradient) ** 2 if parameter.inverse else None
        found[name] = gradient if squares is None else -gradient / squares
    return found
