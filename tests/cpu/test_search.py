"""The compiled search of pairs, against all images of all atoms, and its threads."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cace_fast import InputError
from cace_fast.kernels.cpu.search import PairSearch


def pairs_of(found):
    """Return the pairs as a sorted array [n, 5]: receiver, sender, shift."""
    receivers, senders, shifts = found
    rows = np.column_stack([receivers, senders, shifts.reshape(-1, 3)])
    return rows[np.lexsort(rows.T[::-1])]


def every_image(r, h, pbc, reach):
    """All pairs by looking at all of them."""
    heights = 1.0 / np.linalg.norm(np.linalg.inv(h), axis=0)
    spread = np.ptp(r @ np.linalg.inv(h), axis=0)
    most = [int(np.ceil(reach / heights[a] + spread[a])) if pbc[a] else 0 for a in range(3)]
    rows = []
    for shift in itertools.product(*(range(-m, m + 1) for m in most)):
        d = r[:, None] - r[None] + np.array(shift) @ h
        i, j = np.nonzero((d * d).sum(2) < reach * reach)
        if not any(shift):
            i, j = i[i != j], j[i != j]
        rows.append(np.column_stack([i, j, np.broadcast_to(shift, (len(i), 3))]))
    found = np.concatenate(rows).astype(np.int64)
    return found[np.lexsort(found.T[::-1])]


@pytest.mark.parametrize("seed", range(60))
def test_pairs_are_all_pairs(seed):
    """Cells smaller and larger than the reach, skewed, left-handed; open ones, slabs, wires."""
    rng = np.random.default_rng(seed)
    h = rng.normal(size=(3, 3)) * rng.uniform(1.5, 8.0)
    while abs(np.linalg.det(h)) < 8.0:
        h = rng.normal(size=(3, 3)) * rng.uniform(1.5, 8.0)
    pbc = rng.integers(0, 2, 3).astype(bool)
    r = rng.uniform(-1.5, 2.5, (int(rng.integers(1, 25)), 3)) @ h
    reach = rng.uniform(0.5, 4.0)
    found = PairSearch().run(r, h, pbc, reach, 1)
    np.testing.assert_array_equal(pairs_of(found), every_image(r, h, pbc, reach))


def test_special_places():
    """Atoms on top of each other, on faces of cells, in one plane, one atom, none."""
    search, h = PairSearch(), np.diag([3.0, 4.0, 5.0])
    for r in (
        np.zeros((0, 3)),
        np.zeros((1, 3)),
        np.zeros((4, 3)),
        np.array([[0, 0, 0], [3, 0, 0], [-3, 4, 5], [1.5, 2, 2.5]], dtype=float),
        np.array([[x, y, 0] for x in range(3) for y in range(3)], dtype=float),
        np.array([[1e-17, -1e-17, 5 - 1e-16], [-1e-300, 0, 0]]),
    ):
        for pbc in itertools.product([False, True], repeat=3):
            found = pairs_of(search.run(r, h, pbc, 3.3, 1))
            np.testing.assert_array_equal(found, every_image(r, h, pbc, 3.3) if len(r) else found)
            assert len(r) or not len(found)


def test_threads_change_nothing():
    rng = np.random.default_rng(1)
    r, h = rng.uniform(0, 40, (4000, 3)), 40.0 * np.eye(3)
    one = [x.copy() for x in PairSearch().run(r, h, [True, True, False], 5.0, 1)]
    for threads in (2, 3):
        for a, b in zip(
            one, PairSearch().run(r, h, [True, True, False], 5.0, threads), strict=True
        ):
            np.testing.assert_array_equal(a, b)


def test_memory_is_used_again():
    """A small system after a large one, and back."""
    search, rng = PairSearch(), np.random.default_rng(2)
    for n in (50, 3, 200, 0, 20):
        r, h = rng.uniform(0, 9, (n, 3)), 9.0 * np.eye(3)
        found = pairs_of(search.run(r, h, [True] * 3, 3.0, 1))
        expected = every_image(r, h, [True] * 3, 3.0) if n else found
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("r", "h", "reach", "argument"),
    [
        ([[np.nan, 0, 0]], np.eye(3), 1.0, "positions"),
        ([[0, np.inf, 0]], np.eye(3), 1.0, "positions"),
        ([[1e30, 0, 0]], np.eye(3), 1.0, "positions"),
        ([[0, 0, 0]], np.zeros((3, 3)), 1.0, "cell"),
        ([[0, 0, 0]], np.eye(3), 0.0, "reach"),
        ([[0, 0, 0]], np.eye(3), np.nan, "reach"),
        ([[0, 0, 0]], 1e-3 * np.eye(3), 10.0, "reach"),
    ],
)
def test_what_makes_no_sense_is_refused(r, h, reach, argument):
    with pytest.raises(InputError) as caught:
        PairSearch().run(np.array(r, dtype=float), h, [True] * 3, reach, 1)
    assert caught.value.argument == argument
