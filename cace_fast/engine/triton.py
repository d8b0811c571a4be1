"""The engine of ``backend="triton"``: fused kernels on a GPU, or on CPU tensors under emulation."""

from __future__ import annotations

from collections.abc import Collection
from math import pi
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from cace_fast.errors import UnsupportedModelError
from cace_fast.graph import AtomicGraph, ModelOutput
from cace_fast.kernels import backend
from cace_fast.kernels.triton.edge_buffers import enlarged, initial_capacity
from cace_fast.kernels.triton.host_neighbors import PairSearch, grid_of
from cace_fast.kernels.triton.step import Launchers, Step
from cace_fast.min_dist import MinDist

from .checks import checked
from .moving import MovingGraph
from .own_list import OwnList
from .protocol import Moving
from .reference import ReferenceEngine
from .runner import Runner

PROBE = 2_048  # atoms of the buffers that memory is measured with


class TritonEngine:
    """Evaluates a model with the Triton kernels, in float32 with energies summed in float64.

    See :class:`cace_fast.engine.protocol.Engine`. Energies, forces, virials, charges and features
    come from the kernels; second derivatives and Born charges from the reference. It takes
    candidate pairs in any order, of a graph on any device, reuses a list as long as the graph's
    tensors are the same, and returns results on the device of the graph. On CUDA the second and
    later steps of one size replay a captured graph. Calls from several threads wait for each
    other; work goes to the current stream (``docs/developer/kernels.md``).

    Parameters
    ----------
    reference
        The model in plain torch, on the device.

    Raises
    ------
    UnsupportedModelError
        If the kernels do not have a part of the model, or for float64.
    """

    backend = "triton"
    note = ""
    sorts_pairs = True

    def __init__(self, reference: ReferenceEngine) -> None:
        self._reference = reference
        self.spec, self.weights = reference.spec, reference.weights
        self.program, self.long_range = reference.program, reference.long_range
        like = self.weights["embedding.sender"]
        if like.dtype != torch.float32 and not triton.knobs.runtime.interpret:
            raise UnsupportedModelError("float64: these kernels compute in float32")
        self.device = like.device
        self._launchers = Launchers(self.spec, self.weights, self.program)
        self._runner = Runner(self._launchers, reference)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._reference,)

    @property
    def description(self) -> str:
        """Name of the GPU, or of the one that is emulated (``docs/user/install.md``)."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        target = backend.emulated()
        return "interpreted" if target is None else f"emulated {target}"

    @property
    def n_bytes(self) -> int:
        """Memory in bytes held by the buffers of the last evaluation.

        See ``docs/user/performance.md``.
        """
        return self._runner.n_bytes

    def seconds(self) -> dict[str, float]:
        """Return an empty dictionary: times are not measured (``docs/user/performance.md``)."""
        return {}

    def bytes_per_atom(
        self, density: float, skin: float, n_segments: float, n_atoms: int = PROBE
    ) -> float:
        """Return the memory of the buffers in bytes per atom, for systems that make their own list.

        See ``docs/user/performance.md``.

        ``cace-fast info --memory`` prints it.

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
        capacity = initial_capacity(n, search.n_shifts, 1)
        if n_edges * n > capacity.edges or n_segments * n > capacity.segments:
            capacity = enlarged(capacity, round(n_edges * n), round(n_segments * n))
        return Step(self._launchers, capacity, search).n_bytes / n

    @checked
    def evaluate(
        self, graph: AtomicGraph, wanted: Collection[str] = (), *, min_dist: MinDist = None
    ) -> ModelOutput:
        """Return energies and what else is wanted; pairs beyond the cutoff do no harm.

        See :meth:`cace_fast.engine.protocol.Engine.evaluate` for arguments, results and errors.
        """
        return _moved(self._runner.run(graph, wanted, min_dist), graph.positions.device)

    def moving(self, graph: AtomicGraph, skin: float) -> Moving:
        """Return systems that move; steps make a new list when it is due.

        See :meth:`cace_fast.engine.protocol.Engine.moving` for arguments and errors.
        """
        if not graph.n_atoms:
            return MovingGraph(self, graph, skin)
        self.program.check()
        own = OwnList(graph, self.spec.representation.cutoff, skin)
        return Runner(self._launchers, self._reference, own)

    def to_device(self, graph: AtomicGraph) -> AtomicGraph:
        """Return the graph itself: evaluation copies what is new in it to the device.

        See ``docs/developer/decisions``, 0018.
        """
        return graph

    def features(self, graph: AtomicGraph) -> Tensor:
        """Return the invariants [n, n_radial, n_B, C, T] in the working dtype (equation 21)."""
        return self._runner.features(graph).to(graph.positions.device)

    def hessian(self, graph: AtomicGraph) -> Tensor:
        """Return the second derivatives of the energy [n, 3, n, 3] float64 in eV/A^2.

        See ``docs/conventions.md``, "Results".

        The reference computes them.

        Raises
        ------
        InputError
            For positions or cells that are not finite.
        """
        return self._reference.hessian(graph)


def _moved(output: ModelOutput, device: torch.device) -> ModelOutput:
    """Return the output on a device; itself when it is there."""
    if output.energy.device == device:
        return output
    found: dict[str, Any] = {
        name: None if t is None else t.to(device) for name, t in vars(output).items()
    }
    return ModelOutput(**found)
