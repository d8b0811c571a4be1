"""Host side of the long range: k vectors, work lists, and what is linear in small arrays.

The sums over atoms, k vectors and pairs are kernels in the working precision; their parts are added
up, and everything that follows from structure factors and potentials is made, in float64 by torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import pi, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from cace_fast.errors import InputError
from cace_fast.kernels.nufft import NufftSum, accuracy
from cace_fast.kernels.transforms import make_transforms
from cace_fast.kernels.triton import _ewald, launch
from cace_fast.kernels.triton.waves import DIRECT, How, k_vectors, kernel, method_of
from cace_fast.slab import Slab, planar_sum
from cace_fast.spec import Ewald

LANES = 32  # k vectors or atoms of a program of one warp
RUN = 128  # atoms, k vectors or partners that a program sums in the working precision
E2_PER_INTERNAL = 90.0474  # q^2 in internal units for one e^2
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))

Work = dict[str, Tensor]
Item = tuple[int, int, int, int, int]


class _Tables(NamedTuple):
    """k vectors of all periodic systems, and the work of the kernels.

    ``turns`` [3, n_k] integers, ``k`` [3, n_k] in 1/A, ``potential`` [n_k] 4 g norm/V, ``virial``
    [6, n_k] -dE/dstrain for |S|^2, ``ranges`` the k vectors of every system; ``inverse`` [n, 3, 3]
    the inverse cell of every atom, ``inside`` [n] whether its system is periodic,
    ``self_energy`` [n] of a unit charge; items as ``_ewald`` describes them.
    """

    turns: Tensor
    k: Tensor
    potential: Tensor
    virial: Tensor
    ranges: list[tuple[int, int]]
    inverse: Tensor
    inside: Tensor
    self_energy: Tensor
    factors: Tensor
    sums: Tensor
    pairs: Tensor
    n_factors: int
    n_sums: int


class _Transformed(NamedTuple):
    """Who sums a system by transforms, its cell and that of the vectors k, and the tolerance."""

    total: NufftSum
    cell: Tensor
    k_cell: Tensor
    tolerance: float


class EwaldSum:
    """The long range of several systems at once.

    Parameters
    ----------
    module
        The Ewald module; external field and neutrality penalty as numbers.
    device
        Where to work.
    """

    def __init__(self, module: Ewald, device: torch.device) -> None:
        self.module, self.device = module, device
        self.first_atom: list[int] = []
        self.periodic: list[bool] = []
        self.slabs: dict[int, Slab] = {}
        self._transforms: dict[int, _Transformed] = {}
        self._tables: _Tables | None = None
        sharp = 1.0 / (module.sigma * sqrt(2.0))
        settings = [sharp, 2.0 / sqrt(pi) * sharp, module.norm_factor / (2.0 * pi)]
        self._settings = torch.tensor(settings, dtype=torch.float64).to(device)

    @property
    def by_transforms(self) -> bool:
        """Whether a system is summed by transforms, which cannot be captured."""
        return bool(self._transforms)

    def set_systems(
        self,
        first_atom: Sequence[int],
        cells: Tensor,
        periodic: Sequence[bool],
        k_cells: Tensor | None = None,
        how: How = DIRECT,
        slabs: Mapping[int, Slab] | None = None,
    ) -> bool:
        """Take systems: ``first_atom`` [n_systems + 1], cells [n_systems, 3, 3] on the CPU.

        Parameters
        ----------
        first_atom, cells, periodic
            The systems. That of a slab is periodic, its cell the box that is summed.
        k_cells
            The cells whose spheres choose the integer vectors k; by default each cell's own.
        how
            Method and tolerance of periodic systems, and the number of charges.
        slabs
            The boxes of systems that are slabs, by number.

        Returns
        -------
        bool
            Whether everything stands where it stood: what was captured before is still right.

        Raises
        ------
        InputError
            For a singular cell, or exponent 6 without periodicity.
        """
        if self.module.exponent != 1 and not all(periodic):
            raise InputError(
                "pbc", "a periodic system for an Ewald sum of exponent 6", "an open one"
            )
        chosen = (cells if k_cells is None else k_cells).double()
        transformed = [
            here and method_of(how, b - a, cell, self.module.dl) == "nufft"
            for a, b, cell, here in zip(first_atom, first_atom[1:], chosen, periodic, strict=False)
        ]
        vectors = [
            k_vectors(cell, self.module.dl) if here and not other else torch.zeros(0, 3).double()
            for cell, here, other in zip(chosen, periodic, transformed, strict=True)
        ]
        before, shape = self._tables, (self.first_atom, self.periodic, list(self._transforms))
        self.first_atom, self.periodic = list(first_atom), list(periodic)
        made = self._made(cells.double(), vectors)
        self._set_transforms(transformed, cells.double(), chosen, how)
        same = shape == (self.first_atom, self.periodic, list(self._transforms))
        flat = not self.slabs and not slabs
        self.slabs = {s: Slab(*(t.to(self.device) for t in x)) for s, x in (slabs or {}).items()}
        if before is None or not same or before.ranges != made.ranges:
            self._tables = made
            return False
        for held, new in zip(before, made, strict=True):
            if isinstance(held, Tensor) and isinstance(new, Tensor):
                held.copy_(new)
        return flat or self.by_transforms  # slabs are new; with transforms nothing is captured

    def _set_transforms(
        self, transformed: Sequence[bool], cells: Tensor, chosen: Tensor, how: How
    ) -> None:
        """Keep what transforms a system as long as it does: libraries have plans in it."""
        held, self._transforms = self._transforms, {}
        module = self.module
        for s, here in enumerate(transformed):
            if not here:
                continue
            if s in held and held[s].tolerance == how.tolerance:
                total = held[s].total
            else:
                wanted, dtype = accuracy(how.tolerance)
                by = make_transforms(self.device, wanted, dtype)
                total = NufftSum(module.dl, module.sigma, module.exponent, by, dtype)
            places = (cells[s].to(self.device), chosen[s].to(self.device))
            self._transforms[s] = _Transformed(total, *places, how.tolerance)

    def _made(self, cells: Tensor, vectors: list[Tensor]) -> _Tables:
        device = self.device
        counts = [len(n) for n in vectors]
        ends = [sum(counts[: s + 1]) for s in range(len(counts))]
        ranges = [(end - count, end) for end, count in zip(ends, counts, strict=True)]
        parts = [self._terms(n, cell) for n, cell in zip(vectors, cells, strict=True)]
        columns = zip(*parts, strict=True)
        k, potential, virial = (torch.cat(column, -1).to(device) for column in columns)
        sizes = torch.tensor(self.first_atom).diff()
        here = torch.tensor(self.periodic)
        safe = torch.where(here[:, None, None], cells, torch.eye(3).double())
        inverse = torch.linalg.inv(safe).repeat_interleave(sizes, 0)
        factors, sums, pairs = (list(items) for items in self._items(ranges))

        def table(items: list[Item]) -> Tensor:
            return torch.tensor(items, dtype=torch.int32, device=device).reshape(-1, 5)

        return _Tables(
            torch.cat(vectors).T.to(device, torch.int32).contiguous(), k, potential, virial, ranges,
            inverse.to(device), here.repeat_interleave(sizes).to(device),
            self._self_energy(here).repeat_interleave(sizes).to(device),
            table(factors), table(sums), table(pairs),
            1 + max((i[4] for i in factors), default=-1),
            1 + max((i[4] for i in sums + pairs), default=-1),
        )  # fmt: skip

    def _terms(self, n: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return k [3, n_k], 4 g norm/V [n_k] and -dE/dstrain of |S|^2 [6, n_k] of one system."""
        if not len(n):
            return tuple(torch.zeros(*s, 0).double() for s in ((3,), (), (6,)))  # type: ignore[return-value]
        k = 2.0 * pi * n @ torch.linalg.inv(cell).T
        unit = 4.0 * self.module.norm_factor / torch.linalg.det(cell).abs()
        g, slope = kernel((k * k).sum(1), self.module)
        rows = [unit * slope * k[:, a] * k[:, b] + (0.5 * unit * g if a == b else 0.0)
                for a, b in VOIGT]  # fmt: skip
        return k.T.contiguous(), unit * g, torch.stack(rows)

    def _self_energy(self, periodic: Tensor) -> Tensor:
        """Return what a unit charge adds to the energy of its own channel, for each system."""
        own = self.module.norm_factor * (2.0 * pi) ** -1.5 / self.module.sigma
        removed = self.module.remove_self_interaction
        inside = -own if removed and self.module.exponent == 1 else 0.0
        outside = 0.0 if removed else own
        return torch.where(periodic, inside * torch.ones(1).double(), outside)

    def _items(self, ranges: list[tuple[int, int]]) -> tuple[Iterator[Item], ...]:
        atoms = list(zip(self.first_atom, self.first_atom[1:], strict=False))
        both = list(zip(atoms, ranges, self.periodic, strict=True))
        return (
            (item for a, k, here in both if here for item in _blocks(k, a)),
            (item for a, k, here in both if here for item in _blocks(a, k)),
            (item for a, _, here in both if not here for item in _blocks(a, a)),
        )

    def buffers(self, n: int) -> Work:
        """Return the buffers for ``n`` atoms: none, temporary arrays are torch's own."""
        return {}

    def evaluate(
        self, q: Tensor, positions: Tensor, results: tuple[Tensor, Tensor, Tensor, Tensor]
    ) -> None:
        """Write energies and derivatives of all systems, without the weight of the term.

        Parameters
        ----------
        q
            [n_q, n] charges; their dtype is that of the work. Behind the last atom of
            ``set_systems`` there may be more columns, which get zeros.
        positions
            [n, 3] float64.
        results
            Energies [n] float64, summed over channels; dE/dq [n_q, n]; forces [3, n]; virials
            [n_systems, 6] float64, -dE/dstrain in the order xx yy zz yz xz xy.
        """
        t, n_q, n = self._tables, len(q), self.first_atom[-1]
        assert t is not None
        energies, slopes, forces, virials = results
        sums = q.new_zeros(t.n_sums, n_q + 3, q.shape[1])
        structure = self._periodic(q, positions, sums) if t.turns.shape[1] else None
        if len(t.pairs):
            self._open(q, positions, sums)
        total = sums.sum(0, dtype=torch.float64)
        phi, force = total[:n_q, :n], -total[n_q:, :n]
        exact = q[:, :n].double()
        virials.zero_()
        for s, (first, end) in enumerate(t.ranges):
            if structure is not None and end > first:
                virials[s] = t.virial[:, first:end] @ structure[first:end]
            elif not self.periodic[s]:
                atoms = slice(self.first_atom[s], self.first_atom[s + 1])
                own_place = positions[atoms] - positions[atoms].mean(0)  # forces sum to nothing
                virials[s] = _moment(own_place, force[:, atoms])
        self._transform(exact, positions, phi, force, virials)
        self._planar(exact, positions, phi, force, virials)
        # in a periodic system every channel loses the self terms of all: files were trained so
        own = torch.where(t.inside, n_q * t.self_energy, t.self_energy)
        energies.zero_()
        slopes.zero_()
        forces.zero_()
        energies[:n] = (exact * (0.5 * phi + own * exact)).sum(0)
        slopes[:, :n] = phi + 2.0 * own * exact
        forces[:, :n] = force
        self._extras(exact, positions, results)

    def _transform(
        self, q: Tensor, positions: Tensor, phi: Tensor, force: Tensor, virials: Tensor
    ) -> None:
        """Write what transforms give for their systems."""
        norm = self.module.norm_factor
        for s, (total, cell, k_cell, _) in self._transforms.items():
            own = slice(self.first_atom[s], self.first_atom[s + 1])
            found = total.evaluate(q[:, own].T.contiguous(), positions[own], cell, k_cell)
            phi[:, own], force[:, own] = norm * found.potential.T, norm * found.forces.T
            virials[s] = norm * torch.stack([found.virial[a, b] for a, b in VOIGT])

    def _planar(
        self, q: Tensor, positions: Tensor, phi: Tensor, force: Tensor, virials: Tensor
    ) -> None:
        """Make slabs of boxes that are periodic in three directions (docs/slabs.md)."""
        norm = self.module.norm_factor
        for s, slab in self.slabs.items():
            own = slice(self.first_atom[s], self.first_atom[s + 1])
            rows = {pair: virials[s, k] / norm for k, pair in enumerate(VOIGT)}
            whole = torch.stack([
                torch.stack([rows[min(a, b), max(a, b)] for b in range(3)]) for a in range(3)
            ])  # fmt: skip
            pull = force[:, own].T / norm
            more, pull, whole = planar_sum(
                q[:, own].T, positions[own], slab, self.module.sigma, pull, whole
            )
            phi[:, own] += norm * more.T
            force[:, own] = norm * pull.T
            virials[s] = norm * torch.stack([whole[a, b] for a, b in VOIGT])

    def _periodic(self, q: Tensor, positions: Tensor, sums: Tensor) -> Tensor:
        """Write potentials and dE/dr to ``sums``; return sum_c |S_c|^2 [n_k]."""
        t, n_q, n, atoms = self._tables, len(q), q.shape[1], self.first_atom[-1]
        assert t is not None
        fraction = torch.einsum("ni,nij->jn", positions[:atoms], t.inverse)
        turns = integer_turns(torch.nn.functional.pad(fraction, (0, n - atoms)), q.dtype)
        half = 2.0**-31 if turns.dtype == torch.int32 else 2.0**-63
        n_k = t.turns.shape[1]
        parts = q.new_zeros(t.n_factors, 2 * n_q, n_k)
        _ewald.structure_factors[(len(t.factors),)](
            t.factors, t.turns, turns, q, parts, n_k, n, NQ=n_q, HALF=half, BL=LANES, num_warps=1
        )
        factors = parts.sum(0, dtype=torch.float64)
        weighted = (factors * t.potential).to(q.dtype)
        _ewald.potentials[(len(t.sums),)](
            t.sums, t.turns, t.k.to(q.dtype), turns, q, weighted, sums, n_k, n, NQ=n_q, HALF=half,
            BL=LANES, num_warps=1,
        )  # fmt: skip
        return (factors * factors).sum(0)

    def _open(self, q: Tensor, positions: Tensor, sums: Tensor) -> None:
        t = self._tables
        assert t is not None
        high, low = (q.new_empty(3, q.shape[1]) for _ in range(2))
        launch.split(positions, high, low)
        _ewald.open_pairs[(len(t.pairs),)](
            t.pairs, high, low, q, sums, self._settings.to(q.dtype), q.shape[1], NQ=len(q),
            BL=LANES, num_warps=1,
        )  # fmt: skip

    def _extras(
        self, q: Tensor, positions: Tensor, results: tuple[Tensor, Tensor, Tensor, Tensor]
    ) -> None:
        """Add external field and neutrality penalty, which every channel gets."""
        module, n_q, n = self.module, len(q), self.first_atom[-1]
        energies, slopes, forces, virials = results
        field, penalty = module.external_field or 0.0, module.charge_neutral_lambda or 0.0
        axis = module.external_field_direction or 0
        assert not isinstance(field, str)
        assert not isinstance(axis, str)
        if field and module.exponent == 1:
            f = n_q * field * sqrt(module.norm_factor / E2_PER_INTERNAL)
            along = positions[:n, axis]
            total = q.sum(0)
            energies[:n] -= f * total * along
            slopes[:, :n] -= f * along
            forces[axis, :n] += f * total
            push = torch.zeros(3, n, dtype=torch.float64, device=q.device)
            push[axis] = f * total
            for s, (a, b) in enumerate(zip(self.first_atom, self.first_atom[1:], strict=False)):
                virials[s] += _moment(positions[a:b], push[:, a:b])
        for a, b in zip(self.first_atom, self.first_atom[1:], strict=False):
            if penalty and b > a:
                mean = q[:, a:b].mean()
                energies[a:b] += n_q * penalty * mean * mean / (b - a)
                slopes[:, a:b] += 2.0 * penalty * mean / (b - a)


def _blocks(lanes: tuple[int, int], summed: tuple[int, int]) -> Iterator[Item]:
    """Yield items: a block of lanes and a run of what it sums over, numbered by run."""
    for part, run in enumerate(range(summed[0], summed[1], RUN)):
        for first in range(lanes[0], lanes[1], LANES):
            yield first, min(first + LANES, lanes[1]), run, min(run + RUN, summed[1]), part


def _moment(positions: Tensor, force: Tensor) -> Tensor:
    """Return sum_i r_i F_i [6], the symmetric part of it."""
    whole = positions.T @ force.T
    return torch.stack([0.5 * (whole[a, b] + whole[b, a]) for a, b in VOIGT])


def integer_turns(fraction: Tensor, dtype: torch.dtype) -> Tensor:
    """Return fractional coordinates modulo 1 as integers of 32 bits (64 for float64)."""
    reduced = (fraction - torch.round(fraction)).contiguous()
    if dtype == torch.float64:
        return torch.round(reduced * 2.0**62).to(torch.int64) << 2
    return torch.round(reduced * 2.0**32).to(torch.int64).to(torch.int32)
