"""Upstream's input dictionary of a structure, or of a batch of structures."""

from __future__ import annotations

import numpy as np
import torch

from cace_fast.neighbors import neighbor_list


def dictionary(frames, cutoff, dtype=torch.float64, extra=(), seed=0):
    """The documented keys; edges in no particular order."""
    frames = frames if isinstance(frames, list) else [frames]
    rng = np.random.default_rng(seed)
    keys = ("positions", "atomic_numbers", "edge_index", "unit_shifts", "shifts", "cell", "batch")
    parts = {key: [] for key in (*keys, *extra)}
    ptr = [0]
    for number, atoms in enumerate(frames):
        cell = np.asarray(atoms.cell[:])
        edges = neighbor_list(atoms.positions, cell, atoms.pbc, cutoff)
        order = rng.permutation(len(edges.senders))
        parts["positions"].append(torch.tensor(atoms.positions, dtype=dtype))
        parts["atomic_numbers"].append(torch.tensor(atoms.numbers, dtype=torch.int64))
        pairs = np.array([edges.senders[order], edges.receivers[order]]) + ptr[-1]
        parts["edge_index"].append(torch.tensor(pairs))
        parts["unit_shifts"].append(torch.tensor(edges.shifts[order], dtype=dtype))
        parts["shifts"].append(torch.tensor(edges.shifts[order] @ cell, dtype=dtype))
        parts["cell"].append(torch.tensor(cell if atoms.pbc.any() else 0 * cell, dtype=dtype))
        parts["batch"].append(torch.full((len(atoms),), number))
        for key in extra:
            parts[key].append(torch.tensor(atoms.arrays[key], dtype=dtype))
        ptr.append(ptr[-1] + len(atoms))
    joined = {k: torch.cat(v, -1 if k == "edge_index" else 0) for k, v in parts.items()}
    return joined | {"ptr": torch.tensor(ptr)}
