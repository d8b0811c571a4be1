"""Time of every operation, forward and with the gradient to its first input, on each backend.

``make bench ARGS="-k moments"`` runs one. A row names backend, operation, dtype and mode;
``us_per_atom`` is in the JSON that ``--benchmark-json FILE`` writes. The rows of the kernels hold
what an operator adds to them (checks, comparing the weights with those of the call before); a whole
evaluation is one call, see ``test_evaluation.py``. An operation is timed only after its result is
found finite; that it is right is the matter of ``tests/``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from systems import System, crystal, ewald_specification, random_weights, specification
from torch import Tensor

from cace_fast.kernels.cpu import library

Operation = tuple[Callable[[Tensor], Tensor], Tensor]
NAMES = ("moments", "contraction", "messages", "readout", "ewald")
HOMES = {"reference": "cace_fast.reference", "cpu": "cace_fast.kernels"}
SPEC = specification()
REPRESENTATION = SPEC.representation
READOUT = SPEC.submodels[0].modules[0]


class Operations:
    """The operations of one backend, each with its other inputs, and its first input."""

    def __init__(self, backend: str, system: System, dtype: torch.dtype) -> None:
        found = {name: getattr(import_module(f"{HOMES[backend]}.{name}"), name) for name in NAMES}
        self.plain, self.system, self.dtype = found, system, dtype
        self.weights = random_weights(SPEC, dtype)
        self.generator = torch.Generator().manual_seed(3)

    def of(self, name: str) -> Operation:
        """Return the operation called ``name``."""
        return getattr(self, f"_{name}")()

    def _moments(self) -> Operation:
        s = self.system
        edges = (s.senders, s.receivers, s.species)
        function = self.plain["moments"]
        return lambda d: function(d, *edges, self.weights, REPRESENTATION), s.vectors

    def _contraction(self) -> Operation:
        run, vectors = self._moments()
        size = (REPRESENTATION.l_max, REPRESENTATION.nu_max)
        return lambda a: self.plain["contraction"](a, *size), run(vectors)

    def _messages(self) -> Operation:
        contract, a = self._contraction()
        b, s = contract(a), self.system
        edges = (s.vectors, s.senders, s.receivers, s.species)
        function = self.plain["messages"]
        return lambda a: function(a, b, *edges, self.weights, REPRESENTATION), a

    def _readout(self) -> Operation:
        shape = (self.system.n_atoms, READOUT.mlp.widths[0])
        x = torch.randn(shape, generator=self.generator).to(self.dtype)
        return lambda x: self.plain["readout"](x, self.weights, READOUT, "outputs.0.0"), x

    def _ewald(self) -> Operation:
        q = torch.randn(self.system.n_atoms, 1, generator=self.generator).to(self.dtype)
        spec, cell, function = ewald_specification(), self.system.cell, self.plain["ewald"]
        return lambda r: function(q, r, cell, spec, periodic=True).energies, self.system.positions


@pytest.mark.parametrize("mode", ["forward", "gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("backend", HOMES)
@pytest.mark.parametrize("name", NAMES)
def test_operation(benchmark, name: str, backend: str, dtype: torch.dtype, mode: str):
    system = crystal(dtype)
    function, x = Operations(backend, system, dtype).of(name)
    x = x.detach().requires_grad_(mode == "gradient")

    def run() -> Tensor:
        result = function(x)
        return torch.autograd.grad(result.sum(), x)[0] if mode == "gradient" else result

    assert torch.isfinite(run()).all()
    peak = library.peak(32 if dtype == torch.float32 else 64) if backend == "cpu" else 0.0
    benchmark.extra_info |= {"atoms": system.n_atoms, "edges": len(system.senders)}
    benchmark(run)
    median = benchmark.stats.stats.median if benchmark.stats else float("nan")
    benchmark.extra_info["us_per_atom"] = 1e6 * median / system.n_atoms
    benchmark.extra_info["mflop_per_atom"] = 1e-6 * median * peak / system.n_atoms
