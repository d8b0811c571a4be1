"""The engine of ``backend="triton"``: fused kernels on a GPU, or on CPU tensors under emulation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from math import pi
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from cace_fast.device_neighbors import DevicePairs
from cace_fast.errors import UnsupportedModelError
from cace_fast.graph import AtomicGraph, ModelOutput
from cace_fast.kernels import backend
from cace_fast.kernels.triton.edge_buffers import grown, guessed
from cace_fast.kernels.triton.host_neighbors import PairSearch, grid_of
from cace_fast.kernels.triton.step import Launchers, Step
from cace_fast.min_dist import MinDist
from cace_fast.spec import EnergyProgram, ModelSpec

from .checks import check_output
from .device_moving import MovingRun
from .device_run import DeviceRun
from .long_range import LongRange
from .reference import ReferenceEngine

PROBE = 2_048  # atoms of the buffers that memory is measured with


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
    spec, weights, program, long_range
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
        program: EnergyProgram,
        long_range: LongRange | None = None,
    ) -> None:
        super().__init__(spec, weights, program, long_range)
        like = weights["embedding.sender"]
        if like.dtype != torch.float32 and not triton.knobs.runtime.interpret:
            raise UnsupportedModelError("float64: these kernels compute in float32")
        self.device = like.device
        self._kernels = Launchers(spec, weights, program)
        self._graphs = DeviceRun(self._kernels, self.long_range)

    def __reduce__(self) -> tuple[Any, ...]:
        own = (self.spec, self.weights, self.program, self.long_range)
        return type(self), own

    @property
    def description(self) -> str:
        """Which GPU runs, or is emulated."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        target = backend.emulated()
        return "interpreted" if target is None else f"emulated {target}"

    @property
    def n_bytes(self) -> int:
        """Memory held by the buffers of the last evaluation."""
        return 0 if self._graphs.step is None else self._graphs.step.n_bytes

    def bytes_per_atom(
        self, density: float, skin: float, n_segments: float, n_atoms: int = PROBE
    ) -> float:
        """Return the memory of the buffers for each atom of a system that makes its own list.

        Parameters
        ----------
        density
            Atoms in a cubic A.
        skin
            Of the list, in A.
        n_segments
            Elements among the neighbours of an atom.
        n_atoms
            Of the buffers that are measured.
        """
        n, reach = n_atoms, self.spec.representation.cutoff + skin
        n_edges = density * 4.0 / 3.0 * pi * reach**3
        cell = (n / density) ** (1.0 / 3.0) * np.eye(3)
        first_atom = torch.tensor([0, n], device=self.device)
        species = torch.zeros(n, dtype=torch.int32, device=self.device)
        search = PairSearch(species, first_atom, reach, skin)
        grid = grid_of(cell, np.ones(3, dtype=bool), np.zeros(3), n, reach)
        search.set_grids(cell[None], [grid])
        capacity = guessed(n, search.n_shifts, 1)
        if n_edges * n > capacity.edges or n_segments * n > capacity.segments:
            capacity = grown(capacity, round(n_edges * n), round(n_segments * n))
        return Step(self._kernels, capacity, search).n_bytes / n

    def _evaluate(
        self, graph: AtomicGraph, wanted: Collection[str], min_dist: MinDist
    ) -> ModelOutput:
        """Return energies and what else is wanted; pairs beyond the cutoff do no harm."""
        self.check_wanted(wanted)
        run = self._graphs
        with run.turn():
            run.take(graph)
            status = run.run(derivatives=bool({"forces", "virials"} & set(wanted)))
            run.check(status, min_dist)
            output = _moved(run.output(wanted), graph.positions.device)
        return self.with_born(output, graph, wanted)

    def moving(self, graph: AtomicGraph, skin: float) -> OnDevice:
        """Return a system with a list of its own, which this engine makes as it is due."""
        self.program.check()
        return OnDevice(self, MovingRun(self._kernels, self.long_range, graph, skin))

    def placed(self, graph: AtomicGraph) -> AtomicGraph:
        """Return the graph itself: what is new in it is copied to the device as it is needed."""
        return graph

    def features(self, graph: AtomicGraph) -> Tensor:
        """Return the invariants [n, n_radial, n_B, C, T] in the working dtype."""
        rep, run = self.spec.representation, self._graphs
        with run.turn():
            step = run.take(graph, with_inputs=False)
            step.features_forward()
            shape = (rep.n_stages, rep.n_radial, rep.n_invariants, rep.n_channels, graph.n_atoms)
            found = step.features.reshape(shape).permute(4, 1, 2, 3, 0).clone()
        return found.to(graph.positions.device)

    def check_wanted(self, wanted: Collection[str]) -> None:
        """Raise what keeps the model, or charges of it, from being evaluated."""
        self.program.check()
        if {"latent_charges", "born_charges"} & set(wanted):
            self.program.charge_term  # noqa: B018  (raises if charges have no meaning)

    def with_born(
        self, output: ModelOutput, graph: AtomicGraph, wanted: Collection[str]
    ) -> ModelOutput:
        """Return the output with Born charges, which the reference computes."""
        if "born_charges" not in wanted:
            return output
        ordered = graph.select(torch.argsort(graph.receivers, stable=True))
        born = super()._evaluate(ordered.to(self.device), ("born_charges",), None).born_charges
        assert born is not None
        return replace(output, born_charges=born.to(graph.positions.device))


class OnDevice:
    """A moving system of :class:`TritonEngine`; see :class:`cace_fast.engine.Batch`."""

    def __init__(self, engine: TritonEngine, run: MovingRun) -> None:
        self._engine, self._run = engine, run

    @property
    def n_builds(self) -> int:
        """How often a list was made."""
        return self._run.n_builds

    @property
    def positions(self) -> Tensor:
        """The positions [n, 3], which may be written in place."""
        return self._run.positions

    def make_list(self) -> None:
        """Make the list of the positions as they stand: a step does so itself when it is due."""
        with self._run.turn():
            assert self._run.step is not None
            self._run.step.make_list()

    def pairs(self) -> DevicePairs:
        """Return the list as it stands."""
        with self._run.turn():
            return self._run.pairs()

    def evaluate(
        self, cell: Tensor | None, wanted: Collection[str], min_dist: MinDist
    ) -> ModelOutput:
        """Return what is wanted of the positions as they stand, in a new cell if one is given."""
        self._engine.check_wanted(wanted)
        run = self._run
        with run.turn():
            if cell is not None:
                run.set_cell(cell)
            output = run.evaluate(wanted, min_dist)
            graph = run.graph() if "born_charges" in wanted else None
        if graph is not None:
            output = self._engine.with_born(output, graph, wanted)
        check_output(output)
        return output


def _moved(output: ModelOutput, device: torch.device) -> ModelOutput:
    """Return the output on a device; itself when it is there."""
    if output.energy.device == device:
        return output
    found: dict[str, Any] = {
        name: None if t is None else t.to(device) for name, t in vars(output).items()
    }
    return ModelOutput(**found)
