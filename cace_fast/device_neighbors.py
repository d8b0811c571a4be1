"""Neighbour lists in torch operations, for any device: cell lists of one or several systems.

Atoms are sorted into bins; every bin is paired with the occupied bins within the cutoff, images of
small cells included. Empty bins cost nothing, so that atoms may be any distance apart. Pairs are
made in chunks, so that memory beyond the result is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .geometry import (
    MAX_NEIGHBORS,
    MAX_WRAPS,
    check_crowd,
    check_finite,
    check_geometry,
    check_wraps,
    complete_cell,
)

AT_ONCE = 2**19  # candidate pairs, or atoms times bins around them, of one chunk
SAMPLE = 2**14  # of the candidates of dense systems, to estimate how many are pairs
BIN = 0.5  # of the cutoff: smaller bins waste fewer candidates, and have more of them to visit
FEW_ATOMS = 500  # up to here all pairs are tested, if they are not too many
FARTHEST = 2.0**60  # bins along an axis: atoms beyond are in the last one
NO_POSITIONS = np.zeros((0, 3))


class DevicePairs(NamedTuple):
    """Directed pairs, int64 on one device (``docs/theory.md``, equation 1).

    ``senders``, ``receivers`` are [n_edges] and ``shifts`` [n_edges, 3].
    """

    senders: Tensor
    receivers: Tensor
    shifts: Tensor


class _Bins(NamedTuple):
    """How each system is divided into bins.

    ``cell`` [n_systems, 3, 3] has its open directions completed; ``inverse`` and ``origin`` belong
    to it. ``number`` [n_systems, 3] counts bins along each periodic vector, ``per_length``
    [n_systems, 3] bins per unit of the fraction. ``reach`` [n_systems, 3] is how many bins away
    neighbours are; ``periodic`` is [n_systems, 3].
    """

    cell: Tensor
    inverse: Tensor
    origin: Tensor
    number: Tensor
    per_length: Tensor
    reach: Tensor
    periodic: Tensor


class _Occupied(NamedTuple):
    """The bins that hold atoms; there is no table of empty bins, however far apart atoms are.

    ``axes`` are the distinct numbers along each axis; ``planes`` and ``codes`` the distinct codes
    of (system, first, second) and of all three numbers. ``place`` [n_bins, 3] and ``system``
    [n_bins] belong to each bin; ``members`` [n] are atoms sorted by bin, which begin at ``start``
    [n_bins] and are ``counts`` [n_bins].
    """

    axes: tuple[Tensor, Tensor, Tensor]
    planes: Tensor
    codes: Tensor
    place: Tensor
    system: Tensor
    members: Tensor
    start: Tensor
    counts: Tensor


class _BinPairs(NamedTuple):
    """Pairs of occupied bins: ``centre``, ``other`` [m], and the ``image`` [m, 3] of the other."""

    centre: Tensor
    other: Tensor
    image: Tensor


class _Search(NamedTuple):
    """The structure of a search; ``wrap`` [n, 3] are the cells that atoms lie away."""

    positions: Tensor
    batch: Tensor
    bins: _Bins
    wrap: Tensor
    occupied: _Occupied


def device_neighbor_list(
    positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float, batch: Tensor | None = None
) -> DevicePairs:
    """Return all pairs with |r_receiver - r_sender + S h| < cutoff, except an atom with itself.

    These are the edges of ``docs/theory.md``, equation 1.

    Parameters
    ----------
    positions
        [n, 3] float64, A, on any device; need not lie inside the cell.
    cell, pbc
        [n_systems, 3, 3] float64, A, lattice vectors as rows, and [n_systems, 3] bool; vectors of
        open directions may be zero. The host reads both.
    cutoff
        In A.
    batch
        [n] int64, system of each atom; None for one system.

    Returns
    -------
    DevicePairs
        On the device of ``positions``, in the order of receiver, sender, shift, as
        :func:`cace_fast.neighbors.neighbor_list`.

    Raises
    ------
    InputError
        For positions or cells that are not finite, a periodic direction without extent, atoms
        more than 1e9 cells away, or more than 5 000 neighbours of an atom on average.
    """
    check_finite(torch.nonzero(~torch.isfinite(positions).all(1)).flatten().cpu().numpy())
    if batch is None:
        batch = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
    none = torch.zeros(0, dtype=torch.int64, device=positions.device)
    if not len(positions):
        return DevicePairs(none, none, none.reshape(0, 3))
    cell, pbc = cell.cpu(), pbc.cpu()
    if len(cell) == 1 and len(positions) <= FEW_ATOMS:
        check_geometry(positions.cpu().numpy(), cell[0].numpy(), pbc[0].numpy(), cutoff)
        images = _images(cell[0], pbc[0], cutoff)
        if len(positions) ** 2 * len(images) <= AT_ONCE:
            found = _all_pairs(positions, cell[0], pbc[0], float(cutoff), images)
            check_crowd(len(found.senders), len(positions), cutoff)
            return found
    search = _placed(positions, cell, pbc, float(cutoff), batch)
    bins = _bin_pairs(search)
    _check_density(search, bins, float(cutoff))
    chunks, n_pairs = [DevicePairs(none, none, none.reshape(0, 3))], 0
    for candidates in _candidates(search, bins):
        chunks.append(_near(search, *candidates, float(cutoff)))
        n_pairs += len(chunks[-1].senders)
        check_crowd(n_pairs, len(positions), cutoff)
    return _sorted(DevicePairs(*(torch.cat(parts) for parts in zip(*chunks, strict=True))))


def _images(cell: Tensor, pbc: Tensor, cutoff: float) -> Tensor:
    """Return the shifts S [m, 3] that pairs of atoms inside the cell may have, in order."""
    full = complete_cell(cell.numpy(), pbc.numpy())
    heights = 1.0 / np.linalg.norm(np.linalg.inv(full), axis=0)
    most = np.where(pbc.numpy(), np.floor(cutoff / heights + 1.0), 0.0).astype(int)
    return torch.tensor(list(product(*(range(-m, m + 1) for m in most.tolist()))))


def _all_pairs(
    positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float, images: Tensor
) -> DevicePairs:
    """Return the pairs of one small system, in order, by a test of all pairs: few operations."""
    device = positions.device
    full = torch.from_numpy(complete_cell(cell.numpy(), pbc.numpy()))
    to_fraction = torch.linalg.inv(full) * pbc.double()  # an open direction is never wrapped
    wrap = torch.floor(positions @ to_fraction.to(device))
    inside = positions - wrap @ full.to(device)
    moved = (images.double() @ full).to(device)
    d = inside[:, None, None] - inside[None, :, None] + moved
    near = (d * d).sum(3) < cutoff * cutoff
    near[:, :, len(images) // 2].fill_diagonal_(False)
    receiver, sender, image = torch.nonzero(near, as_tuple=True)
    whole = wrap.long()
    shifts = images.to(device)[image] - whole[receiver] + whole[sender]
    return DevicePairs(sender, receiver, shifts)


def _bins(positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float, batch: Tensor) -> _Bins:
    n_systems, device = len(cell), positions.device
    for one, periodic in zip(cell, pbc, strict=True):
        check_geometry(NO_POSITIONS, one.numpy(), periodic.numpy(), cutoff)
    pairs = zip(cell.numpy(), pbc.numpy(), strict=True)
    full = torch.from_numpy(np.stack([complete_cell(h, periodic) for h, periodic in pairs]))
    h, inverse = full.to(device), torch.linalg.inv(full).to(device)
    fraction = _fraction(positions, inverse, batch)
    index = batch[:, None].expand(-1, 3)
    low = fraction.new_zeros(n_systems, 3)
    low = low.scatter_reduce(0, index, fraction, "amin", include_self=False)
    periodic = pbc.to(device)
    heights = 1.0 / torch.linalg.vector_norm(inverse, dim=1)
    number = (heights / (BIN * cutoff)).clamp(min=1.0, max=FARTHEST).floor()
    # an open direction has a unit vector: its fractions are lengths
    per_length = torch.where(periodic, number, 1.0 / (BIN * cutoff))
    reach = torch.ceil(cutoff * per_length / torch.where(periodic, heights, 1.0)).long()
    origin = torch.where(periodic, 0.0, low)
    return _Bins(h, inverse, origin, number.long(), per_length, reach, periodic)


def _fraction(positions: Tensor, inverse: Tensor, batch: Tensor) -> Tensor:
    return torch.einsum("nx,nxk->nk", positions, inverse[batch])


def _placed(positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float, batch: Tensor) -> _Search:
    """Return the atoms sorted into bins."""
    bins = _bins(positions, cell, pbc, cutoff, batch)
    periodic = bins.periodic[batch]
    fraction = _fraction(positions, bins.inverse, batch)
    away = torch.where(periodic, fraction, 0.0).abs().amax(1)
    check_wraps(torch.nonzero(~(away <= MAX_WRAPS)).flatten().cpu().numpy())
    wrap = torch.where(periodic, torch.floor(fraction), 0.0)
    inside = (fraction - bins.origin[batch] - wrap) * bins.per_length[batch]
    place = inside.clamp(0.0, FARTHEST).long()
    place = torch.where(periodic, torch.minimum(place, bins.number[batch] - 1), place)
    return _Search(positions, batch, bins, wrap.long(), _occupied(place, batch))


def _occupied(place: Tensor, system: Tensor) -> _Occupied:
    """Return the bins that hold atoms, from the place [n, 3] and the system [n] of each atom."""
    first, second, third = (torch.unique(place[:, axis]) for axis in range(3))
    axes = (first, second, third)
    ranks = [torch.searchsorted(axis, place[:, k].contiguous()) for k, axis in enumerate(axes)]
    # two steps keep codes below n_systems n^2, which fits 64 bits
    planes, plane = torch.unique(
        (system * len(first) + ranks[0]) * len(second) + ranks[1], return_inverse=True
    )
    codes, code = torch.unique(plane * len(third) + ranks[2], return_inverse=True)
    counts = torch.bincount(code, minlength=len(codes))
    members = torch.argsort(code, stable=True)
    start = counts.cumsum(0) - counts
    one = members[start]
    return _Occupied(axes, planes, codes, place[one], system[one], members, start, counts)


def _bin_at(occupied: _Occupied, system: Tensor, place: Tensor) -> Tensor:
    """Return the bin at each place [..., 3] of each system [...], -1 where no atom is."""
    first, second, third = occupied.axes
    a, b, c = (_rank(axis, place[..., k]) for k, axis in enumerate(occupied.axes))
    plane = _rank(occupied.planes, (system * len(first) + a) * len(second) + b)
    found = _rank(occupied.codes, plane * len(third) + c)
    there = (a >= 0) & (b >= 0) & (c >= 0) & (plane >= 0)
    return torch.where(there, found, -1)


def _rank(ascending: Tensor, values: Tensor) -> Tensor:
    """Return the index of each value among distinct ascending ones, -1 where it is not there."""
    at = torch.searchsorted(ascending, values.contiguous()).clamp(max=len(ascending) - 1)
    return torch.where(ascending[at] == values, at, -1)


def _bin_pairs(search: _Search) -> _BinPairs:
    """Return the pairs of occupied bins whose atoms may be near each other."""
    bins, occupied = search.bins, search.occupied
    device = search.positions.device
    most = bins.reach.max(0).values.tolist()
    around = torch.tensor(list(product(*(range(-m, m + 1) for m in most))), device=device)
    rows = max(1, AT_ONCE // len(around))
    found = []
    for centre in torch.arange(len(occupied.codes), device=device).split(rows):
        system = occupied.system[centre]
        number, wraps = bins.number[system][:, None], bins.periodic[system][:, None]
        target = occupied.place[centre][:, None] + around
        image = torch.where(wraps, torch.div(target, number, rounding_mode="floor"), 0)
        target = target - image * number
        near = (around.abs() <= bins.reach[system][:, None]).all(2)
        other = _bin_at(occupied, system[:, None].expand(near.shape), target)
        row, column = torch.nonzero(near & (other >= 0), as_tuple=True)
        found.append(_BinPairs(centre[row], other[row, column], image[row, column]))
    return _BinPairs(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _check_density(search: _Search, pairs: _BinPairs, cutoff: float) -> None:
    """Raise InputError for too dense atoms, by a sample of candidates, before pairs are made."""
    counts, n_atoms = search.occupied.counts, len(search.positions)
    of_centre = counts[pairs.centre].double()
    of_other = counts[pairs.other].double()
    total = float((of_centre * of_other).sum())
    if total <= MAX_NEIGHBORS * n_atoms:
        return
    end = (of_centre * of_other).cumsum(0)
    at = (torch.arange(SAMPLE, dtype=torch.float64, device=end.device) + 0.5) * (total / SAMPLE)
    k = torch.searchsorted(end, at).clamp(max=len(end) - 1)
    within = at - (end[k] - of_centre[k] * of_other[k])
    i = torch.minimum(torch.floor(within / of_other[k]), of_centre[k] - 1).long()
    j = torch.remainder(torch.floor(within), of_other[k]).long()
    start, members = search.occupied.start, search.occupied.members
    atoms, senders = members[start[pairs.centre[k]] + i], members[start[pairs.other[k]] + j]
    near = _near(search, atoms, senders, pairs.image[k], cutoff)
    check_crowd(int(len(near.senders) / SAMPLE * total), n_atoms, cutoff)


def _candidates(search: _Search, pairs: _BinPairs) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield chunks of candidates: receivers, senders [n_pairs], images of senders [n_pairs, 3].

    They are all members of each bin with all members of the others.
    """
    occupied = search.occupied
    for part in _split(occupied.counts[pairs.centre]):
        centre = pairs.centre[part]
        each, offset = _expanded(occupied.counts[centre])
        atoms = occupied.members[occupied.start[centre][each] + offset]
        bins, image = pairs.other[part][each], pairs.image[part][each]
        for rows in _split(occupied.counts[bins]):
            pair, offset = _expanded(occupied.counts[bins[rows]])
            senders = occupied.members[occupied.start[bins[rows]][pair] + offset]
            yield atoms[rows][pair], senders, image[rows][pair]


def _split(sizes: Tensor) -> Iterator[slice]:
    """Yield slices of rows whose sizes sum to about AT_ONCE."""
    end = sizes.cumsum(0)
    n_chunks = int(end[-1]) // AT_ONCE if len(end) else 0
    cuts = torch.arange(1, n_chunks + 1, device=end.device) * AT_ONCE
    edges = [0, *torch.searchsorted(end, cuts, right=True).tolist(), len(end)]
    yield from (slice(a, b) for a, b in pairwise(edges) if b > a)


def _expanded(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each of sum(counts) entries its row, and its number within the row."""
    row = torch.repeat_interleave(counts)
    return row, torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]


def _near(
    search: _Search, receiver: Tensor, sender: Tensor, image: Tensor, cutoff: float
) -> DevicePairs:
    """Return the candidates within the cutoff, without pairs of an atom with itself."""
    shift = search.wrap[sender] - search.wrap[receiver] - image
    d = search.positions[receiver] - search.positions[sender]
    cells = search.bins.cell[search.batch[receiver]]
    d = d + torch.einsum("ek,ekx->ex", shift.to(d), cells)
    near = (d * d).sum(1) < cutoff * cutoff
    near &= (receiver != sender) | (shift != 0).any(1)
    return DevicePairs(sender[near], receiver[near], shift[near])


def _sorted(pairs: DevicePairs) -> DevicePairs:
    """Return pairs in the order of receiver, sender, shift."""
    order = torch.arange(len(pairs.senders), device=pairs.senders.device)
    for key in (*pairs.shifts.unbind(1)[::-1], pairs.senders, pairs.receivers):
        if len(key) and bool((key != key[0]).any()):
            order = order[torch.argsort(key[order], stable=True)]
    return DevicePairs(*(part[order] for part in pairs))
