"""Edge vectors, force assembly and sums in float64 under the interpreter and the guard."""

from __future__ import annotations

import pytest
import torch
from gpu_emulator.guard import watch
from support.edges import relative, segment_of, some_edges

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
    lists = lists_of(shift, numbers, system, cells, n)
    closest = torch.full((launch.n_blocks(n_edges),), torch.nan, dtype=F64)
    vectors = torch.full((3, n_edges), torch.nan, dtype=F64)
    with watch() as guard:
        launch.split_positions(positions, lists)
        launch.edge_vectors(lists, edges._replace(vectors=vectors), closest)
        assert guard.unwritten("vectors") == 0
    high = lists.atoms[0] * launch.SPLIT
    assert torch.equal(high, high.round())
    assert float(lists.atoms[1].abs().max()) <= 0.5 / launch.SPLIT
    moved = torch.einsum("ke,ekx->ex", numbers[:, shift].double(), cells[system[shift]])
    expected = positions[edges.receiver] - positions[edges.sender] + moved
    assert relative(vectors, expected.T) < 1e-15
    assert float(closest.min()) == pytest.approx(float((expected**2).sum(1).min()), rel=1e-13)
    alone = [torch.full((3, n), torch.nan, dtype=F64) for _ in "hl"]
    with watch():
        launch.split(positions, *alone)
    assert torch.equal(alone[0], lists.atoms[0])
    assert torch.equal(alone[1], lists.atoms[1])


def lists_of(
    shift: torch.Tensor, numbers: torch.Tensor, system: torch.Tensor, cells: torch.Tensor, n: int
) -> launch.EdgeGeometry:
    """Return lists whose positions and shifts have yet to be written."""
    atoms, shifts = (
        tuple(torch.full((3, k), torch.nan, dtype=F64) for _ in "hl") for k in (n, len(system))
    )
    return launch.EdgeGeometry(shift, numbers, system, cells, atoms, shifts)


def test_a_position_that_is_no_number_counts_as_too_close() -> None:
    edges, _ = some_edges(6, 4, F64)
    shift = torch.zeros(len(edges.sender), dtype=torch.int32)
    none = torch.zeros(3, 1, dtype=torch.int32)
    lists = lists_of(shift, none, none[0], torch.eye(3, dtype=F64)[None], 6)
    positions = torch.rand(6, 3, dtype=F64)
    positions[2, 1] = torch.nan
    closest = torch.ones(1, dtype=F64)
    launch.split_positions(positions, lists)
    launch.edge_vectors(lists, edges, closest)
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


@pytest.mark.parametrize("derivatives", [True, False])
def test_sums_of_systems_and_the_status(derivatives: bool) -> None:
    n, n_out = 2100, 3
    first = torch.tensor([0, 1500, 1500, 2050], dtype=torch.int32)  # one is empty, some atoms left
    results = launch.Results(
        torch.randn(2, n, dtype=F64), *(torch.full((k, 3), torch.nan, dtype=F64) for k in (2,)),
        torch.rand(1500), torch.randn(n_out, n), torch.zeros(3, n), torch.randn(6, n),
        torch.full((6, 3), torch.nan, dtype=F64), torch.randn(6, 3, dtype=F64),
        torch.zeros(5, dtype=F64),
    )  # fmt: skip
    weights = torch.randn(n_out, n, dtype=F64)
    displacement_ratio, bins_too_small = (
        torch.rand(1700),
        torch.tensor([0, 0, 1], dtype=torch.int32),
    )
    found = launch.VerletStatus(
        displacement_ratio, bins_too_small, torch.tensor([70_000, 12], dtype=torch.int32)
    )
    long_range = results.energies[1].clone()
    with watch():
        launch.totals(results, weights, first, derivatives=derivatives, long_range=True, kept=found)
    here = slice(0, 2050)
    energies = (results.outputs.double() * weights).sum(0)
    assert relative(results.energies[0, here], energies[here]) < 1e-14
    assert torch.equal(results.energies[1], long_range)
    rows = [energies, long_range, *results.virials.double()]
    sums = torch.stack([torch.stack([r[:1500].sum(), r[:0].sum(), r[1500:2050].sum()])
                        for r in rows])  # fmt: skip
    assert relative(results.totals, sums[:2]) < 1e-13
    if derivatives:
        assert relative(results.virial_sums, sums[2:] + results.long_virials) < 1e-13
    else:
        assert torch.isnan(results.virial_sums).all()
    extremes = [float(results.closest.min()), float(displacement_ratio.max())]
    assert results.status.tolist() == [*extremes, 1.0, 70_000.0, 12.0]
