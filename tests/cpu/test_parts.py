"""Separate parts of the library: pair lists, the k sum in parts, the machine."""

from __future__ import annotations

import ctypes
from ctypes import byref, c_double, c_int32, c_int64, c_void_p

import numpy as np
import pytest

from cace_fast.errors import InputError
from cace_fast.kernels.cpu import interface, library
from cace_fast.kernels.cpu.long_range import EwaldSum


def address(array):
    return c_void_p(array.ctypes.data)


class ListC(ctypes.Structure):
    """``cf_list``; addresses of arrays."""

    _fields_ = (
        ("n_pairs", c_int64), ("n_owned", c_int32), ("n_all", c_int32),
        ("first", c_void_p), ("sender", c_void_p), ("shift", c_void_p),
        ("sent_first", c_void_p), ("sent", c_void_p),
    )  # fmt: skip


class PairList:
    """``cf_pairs`` of the C interface."""

    def __init__(self):
        self.lib, self.handle = library.library(), c_void_p()
        self.text = ctypes.create_string_buffer(library.ERROR_LENGTH)
        assert self.lib.cf_pairs_create(byref(self.handle), self.text) == 0

    def set(self, n_owned, species, system, receivers, senders, shifts, threads=1):
        self.n, self.n_all, self.n_pairs = n_owned, len(species), len(senders)
        return self.lib.cf_pairs_set(
            self.handle, n_owned, len(species), address(species),
            None if system is None else address(system), c_int64(len(senders)),
            address(receivers), address(senders), address(shifts), threads, self.text,
        )  # fmt: skip

    def arrays(self, cells):
        out = ListC()
        self.lib.cf_pairs_list(self.handle, byref(out))

        def take(kind, where, n):
            pointer = ctypes.cast(where, ctypes.POINTER(kind))
            return np.ctypeslib.as_array(pointer, (n,)).copy() if n else np.zeros(0, kind)

        vectors = np.zeros((self.lib.cf_pairs_n_shifts(self.handle), 3))
        self.lib.cf_pairs_vectors(self.handle, address(cells), address(vectors))
        return {
            "first": take(c_int64, out.first, self.n + 1),
            "sender": take(c_int32, out.sender, self.n_pairs),
            "shift": vectors[take(c_int32, out.shift, self.n_pairs)],
            "sent_first": take(c_int64, out.sent_first, self.n_all + 1),
            "sent": take(c_int32, out.sent, self.n_pairs),
        }

    def __del__(self):
        self.lib.cf_pairs_free(self.handle)


def random_pairs(n_owned, n_all, n_pairs, reach, seed=0):
    rng = np.random.default_rng(seed)
    species = rng.integers(0, 3, n_all).astype(np.int32)
    receivers, senders = rng.integers(0, n_owned, n_pairs), rng.integers(0, n_all, n_pairs)
    return species, receivers, senders, rng.integers(-reach, reach + 1, (n_pairs, 3))


@pytest.mark.parametrize(
    ("n_owned", "n_all", "n_pairs", "reach"),
    [(5, 9, 60, 1), (40, 40, 20_000, 3), (3, 3, 500, 10**8), (4, 4, 0, 1), (1, 1, 1, 0)],
)
def test_pairs_are_sorted_and_seen_from_both_sides(n_owned, n_all, n_pairs, reach):
    species, receivers, senders, shifts = random_pairs(n_owned, n_all, n_pairs, reach)
    cells = np.array([[[5.0, 0, 0], [1.0, 4.0, 0], [0.5, -1, 6.0]]])
    order = np.lexsort((*shifts.T[::-1], senders, species[senders], receivers))
    for threads in (1, 3):
        pairs = PairList()
        assert pairs.set(n_owned, species, None, receivers, senders, shifts, threads) == 0
        got = pairs.arrays(cells)
        np.testing.assert_array_equal(got["sender"], senders[order])
        np.testing.assert_allclose(got["shift"], shifts[order] @ cells[0], rtol=1e-15, atol=1e-9)
        np.testing.assert_array_equal(
            got["first"], np.searchsorted(receivers[order], np.arange(n_owned + 1))
        )
        for atom in range(n_all):
            own = got["sent"][got["sent_first"][atom] : got["sent_first"][atom + 1]]
            np.testing.assert_array_equal(own, np.flatnonzero(senders[order] == atom))


def test_shifts_of_several_systems_use_their_own_cells():
    species = np.zeros(4, np.int32)
    system = np.array([0, 0, 1, 1], np.int32)
    receivers, senders = np.array([0, 1, 2, 3]), np.array([1, 0, 3, 2])
    shifts = np.array([[1, 0, 0], [-1, 0, 0], [1, 0, 0], [-1, 0, 0]])
    pairs = PairList()
    assert pairs.set(4, species, system, receivers, senders, shifts) == 0
    got = pairs.arrays(np.array([np.eye(3) * 2.0, np.eye(3) * 7.0]))
    np.testing.assert_array_equal(got["shift"][:, 0], [2.0, -2.0, 7.0, -7.0])


@pytest.mark.parametrize(("atom", "receiver"), [(9, True), (-1, True), (9, False), (-1, False)])
def test_pairs_of_atoms_that_do_not_exist_are_refused(atom, receiver):
    species, receivers, senders, shifts = random_pairs(5, 9, 20, 1)
    (receivers if receiver else senders)[7] = atom
    pairs = PairList()
    assert pairs.set(5, species, None, receivers, senders, shifts) == library.INVALID
    assert pairs.text.value == b"pairs: expected numbers of atoms, got others in pair 7"


def test_shifts_beyond_all_reason_are_refused():
    species, receivers, senders, shifts = random_pairs(5, 9, 20, 1)
    shifts[3, 1] = 2**40
    pairs = PairList()
    assert pairs.set(5, species, None, receivers, senders, shifts) == library.INVALID
    assert pairs.text.value == b"pairs: expected cell shifts in range, got others in pair 3"


SPEC = interface.EwaldSpec(1.9, 0.8, 1.3, 0.0, 0.0, 1, 1, 0)
CELL = np.array([[9.0, 0, 0], [1.7, 8.4, 0], [-2.1, 0.9, 10.1]])


def charges(n=150, n_q=3):
    rng = np.random.default_rng(1)
    return rng.normal(size=(n, n_q)), rng.uniform(-1, 2, (n, 3)) @ CELL


@pytest.mark.parametrize("periodic", [True, False])
def test_threads_change_no_bit_of_the_long_range(periodic):
    q, r = charges(n=700)
    one, *others = (
        EwaldSum(SPEC).evaluate(q, r, CELL, periodic=periodic, n_threads=n) for n in (1, 2, 3)
    )
    for other in others:
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_sum_is_the_same_when_its_buffers_are_used_again():
    total = EwaldSum(SPEC)
    q, r = charges()
    first = total.evaluate(q, r, CELL, periodic=True, n_threads=1)
    total.evaluate(q[:9], r[:9], CELL * 1.3, periodic=True, n_threads=1)
    again = total.evaluate(q, r, CELL, periodic=True, n_threads=1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_long_range_refusals():
    q, r = charges(n=4)
    with pytest.raises(InputError, match="cell: expected three independent lattice vectors"):
        EwaldSum(SPEC).evaluate(q, r, np.zeros((3, 3)), periodic=True, n_threads=1)
    with pytest.raises(InputError, match="takes at most 4 GB and 60 s, got"):
        EwaldSum(SPEC).evaluate(q, r, CELL * 1e4, periodic=True, n_threads=1)
    with pytest.raises(InputError, match=r"ewald: expected dl and sigma above 0, got 0.0000"):
        EwaldSum(interface.EwaldSpec(0.0, 1.0, 1.0, 0.0, 0.0, 1, 0, 0))


def test_peaks_of_the_machine_are_plausible():
    assert 1e9 < library.peak(64) <= 1.2 * library.peak(32) < 1e12
    assert 1e8 < library.bandwidth() < 1e12


def test_distances_of_the_closest_pair():
    species, receivers, senders, shifts = random_pairs(30, 30, 400, 1)
    keep = receivers != senders
    receivers, senders, shifts = receivers[keep], senders[keep], shifts[keep]
    receivers, senders = np.r_[receivers, senders], np.r_[senders, receivers]
    shifts = np.r_[shifts, -shifts]
    r = np.random.default_rng(2).uniform(0, 9, (30, 3))
    pairs = PairList()
    assert pairs.set(30, species, None, receivers, senders, shifts) == 0
    vectors = np.zeros((pairs.lib.cf_pairs_n_shifts(pairs.handle), 3))
    pairs.lib.cf_pairs_vectors(pairs.handle, address(CELL), address(vectors))
    closest = pairs.lib.cf_pairs_closest
    closest.restype = c_double
    atoms = (c_int32 * 2)()
    found = closest(pairs.handle, address(r), address(vectors), 2, atoms)
    lengths = np.linalg.norm(r[receivers] - r[senders] + shifts @ CELL, axis=1)
    assert found == pytest.approx(lengths.min(), rel=1e-13)
    k = lengths.argmin()
    assert sorted(atoms) == sorted((receivers[k], senders[k]))
