"""Inputs and results of a model: :class:`AtomicGraph` and :class:`ModelOutput`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from .errors import InputError


@dataclass(frozen=True)
class AtomicGraph:
    """Atoms of one or several systems and their directed edges (``docs/conventions.md``).

    Attributes
    ----------
    positions
        [n, 3] float64, A. Need not lie inside the cell.
    species
        [n] int64, row of each atom's element in the embeddings (not its atomic number).
    cell
        [n_systems, 3, 3] float64, A, lattice vectors as rows; zero for a system without a cell.
    pbc
        [n_systems, 3] bool.
    batch
        [n] int64, system of each atom, ascending.
    senders, receivers
        [n_edges] int64, ascending in the receiver: the neighbour and the centre of each edge.
    shifts
        [n_edges, 3] int64, cell shift S: d = r_receiver - r_sender + S h.
    inputs
        Further per-atom features [n, ...] that a read-out takes, such as ``charge_states``.
    """

    positions: Tensor
    species: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    senders: Tensor
    receivers: Tensor
    shifts: Tensor
    inputs: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def n_atoms(self) -> int:
        """Number of atoms of all systems (``docs/conventions.md``, "Graph")."""
        return int(self.positions.shape[0])

    @property
    def n_systems(self) -> int:
        """Number of systems (``docs/conventions.md``, "Graph")."""
        return int(self.cell.shape[0])

    def vectors(self) -> Tensor:
        """Return the edge vectors d [n_edges, 3] in A, from sender to receiver (equation 1)."""
        cells = self.cell[self.batch[self.receivers]]
        shift = torch.einsum("ek,ekx->ex", self.shifts.to(cells.dtype), cells)
        return self.positions[self.receivers] - self.positions[self.senders] + shift

    def strained(self, strain: Tensor) -> AtomicGraph:
        """Return the graph with r -> r + r eps and h -> h + h eps (equation 25).

        eps is the symmetric part of ``strain`` [n_systems, 3, 3].
        """
        eps = 0.5 * (strain + strain.transpose(1, 2))
        moved = self.positions + torch.einsum("nx,nxy->ny", self.positions, eps[self.batch])
        return replace(self, positions=moved, cell=self.cell + self.cell @ eps)

    def to(self, device: torch.device) -> AtomicGraph:
        """Return the graph with all tensors on ``device``; itself when they are there.

        See ``docs/conventions.md``, "Graph".
        """
        if self.positions.device == device:
            return self
        names = [f.name for f in fields(self) if f.name != "inputs"]
        inputs = {key: value.to(device) for key, value in self.inputs.items()}
        return AtomicGraph(**{n: getattr(self, n).to(device) for n in names}, inputs=inputs)

    def select(self, edges: Tensor) -> AtomicGraph:
        """Return the graph with the edges of a mask [n_edges], or of indices in their order.

        See ``docs/conventions.md``, "Graph".
        """
        return replace(
            self,
            senders=self.senders[edges],
            receivers=self.receivers[edges],
            shifts=self.shifts[edges],
        )


def join(graphs: Sequence[AtomicGraph]) -> AtomicGraph:
    """Return one graph that holds all systems of ``graphs`` in order.

    See ``docs/conventions.md``, "Graph".

    Raises
    ------
    InputError
        If there are none.
    """
    if not graphs:
        raise InputError("graphs", "at least one graph", "none")
    if len(graphs) == 1:
        return graphs[0]
    n_atoms = torch.tensor([g.n_atoms for g in graphs])
    n_systems = torch.tensor([g.n_systems for g in graphs])
    n_edges = torch.tensor([len(g.senders) for g in graphs])
    first_atom = (n_atoms.cumsum(0) - n_atoms).repeat_interleave(n_edges)
    first_system = (n_systems.cumsum(0) - n_systems).repeat_interleave(n_atoms)
    return AtomicGraph(
        positions=torch.cat([g.positions for g in graphs]),
        species=torch.cat([g.species for g in graphs]),
        cell=torch.cat([g.cell for g in graphs]),
        pbc=torch.cat([g.pbc for g in graphs]),
        batch=torch.cat([g.batch for g in graphs]) + first_system,
        senders=torch.cat([g.senders for g in graphs]) + first_atom,
        receivers=torch.cat([g.receivers for g in graphs]) + first_atom,
        shifts=torch.cat([g.shifts for g in graphs]),
        inputs={key: torch.cat([g.inputs[key] for g in graphs]) for key in graphs[0].inputs},
    )


def same_memory(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Tell whether two lists hold the same tensors; the first must be kept alive.

    See ``docs/conventions.md``, "Graph".
    """
    return all(
        a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.dtype == b.dtype
        for a, b in zip(some, others, strict=True)
    )


@dataclass(frozen=True)
class ModelOutput:
    """Results of an engine for a graph; None for those not asked for (``docs/conventions.md``).

    Attributes
    ----------
    energy
        [n_systems] float64, eV, without atomic energies.
    energies
        [n] float64, eV: read-out plus w/2 sum_c q phi of each atom; sums to ``energy``.
    energies_sr
        [n] float64, eV: read-out alone.
    forces
        [n, 3] float64, eV/A.
    virials
        [n_systems, 3, 3] float64, eV: -dE/dstrain.
    latent_charges
        [n, n_q] in the working dtype, internal units.
    born_charges
        [n, 3, 3] float64, e: dP_b/dr_ia, index order atom, a, b.
    atom_virials
        [n, 3, 3] float64, eV: sum_j (r_j - r_i)_a dE_j/dr_ib, index order atom, a, b.
    """

    energy: Tensor
    energies: Tensor
    energies_sr: Tensor
    forces: Tensor | None = None
    virials: Tensor | None = None
    latent_charges: Tensor | None = None
    born_charges: Tensor | None = None
    atom_virials: Tensor | None = None
