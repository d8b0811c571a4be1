"""What enters and leaves an engine is finite, or an error says where it is not."""

from __future__ import annotations

import torch
from torch import Tensor

from cace_fast.errors import CaceFastError, InputError
from cace_fast.geometry import check_finite, some
from cace_fast.graph import AtomicGraph, ModelOutput
from cace_fast.reference.atomic import columns_of

BY_SYSTEM = ("energy", "virials")


def check_positions(positions: Tensor) -> None:
    """Raise InputError for positions [n, 3] that are not finite."""
    if bool(torch.isfinite(positions.detach().sum())):
        return
    check_finite(torch.nonzero(~torch.isfinite(positions).all(1)).flatten().cpu().numpy())


def check_graph(graph: AtomicGraph) -> None:
    """Raise InputError for positions or cells of a graph that are not finite."""
    check_positions(graph.positions)
    if not bool(torch.isfinite(graph.cell).all()):
        raise InputError("cell", "finite numbers", graph.cell.tolist())


def check_output(output: ModelOutput) -> None:
    """Raise CaceFastError for results that are not finite, with the structures or atoms."""
    parts = {name: t for name, t in vars(output).items() if t is not None}
    # a sum is finite only if all its terms are; the host looks once
    sums = torch.stack([t.sum(dtype=torch.float64) for t in parts.values()])
    if bool(torch.isfinite(sums).all()):
        return
    for name, values in parts.items():
        rows = torch.isfinite(columns_of(values)).all(1)
        bad = torch.nonzero(~rows).flatten().cpu().numpy()
        if len(bad):
            who = "structures" if name in BY_SYSTEM else "atoms"
            raise CaceFastError(f"{name}: not finite for {who} {some(bad)} of this evaluation")
