"""Edge vectors, force assembly and sums in float64 under the interpreter and the guard."""

from __future__ import annotations

import pytest
import torch
from support.edges import relative, segment_of, some_edges

from cace_fast.kernels.emulation.guard import watch
from cace_fast.kernels.triton import launch

F64 = torch.float64


def test_edge_vectors_of_split_positions_are_exact() -> None:
    generator = torch.Generator().manual_seed(1)
    n, n_edges = 150, 140
    edges, _ = some_edges(n, 1, F64)
    n_edges = len(edges.sender)
    positions = 4000.0 * torch.rand(n, 3, generator=generator, dtype=F64)
    cells = 30.0 * torch.randn(3, 3, 3, generator=generator, dtype=F64)
    numbers = torch.randint(-2, 3, (3, 5), generator=generator, dtype=torch.int32)
    system = torch.tensor([0, 1, 2, 1, 0], dtype=torch.int32)
    shift = torch.randint(0, 5, (n_edges,), generator=generator, dtype=torch.int32)
    atoms, shifts = ([torch.full((3, k), torch.nan, dtype=F64) for _ in "hl"] for k in (n, 5))
    closest = torch.full((launch.n_blocks(n_edges),), torch.nan, dtype=F64)
    vectors = torch.full((3, n_edges), torch.nan, dtype=F64)
    with watch() as guard:
        launch.split(positions, *atoms)
        launch.shift_vectors(numbers, system, cells, *shifts)
        launch.edge_vectors(atoms, shifts, edges._replace(vectors=vectors), shift, closest)
        assert guard.unwritten("vectors") == 0
    high = atoms[0] * launch.SPLIT
    assert torch.equal(high, high.round())
    assert float(atoms[1].abs().max()) <= 0.5 / launch.SPLIT
    moved = torch.einsum("ke,ekx->ex", numbers[:, shift].double(), cells[system[shift]])
    expected = positions[edges.receiver] - positions[edges.sender] + moved
    assert relative(vectors, expected.T) < 1e-15
    assert float(closest.min()) == pytest.approx(float((expected**2).sum(1).min()), rel=1e-13)


def test_a_position_that_is_no_number_counts_as_too_close() -> None:
    edges, _ = some_edges(6, 4, F64)
    atoms = [torch.rand(3, 6, dtype=F64), torch.zeros(3, 6, dtype=F64)]
    atoms[0][1, 2] = torch.nan
    shifts = [torch.ones(3, 1, dtype=F64)] * 2
    closest = torch.ones(1, dtype=F64)
    shift = torch.zeros(len(edges.sender), dtype=torch.int32)
    launch.edge_vectors(atoms, shifts, edges, shift, closest)
    assert float(closest) == 0.0


@pytest.mark.parametrize("more", [False, True])
def test_forces_and_virials_are_sums_over_received_and_sent_edges(more: bool) -> None:
    edges, vectors = some_edges(11, 7, F64)
    grad = torch.randn(len(vectors), 3, dtype=F64)
    before = torch.randn(3, 11, dtype=F64)
    receiver, sender = edges.receiver.long(), edges.sender.long()
    assert torch.equal(edges.seg_atom[segment_of(edges)].long(), receiver)
    expected = torch.zeros(11, 3, dtype=F64).index_add(0, receiver, -grad)
    expected = expected.index_add(0, sender, grad).T + (before if more else 0.0)
    outer = -vectors[:, :, None] * grad[:, None, :]
    outer = torch.zeros(11, 3, 3, dtype=F64).index_add(0, receiver, 0.5 * (outer + outer.mT))
    rows = outer.flatten(1).T[[0, 4, 8, 5, 2, 1]]
    forces, virials = (torch.full((k, 11), torch.nan, dtype=F64) for k in (3, 6))
    with watch() as guard:
        launch.gather_forces(edges, grad.T.contiguous(), forces, virials, before if more else None)
        assert guard.unwritten("virials") == 0
    assert relative(forces, expected) < 1e-14
    assert relative(virials, rows) < 1e-14


def test_sums_of_systems() -> None:
    values = torch.randn(2, 2100)
    first = torch.tensor(
        [0, 1500, 1500, 2050], dtype=torch.int32
    )  # one is empty, some belong to none
    out = torch.full((2, 3), torch.nan, dtype=F64)
    with watch() as guard:
        launch.system_sums(values, first, out)
        assert guard.unwritten("out") == 0
    d = values.double()
    expected = torch.stack([d[:, :1500].sum(1), d[:, :0].sum(1), d[:, 1500:2050].sum(1)], 1)
    assert relative(out, expected) < 1e-14
