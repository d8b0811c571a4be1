"""The neighbour list against a brute-force search, and the Verlet skin against a fresh list."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from cace_fast.engine import VerletList
from cace_fast.errors import InputError
from cace_fast.neighbors import Searcher, neighbor_list

CUTOFF = 3.3


def brute_force(positions, cell, pbc, cutoff):
    """All (receiver, sender, shift) within the cutoff, by trying every image that can matter."""
    full = np.array(cell, float)
    spans = []
    spread = np.ptp(positions, axis=0).max(initial=0.0) + cutoff
    for k in range(3):
        others = [full[j] for j in range(3) if j != k and pbc[j]]
        height = np.linalg.norm(full[k])
        if pbc[k] and others:
            basis, _ = np.linalg.qr(np.array(others).T)
            height = np.linalg.norm(full[k] - basis @ (basis.T @ full[k]))
        spans.append(range(-int(spread / height) - 2, int(spread / height) + 3) if pbc[k] else [0])
    found = set()
    for shift in itertools.product(*spans):
        vectors = positions[:, None] - positions[None] + np.array(shift, float) @ full
        near = np.linalg.norm(vectors, axis=-1) < cutoff
        if not any(shift):
            near[np.arange(len(positions)), np.arange(len(positions))] = False
        found |= {(int(j), int(i), *shift) for j, i in np.argwhere(near)}
    return found


def as_set(edges):
    rows = np.column_stack([edges.receivers, edges.senders, edges.shifts]).tolist()
    assert len({tuple(r) for r in rows}) == len(rows)
    return {tuple(r) for r in rows}


TRICLINIC = np.array([[4.1, 0.0, 0.0], [1.9, 3.7, 0.0], [-1.2, 0.8, 4.4]])
CELLS = {
    "cubic": (np.eye(3) * 6.0, (True, True, True)),
    "triclinic": (TRICLINIC, (True, True, True)),
    "left-handed": (TRICLINIC[[1, 0, 2]], (True, True, True)),
    "smaller than the cutoff": (np.diag([1.7, 2.1, 1.9]), (True, True, True)),
    "primitive fcc": (2.1 * (1 - np.eye(3)), (True, True, True)),
    "slab with a vector": (TRICLINIC * [1, 1, 4], (True, True, False)),
    "slab without a vector": (np.diag([4.0, 4.5, 0.0]), (True, True, False)),
    "tilted slab": (np.array([[3.0, 0.5, 1.0], [0.2, 4.0, -0.7], [0, 0, 0]]), (True, True, False)),
    "wire along y": (np.diag([0.0, 3.5, 0.0]), (False, True, False)),
    "molecule with a cell": (TRICLINIC, (False, False, False)),
    "molecule without": (np.zeros((3, 3)), (False, False, False)),
}


@pytest.mark.parametrize("n_atoms", [1, 2, 13])
@pytest.mark.parametrize("case", CELLS)
def test_equals_brute_force(case, n_atoms):
    cell, pbc = CELLS[case]
    rng = np.random.default_rng(len(case) + n_atoms)
    positions = rng.uniform(-6.0, 9.0, (n_atoms, 3))  # most atoms are outside the cell
    edges = neighbor_list(positions, cell, np.array(pbc), CUTOFF)
    assert as_set(edges) == brute_force(positions, cell, pbc, CUTOFF)


@pytest.mark.parametrize("case", ["triclinic", "slab without a vector", "molecule without"])
def test_order_is_receiver_sender_shift(case):
    cell, pbc = CELLS[case]
    positions = np.random.default_rng(1).uniform(0.0, 4.0, (9, 3))
    edges = neighbor_list(positions, cell, np.array(pbc), CUTOFF)
    rows = np.column_stack([edges.receivers, edges.senders, edges.shifts]).tolist()
    assert rows == sorted(rows)
    assert all(array.dtype == np.int64 for array in edges)


def test_pairs_at_the_cutoff_are_out():
    positions = np.array([[0.0, 0, 0], [CUTOFF, 0, 0], [0, np.nextafter(CUTOFF, 0.0), 0]])
    edges = neighbor_list(positions, np.zeros((3, 3)), np.zeros(3, bool), CUTOFF)
    assert as_set(edges) == {(0, 2, 0, 0, 0), (2, 0, 0, 0, 0)}


def test_atoms_far_apart_and_none_at_all():
    positions = np.array([[0.0, 0, 0], [1e7, -1e7, 3e6]])
    edges = neighbor_list(positions, np.zeros((3, 3)), np.zeros(3, bool), CUTOFF)
    assert len(edges.senders) == 0
    empty = neighbor_list(np.zeros((0, 3)), np.eye(3), np.ones(3, bool), CUTOFF)
    assert empty.shifts.shape == (0, 3)


@pytest.mark.parametrize(
    ("positions", "cell", "pbc", "message"),
    [
        ([[0.0, 0, np.nan], [0, 0, 0]], np.eye(3), False, r"positions: expected finite.*atoms 0"),
        ([[0.0, 0, 0]], np.full((3, 3), np.inf), True, "cell: expected finite"),
        ([[0.0, 0, 0]], np.zeros((3, 3)), True, "cell: expected independent vectors"),
        ([[0.0, 0, 0]], np.ones((3, 3)), True, "cell: expected independent vectors"),
        ([[0.0, 0, 0]], np.eye(3) * 1e-3, True, "cell: expected a cell with at most"),
        ([0.0, 0, 0], np.eye(3), True, r"positions: expected an array of shape \[n_atoms, 3\]"),
    ],
)
def test_refuses_nonsense(positions, cell, pbc, message):
    with pytest.raises(InputError, match=message):
        neighbor_list(np.array(positions), cell, np.full(3, pbc), CUTOFF)


def within(edges, positions, cell):
    shift = edges.shifts @ cell
    d = positions[edges.receivers] - positions[edges.senders] + shift
    near = np.linalg.norm(d, axis=1) < CUTOFF
    return {
        (int(r), int(s), *map(int, k))
        for r, s, k in zip(
            edges.receivers[near], edges.senders[near], edges.shifts[near], strict=True
        )
    }


def test_skin_never_misses_a_pair_and_rarely_searches():
    rng = np.random.default_rng(5)
    cell, pbc = TRICLINIC * 2.0, np.ones(3, bool)
    positions = rng.uniform(0.0, 8.0, (40, 3))
    listing = VerletList(CUTOFF, skin=0.8)
    for step in range(60):
        positions = positions + rng.normal(0.0, 0.02, positions.shape)
        if step == 20:
            positions[3] += cell[1]  # an atom is wrapped
        if step == 30:
            cell = cell * 1.001
        if step == 40:
            positions = positions[:-1]
        if step == 50:
            pbc = np.array([True, True, False])
        edges = listing(positions, cell, pbc)
        fresh = neighbor_list(positions, cell, pbc, CUTOFF)
        assert within(edges, positions, cell) == as_set(fresh)
    assert 5 <= listing.n_builds < 25


def test_skin_keeps_its_own_copies():
    positions, cell, pbc = np.array([[0.0, 0, 0], [0, 0, 4.5]]), np.eye(3) * 20, np.ones(3, bool)
    listing = VerletList(CUTOFF, skin=0.5)
    assert len(listing(positions, cell, pbc).senders) == 0
    positions[1, 2] = 2.0  # in place
    assert len(listing(positions, cell, pbc).senders) == 2
    cell[:] = np.eye(3) * 2.5
    assert len(listing(positions, cell, pbc).senders) > 2
    with pytest.raises(InputError, match="skin: expected a length of at least 0"):
        VerletList(CUTOFF, -1.0)


@pytest.mark.parametrize("fraction", [0.49, 0.51])
def test_skin_covers_two_atoms_that_approach(fraction):
    """Just outside the list at first, each moves about half the skin towards the other."""
    skin, gap = 0.8, CUTOFF + 0.8 + 1e-3
    positions = np.array([[0.0, 0, 0], [gap, 0, 0]])
    listing = VerletList(CUTOFF, skin)
    none, pbc = np.zeros((3, 3)), np.zeros(3, bool)
    assert len(listing(positions, none, pbc).senders) == 0
    moved = positions + np.array([[fraction * skin, 0, 0], [-fraction * skin, 0, 0]])
    inside = gap - 2 * fraction * skin < CUTOFF
    assert len(within(listing(moved, none, pbc), moved, none)) == 2 * inside
    assert inside == (fraction > 0.5)


def test_memory_of_a_list_is_used_again_only_when_nobody_looks_at_it():
    rng = np.random.default_rng(8)
    cell, pbc = np.eye(3) * 9.0, np.ones(3, bool)
    search = Searcher(CUTOFF, 30)
    wanted = {"cutoff": CUTOFF, "in_order": False, "search": search}
    start = rng.uniform(0.0, 9.0, (30, 3))
    seen, tensor, expected = set(), None, None
    for step in range(12):
        positions = start + rng.normal(0.0, 0.05, start.shape)
        edges = neighbor_list(positions, cell, pbc, **wanted)
        near = within(edges, positions, cell)
        assert near == as_set(neighbor_list(positions, cell, pbc, CUTOFF))
        seen.add(edges.senders.__array_interface__["data"][0])
        if step == 3:  # a view of a view, held by a tensor alone
            tensor, expected = torch.from_numpy(edges.shifts[3:, 1]), edges.shifts[3:, 1].copy()
    assert len(seen) <= 4
    assert (tensor.numpy() == expected).all()
    positions = np.zeros((1, 3))
    assert len(neighbor_list(positions, cell, pbc, **wanted).senders) == 0
