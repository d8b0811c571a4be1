"""One evaluation on the device: all kernels in order, forward and backward, without autograd.

The order is that of ``docs/theory.md``; the backward pass is its analytic reverse. All arrays are
in buffers of one capacity, so that the whole step can be captured as a CUDA graph.
``cace_fast.engine.runner`` fills the buffers and runs the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cace_fast.errors import InputError, UnsupportedModelError
from cace_fast.graph import AtomicGraph
from cace_fast.kernels.triton import launch
from cace_fast.kernels.triton.edge_buffers import Capacity, EdgeBuffers
from cace_fast.kernels.triton.host_contraction import Contraction
from cace_fast.kernels.triton.host_ewald import DeviceEwaldSum
from cace_fast.kernels.triton.host_messages import Messages
from cace_fast.kernels.triton.host_neighbors import PairSearch
from cace_fast.kernels.triton.host_readout import Readouts
from cace_fast.kernels.triton.launch import MOST_NUMBERS, Results
from cace_fast.spec import EnergyProgram, ModelSpec


class Status(NamedTuple):
    """The numbers that the host reads after a step; see ``_forces.totals``."""

    closest: float
    displacement_ratio: float
    bins_too_small: float
    n_edges: float
    n_segments: float


class Launchers:
    """The launchers of a model, with its weights packed for them.

    Parameters
    ----------
    spec, weights
        The model, with tensors on the device and in the dtype to compute with.
    program
        Read-outs and Ewald sums of the energy.

    Raises
    ------
    UnsupportedModelError
        If the kernels do not have a part of the model.
    """

    def __init__(
        self, spec: ModelSpec, weights: Mapping[str, Tensor], program: EnergyProgram
    ) -> None:
        self.rep, self.program = spec.representation, program
        like = weights["embedding.sender"]
        self.device, self.dtype = like.device, like.dtype
        self.moments = launch.Moments(self.rep, weights)
        self.contraction = Contraction(self.rep, weights)
        self.messages = [Messages(self.rep, weights, t) for t in range(len(self.rep.steps))]
        self.readouts: Readouts | None = None
        if networks := program.networks(spec):
            self.readouts = Readouts(networks, weights, self.rep.n_stages)
        if any(term.ewald.takes_field for term in program.terms):
            raise UnsupportedModelError("an external field that is an input of the structure")
        self.energy_rows = self._energy_rows()
        self.charge_rows = [self._rows(term.head) for term in program.terms]

    def _energy_rows(self) -> dict[int, tuple[float, bool]]:
        """Return the weight of each row of y that is an energy, and whether it is a mean."""
        if self.readouts is None:
            return {}
        return {
            self.readouts.slices[number].start + head.column: (head.weight, head.average)
            for number, head in enumerate(self.program.heads)
            if head.column is not None
        }

    def _rows(self, head: int | None) -> slice | None:
        """Return the rows of y that are the charges of a term; None where they are fixed."""
        if head is None:
            return None
        assert self.readouts is not None
        return self.readouts.slices[head]


@dataclass
class Inputs:
    """Inputs of a graph besides its edges, in buffers that stay.

    ``energy_weights`` [n_out, n] is the weight of every output of the read-outs in the energy,
    ``grad_outputs`` the same with dE/dq for charges; ``extras`` further inputs [n_extra, n] of
    each head.
    """

    positions: Tensor
    species: Tensor
    first_atom: Tensor
    energy_weights: Tensor
    grad_outputs: Tensor
    extras: list[Tensor | None]


@dataclass
class TermBuffers:
    """Charges of one Ewald term, its dE/dq, and the gradient to add to it, if any: [n_q, n]."""

    charges: Tensor
    slopes: Tensor
    known: Tensor | None


class Step:
    """Buffers of one capacity, and the sequence of launches on them.

    Parameters
    ----------
    launchers
        The model.
    capacity
        Sizes of the buffers.
    search
        Makes the list on the device; None if lists are given.
    """

    def __init__(
        self, launchers: Launchers, capacity: Capacity, search: PairSearch | None = None
    ) -> None:
        self.launchers, self.capacity, self.search = launchers, capacity, search
        rep, k = launchers.rep, launchers
        n, n_edges, n_segments, _, n_systems = capacity
        stages, n_rho = rep.n_stages, rep.radial.n_rbf * rep.n_monomials
        n_a = rep.n_radial * rep.n_monomials * rep.n_channels
        self.n_features = rep.n_radial * rep.n_invariants * rep.n_channels
        self.n_out = 0 if k.readouts is None else k.readouts.n_out
        floats, doubles = self._floats, self._doubles
        self.pairs = EdgeBuffers(capacity, k.device, k.dtype, rep.cutoff)
        self.rho, self.grad_rho = floats(n_rho, n_segments), floats(n_rho, n_segments)
        self.features, self.grad_features = (floats(stages * self.n_features, n) for _ in "xg")
        kept = [n_a if t or self._is_read(0) else 0 for t in range(stages)]
        self.a = [floats(rows, n) for rows in kept]  # the first one can be computed from rho again
        self.grad_a = [floats(n_a, n) for _ in range(stages)]
        self.grad_vectors = floats(3, n_edges)
        ints = torch.zeros(n_systems + 1, dtype=torch.int32, device=k.device)
        self.inputs = Inputs(
            positions=doubles(n, 3),
            species=torch.zeros(n, dtype=torch.int32, device=k.device),
            first_atom=ints,
            energy_weights=doubles(self.n_out, n),
            grad_outputs=floats(self.n_out, n),
            extras=[None] * len(k.program.heads),
        )
        self.results = Results(
            energies=doubles(2, n),
            totals=doubles(2, n_systems),
            closest=floats(launch.n_blocks(n_edges)),
            outputs=floats(self.n_out, n),
            forces=floats(3, n),
            virials=floats(6, n),
            virial_sums=doubles(6, n_systems),
            long_virials=doubles(6, n_systems),
            status=doubles(5),
        )
        terms = k.program.terms
        self.long_forces = floats(3, n) if terms else None
        self.terms = [self._term_buffers(number) for number in range(len(terms))]
        self.sums = [DeviceEwaldSum(t.ewald, k.device, k.dtype, t.weight) for t in terms]
        self.message_work = [m.buffers(n, n_edges) for m in k.messages]
        self.readout_work = {} if k.readouts is None else k.readouts.buffers(n)

    def _floats(self, *size: int) -> Tensor:
        self._check(size)
        return torch.zeros(size, dtype=self.launchers.dtype, device=self.launchers.device)

    def _doubles(self, *size: int) -> Tensor:
        self._check(size)
        return torch.zeros(size, dtype=torch.float64, device=self.launchers.device)

    def _check(self, size: tuple[int, ...]) -> None:
        numbers = 1
        for length in size:
            numbers *= length
        if numbers > MOST_NUMBERS:
            raise too_large(self.capacity.atoms)

    def _term_buffers(self, number: int) -> TermBuffers:
        rows, n = self.launchers.charge_rows[number], self.capacity.atoms
        if rows is None:
            return TermBuffers(self._floats(1, n), self._floats(1, n), None)
        before = rows in self.launchers.charge_rows[:number]
        slopes = self.inputs.grad_outputs[rows]
        known = slopes if before else self.inputs.energy_weights[rows]
        return TermBuffers(self.results.outputs[rows], slopes, known)

    @property
    def n_bytes(self) -> int:
        """Memory of all buffers in bytes, those of the search included."""
        storages = [t.untyped_storage() for t in _tensors(vars(self))]
        return sum({s.data_ptr(): s.nbytes() for s in storages}.values())

    def take_atoms(self, graph: AtomicGraph) -> None:
        """Take elements, systems, and the weight of each output in the energy."""
        inputs = self.inputs
        inputs.species.copy_(graph.species)
        counts = torch.bincount(graph.batch, minlength=graph.n_systems)
        inputs.first_atom[1:] = counts.cumsum(0)
        for row, (weight, average) in self.launchers.energy_rows.items():
            inputs.energy_weights[row] = weight / counts[graph.batch] if average else weight
        inputs.grad_outputs.copy_(inputs.energy_weights)

    def make_list(self) -> None:
        """Make the list for the positions and cells in the buffers."""
        assert self.search is not None
        edges, n = self.pairs.edges, self.capacity.edges
        # what is computed along edges is not needed yet
        parts = [t.view(-1).view(torch.int32) for t in (self.grad_vectors, edges.vectors)]
        keys, sorted_keys = (part[: 2 * n].view(torch.int64) for part in parts)
        receivers, numbers = (part[2 * n : 3 * n] for part in parts)
        work = (keys, sorted_keys, receivers, numbers)
        self.search.run(self.inputs.positions, self.pairs.lists, edges, work)

    def features_forward(self) -> None:
        """Compute edge vectors and the features of all generations."""
        k, edges, species = self.launchers, self.pairs.edges, self.inputs.species
        kept, displacement_ratio = None, None
        if self.search is not None:
            kept, displacement_ratio = self.search.kept, self.search.found.displacement_ratio
        launch.split_positions(self.inputs.positions, self.pairs.lists, kept, displacement_ratio)
        launch.edge_vectors(self.pairs.lists, edges, self.results.closest)
        k.moments.forward(edges, self.rho)
        first = self.a[0] if self._is_read(0) else None
        k.contraction.forward(self.rho, edges, species, self._stage(self.features, 0), first)
        for t, messages in enumerate(k.messages):
            b = self._stage(self.features, t)
            messages.forward(self.a[t], b, edges, species, self.a[t + 1], self.message_work[t])
            k.contraction.contract(self.a[t + 1], self._stage(self.features, t + 1))

    def _stage(self, of: Tensor, t: int) -> Tensor:
        return of[t * self.n_features : (t + 1) * self.n_features]

    def forward(self, *, rebuild: bool = False) -> None:
        """Compute features and outputs of read-outs, with a new list where ``rebuild`` is true."""
        if rebuild:
            self.make_list()
        self.features_forward()
        if self.launchers.readouts is not None:
            inputs = self.inputs
            self.launchers.readouts.forward(
                self.features,
                inputs.extras,
                self.results.outputs,
                self.readout_work,
                None if self.terms else inputs.grad_outputs,
            )

    def long_range(self) -> None:
        """Compute the long range, if there is any: energies of atoms, forces, virials, dE/dq."""
        results = self.results
        for number, (total, own) in enumerate(zip(self.sums, self.terms, strict=True)):
            assert self.long_forces is not None
            found = (results.energies[1], own.slopes, self.long_forces, results.long_virials)
            total.evaluate(own.charges, self.inputs.positions, found, own.known, add=number > 0)

    def finish(self, *, derivatives: bool) -> None:
        """Compute forces and virials with ``derivatives``, sums over systems, and the status."""
        if derivatives:
            self._backward()
        launch.totals(
            self.results,
            self.inputs.energy_weights,
            self.inputs.first_atom,
            derivatives=derivatives,
            long_range=bool(self.terms),
            kept=None if self.search is None else self.search.found,
        )

    def status(self) -> Status:
        """Return the status of the step; this is the only time that the host waits for it."""
        return Status(*self.results.status.tolist())

    def _backward(self) -> None:
        """Compute forces, and virials of atoms."""
        k, edges, species, inputs = (
            self.launchers,
            self.pairs.edges,
            self.inputs.species,
            self.inputs,
        )
        if k.readouts is not None:
            k.readouts.backward(
                inputs.grad_outputs, self.grad_features, self.readout_work, known=not self.terms
            )
        if k.messages:
            self.grad_vectors.zero_()
            self._messages_backward()
        k.contraction.backward(
            self.rho,
            edges,
            species,
            self._stage(self.grad_features, 0),
            self.grad_a[0],
            self.grad_rho,
            add=self._is_read(0),
        )
        k.moments.backward(edges, self.grad_rho, self.grad_vectors, add=bool(k.messages))
        self._forces()

    def _messages_backward(self) -> None:
        """Go back through the generations; dE/dA of each but the last goes to ``grad_a``."""
        k, edges = self.launchers, self.pairs.edges
        for t in reversed(range(len(k.messages))):
            grad = self.grad_a[t + 1]
            grad_b = self._stage(self.grad_features, t + 1)
            read = self._is_read(t + 1)
            k.contraction.contract_backward(self.a[t + 1], grad_b, grad, add=read)
            before = (self.grad_a[t], self._stage(self.grad_features, t), self.grad_vectors)
            k.messages[t].backward(edges, self.inputs.species, grad, before, self.message_work[t])

    def _is_read(self, t: int) -> bool:
        """Return whether a message reads A of a generation: then ``grad_a`` has its share."""
        return t < len(self.launchers.messages) and self.launchers.messages[t].reads_a

    def _forces(self) -> None:
        """Gather forces and virials of atoms."""
        results = self.results
        launch.gather_forces(
            self.pairs.edges, self.grad_vectors, results.forces, results.virials, self.long_forces
        )


def too_large(n_atoms: int) -> InputError:
    """Return the error of a structure whose arrays are too large for int32 indices."""
    return InputError(
        "atoms",
        f"arrays of at most {MOST_NUMBERS} numbers",
        f"{n_atoms} atoms at once",
        "Evaluate fewer structures together, or divide the structure among several devices.",
    )


def _tensors(value: object) -> list[Tensor]:
    """Return all tensors in a nest of containers and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for item in value.values() for t in _tensors(item)]
    if isinstance(value, list | tuple):
        return [t for item in value for t in _tensors(item)]
    if isinstance(value, EdgeBuffers | Inputs | PairSearch | Results | TermBuffers):
        return _tensors(vars(value))
    return []
