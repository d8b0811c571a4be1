"""The engine of ``backend="triton"``: fused kernels on a GPU, or on CPU tensors under emulation."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from cace_fast.errors import CaceFastError, InputError, UnsupportedModelError
from cace_fast.graph import AtomicGraph, ModelOutput, same_memory
from cace_fast.kernels import emulation
from cace_fast.reference import model
from cace_fast.spec import EnergyTerm, ModelSpec, Readout
from cace_fast.structures import too_close

from .device_edges import Capacity, roomy, sort_edges
from .device_step import DeviceStep, Kernels
from .long_range import LongRange
from .plan import Plan, plan_of
from .reference import ReferenceEngine

PROBE = 512  # atoms of the buffers that memory is measured with
VIRIAL_ROWS = (0, 5, 4, 5, 1, 3, 4, 3, 2)  # of xx yy zz yz xz xy, as a 3 x 3 matrix


class TritonEngine(ReferenceEngine):
    """Evaluates a model with the Triton kernels, in float32 with energies summed in float64.

    Energies, forces, virials, charges and features come from the kernels; second derivatives and
    Born charges from the reference, whose class this inherits. It takes candidate pairs in any
    order, of a graph on any device, keeps a list as long as the graph's tensors are the same, and
    answers where the graph is. On CUDA the second and
    later steps of one size replay a captured graph. Calls from several threads wait for each
    other; work goes to the current stream.

    Parameters
    ----------
    spec, weights, terms, output_index, long_range
        As for :class:`ReferenceEngine`.

    Raises
    ------
    UnsupportedModelError
        If the kernels do not have a part of the model, or for float64.
    """

    backend = "triton"
    sorts_pairs = True

    def __init__(
        self,
        spec: ModelSpec,
        weights: Mapping[str, Tensor],
        terms: Sequence[EnergyTerm],
        output_index: int | None = None,
        long_range: LongRange | None = None,
    ) -> None:
        super().__init__(spec, weights, terms, output_index, long_range)
        like = weights["embedding.sender"]
        if like.dtype != torch.float32 and not triton.knobs.runtime.interpret:
            raise UnsupportedModelError("float64: these kernels compute in float32")
        if self.long_range.method == "nufft":
            raise UnsupportedModelError("long_range='nufft': these kernels sum directly")
        self.device = like.device
        self._plan: Plan = plan_of(spec, self.terms, output_index)
        self._kernels = Kernels(spec, weights, self._plan, self.terms)
        self._lock = threading.Lock()
        self._step: DeviceStep | None = None
        self._held: tuple[Tensor, ...] = ()
        self._cells: Tensor | None = None
        self._runs: dict[bool, Any] = {}
        self._done: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        own = (self.spec, self.weights, self.terms, self.output_index, self.long_range)
        return type(self), own

    @property
    def description(self) -> str:
        """Which GPU runs, or is emulated."""
        driver = emulation.active()
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return "interpreted" if driver is None else f"emulated sm_{driver.number}"

    @property
    def n_bytes(self) -> int:
        """Memory held by the buffers of the last evaluation."""
        return 0 if self._step is None else self._step.n_bytes

    def bytes_per_atom(self, n_edges: float, n_segments: float) -> float:
        """Return the memory of the buffers for each atom of a large system.

        Parameters
        ----------
        n_edges, n_segments
            Candidate pairs and elements of neighbours for each atom.
        """
        n = PROBE
        capacity = Capacity(n, round(n_edges * n), round(n_segments * n), 1, 1)
        return DeviceStep(self._kernels, capacity).n_bytes / n

    def evaluate(
        self, graph: AtomicGraph, wanted: Collection[str] = (), *, min_dist: float | None = None
    ) -> ModelOutput:
        """Return energies and what else is ``wanted``; see :meth:`ReferenceEngine.evaluate`.

        The graph may hold candidate pairs beyond the cutoff. ``min_dist`` is the shortest distance
        allowed between two atoms in A.
        """
        self._plan.check()
        needs_charges = "latent_charges" in wanted or "born_charges" in wanted
        term = self.charge_term if needs_charges else None
        with self._lock, torch.no_grad():
            self._wait()
            step = self._prepared(graph)
            self._run(step, derivatives=bool({"forces", "virials"} & set(wanted)))
            self._check(step, graph, min_dist)
            output = self._output(step, wanted, charges=term is not None)
            self._record()
            output = _moved(output, graph.positions.device)
        if "born_charges" not in wanted:
            return output
        ordered = graph.select(torch.argsort(graph.receivers, stable=True))
        born = super().evaluate(ordered.to(self.device), ("born_charges",)).born_charges
        assert born is not None
        return replace(output, born_charges=born.to(graph.positions.device))

    def placed(self, graph: AtomicGraph) -> AtomicGraph:
        """Return the graph itself: what is new in it is copied to the device as it is needed."""
        return graph

    def features(self, graph: AtomicGraph) -> Tensor:
        """Return the invariants [n, n_radial, n_B, C, T] in the working dtype."""
        rep = self.spec.representation
        with self._lock, torch.no_grad():
            self._wait()
            step = self._prepared(graph, with_inputs=False)
            step.features_forward()
            shape = (rep.n_stages, rep.n_radial, rep.n_invariants, rep.n_channels, graph.n_atoms)
            found = step.features.reshape(shape).permute(4, 1, 2, 3, 0).clone()
            self._record()
        return found.to(graph.positions.device)

    def _prepared(self, graph: AtomicGraph, *, with_inputs: bool = True) -> DeviceStep:
        """Return the step with the graph in its buffers."""
        given = (graph.senders, graph.receivers, graph.shifts, graph.species, graph.batch)
        step = self._step
        if step is None or not self._held or not same_memory(given, self._held):
            step = self._take_list(graph.to(self.device))
            self._held = given
        inputs = step.inputs
        inputs.positions.copy_(graph.positions)
        step.lists.cells[:-1] = graph.cell
        if with_inputs:
            self._take_extras(step, graph)
            if step.terms:
                self._take_systems(step, graph)
        return step

    def _take_list(self, graph: AtomicGraph) -> DeviceStep:
        found = sort_edges(graph, self.spec.representation.n_elements)
        need = found.need(graph.n_atoms, graph.n_systems)
        step = self._step
        if step is None or not step.capacity.holds(need):
            self._step, self._runs, self._cells, self._held = None, {}, None, ()
            step = self._step = self._allocated(roomy(need))
        step.lists.fill(found)
        inputs = step.inputs
        inputs.species.copy_(graph.species)
        counts = torch.bincount(graph.batch, minlength=graph.n_systems)
        inputs.first_atom[1:] = counts.cumsum(0)
        for row, (weight, average) in self._energy_rows().items():
            inputs.energy_weights[row] = weight / counts[graph.batch] if average else weight
        self._cells = None
        return step

    def _allocated(self, capacity: Capacity) -> DeviceStep:
        try:
            return DeviceStep(self._kernels, capacity)
        except torch.OutOfMemoryError:
            raise CaceFastError(
                f"memory: {capacity.atoms} atoms with {capacity.edges} pairs do not fit on "
                f"{self.device}; 'cace-fast info --memory' tells how many do"
            ) from None

    def _energy_rows(self) -> dict[int, tuple[float, bool]]:
        """Return weight and whether to average of every row of y that is an energy."""
        readouts = self._kernels.readouts
        if readouts is None:
            return {}
        return {
            readouts.slices[number].start + head.energy_column: (
                head.energy_weight, bool(head.average),
            )
            for number, head in enumerate(self._plan.heads)
            if head.energy_column >= 0
        }  # fmt: skip

    def _take_extras(self, step: DeviceStep, graph: AtomicGraph) -> None:
        for number, module in enumerate(self._plan.modules):
            found = self._extras(module, graph)
            held = step.inputs.extras[number]
            if found is None or (held is not None and held.shape == found.shape):
                if held is not None and found is not None:
                    held.copy_(found)
                continue
            step.inputs.extras[number] = found
            self._runs = {}

    def _extras(self, module: Readout, graph: AtomicGraph) -> Tensor | None:
        names = [key for key in module.features if key != "node_feats"]
        if not names:
            return None
        columns = model.input_columns(module, names, graph.inputs)
        width = sum(column.shape[1] for column in columns)
        model.check_width(module, self._plan.n_features + width)
        return torch.cat(columns, 1).T.to(self.device, self._kernels.dtype).contiguous()

    def _take_systems(self, step: DeviceStep, graph: AtomicGraph) -> None:
        """Give cells to the Ewald sums where they are new."""
        cells = torch.cat([graph.cell.flatten(1), graph.pbc.double()], 1).cpu()
        if self._cells is not None and torch.equal(cells, self._cells):
            return
        partly = [p for p in graph.pbc.tolist() if any(p) and not all(p)]
        if partly:
            raise model.partly_periodic(partly[0])
        periodic = [all(p) for p in graph.pbc.tolist()]
        kept = self.long_range.k_cell(graph)
        k_cells = None if kept is None else torch.from_numpy(kept).expand(graph.n_systems, 3, 3)
        first_atom = step.inputs.first_atom.tolist()
        rep = self.spec.representation
        for term, total, own in zip(
            self._kernels.long_range, self._kernels.sums, step.terms, strict=True
        ):
            total.set_systems(first_atom, graph.cell.cpu(), periodic, k_cells)
            if term.fixed is not None:
                own.charges.copy_(model.fixed_charges(term.fixed, rep, graph.species).T)
        self._cells, self._runs = cells, {}

    def _run(self, step: DeviceStep, *, derivatives: bool) -> None:
        """Run the step; on CUDA the first time launch by launch, then as one captured graph."""
        if self.device.type != "cuda":
            step.run(derivatives=derivatives)
            return
        captured = self._runs.get(derivatives)
        if captured is None:  # compiles what is not yet compiled: must not happen in a capture
            step.run(derivatives=derivatives)
            self._runs[derivatives] = "warm"
            return
        if captured == "warm":
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured):
                step.run(derivatives=derivatives)
            self._runs[derivatives] = captured
        captured.replay()

    def _wait(self) -> None:
        """Let the current stream wait for the step before, whose buffers it will overwrite."""
        if self._done is not None:
            torch.cuda.current_stream(self.device).wait_event(self._done)

    def _record(self) -> None:
        if self.device.type == "cuda":
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(self.device))

    def _check(self, step: DeviceStep, graph: AtomicGraph, min_dist: float | None) -> None:
        """Raise for atoms that are too close or nowhere; one number is read from the device."""
        shortest = float(step.results.closest.min()) ** 0.5
        if shortest > 0.0 and (min_dist is None or shortest >= min_dist):
            return
        bad = torch.nonzero(~torch.isfinite(graph.positions).all(1)).flatten().tolist()
        if bad:
            raise InputError("positions", "finite numbers", f"NaN or infinity for atoms {bad[:5]}")
        edges = step.lists.edges
        k = int(torch.linalg.vector_norm(edges.vectors, dim=0).argmin())
        pair = (int(edges.sender[k]), int(edges.receiver[k]))
        if min_dist is None:
            raise CaceFastError(f"energy: not finite at atom {pair[1]} (atom {pair[0]} is there)")
        raise too_close(pair, shortest, min_dist)

    def _output(self, step: DeviceStep, wanted: Collection[str], *, charges: bool) -> ModelOutput:
        results = step.results
        virials = None
        if "virials" in wanted:
            rows = torch.tensor(VIRIAL_ROWS, device=self.device)
            virials = results.virial_sums[rows].T.reshape(-1, 3, 3).clone()
        return ModelOutput(
            energy=results.totals.sum(0),
            energies=results.energies.sum(0),
            energies_sr=results.energies[0].clone(),
            forces=results.forces.T.double() if "forces" in wanted else None,
            virials=virials,
            latent_charges=step.terms[0].charges.T.clone() if charges else None,
        )


def _moved(output: ModelOutput, device: torch.device) -> ModelOutput:
    """Return the output on a device; itself when it is there."""
    if output.energy.device == device:
        return output
    found: dict[str, Any] = {
        name: None if t is None else t.to(device) for name, t in vars(output).items()
    }
    return ModelOutput(**found)
