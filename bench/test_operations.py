"""Time of every operation, forward and with the gradient to its first input, in plain torch.

``make bench ARGS="-k moments"`` runs one. A row names operation, dtype and mode; ``us_per_atom``
is in the JSON that ``--benchmark-json FILE`` writes. An operation is timed only after its result
is found finite; that it is right is the matter of ``tests/``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from systems import System, crystal, ewald_specification, random_weights, specification
from torch import Tensor

from cace_fast.reference.contraction import contraction
from cace_fast.reference.ewald import ewald
from cace_fast.reference.messages import messages
from cace_fast.reference.moments import moments
from cace_fast.reference.readout import readout

Operation = tuple[Callable[[Tensor], Tensor], Tensor]
SPEC = specification()
REPRESENTATION = SPEC.representation
READOUT = SPEC.submodels[0].modules[0]


def _moments(system: System, dtype: torch.dtype) -> Operation:
    weights = random_weights(SPEC, dtype)
    edges = (system.senders, system.receivers, system.species)
    return lambda vectors: moments(vectors, *edges, weights, REPRESENTATION), system.vectors


def _contraction(system: System, dtype: torch.dtype) -> Operation:
    a = _moments(system, dtype)[0](system.vectors)
    size = (REPRESENTATION.l_max, REPRESENTATION.nu_max)
    return lambda a: contraction(a, *size), a


def _messages(system: System, dtype: torch.dtype) -> Operation:
    weights = random_weights(SPEC, dtype)
    a = _moments(system, dtype)[0](system.vectors)
    b = contraction(a, REPRESENTATION.l_max, REPRESENTATION.nu_max)
    edges = (system.vectors, system.senders, system.receivers, system.species)
    return lambda a: messages(a, b, *edges, weights, REPRESENTATION), a


def _readout(system: System, dtype: torch.dtype) -> Operation:
    weights = random_weights(SPEC, dtype)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(system.n_atoms, READOUT.mlp.widths[0], generator=generator).to(dtype)
    return lambda x: readout(x, weights, READOUT, "outputs.0.0"), x


def _ewald(system: System, dtype: torch.dtype) -> Operation:
    generator = torch.Generator().manual_seed(4)
    charges = torch.randn(system.n_atoms, 1, generator=generator).to(dtype)
    spec, cell = ewald_specification(), system.cell
    return lambda r: ewald(charges, r, cell, spec, periodic=True).energies, system.positions


OPERATIONS = {
    "moments": _moments,
    "contraction": _contraction,
    "messages": _messages,
    "readout": _readout,
    "ewald": _ewald,
}


@pytest.mark.parametrize("mode", ["forward", "gradient"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(benchmark, name: str, dtype: torch.dtype, mode: str):
    system = crystal(dtype)
    function, x = OPERATIONS[name](system, dtype)
    x = x.detach().requires_grad_(mode == "gradient")

    def run() -> Tensor:
        result = function(x)
        return torch.autograd.grad(result.sum(), x)[0] if mode == "gradient" else result

    assert torch.isfinite(run()).all()
    benchmark.extra_info |= {"atoms": system.n_atoms, "edges": len(system.senders)}
    benchmark(run)
    median = benchmark.stats.stats.median if benchmark.stats else float("nan")
    benchmark.extra_info["us_per_atom"] = 1e6 * median / system.n_atoms
