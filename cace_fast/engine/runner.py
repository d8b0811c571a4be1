"""Runs the steps of a model on a device: one caller at a time, as captured graphs on CUDA.

On CUDA the second step of a kind is captured, and later ones are one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cace_fast.device_neighbors import DevicePairs
from cace_fast.errors import CaceFastError
from cace_fast.graph import AtomicGraph, ModelOutput, same_memory
from cace_fast.kernels.triton.edge_buffers import Capacity, listed, with_headroom
from cace_fast.kernels.triton.host_neighbors import PairSearch
from cace_fast.kernels.triton.kvectors import SumMethod
from cace_fast.kernels.triton.step import Launchers, Status, Step
from cace_fast.min_dist import MinDist
from cace_fast.process import Lock
from cace_fast.reference.atomic import fixed_charges
from cace_fast.slab import Slab, require_fit

from .checks import check_output, require_atom_virials
from .inputs import extra_inputs
from .long_range import OPEN
from .own_list import OwnList
from .reference import ReferenceEngine
from .step_output import check_distances, output_of


class Runner:
    """Runs steps on buffers, and replaces the buffers when they are too small (decision 0018).

    With an :class:`OwnList` the systems move in these buffers
    (:class:`cace_fast.engine.protocol.Moving`); without one, every graph brings its pairs.

    Parameters
    ----------
    launchers
        The model.
    reference
        The same in plain torch: for Born charges, and for how to sum the long range.
    own
        The list that systems make as they move; None for graphs.

    Raises
    ------
    CaceFastError
        If the buffers do not fit on the device.
    """

    def __init__(
        self, launchers: Launchers, reference: ReferenceEngine, own: OwnList | None = None
    ) -> None:
        self.launchers, self.reference, self._own = launchers, reference, own
        self.device = launchers.device
        self.captures = self.device.type == "cuda"
        self._step: Step | None = None
        self._lock = Lock(self)
        self._held: tuple[Tensor, ...] = ()
        self._cells: Tensor | None = None
        self._new_cell: Tensor | None = None
        self._slabs: dict[int, Slab] = {}
        self._captured: dict[tuple[bool, ...], Any] = {}
        self._done: Any = None
        if own is not None:
            with self.exclusive():
                self._fill(own.first_capacity())

    def reset(self) -> None:
        """Forget the pair list that the buffers hold (``docs/user/threads_and_processes.md``)."""
        self._held = ()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the buffers: other threads wait, and the current stream waits for the last one.

        Every use of the device passes through here (``docs/user/threads_and_processes.md``).
        """
        with self._lock, torch.no_grad():
            if self._done is not None:
                torch.cuda.current_stream(self.device).wait_event(self._done)
            try:
                yield
            finally:
                if self.device.type == "cuda":
                    self._done = torch.cuda.Event()
                    self._done.record(torch.cuda.current_stream(self.device))

    @property
    def step(self) -> Step:
        """The buffers; they exist after the first evaluation (``docs/developer/kernels.md``)."""
        assert self._step is not None
        return self._step

    @property
    def n_bytes(self) -> int:
        """Memory in bytes held by the buffers (``docs/user/performance.md``)."""
        return 0 if self._step is None else self._step.n_bytes

    @property
    def own(self) -> OwnList:
        """The Verlet list of systems that move (``docs/developer/kernels.md``)."""
        assert self._own is not None
        return self._own

    @property
    def n_builds(self) -> int:
        """Number of lists made so far (``docs/user/batches.md``)."""
        return self.own.n_builds

    @property
    def positions(self) -> Tensor:
        """The positions [n, 3] float64 in A of systems that move, which may be written in place.

        See ``docs/user/batches.md``.
        """
        return self.own.graph.positions

    def set_cell(self, cell: Tensor) -> None:
        """Take new cells [n_systems, 3, 3] in A at the next evaluation.

        See ``docs/user/batches.md``.
        """
        self._new_cell = cell

    def make_list(self) -> None:
        """Make a list for the present positions; a step does so itself when it is due.

        See ``docs/developer/kernels.md``.
        """
        with self.exclusive():
            self.step.make_list()

    def pairs(self) -> DevicePairs:
        """Return the present list (``docs/theory.md``, section 1)."""
        with self.exclusive():
            return self.own.pairs(self.step)

    def evaluate(self, wanted: Collection[str], min_dist: MinDist) -> ModelOutput:
        """Evaluate the systems that move; see :meth:`cace_fast.engine.protocol.Engine.evaluate`."""
        return check_output(self.run(None, wanted, min_dist))

    def run(
        self, graph: AtomicGraph | None, wanted: Collection[str], min_dist: MinDist
    ) -> ModelOutput:
        """Return energies and what else is wanted, on the device and not yet checked to be finite.

        Parameters
        ----------
        graph
            With pairs in any order, on any device; None for the systems that move.
        wanted, min_dist
            As for :meth:`cace_fast.engine.protocol.Engine.evaluate`.

        Raises
        ------
        InputError, PropertyNotImplementedError
            As for :meth:`cace_fast.engine.protocol.Engine.evaluate`.
        CaceFastError
            If the systems do not fit on the device.
        """
        self.reference.program.check()
        if {"latent_charges", "born_charges"} & set(wanted):
            self.reference.program.charge_term  # noqa: B018  (raises if charges have no meaning)
        require_atom_virials(self.reference.program, wanted)
        derivatives = bool({"forces", "virials"} & set(wanted))
        with self.exclusive():
            if graph is not None:
                self._take(graph)
                status = self._launch(derivatives=derivatives)
            else:
                status = self._move(derivatives=derivatives)
            check_distances(self.step, status, min_dist)
            output = output_of(self.step, wanted)
            exactly = {"born_charges", "atom_virials"} & set(wanted)
            if not exactly:
                return output
            exact = self.own.whole(self.step) if graph is None else graph
        ordered = exact.select(torch.argsort(exact.receivers, stable=True)).to(self.device)
        found = self.reference.evaluate(ordered, exactly)
        return replace(output, **{name: getattr(found, name) for name in exactly})

    def features(self, graph: AtomicGraph) -> Tensor:
        """Return the invariants [n, n_radial, n_B, C, T] of a graph, on the device (equation 21).

        Raises
        ------
        CaceFastError
            If the systems do not fit on the device.
        """
        rep = self.launchers.rep
        shape = (rep.n_stages, rep.n_radial, rep.n_invariants, rep.n_channels, graph.n_atoms)
        with self.exclusive():
            self._take(graph, with_inputs=False)
            self.step.features_forward()
            return self.step.features.reshape(shape).permute(4, 1, 2, 3, 0).clone()

    def _take(self, graph: AtomicGraph, *, with_inputs: bool = True) -> None:
        """Take a graph into the buffers; pairs are sorted where they are new."""
        given = (graph.senders, graph.receivers, graph.shifts, graph.species, graph.batch)
        if self._step is None or not self._held or not same_memory(given, self._held):
            self._held = ()  # until the whole list is there
            self._take_list(graph.to(self.device))
            self._held = given
        self.step.inputs.positions.copy_(graph.positions)
        self.step.pairs.lists.cells[:-1] = graph.cell
        if with_inputs:
            self._take_extras(graph)
            self._take_systems(graph)
            self._check_slabs(graph.positions)

    def _take_list(self, graph: AtomicGraph) -> None:
        found = listed(graph, self.launchers.rep.n_elements)
        need = found.need(graph.n_atoms, graph.n_systems)
        step = self._step
        if step is None or not step.capacity.holds(need):
            step = self._allocate(with_headroom(need))
        step.pairs.fill(found)
        step.take_atoms(graph)
        self._cells = None

    def _allocate(self, capacity: Capacity, search: PairSearch | None = None) -> Step:
        """Replace the buffers; the old ones are freed first."""
        self._step, self._captured, self._cells, self._held = None, {}, None, ()
        try:
            self._step = Step(self.launchers, capacity, search)
        except torch.OutOfMemoryError:
            raise CaceFastError(
                f"memory: {capacity.atoms} atoms with {capacity.edges} pairs do not fit on "
                f"{self.device}; 'cace-fast info --memory' tells how many do"
            ) from None
        return self._step

    def _fill(self, capacity: Capacity) -> None:
        """Make buffers for the systems that move, and write what does not change to them."""
        own = self.own
        step = self._allocate(capacity, own.search)
        own.fill(step)
        step.take_atoms(own.graph)
        self._take_extras(own.graph)
        self._take_systems(own.graph)

    def _take_cell(self, cell: Tensor) -> None:
        """Take new cells of systems that move; the list is reused as long as they allow it."""
        self.own.graph.cell.copy_(cell)
        self.step.pairs.lists.cells[:-1] = cell
        self._take_systems(self.own.graph)

    def _take_extras(self, graph: AtomicGraph) -> None:
        """Take further inputs of heads; those of another shape need a new capture."""
        rep, held = self.launchers.rep, self.step.inputs.extras
        for number, head in enumerate(self.launchers.program.heads):
            given = extra_inputs(head, rep, graph)
            if given is None:
                continue
            found, before = given.T.to(self.device, self.launchers.dtype), held[number]
            if before is not None and before.shape == found.shape:
                before.copy_(found)
            else:
                held[number], self._captured = found.contiguous(), {}

    def _take_systems(self, graph: AtomicGraph) -> None:
        """Give cells to the Ewald sums where they are new."""
        step, settings = self.step, self.reference.long_range
        terms = self.launchers.program.terms
        if not terms:
            return
        cells = torch.cat([graph.cell.flatten(1), graph.pbc.double()], 1).cpu()
        if self._cells is not None and torch.equal(cells, self._cells):
            return
        settings.check_size(graph, (term.ewald for term in terms))
        kinds, slabs = settings.boundaries(graph.pbc), settings.slabs(graph)
        boxes, k_cell = graph.cell.cpu().clone(), settings.k_cell(graph)
        for s, slab in slabs.items():
            boxes[s] = slab.cell
        k_cells = None if k_cell is None else torch.from_numpy(k_cell).expand_as(boxes)
        first_atom, periodic = step.inputs.first_atom.tolist(), (kinds != OPEN).tolist()
        for term, total, own in zip(terms, step.sums, step.terms, strict=True):
            how = SumMethod(settings.method, settings.tolerance, len(own.charges))
            if not total.set_systems(first_atom, boxes, periodic, k_cells, how, slabs):
                self._captured = {}
            if term.fixed is not None:
                charges = fixed_charges(term.fixed, self.launchers.rep, graph.species)
                own.charges.copy_(charges.T)
        self._cells, self._slabs = cells, slabs

    def _check_slabs(self, positions: Tensor) -> None:
        """Raise InputError for slabs whose atoms reach farther than their cell is high."""
        for s, slab in self._slabs.items():
            first, end = self.step.inputs.first_atom[s : s + 2].tolist()
            require_fit(positions[first:end].to(slab.normal.device), slab)

    def _move(self, *, derivatives: bool) -> Status:
        """Run steps of the systems that move until the list was valid for one."""
        own = self.own
        if self._step is None:  # the last buffers did not fit
            self._fill(own.first_capacity())
        if self._new_cell is not None:
            self._take_cell(self._new_cell)
            self._new_cell = None
        while True:
            # due until the step ends: an interrupt may leave half a list
            rebuild, own.due = own.due, True
            status = self._launch(derivatives=derivatives, rebuild=rebuild)
            own.n_builds += rebuild
            if not np.isfinite(status.displacement_ratio):
                own.check_places()
            if rebuild:
                if (capacity := own.room(status, self.step.capacity)) is not None:
                    self._fill(capacity)
                    continue
                self._check_slabs(self.positions)
            own.due = own.leaves(status)
            if rebuild or not own.has_left(status):
                return status

    def _launch(self, *, derivatives: bool, rebuild: bool = False) -> Status:
        """Run the step, with a new list where ``rebuild`` is true; return its status."""
        step = self.step

        def whole() -> None:
            step.forward(rebuild=rebuild)
            step.long_range()
            step.finish(derivatives=derivatives)

        self._replay((rebuild, derivatives), whole)
        return step.status()

    def _replay(self, key: tuple[bool, ...], work: Callable[[], None]) -> None:
        """Do the work; on CUDA launch by launch first, then as one captured graph."""
        if not self.captures:
            work()
            return
        captured = self._captured.get(key)
        if captured is None:  # kernels are compiled now: that must not happen in a capture
            work()
            self._captured[key] = "warm"
            return
        if captured == "warm":
            captured = self._captured[key] = _capture(work)
        captured.replay()


def _capture(work: Callable[[], None]) -> Any:
    """Return the work as a CUDA graph, without doing it. There is no other capture."""
    captured = torch.cuda.CUDAGraph()
    # other threads may allocate meanwhile, for other engines
    with torch.cuda.graph(captured, capture_error_mode="thread_local"):
        work()
    return captured
