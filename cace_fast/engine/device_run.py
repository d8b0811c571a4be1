"""One graph or moving system on the device: its buffers, what was captured of its step, and checks.

On CUDA the second step of a kind is captured, and later ones are one launch. Long-range transforms
belong to libraries that cannot be captured: with them a step is two graphs and the transforms
between them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cace_fast.errors import CaceFastError
from cace_fast.graph import AtomicGraph, ModelOutput, same_memory
from cace_fast.kernels.triton.edge_buffers import Capacity, roomy, sort_edges
from cace_fast.kernels.triton.host_neighbors import PairSearch
from cace_fast.kernels.triton.step import Launchers, Status, Step
from cace_fast.kernels.triton.waves import How
from cace_fast.min_dist import MinDist, half_distances, too_close
from cace_fast.process import Lock
from cace_fast.reference.atomic import fixed_charges
from cace_fast.slab import Slab, require_fit

from .checks import check_positions
from .inputs import extra_inputs
from .long_range import OPEN, LongRange, finest

VIRIAL_ROWS = (0, 5, 4, 5, 1, 3, 4, 3, 2)  # of xx yy zz yz xz xy, as a 3 x 3 matrix


class DeviceRun:
    """Buffers of one size after another, filled by graphs that bring their pairs.

    Parameters
    ----------
    kernels
        The model.
    long_range
        How to sum the long range.
    """

    def __init__(self, kernels: Launchers, long_range: LongRange) -> None:
        self.kernels, self.settings = kernels, long_range
        self.device = kernels.device
        self.captures = self.device.type == "cuda"
        self.step: Step | None = None
        self._lock = Lock(self)
        self._held: tuple[Tensor, ...] = ()
        self._cells: Tensor | None = None
        self._slabs: dict[int, Slab] = {}
        self._captured: dict[tuple[bool, ...], Any] = {}
        self._done: Any = None

    def reset(self) -> None:
        """Forget the list that the buffers hold."""
        self._held = ()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Have the buffers for oneself: other threads wait, and the current stream for the last."""
        with self._lock, torch.no_grad():
            if self._done is not None:
                torch.cuda.current_stream(self.device).wait_event(self._done)
            try:
                yield
            finally:
                if self.device.type == "cuda":
                    self._done = torch.cuda.Event()
                    self._done.record(torch.cuda.current_stream(self.device))

    def take(self, graph: AtomicGraph, *, with_inputs: bool = True) -> Step:
        """Return the step with the graph in its buffers; pairs are sorted where they are new."""
        given = (graph.senders, graph.receivers, graph.shifts, graph.species, graph.batch)
        step = self.step
        if step is None or not self._held or not same_memory(given, self._held):
            self._held = ()  # until all of it is there
            step = self._take_list(graph.to(self.device))
            self._held = given
        step.inputs.positions.copy_(graph.positions)
        step.pairs.lists.cells[:-1] = graph.cell
        if with_inputs:
            self._take_extras(step, graph)
            self._take_systems(step, graph)
            self.check_slabs(graph.positions)
        return step

    def _take_list(self, graph: AtomicGraph) -> Step:
        found = sort_edges(graph, self.kernels.rep.n_elements)
        need = found.need(graph.n_atoms, graph.n_systems)
        step = self.step
        if step is None or not step.capacity.holds(need):
            step = self._allocate(roomy(need))
        step.pairs.fill(found)
        step.take_atoms(graph)
        self._cells = None
        return step

    def _allocate(self, capacity: Capacity, search: PairSearch | None = None) -> Step:
        """Replace the buffers, after giving the old ones back."""
        self.step, self._captured, self._cells, self._held = None, {}, None, ()
        try:
            self.step = Step(self.kernels, capacity, search)
        except torch.OutOfMemoryError:
            raise CaceFastError(
                f"memory: {capacity.atoms} atoms with {capacity.edges} pairs do not fit on "
                f"{self.device}; 'cace-fast info --memory' tells how many do"
            ) from None
        return self.step

    def _take_extras(self, step: Step, graph: AtomicGraph) -> None:
        for number in range(len(self.kernels.program.heads)):
            found = self._extras(number, graph)
            held = step.inputs.extras[number]
            if found is None or (held is not None and held.shape == found.shape):
                if held is not None and found is not None:
                    held.copy_(found)
                continue
            step.inputs.extras[number] = found
            self._captured = {}

    def _extras(self, number: int, graph: AtomicGraph) -> Tensor | None:
        found = extra_inputs(self.kernels.program.heads[number], self.kernels.rep, graph)
        return None if found is None else found.T.to(self.device, self.kernels.dtype).contiguous()

    def _take_systems(self, step: Step, graph: AtomicGraph) -> None:
        """Give cells to the Ewald sums where they are new."""
        if not step.terms:
            return
        cells = torch.cat([graph.cell.flatten(1), graph.pbc.double()], 1).cpu()
        if self._cells is not None and torch.equal(cells, self._cells):
            return
        terms = self.kernels.program.terms
        self.settings.check_size(graph, finest(term.ewald for term in terms))
        kinds, slabs = self.settings.boundaries(graph.pbc), self.settings.slabs(graph)
        boxes, k_cell = graph.cell.cpu().clone(), self.settings.k_cell(graph)
        for s, slab in slabs.items():
            boxes[s] = slab.cell
        k_cells = None if k_cell is None else torch.from_numpy(k_cell).expand_as(boxes)
        first_atom, periodic = step.inputs.first_atom.tolist(), (kinds != OPEN).tolist()
        for term, total, own in zip(terms, step.sums, step.terms, strict=True):
            how = How(self.settings.method, self.settings.tolerance, len(own.charges))
            if not total.set_systems(first_atom, boxes, periodic, k_cells, how, slabs):
                self._captured = {}
            if term.fixed is not None:
                charges = fixed_charges(term.fixed, self.kernels.rep, graph.species)
                own.charges.copy_(charges.T)
        self._cells, self._slabs = cells, slabs

    def check_slabs(self, positions: Tensor) -> None:
        """Raise for slabs whose atoms reach farther than their cell is high."""
        step = self.step
        assert step is not None
        for s, slab in self._slabs.items():
            first, end = step.inputs.first_atom[s : s + 2].tolist()
            require_fit(positions[first:end].to(slab.normal.device), slab)

    def run(self, *, derivatives: bool, rebuild: bool = False) -> Status:
        """Run the step, with a new list where ``rebuild`` is true; return its status."""
        step = self.step
        assert step is not None

        def first() -> None:
            step.forward(rebuild=rebuild)

        def whole() -> None:
            first()
            step.long_range()
            step.finish(derivatives=derivatives)

        if step.by_transforms:
            self._replay((rebuild,), first)
            step.long_range()
            self._replay((rebuild, derivatives, True), lambda: step.finish(derivatives=derivatives))
        else:
            self._replay((rebuild, derivatives), whole)
        return step.status()

    def _replay(self, key: tuple[bool, ...], work: Callable[[], None]) -> None:
        """Do the work; on CUDA launch by launch first, then as one captured graph."""
        if not self.captures:
            work()
            return
        captured = self._captured.get(key)
        if captured is None:  # compiles what is not yet compiled: must not happen in a capture
            work()
            self._captured[key] = "warm"
            return
        if captured == "warm":
            captured = torch.cuda.CUDAGraph()
            # other threads may allocate meanwhile, for engines of their own
            with torch.cuda.graph(captured, capture_error_mode="thread_local"):
                work()
            self._captured[key] = captured
        captured.replay()

    def check(self, status: Status, min_dist: MinDist) -> None:
        """Raise for atoms that are too close or nowhere."""
        step, shortest = self.step, status.closest**0.5
        assert step is not None
        halves = half_distances(self.kernels.rep.elements, min_dist)
        if shortest > 0.0 and (halves is None or shortest >= 2.0 * halves.max()):
            return
        check_positions(step.inputs.positions)
        edges = step.pairs.edges
        lengths = torch.linalg.vector_norm(edges.vectors, dim=0)
        limits = torch.zeros_like(lengths)
        if halves is not None:
            of_atoms = torch.tensor(halves, device=self.device)[step.inputs.species.long()]
            limits = of_atoms[edges.sender.long()] + of_atoms[edges.receiver.long()]
        bad = torch.nonzero((lengths < limits) | ~(lengths > 0.0)).flatten()
        if not len(bad):
            return
        k = int(bad[lengths[bad].argmin()])
        pair = (int(edges.sender[k]), int(edges.receiver[k]))
        if halves is None:
            raise CaceFastError(f"energy: not finite at atom {pair[1]} (atom {pair[0]} is there)")
        raise too_close(pair, float(lengths[k]), float(limits[k]))

    def output(self, wanted: Collection[str]) -> ModelOutput:
        """Return what a step left, in tensors of its own."""
        step = self.step
        assert step is not None
        results, virials = step.results, None
        if "virials" in wanted:
            rows = torch.tensor(VIRIAL_ROWS, device=self.device)
            virials = results.virial_sums[rows].T.reshape(-1, 3, 3).clone()
        energies = results.energies[0].clone()
        charges = {"latent_charges", "born_charges"} & set(wanted)
        return ModelOutput(
            energy=results.totals.sum(0),
            energies=results.energies.sum(0) if step.terms else energies,
            energies_sr=energies,
            forces=results.forces.T.double() if "forces" in wanted else None,
            virials=virials,
            latent_charges=step.terms[0].charges.T.clone() if charges else None,
        )
