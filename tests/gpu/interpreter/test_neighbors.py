"""The neighbour list made on the device, under the interpreter and the guard, against vesin's."""

from __future__ import annotations

import pytest
import torch
from gpu_emulator.guard import watch
from support.boxes import CELLS, PBC, places
from support.moving import run_of, same_pairs

from cace_fast.engine.runner import Runner


def listed(n: int, cell: str, pbc: str) -> Runner:
    """Return a system whose list was made under the guard."""
    run = run_of([places(n, CELLS[cell])], [CELLS[cell]], [PBC[pbc]], dtype=torch.float64)
    with watch():
        run.make_list()
    return run


@pytest.mark.parametrize(("cell", "pbc"), [("flat", "ppo"), ("small", "ooo")])
def test_pairs_are_those_of_vesin_and_nothing_is_touched_twice(cell: str, pbc: str) -> None:
    run = listed(5, cell, pbc)
    same_pairs(run, [places(5, CELLS[cell])], [CELLS[cell]], [PBC[pbc]])


def test_lists_are_in_the_order_of_the_kernels() -> None:
    run = listed(7, "triclinic", "ppp")
    same_pairs(run, [places(7, CELLS["triclinic"])], [CELLS["triclinic"]], [PBC["ppp"]])
    edges, species = run.step.pairs.edges, run.step.inputs.species.long()
    n, n_segments = run.own.search.found.need.tolist()
    receivers, senders = edges.receiver[:n].long(), edges.sender[:n].long()
    key = (receivers * 8 + species[senders]) * 100 + senders
    assert bool((key.diff() >= 0).all())
    rows = torch.repeat_interleave(edges.seg_first.diff())[:n]
    assert torch.equal(rows.unique(), torch.arange(n_segments))
    assert torch.equal(edges.seg_atom[rows].long(), receivers)
    assert torch.equal(edges.seg_species[rows].long(), species[senders])
    assert torch.equal(
        torch.repeat_interleave(edges.atom_first.diff()), edges.seg_atom[:n_segments].long()
    )
    sent = edges.sent_edge[:n].long()
    assert torch.equal(torch.repeat_interleave(edges.sent_first.diff()), senders[sent])
    assert torch.equal(sent.sort().values, torch.arange(n))


def test_what_does_not_fit_is_counted_and_nothing_else_is_written() -> None:
    run = listed(5, "small", "ppp")
    c = run.step.capacity
    assert int(run.own.search.found.need[0]) > c.edges
    assert int(run.step.pairs.edges.seg_first.max()) <= c.edges
    assert int(run.step.pairs.edges.sent_edge.max()) < c.edges
