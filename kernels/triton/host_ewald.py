"""Host side of the long range: launches, and the other parts of an energy term.

The sums over atoms, k vectors and pairs are kernels in the working precision; their parts are added
up in float64 by others. Operations of torch are left where something is rare: slabs, the neutrality
penalty, and the transforms of a mesh.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import pi, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from cace_fast.errors import InputError
from cace_fast.kernels.ewald_method import MeshPlan, Sphere
from cace_fast.kernels.mesh import MeshSum
from cace_fast.kernels.triton import _ewald, _ewald_parts, configs, launch
from cace_fast.kernels.triton.ewald_tables import LANES, RUN, VOIGT, Tables, tables
from cace_fast.kernels.triton.host_mesh import DeviceMesh
from cace_fast.kernels.triton.kvectors import DIRECT, SumMethod, k_vectors, plan_of
from cace_fast.slab import Slab, planar_sum
from cace_fast.spec import Ewald
from cace_fast.spec.units import E2_PER_INTERNAL

UNROLL = 4  # terms or parts whose loads are under way together


class _Given(NamedTuple):
    """Parts summed elsewhere: potentials and dE/dr [n_q + 3, n], virials [6, n_systems]."""

    rows: Tensor
    virials: Tensor


class DeviceEwaldSum:
    """The long range of several systems at once.

    Parameters
    ----------
    module
        The Ewald module; external field and neutrality penalty as numbers.
    device, dtype
        Where to work, and the working precision.
    weight
        What the sum counts in the energy.
    """

    def __init__(
        self, module: Ewald, device: torch.device, dtype: torch.dtype, weight: float = 1.0
    ) -> None:
        self.module, self.device, self.dtype, self.weight = module, device, dtype, weight
        self.first_atom: list[int] = []
        self.periodic: list[bool] = []
        self.slabs: dict[int, Slab] = {}
        self._meshes: dict[int, MeshSum] = {}
        self._tables: Tables | None = None
        sharp = 1.0 / (module.sigma * sqrt(2.0))
        pairs = [sharp, 2.0 / sqrt(pi) * sharp, module.norm_factor / (2.0 * pi)]
        self._pairs = torch.tensor(pairs, dtype=torch.float64).to(device, dtype)
        self._axis, field = _field(module)
        self._settings = torch.tensor([weight, field], dtype=torch.float64).to(device)

    def set_systems(
        self,
        first_atom: Sequence[int],
        cells: Tensor,
        periodic: Sequence[bool],
        k_cells: Tensor | None = None,
        how: SumMethod = DIRECT,
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
        sphere, exact = Sphere(self.module.dl, self.module.sigma), cells.double()
        plans = [
            plan_of(how, b - a, exact[s], chosen[s], sphere) if periodic[s] else None
            for s, (a, b) in enumerate(pairwise(first_atom))
        ]
        vectors = [
            k_vectors(cell, self.module.dl) if here and plan is None else torch.zeros(0, 3).double()
            for cell, here, plan in zip(chosen, periodic, plans, strict=True)
        ]
        before, shape = self._tables, (self.first_atom, self.periodic, list(self._meshes))
        self.first_atom, self.periodic = list(first_atom), list(periodic)
        given = (self.first_atom, self.periodic, exact, vectors)
        made = tables(self.module, *given, self.dtype).to(self.device)
        stands = self._set_meshes(plans, exact, chosen)
        same = shape == (self.first_atom, self.periodic, list(self._meshes))
        flat = not self.slabs and not slabs
        self.slabs = {s: Slab(*(t.to(self.device) for t in x)) for s, x in (slabs or {}).items()}
        if before is None or not same or before.ranges != made.ranges:
            self._tables = made
            return False
        for held, new in zip(before, made, strict=True):
            if isinstance(held, Tensor) and isinstance(new, Tensor):
                held.copy_(new)
        return flat and stands  # slabs are new

    def _set_meshes(self, plans: Sequence[MeshPlan | None], cells: Tensor, chosen: Tensor) -> bool:
        """Set the mesh of each system that has one; return whether all stand where they stood."""
        held, self._meshes = self._meshes, {}
        module, stands = self.module, True
        for s, plan in enumerate(plans):
            if plan is None:
                continue
            new = MeshSum(module.dl, module.sigma, module.exponent, DeviceMesh())
            self._meshes[s] = held.get(s, new)
            of = (cells[s].to(self.device), chosen[s].to(self.device))
            stands &= self._meshes[s].set_cell(plan, *of)
        return stands

    def evaluate(
        self,
        q: Tensor,
        positions: Tensor,
        results: tuple[Tensor, Tensor, Tensor, Tensor],
        known: Tensor | None = None,
        *,
        add: bool = False,
    ) -> None:
        """Write energies and derivatives of all systems, times the weight.

        Parameters
        ----------
        q
            [n_q, n] charges in the working precision. Behind the last atom of ``set_systems`` there
            may be more columns, which get zeros.
        positions
            [n, 3] float64.
        results
            Energies [n] float64, summed over channels; dE/dq [n_q, n]; forces [3, n]; virials
            [6, n_systems] float64, -dE/dstrain in the order xx yy zz yz xz xy.
        known
            [n_q, n] what dE/dq is added to; may be dE/dq itself.
        add
            Whether energies, forces and virials are added to what is there.
        """
        t, n_q, n = self._tables, len(q), q.shape[1]
        assert t is not None
        energies, slopes, forces, virials = results
        n_k, n_atoms = t.turns.shape[1], self.first_atom[-1]
        sums = q.new_empty(t.n_sums, n_q + 3, n)
        squares = q.new_empty(n_k, dtype=torch.float64)
        if n_k:
            self._periodic(q, positions, sums, squares)
        if len(t.pairs):
            self._open(q, positions, sums)
        elsewhere = self._meshes or self.slabs
        given = self._given(q, positions, sums, squares) if elsewhere else None
        moved = self._axis >= 0 or not all(self.periodic)
        moments = q.new_empty(6, n if moved else 0, dtype=torch.float64)
        _ewald_parts.sum_potentials[_programs(n)](
            sums,
            positions if given is None else given.rows,
            positions,
            q,
            t.system_of,
            t.spans,
            t.systems,
            self._settings,
            slopes if known is None else known,
            energies,
            slopes,
            forces,
            moments,
            n_atoms,
            n,
            N_CHARGES=n_q,
            AXIS=self._axis,
            GIVEN=given is not None,
            KNOWN=known is not None,
            ADD=add,
            MOMENTS=moved,
            UNROLL=UNROLL,
            BLOCK=LANES,
            num_warps=1,
        )
        _ewald_parts.sum_virials[(len(t.spans), 6)](
            squares,
            t.virial,
            moments,
            t.spans,
            self._settings,
            virials,
            n_k,
            n,
            len(t.spans),
            PERIODIC=n_k > 0,
            MOMENTS=moved,
            ADD=add,
            BLOCK=configs.SUM_BLOCK,
            num_warps=configs.BLOCK_WARPS,
        )
        if given is not None:
            virials.add_(given.virials, alpha=self.weight)
        if self.module.charge_neutral_lambda:
            self._penalty(q, energies, slopes, self.module.charge_neutral_lambda)

    def _periodic(self, q: Tensor, positions: Tensor, sums: Tensor, squares: Tensor) -> None:
        """Write potentials and dE/dr to ``sums``, and sum_c |S_c|^2 [n_k]."""
        t, n_q, n = self._tables, len(q), q.shape[1]
        assert t is not None
        n_k, n_atoms = t.turns.shape[1], self.first_atom[-1]
        narrow = self.dtype != torch.float64
        turns = q.new_empty(3, n, dtype=torch.int32 if narrow else torch.int64)
        half = 2.0**-31 if narrow else 2.0**-63
        _ewald_parts.integer_turns[_programs(n_atoms)](
            positions, t.system_of, t.systems, turns, n_atoms, n, BLOCK=LANES, num_warps=1
        )
        parts, weighted = q.new_empty(t.n_factors, 2 * n_q, n_k), q.new_empty(2 * n_q, n_k)
        _ewald.structure_factors[(len(t.factors),)](
            t.factors,
            t.turns,
            turns,
            q,
            parts,
            n_k,
            n,
            N_CHARGES=n_q,
            HALF=half,
            UNROLL=UNROLL,
            BLOCK_LANE=LANES,
            num_warps=1,
        )
        _ewald_parts.sum_factors[_programs(n_k)](
            parts,
            t.k_system,
            t.spans,
            t.potential,
            weighted,
            squares,
            n_k,
            N_CHARGES=n_q,
            UNROLL=UNROLL,
            BLOCK=LANES,
            num_warps=1,
        )
        _ewald.potentials[(len(t.sums),)](
            t.sums,
            t.turns,
            t.k,
            turns,
            q,
            weighted,
            sums,
            n_k,
            n,
            N_CHARGES=n_q,
            HALF=half,
            UNROLL=UNROLL,
            BLOCK_LANE=LANES,
            num_warps=1,
        )

    def _open(self, q: Tensor, positions: Tensor, sums: Tensor) -> None:
        t = self._tables
        assert t is not None
        high, low = (q.new_empty(3, q.shape[1]) for _ in range(2))
        launch.split(positions, high, low)
        _ewald.open_pairs[(len(t.pairs),)](
            t.pairs,
            high,
            low,
            q,
            sums,
            self._pairs,
            q.shape[1],
            N_CHARGES=len(q),
            BLOCK_LANE=LANES,
            num_warps=1,
        )

    def _given(self, q: Tensor, positions: Tensor, sums: Tensor, squares: Tensor) -> _Given:
        """Return what meshes give for their systems, and what makes slabs of their boxes."""
        t, n_q, norm = self._tables, len(q), self.module.norm_factor
        assert t is not None
        exact, places = q.double(), [slice(a, b) for a, b in self._bounds()]
        rows, virials = exact.new_zeros(n_q + 3, q.shape[1]), exact.new_zeros(6, len(places))
        for s, total in self._meshes.items():
            own = places[s]
            found = total.sum(exact[:, own].T.contiguous(), positions[own])
            rows[:n_q, own], rows[n_q:, own] = norm * found.potential.T, -norm * found.forces.T
            virials[:, s] = norm * _voigt(found.virial)
        for s, slab in self.slabs.items():  # docs/user/slabs.md
            own, (first, end) = places[s], t.ranges[s]
            box = sums[: -(-(end - first) // RUN), n_q:, own].sum(0, dtype=torch.float64)
            pull = -(rows[n_q:, own] + box).T / norm
            summed = t.virial[:, first:end] @ squares[first:end]
            whole = _matrix(virials[:, s] + summed) / norm
            charges, sigma = exact[:, own].T, self.module.sigma
            more, moved, flat = planar_sum(charges, positions[own], slab, sigma, pull, whole)
            rows[:n_q, own] += norm * more.T
            rows[n_q:, own] -= norm * (moved - pull).T
            virials[:, s] += norm * _voigt(flat - whole)
        return _Given(rows, virials)

    def _penalty(self, q: Tensor, energies: Tensor, slopes: Tensor, penalty: float) -> None:
        """Add the neutrality penalty to each entry of a result; open systems have one."""
        for (a, b), periodic in zip(self._bounds(), self.periodic, strict=True):
            if b > a:
                entries = len(q) if periodic else 1
                mean = q[:, a:b].double().mean()
                share = entries * self.weight * penalty / (b - a)
                energies[a:b] += share * mean * mean
                slopes[:, a:b] += 2.0 * share / len(q) * mean

    def _bounds(self) -> Iterator[tuple[int, int]]:
        return pairwise(self.first_atom)


def _field(module: Ewald) -> tuple[int, float]:
    """Return axis and strength of the external field for a charge of one channel, or -1."""
    field, axis = module.external_field or 0.0, module.external_field_direction or 0
    assert not isinstance(field, str)
    assert not isinstance(axis, str)
    if not field or module.exponent != 1:
        return -1, 0.0
    return axis, field * sqrt(module.norm_factor / E2_PER_INTERNAL)


def _programs(n: int) -> tuple[int]:
    return (-(-n // LANES),)


def _voigt(matrix: Tensor) -> Tensor:
    """Return xx yy zz yz xz xy of a symmetric matrix."""
    return torch.stack([matrix[a, b] for a, b in VOIGT])


def _matrix(rows: Tensor) -> Tensor:
    """Return the symmetric matrix of xx yy zz yz xz xy."""
    xx, yy, zz, yz, xz, xy = rows
    return torch.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz]).reshape(3, 3)
