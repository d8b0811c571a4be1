"""Distant and dense atoms: neighbours in bounded time and memory, or a typed error."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights

import cace_fast
from cace_fast import Potential, geometry, neighbors
from cace_fast.device_neighbors import device_neighbor_list
from cace_fast.errors import InputError
from cace_fast.neighbors import neighbor_list

CUTOFF = 6.5
NO_CELL = np.zeros((3, 3))
OPEN, SLAB, WIRE = (False,) * 3, (True, True, False), (False, False, True)


def pairs_of(positions, cell, pbc, search):
    r, h, flags = np.array(positions, float), np.array(cell, float), np.array(pbc)
    if search == "host":
        edges = neighbor_list(r, h, flags, CUTOFF)
    else:
        arrays = (torch.from_numpy(a) for a in (r, h[None], flags[None]))
        edges = device_neighbor_list(*arrays, CUTOFF)
    rows = np.column_stack([np.asarray(a) for a in (edges.receivers, edges.senders, edges.shifts)])
    return rows.tolist()


@pytest.mark.parametrize("search", ["host", "device"])
@pytest.mark.parametrize("apart", [1e4, 5e5, 1e6, 1e12, 1e300])
@pytest.mark.parametrize(
    ("cell", "pbc", "direction"),
    [
        (NO_CELL, OPEN, [1, 0, 0]),
        (NO_CELL, OPEN, [1, -1, 1]),
        (np.diag([5.0, 5.0, 0.0]), SLAB, [0, 0, 1]),
        (np.diag([0.0, 0.0, 5.0]), WIRE, [1, 1, 0]),
    ],
    ids=["axis", "diagonal", "slab", "wire"],
)
def test_groups_of_atoms_any_distance_apart_see_only_themselves(
    cell, pbc, direction, apart, search
):
    group = np.array([[0.0, 0, 0], [1.0, 0.5, 2.0]])
    # in one coordinate at a time: 1 A beside 1e12 A is still 1 A only where it is another axis
    away = np.array(direction, float) * apart
    positions = np.concatenate([group, group * (np.array(direction) == 0) + away])
    found = pairs_of(positions, cell, pbc, search)
    one = pairs_of(group, cell, pbc, search)
    assert [row for row in found if row[0] < 2] == one
    assert all((row[0] < 2) == (row[1] < 2) for row in found)


@pytest.mark.parametrize("n", [1_000, 3_000])
def test_many_atoms_in_a_small_box_are_refused_before_their_pairs_are_made(n):
    positions = np.random.default_rng(0).random((n, 3)) * 2.0
    for search in ("host", "device"):
        with pytest.raises(InputError, match=r"at most 5000 neighbours of an atom.*got \d{8,} pai"):
            pairs_of(positions, np.eye(3) * 2.0, (True,) * 3, search)


def test_a_crowd_is_counted_exactly_where_it_is_near_the_limit(monkeypatch):
    """64 atoms in a box whose pairs are known: the limit just above passes, just below raises."""
    positions = np.random.default_rng(1).random((64, 3)) * 4.0
    rows = pairs_of(positions, np.eye(3) * 4.0, (True,) * 3, "host")
    monkeypatch.setattr(neighbors, "MAX_CROWD", 0)  # the search with bounds
    monkeypatch.setattr(geometry, "MAX_NEIGHBORS", len(rows) / 64)
    assert pairs_of(positions, np.eye(3) * 4.0, (True,) * 3, "host") == rows
    monkeypatch.setattr(geometry, "MAX_NEIGHBORS", len(rows) / 64 - 0.01)
    with pytest.raises(InputError, match=f"got {len(rows)} pairs or more of 64 atoms"):
        pairs_of(positions, np.eye(3) * 4.0, (True,) * 3, "host")


@pytest.mark.parametrize("search", ["host", "device"])
def test_positions_beyond_1e9_cells_are_refused(search):
    cell = np.eye(3) * 10.0
    near = pairs_of([[0, 0, 0], [9.9e9 + 3.0, 0, 0]], cell, (True,) * 3, search)
    assert near == [[0, 1, 990_000_000, 0, 0], [1, 0, -990_000_000, 0, 0]]
    with pytest.raises(InputError, match=r"within 1e\+09 cells.*got atoms 1 beyond.*wrap\(\)"):
        pairs_of([[0, 0, 0], [3e10, 0, 0]], cell, (True,) * 3, search)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_atom_far_away_has_the_energy_of_an_atom_alone(backend):
    potential = cace_fast.load("copper-emt", backend=backend, dtype="float64")
    alone = potential.compute(Atoms("Cu"), ("energy",))["energy"]
    for pbc, cell in ((OPEN, None), (SLAB, [50.0, 50.0, 0]), (WIRE, [0, 0, 50.0])):
        where = np.where(pbc, 20.0, 1e6)
        pair = Atoms("Cu2", positions=[[0, 0, 0], where], cell=cell, pbc=pbc)
        result = potential.compute(pair, ("energy", "forces"))
        assert result["energy"] == pytest.approx(2 * alone, abs=1e-10)
        assert not result["forces"].any()


def test_a_crystal_far_from_the_origin_is_the_crystal():
    from ase.build import bulk

    potential = cace_fast.load("copper-emt", dtype="float64")
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    want = potential.compute(atoms)
    atoms.positions += [3.61e8, 0, -3.61e8]  # 1e8 cells, where a double resolves 6e-8 A
    got = potential.compute(atoms)
    np.testing.assert_allclose(got["forces"], want["forces"], atol=1e-5)


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize("pbc", [(True, True, True), SLAB, WIRE, (True, False, True)])
def test_atoms_many_cells_away_are_wrapped_before_the_search(pbc, in_order):
    """Left as they are, vesin looks at all the cells between: 10 s for two atoms of a slab."""
    cell = np.array([[6.0, 0.5, 0.0], [0.0, 6.0, 0.7], [0.3, 0.0, 6.0]])
    inside = np.random.default_rng(0).random((7, 3)) @ cell
    away = np.random.default_rng(1).integers(-20_000, 20_000, (7, 3)) * np.array(pbc)
    near = neighbor_list(inside, cell, np.array(pbc), CUTOFF)
    far = neighbor_list(inside + away @ cell, cell, np.array(pbc), CUTOFF, in_order=in_order)
    shifts = near.shifts - away[near.receivers] + away[near.senders]
    want = np.column_stack([near.receivers, near.senders, shifts]).tolist()
    got = np.column_stack([far.receivers, far.senders, far.shifts]).tolist()
    assert sorted(got) == sorted(want)
    assert not in_order or got == sorted(want)


@pytest.mark.parametrize("direction", [0, 1, 2])
def test_needles_of_any_length(direction):
    """A wire of 400 000 A once divided by zero in compiled code."""
    for pbc in itertools.product([False, True], repeat=3):
        cell = np.diag(np.where(np.arange(3) == direction, 4e5, 3.0))
        positions = np.random.default_rng(direction).random((7, 3)) @ cell
        host = pairs_of(positions, cell, pbc, "host")
        assert host == pairs_of(positions, cell, pbc, "device")


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_box_with_too_many_vectors_k_is_refused_before_they_are_made(backend):
    """A box of 1000 A with a few charges once took all the memory of the machine."""
    spec = tiny_spec(ewald_channels=1)
    potential = Potential(spec, tiny_weights(spec), backend=backend, slab_vacuum=1e3)
    atoms = tiny_structure(spec, 1)
    atoms.set_cell([40.0] * 3)
    potential.compute(atoms)
    for pbc in (True, (True, True, False)):
        atoms.set_cell([1000.0] * 3)
        atoms.pbc = pbc
        with pytest.raises(InputError, match=r"at most 4 GB and 60 s, got about .* A molecule"):
            potential.compute(atoms)
    atoms.pbc = False
    assert np.isfinite(potential.compute(atoms)["energy"])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_an_energy_without_a_long_range_takes_a_box_of_any_size(backend):
    """Its vectors k are never made, whatever else the file has."""
    spec = tiny_spec(ewald_channels=1)
    whole = Potential(spec, tiny_weights(spec), backend=backend, dtype="float64")
    short = whole.replace(energy_key="E_sr")
    atoms = tiny_structure(spec, 1)
    atoms.set_cell([40.0] * 3)
    want = short.compute(atoms)
    atoms.set_cell([1000.0] * 3)
    assert short.compute(atoms)["energy"] == pytest.approx(want["energy"], abs=1e-10)
    with pytest.raises(InputError, match="at most 4 GB"):
        whole.compute(atoms)
