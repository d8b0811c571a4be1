"""Moving systems of the Triton engine, and the pairs that they ought to find."""

from __future__ import annotations

import numpy as np
import torch

from cace_fast.engine import LongRange, ReferenceEngine
from cace_fast.engine.runner import Runner
from cace_fast.engine.triton import TritonEngine
from cace_fast.graph import AtomicGraph
from cace_fast.neighbors import neighbor_list
from cace_fast.spec import energy_program

from .tiny_models import tiny_spec, tiny_weights

MODEL = {"l_max": 1, "n_rbf": 2, "n_radial": 2, "elements": (8, 1, 29)}
SKIN = 0.5


def graph_without_pairs(
    parts: list[np.ndarray], cells: list[np.ndarray], pbc: list[tuple[bool, ...]]
) -> AtomicGraph:
    """Return a batch of systems of three elements in turn, without pairs."""
    sizes = torch.tensor([len(part) for part in parts])
    n = int(sizes.sum())
    none = torch.zeros(0, dtype=torch.int64)
    return AtomicGraph(
        torch.from_numpy(np.concatenate(parts)), torch.arange(n) % 3,
        torch.from_numpy(np.stack(cells)), torch.tensor(pbc),
        torch.repeat_interleave(torch.arange(len(parts)), sizes), none, none, none.reshape(0, 3),
    )  # fmt: skip


def engine_of(
    dtype: torch.dtype, device: torch.device | str = "cpu", how: LongRange | None = None, **options
) -> TritonEngine:
    """Return a tiny engine."""
    spec = tiny_spec(**MODEL | options)
    weights = tiny_weights(spec).to(torch.device(device), dtype)
    return TritonEngine(ReferenceEngine(spec, weights, energy_program(spec), how))


def run_of(
    parts: list[np.ndarray], cells: list[np.ndarray], pbc: list[tuple[bool, ...]],
    dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
) -> Runner:  # fmt: skip
    """Return a tiny model's moving systems."""
    engine = engine_of(dtype, device)
    graph = graph_without_pairs(parts, cells, pbc).to(torch.device(device))
    return moving_of(engine, graph)


def moving_of(engine: TritonEngine, graph: AtomicGraph) -> Runner:
    """Return systems that make their own list."""
    run = engine.moving(graph, SKIN)
    assert isinstance(run, Runner)
    return run


def same_pairs(
    run: Runner, parts: list[np.ndarray], cells: list[np.ndarray], pbc: list[tuple[bool, ...]]
) -> None:
    """Check the list of a run against vesin's of every system."""
    found, first, expected = run.pairs(), 0, []
    for r, cell, flags in zip(parts, cells, pbc, strict=True):
        one = neighbor_list(r, cell, np.array(flags), run.launchers.rep.cutoff + SKIN)
        ends = (one.receivers + first, one.senders + first)
        expected.append(np.column_stack([*ends, one.shifts]))
        first += len(r)
    columns = [found.receivers[:, None], found.senders[:, None], found.shifts]
    got = torch.cat(columns, 1).cpu().numpy()
    assert len(got) > 5
    np.testing.assert_array_equal(_rows(got), _rows(np.concatenate(expected)))


def _rows(pairs: np.ndarray) -> np.ndarray:
    return pairs[np.lexsort(pairs.T[::-1])]
