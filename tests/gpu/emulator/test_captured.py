"""Captured steps give, bit for bit, what the same steps give launch by launch.

On a GPU steps are CUDA graphs; here `support.captured` stands in for them.
"""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from gpu_emulator import emulate
from support.boxes import PBC
from support.captured import Graph, graphs
from support.moving import engine_of, graph_without_pairs, moving_of
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights

from cace_fast.engine import ReferenceEngine
from cace_fast.engine.long_range import LongRange
from cace_fast.engine.runner import Runner
from cace_fast.engine.triton import TritonEngine
from cace_fast.graph import AtomicGraph, ModelOutput
from cace_fast.neighbors import neighbor_list
from cace_fast.spec import energy_program
from cace_fast.structures import extra_inputs, graph_of

WANTED = ("forces", "virials")
CPU = torch.device("cpu")
KINDS = {
    "plain": {},
    "messages": {"steps": ("M+Ar+Bchi",)},
    "charges": {"ewald_channels": 2},
    "mesh": {"ewald_channels": 2},
    "inputs": {"inputs": ("charge_states",)},
}


def same(found: ModelOutput, expected: ModelOutput) -> None:
    for name in ("energy", "energies", "energies_sr", *WANTED):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


def moving(how: LongRange, **options: object) -> Runner:
    engine = engine_of(torch.float32, CPU, how, **options)
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:24]
    r, cell = 2.6 * grid + rng.uniform(-0.2, 0.2, (24, 3)), 7.8 * np.eye(3)
    return moving_of(engine, graph_without_pairs([r], [cell], [PBC["ppp"]]))


@pytest.mark.parametrize("kind", ["plain", "messages", "charges", "mesh"])
def test_a_moving_system(kind: str) -> None:
    how = LongRange("mesh" if kind == "mesh" else "direct", 1e-5)
    with emulate("sm_90"):
        plain = moving(how, **KINDS[kind])
        with graphs() as made:
            captured = moving(how, **KINDS[kind])
            kicks = torch.randn(9, 24, 3, generator=torch.Generator().manual_seed(1)).double()
            for k, kick in enumerate(kicks):
                for run in (plain, captured):
                    # every third kick is beyond the skin: steps with a new list and without
                    run.positions.add_((0.3 if k % 3 == 0 else 0.01) * kick)
                    if k == 6:
                        run.set_cell((7.9 * torch.eye(3).double())[None])
                same(captured.evaluate(WANTED, None), plain.evaluate(WANTED, None))
        assert captured.n_builds == plain.n_builds > 2
    assert len(made) >= 2
    assert sum(graph.replays for graph in made) > len(made)


def given_pairs(kind: str, scale: float, seed: int) -> tuple[TritonEngine, AtomicGraph]:
    spec = tiny_spec(l_max=1, n_rbf=2, n_radial=2, **KINDS[kind])
    weights = tiny_weights(spec).to(CPU, torch.float32)
    engine = TritonEngine(ReferenceEngine(spec, weights, energy_program(spec)))
    atoms = tiny_structure(spec, seed=seed)
    atoms.set_cell(scale * atoms.cell[:], scale_atoms=True)

    def edges(positions, cell, pbc):
        return neighbor_list(positions, cell, pbc, spec.representation.cutoff + 0.3)

    return engine, graph_of(atoms, spec.representation, inputs=extra_inputs(spec), edges=edges)


@pytest.mark.parametrize("kind", ["plain", "charges", "inputs"])
def test_graphs_that_bring_their_pairs(kind: str) -> None:
    with emulate("sm_90"), graphs() as made:
        engine, first = given_pairs(kind, 1.0, seed=0)
        _, second = given_pairs(kind, 1.02, seed=1)
        for given in (first, first, first, second, first):
            moved = replace(given, positions=given.positions + 0.01)
            again = replace(moved, positions=moved.positions * 1.001, cell=moved.cell * 1.001)
            for part in (moved, again):
                with mock.patch.object(engine._runner, "captures", False):
                    expected = engine.evaluate(part, WANTED)
                same(engine.evaluate(part, WANTED), expected)
    assert made
    assert sum(graph.replays for graph in made) > 2


def test_what_is_not_in_the_recorded_memory_is_not_seen() -> None:
    with emulate("sm_90"), graphs():
        run = moving(LongRange())
        for _ in range(4):
            before = run.evaluate(WANTED, None)
        elsewhere = run.positions + 0.01 * torch.rand(24, 3)
        run.own.graph = replace(run.own.graph, positions=elsewhere)
        run.step.inputs.positions = elsewhere
        after = run.evaluate(WANTED, None)
    same(after, before)  # new positions, in other memory: wrong on a GPU, and here


def test_a_look_at_the_device_cannot_be_captured() -> None:
    run = Runner.__new__(Runner)
    run.captures, run._captured = True, {}
    with graphs():
        run._replay((True,), lambda: None)
        with pytest.raises(AssertionError, match="the host looks at the device"):
            run._replay((True,), lambda: torch.ones(1).item())
    assert not any(isinstance(held, Graph) for held in run._captured.values())
