"""Time of a step of training on forces: the descriptor, forces, and the gradient of their loss.

``make bench ARGS="-k training"``. The kernels and plain torch take turns in one process;
``times_faster`` is in the JSON that ``--benchmark-json FILE`` writes, and is printed with ``-s``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from time import process_time

import pytest
import torch
from systems import crystal, specification
from torch import Tensor

from cace_fast.nn import Contraction, Moments
from cace_fast.reference.contraction import contraction
from cace_fast.reference.moments import moments

ROUNDS = 5
REP = replace(specification().representation, steps=())


def step(descriptor: Callable[[Tensor], Tensor], weights: list[torch.nn.Parameter]) -> list[Tensor]:
    """Return the gradient of a loss on dE/dd by the weights of a descriptor."""
    vectors = crystal(weights[0].dtype).vectors.requires_grad_(True)
    energy = descriptor(vectors).square().sum()
    (slopes,) = torch.autograd.grad(energy, vectors, create_graph=True)
    return list(torch.autograd.grad(slopes.square().sum(), weights))


def seconds(run: Callable[[], object]) -> float:
    """Return the processor's time of a call, so that what else runs does not count."""
    start = process_time()
    run()
    return process_time() - start


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_training_on_forces(benchmark, dtype: torch.dtype):
    system = crystal(dtype)
    edges = (system.senders, system.receivers, system.species)
    a, b = Moments(REP, dtype=dtype), Contraction(REP.l_max, REP.nu_max)
    weights = dict(a.named_parameters())

    def plain(vectors: Tensor) -> Tensor:
        return contraction(moments(vectors, *edges, weights, REP), REP.l_max, REP.nu_max)

    def kernels(vectors: Tensor) -> Tensor:
        return b(a(vectors, *edges))

    runs = [lambda f=f: step(f, list(weights.values())) for f in (kernels, plain)]
    for found, wanted in zip(*(run() for run in runs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0.0, atol=1e-3 * float(wanted.abs().max()))
    times = [[seconds(run) for run in runs] for _ in range(ROUNDS if benchmark.enabled else 1)]
    ours, theirs = (median(column) for column in zip(*times, strict=True))
    benchmark.extra_info |= {"atoms": system.n_atoms, "times_faster": theirs / ours}
    print(f"\n{system.n_atoms} atoms: {1e3 * ours:.0f} ms, plain torch {1e3 * theirs:.0f} ms, "
          f"{theirs / ours:.2f} times")  # fmt: skip
    benchmark.pedantic(runs[0], rounds=1)
