"""Tables of systems for the kernels of the long range: vectors k, spans, and lists of work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import pi
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cace_fast.kernels.kspace import kernel
from cace_fast.spec import Ewald

LANES = 32  # k vectors or atoms of a program of one warp
RUN = 128  # atoms, k vectors or partners that a program sums in the working precision
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))

Item = tuple[int, int, int, int, int]
Range = tuple[int, int]


class Tables(NamedTuple):
    """k vectors of all periodic systems, and the work of the kernels.

    ``turns`` [3, n_k] integers, ``k`` [3, n_k] in 1/A, ``potential`` [n_k] 4 g norm/V, ``virial``
    [6, n_k] -dE/dstrain for |S|^2, ``ranges`` the k vectors of every system; ``k_system`` [n_k] and
    ``system_of`` [n] the system of each vector and atom; ``spans``, ``systems`` as ``_ewald_parts``
    describes them, items as ``_ewald`` does.
    """

    turns: Tensor
    k: Tensor
    potential: Tensor
    virial: Tensor
    ranges: list[Range]
    k_system: Tensor
    system_of: Tensor
    spans: Tensor
    systems: Tensor
    factors: Tensor
    sums: Tensor
    pairs: Tensor
    n_factors: int
    n_sums: int

    def to(self, device: torch.device) -> Tables:
        """Return the tables on a device."""
        moved: dict[str, Any] = {
            k: x.to(device) for k, x in self._asdict().items() if isinstance(x, Tensor)
        }
        return self._replace(**moved)


def tables(
    module: Ewald,
    first_atom: Sequence[int],
    periodic: Sequence[bool],
    cells: Tensor,
    vectors: Sequence[Tensor],
    dtype: torch.dtype,
) -> Tables:
    """Return the tables of systems, on the CPU.

    Parameters
    ----------
    module
        The Ewald module.
    first_atom, periodic, cells
        The systems: [n_systems + 1], [n_systems], [n_systems, 3, 3] float64.
    vectors
        Integer vectors k [n_k, 3] of each.
    dtype
        The working precision.
    """
    atoms = list(pairwise(first_atom))
    ends = torch.tensor([0, *(len(n) for n in vectors)]).cumsum(0).tolist()
    ranges = list(pairwise(ends))
    parts = [_terms(module, n, cell) for n, cell in zip(vectors, cells, strict=True)]
    k, potential, virial = (torch.cat(column, -1) for column in zip(*parts, strict=True))
    safe = torch.where(torch.tensor(periodic)[:, None, None], cells, torch.eye(3).double())
    numbers = [torch.linalg.inv(safe).flatten(1), _self_energies(module, periodic)]
    both = list(zip(atoms, ranges, periodic, strict=True))
    factors = [item for a, k, here in both if here for item in _blocks(k, a)]
    sums = [item for a, k, here in both if here for item in _blocks(a, k)]
    pairs = [item for a, _, here in both if not here for item in _blocks(a, a)]

    def n_parts(items: Sequence[Item]) -> int:
        return 1 + max((item[-1] for item in items), default=-1)

    return Tables(
        turns=torch.cat(list(vectors)).T.to(torch.int32).contiguous(),
        k=k.to(dtype),
        potential=potential,
        virial=virial,
        ranges=ranges,
        k_system=_owners(ranges),
        system_of=_owners(atoms),
        spans=_ints(_spans(atoms, ranges, periodic), 7),
        systems=torch.cat(numbers, 1),
        factors=_ints(factors, 5),
        sums=_ints(sums, 5),
        pairs=_ints(pairs, 5),
        n_factors=n_parts(factors),
        n_sums=n_parts(sums + pairs),
    )


def _ints(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32).reshape(-1, width)


def _owners(ranges: Sequence[Range]) -> Tensor:
    """Return the range that contains each number."""
    sizes = torch.tensor([end - first for first, end in ranges])
    return torch.repeat_interleave(sizes).int()


def _spans(
    atoms: Sequence[Range], ranges: Sequence[Range], periodic: Sequence[bool]
) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for (a, b), (k, end), here in zip(atoms, ranges, periodic, strict=True):
        n_parts = -(-(b - a) // RUN)
        found.append((a, b, k, end, n_parts, -(-(end - k) // RUN) if here else n_parts, not here))
    return found


def _terms(module: Ewald, n: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return k [3, n_k], 4 g norm/V [n_k] and -dE/dstrain of |S|^2 [6, n_k] of one system."""
    if not len(n):
        return tuple(torch.zeros(*s, 0).double() for s in ((3,), (), (6,)))  # type: ignore[return-value]
    k = 2.0 * pi * n @ torch.linalg.inv(cell).T
    unit = 4.0 * module.norm_factor / torch.linalg.det(cell).abs()
    g, slope = kernel((k * k).sum(1), module.sigma, module.exponent)
    rows = [
        unit * slope * k[:, a] * k[:, b] + (0.5 * unit * g if a == b else 0.0) for a, b in VOIGT
    ]
    return k.T.contiguous(), unit * g, torch.stack(rows)


def _self_energies(module: Ewald, periodic: Sequence[bool]) -> Tensor:
    """Return the self energies of a unit charge [n_systems, 2].

    The first column counts for the charge's channel. In a periodic system every channel loses the
    self terms of all channels (equation 28): the second column counts for every channel.
    """
    own = module.norm_factor * (2.0 * pi) ** -1.5 / module.sigma
    removed = module.remove_self_interaction
    inside = -own if removed and module.exponent == 1 else 0.0
    outside = 0.0 if removed else own
    rows = [(0.0, inside) if here else (outside, 0.0) for here in periodic]
    return torch.tensor(rows, dtype=torch.float64)


def _blocks(lanes: tuple[int, int], summed: tuple[int, int]) -> Iterator[Item]:
    """Yield items: a block of lanes and a run of the terms of its sum, numbered by run."""
    for part, run in enumerate(range(summed[0], summed[1], RUN)):
        for first in range(lanes[0], lanes[1], LANES):
            yield first, min(first + LANES, lanes[1]), run, min(run + RUN, summed[1]), part
