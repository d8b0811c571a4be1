"""Neighbour lists in torch operations, for any device: cell lists of one or several systems.

Atoms are sorted into bins; every atom meets the bins within the cutoff, images of small cells
included. Pairs are made in chunks, so that memory beyond the result is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .neighbors import check_geometry, complete_cell

AT_ONCE = 2**20  # candidate pairs, or atoms times bins around them, of one chunk
BIN = 0.5  # of the cutoff: smaller bins waste fewer candidates, and have more of them to visit
FEW_ATOMS = 500  # up to here all pairs are looked at, where these are not too many
NOWHERE = np.zeros((0, 3))


class DevicePairs(NamedTuple):
    """Directed pairs, int64: ``senders``, ``receivers`` [n_edges] and ``shifts`` [n_edges, 3]."""

    senders: Tensor
    receivers: Tensor
    shifts: Tensor


class _Bins(NamedTuple):
    """How each system is divided.

    ``cell`` [n_systems, 3, 3] with open directions completed, its ``inverse``, and ``origin``;
    ``number`` [n_systems, 3] bins along each vector, ``reach`` how many bins away neighbours are;
    ``first`` [n_systems] the first bin of each, ``total`` all of them.
    """

    cell: Tensor
    inverse: Tensor
    origin: Tensor
    number: Tensor
    reach: Tensor
    first: Tensor
    total: int


class _Search(NamedTuple):
    """Atoms in their bins: ``place`` [n, 3], ``wrap`` [n, 3] cells that they lie away.

    ``members`` are atoms by bin, ``start`` and ``counts`` [total] where each bin's stand.
    """

    positions: Tensor
    batch: Tensor
    periodic: Tensor
    bins: _Bins
    place: Tensor
    wrap: Tensor
    members: Tensor
    start: Tensor
    counts: Tensor


def device_neighbor_list(
    positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float, batch: Tensor | None = None
) -> DevicePairs:
    """Return all pairs with |r_receiver - r_sender + S h| < cutoff, except an atom with itself.

    Parameters
    ----------
    positions
        [n, 3] float64, A, on any device; need not lie inside the cell.
    cell, pbc
        [n_systems, 3, 3] float64, lattice vectors as rows, and [n_systems, 3] bool; vectors of
        open directions may be zero. They are looked at on the host.
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
        For positions or cells that are not finite, or a periodic direction without extent.
    """
    bad = torch.nonzero(~torch.isfinite(positions).all(1)).flatten().tolist()
    if bad:
        raise InputError("positions", "finite numbers", f"NaN or infinity for atoms {bad[:5]}")
    if batch is None:
        batch = torch.zeros(len(positions), dtype=torch.int64, device=positions.device)
    none = torch.zeros(0, dtype=torch.int64, device=positions.device)
    if not len(positions):
        return DevicePairs(none, none, none.reshape(0, 3))
    cell, pbc = cell.cpu(), pbc.cpu()
    if len(cell) == 1 and len(positions) <= FEW_ATOMS:
        check_geometry(NOWHERE, cell[0].numpy(), pbc[0].numpy(), cutoff)
        images = _images(cell[0], pbc[0], cutoff)
        if len(positions) ** 2 * len(images) <= AT_ONCE:
            return _all_pairs(positions, cell[0], pbc[0], float(cutoff), images)
    search = _placed(positions, cell, pbc, float(cutoff), batch)
    chunks = [_near(search, *chunk, float(cutoff)) for chunk in _candidates(search)]
    if not chunks:
        return DevicePairs(none, none, none.reshape(0, 3))
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
    """Return the pairs of one small system by looking at all of them: few operations, in order."""
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
    n_systems = len(cell)
    for one, periodic in zip(cell, pbc, strict=True):
        check_geometry(NOWHERE, one.numpy(), periodic.numpy(), cutoff)
    pairs = zip(cell.numpy(), pbc.numpy(), strict=True)
    full = torch.from_numpy(np.stack([complete_cell(h, periodic) for h, periodic in pairs]))
    device = positions.device
    h, inverse = full.to(device), torch.linalg.inv(full).to(device)
    fraction = _fraction(positions, inverse, batch)
    index = batch[:, None].expand(-1, 3)
    low, high = (
        fraction.new_zeros(n_systems, 3).scatter_reduce(0, index, fraction, how, include_self=False)
        for how in ("amin", "amax")
    )
    periodic = pbc.to(device)
    origin = torch.where(periodic, 0.0, low)
    # an open direction is as long as the atoms need: its vector is a unit vector
    heights = 1.0 / torch.linalg.vector_norm(inverse, dim=1)
    extent = torch.where(periodic, heights, (high - low + 1e-9) * heights)
    atoms = torch.bincount(batch, minlength=n_systems)[:, None].to(extent)
    most = (2.0 * atoms ** (1.0 / 3.0) + 1.0).floor()
    number = torch.minimum((extent / (BIN * cutoff)).floor(), most).clamp(min=1.0)
    reach = torch.ceil(cutoff / (extent / number)).clamp(min=0.0)
    # beyond the last bin of an open direction there is nothing
    reach = torch.where(periodic, reach, torch.minimum(reach, number - 1.0)).long()
    scale = torch.where(periodic, 1.0, heights / extent)
    counts = number.prod(1).long()
    first = counts.cumsum(0) - counts
    scaled = inverse * scale[:, None, :]
    return _Bins(h, scaled, origin * scale, number.long(), reach, first, int(counts.sum()))


def _fraction(positions: Tensor, inverse: Tensor, batch: Tensor) -> Tensor:
    return torch.einsum("nx,nxk->nk", positions, inverse[batch])


def _placed(positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float, batch: Tensor) -> _Search:
    """Return the atoms sorted into bins."""
    bins = _bins(positions, cell, pbc, cutoff, batch)
    periodic = pbc.to(positions.device)[batch]
    fraction = _fraction(positions, bins.inverse, batch) - bins.origin[batch]
    wrap = torch.where(periodic, torch.floor(fraction), 0.0)
    number = bins.number[batch]
    place = torch.minimum(((fraction - wrap) * number).long().clamp(min=0), number - 1)
    code = _bin(place, number, bins.first[batch])
    count = torch.bincount(code, minlength=bins.total)
    members = torch.argsort(code, stable=True)
    return _Search(
        positions,
        batch,
        periodic,
        bins,
        place,
        wrap.long(),
        members,
        count.cumsum(0) - count,
        count,
    )


def _bin(place: Tensor, number: Tensor, first: Tensor) -> Tensor:
    row = place[..., 0] * number[..., 1] + place[..., 1]
    return first + row * number[..., 2] + place[..., 2]


def _candidates(search: _Search) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield chunks of candidates: receivers, senders [n_pairs], images of senders [n_pairs, 3]."""
    device, bins = search.positions.device, search.bins
    most = bins.reach.max(0).values.tolist()
    around = torch.tensor(list(product(*(range(-m, m + 1) for m in most))), device=device)
    rows = max(1, AT_ONCE // len(around))
    for atoms in torch.arange(len(search.positions), device=device).split(rows):
        system = search.batch[atoms]
        number, periodic = bins.number[system][:, None], search.periodic[atoms][:, None]
        target = search.place[atoms][:, None] + around
        image = torch.where(periodic, torch.div(target, number, rounding_mode="floor"), 0)
        target = target - image * number
        there = (around.abs() <= bins.reach[system][:, None]).all(2)
        there &= ((target >= 0) & (target < number)).all(2)
        code = torch.where(there, _bin(target, number, bins.first[system][:, None]), 0)
        row, column = torch.nonzero(torch.where(there, search.counts[code], 0), as_tuple=True)
        yield from _expanded(search, atoms[row], code[row, column], image[row, column])


def _expanded(
    search: _Search, atoms: Tensor, bins: Tensor, images: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the candidates of atoms [m] with all members of one bin each, in chunks."""
    end = search.counts[bins].cumsum(0)
    n_chunks = int(end[-1]) // AT_ONCE if len(end) else 0
    cuts = torch.arange(1, n_chunks + 1, device=end.device) * AT_ONCE
    edges = [0, *torch.searchsorted(end, cuts, right=True).tolist(), len(end)]
    for a, b in pairwise(edges):
        count = search.counts[bins[a:b]]
        each = torch.repeat_interleave(count)
        offset = torch.arange(len(each), device=end.device) - (count.cumsum(0) - count)[each]
        sender = search.members[search.start[bins[a:b]][each] + offset]
        yield atoms[a:b][each], sender, images[a:b][each]


def _near(
    search: _Search, receiver: Tensor, sender: Tensor, image: Tensor, cutoff: float
) -> DevicePairs:
    """Return the candidates within the cutoff, without atoms themselves."""
    shift = search.wrap[sender] - search.wrap[receiver] - image
    d = search.positions[receiver] - search.positions[sender]
    cells = search.bins.cell[search.batch[receiver]]
    d = d + torch.einsum("ek,ekx->ex", shift.to(d), cells)
    near = (d * d).sum(1) < cutoff * cutoff
    near &= (receiver != sender) | (shift != 0).any(1)
    return DevicePairs(sender[near], receiver[near], shift[near])


def _sorted(pairs: DevicePairs) -> DevicePairs:
    """Return pairs in the order of receiver, sender, shift."""
    reach = int(pairs.shifts.abs().max()) if len(pairs.shifts) else 0
    base = 2 * reach + 1
    code = torch.zeros_like(pairs.senders)
    for axis in range(3):
        code = code * base + pairs.shifts[:, axis] + reach
    order = torch.argsort(code, stable=True)
    for key in (pairs.senders, pairs.receivers):
        order = order[torch.argsort(key[order], stable=True)]
    return DevicePairs(*(part[order] for part in pairs))


class DeviceVerletList:
    """Pairs within ``cutoff`` + ``skin`` on the device, searched again when atoms moved that far.

    As :class:`cace_fast.engine.VerletList`, for tensors: what it returns is the same object until
    two atoms moved by ``skin`` together, or cell, periodicity or number of atoms changed. The host
    reads one number a call.

    Parameters
    ----------
    cutoff, skin
        In A.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        if not (np.isfinite(skin) and skin >= 0):
            raise InputError("skin", "a length of at least 0 A", skin)
        self.cutoff, self.skin = float(cutoff), float(skin)
        self.n_builds = 0
        self._built: tuple[Tensor, ...] = ()
        self._pairs: DevicePairs | None = None

    def __call__(
        self, positions: Tensor, cell: Tensor, pbc: Tensor, batch: Tensor | None = None
    ) -> DevicePairs:
        """Return candidate pairs; arguments as for :func:`device_neighbor_list`."""
        if self._pairs is None or not self._valid(positions, cell, pbc):
            reach = self.cutoff + self.skin
            self._pairs = device_neighbor_list(positions, cell, pbc, reach, batch)
            self._built = (positions.clone(), cell.clone(), pbc.clone())
            self.n_builds += 1
        return self._pairs

    def _valid(self, positions: Tensor, cell: Tensor, pbc: Tensor) -> bool:
        old_positions, old_cell, old_pbc = self._built
        if positions.shape != old_positions.shape or cell.shape != old_cell.shape:
            return False
        moved = torch.linalg.vector_norm(positions - old_positions, dim=1)
        farthest = torch.topk(moved, min(2, len(moved))).values.sum()
        same = (cell == old_cell).all() & (pbc == old_pbc).all()
        return bool((farthest <= self.skin) & same)
