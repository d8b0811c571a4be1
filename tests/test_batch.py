"""Potential.batch: systems that stay and move, from Atoms or arrays, that leave and enter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights

import cace_fast
from cace_fast import Potential
from cace_fast.errors import InputError, UnknownElementError

BACKENDS = ("reference", "cpu")
MODEL = {"steps": ("M+Ar",), "ewald_channels": 1, "inputs": ("charge_states",)}


@pytest.fixture(params=BACKENDS)
def potential(request):
    spec = tiny_spec(**MODEL)
    return Potential(spec, tiny_weights(spec), backend=request.param, dtype="float64", device="cpu")


def frames(n=3):
    made = []
    for k in range(n):
        atoms = tiny_structure(tiny_spec(**MODEL), 2 - k % 2, seed=k, pbc=k != 1)
        atoms.arrays["charge_states"] = np.linspace(-0.1, 0.1 * k, len(atoms))
        made.append(atoms)
    return made


def arrays(given):
    return (
        np.concatenate([a.positions for a in given]),
        np.concatenate([a.numbers for a in given]),
        np.stack([a.cell.array for a in given]),
        np.stack([a.pbc for a in given]),
        np.repeat(np.arange(len(given)), [len(a) for a in given]),
    )


def agree(potential, batch, given, names=("forces", "virials")):
    found = batch.evaluate(names)
    want = potential.compute(given, ("energy", "energies", *names))
    np.testing.assert_allclose(found.energy, [w["energy"] for w in want], atol=1e-9)
    for name in ("energies", "forces"):
        right = np.concatenate([w[name] for w in want])
        np.testing.assert_allclose(getattr(found, name), right, atol=1e-9)
    np.testing.assert_allclose(found.virials, np.stack([w["virials"] for w in want]), atol=1e-9)


def test_a_list_of_atoms_and_arrays_give_what_compute_gives(potential):
    given = frames()
    agree(potential, potential.batch(given, skin=0.5), given)
    inputs = {"charge_states": np.concatenate([a.arrays["charge_states"] for a in given])}
    agree(potential, potential.batch(*arrays(given), inputs=inputs), given)
    tensors = [torch.from_numpy(np.asarray(a)) for a in arrays(given)]
    agree(potential, potential.batch(*tensors, inputs=inputs), given)


def test_positions_and_cells_may_be_set_and_the_list_is_kept(potential):
    given = frames()
    batch = potential.batch(given, skin=0.6)
    assert (batch.n_systems, batch.n_atoms) == (3, sum(map(len, given)))
    rng = np.random.default_rng(0)
    for step in range(5):
        move = rng.normal(scale=0.02, size=(batch.n_atoms, 3))
        if step % 2:
            batch.positions += torch.from_numpy(move)  # in place
        else:
            batch.positions = batch.positions + torch.from_numpy(move)
        for k, atoms in enumerate(given):
            atoms.positions += move[batch.system_index.numpy() == k]
        agree(potential, batch, given)
    assert batch.n_builds == 1
    batch.cell = batch.cell * 1.01
    for atoms in given:
        atoms.set_cell(atoms.cell[:] * 1.01, scale_atoms=False)
    agree(potential, batch, given)
    assert batch.n_builds == 2


def test_systems_leave_and_enter(potential):
    given, others = frames(4), frames(5)[3:]
    batch = potential.batch(given)
    batch.positions += 0.01
    for atoms in given:
        atoms.positions += 0.01
    batch.evaluate()
    batch.replace([0, 2], potential.batch(others))
    now = [given[1], given[3], *others]
    agree(potential, batch, now)
    batch.replace([3, 1])
    agree(potential, batch, [now[0], now[2]])
    with pytest.raises(InputError, match="leave: expected systems from 0 to 1"):
        batch.replace([2])
    with pytest.raises(InputError, match="leave: expected systems to stay or to enter, got none"):
        batch.replace([0, 1])
    agree(potential, batch, [now[0], now[2]])


def test_energies_hold_those_of_isolated_atoms_as_compute_does():
    potential = cace_fast.load("copper-emt", dtype="float64", device="cpu")
    crystals = [bulk("Cu", a=a, cubic=True) for a in (3.5, 3.6)]
    want = [r["energy"] for r in potential.compute(crystals, ("energy",))]
    np.testing.assert_allclose(potential.batch(crystals).evaluate().energy, want, atol=1e-9)
    alone = potential.batch(np.zeros((1, 3)), [29]).evaluate()
    only = potential.compute(Atoms("Cu"), ("energy",))["energy"]
    assert float(alone.energy[0]) == pytest.approx(only, abs=1e-12)


def test_one_cell_and_one_pbc_serve_all_systems():
    potential = cace_fast.load("copper-emt", dtype="float64", device="cpu")
    atoms = bulk("Cu", cubic=True)
    twice = np.concatenate([atoms.positions, atoms.positions + 0.3])
    index = np.repeat([0, 1], 4)
    batch = potential.batch(twice, np.full(8, 29), atoms.cell.array, True, index)
    want = potential.compute(atoms, ("energy",))["energy"]
    np.testing.assert_allclose(batch.evaluate().energy, [want, want], atol=1e-9)


R, Z = np.array([[0.0, 0, 0], [0, 0, 2.5]]), [29, 29]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((R[:, :2], Z), r"positions: expected an array of shape \[n, 3\]"),
        ((R, [29]), r"numbers: expected an array of shape \[2\], got \(1,\)"),
        ((R, [29.0, 29.0]), "numbers: expected integers"),
        (("positions", Z), "positions: expected numbers"),
        ((R, Z, np.eye(2)), "cell, pbc: expected shapes"),
        ((R, Z, np.eye(3)[None], True, [0, 1]), "cell: expected a cell for each of 2 systems"),
        ((R, Z, None, False, [1, 0]), "system_index: expected .* ascend from 0"),
        ((R, Z, None, False, [-1, 0]), "system_index: expected .* ascend from 0"),
        ((R, Z, None, [1.0, 0, 0]), "pbc: expected bools"),
    ],
)
def test_arrays_that_do_not_fit_are_named(arguments, message):
    potential = cace_fast.load("copper-emt", device="cpu")
    with pytest.raises(InputError, match=message):
        potential.batch(*arguments)


def test_elements_inputs_and_names_are_checked(potential):
    given = frames()
    with pytest.raises(UnknownElementError, match="numbers: expected elements among"):
        potential.batch(R, [79, 79], inputs={"charge_states": [0, 0]})
    with pytest.raises(InputError, match="charge_states: expected an input of this model"):
        potential.batch(*arrays(given))
    with pytest.raises(InputError, match="charge_states: expected finite numbers for"):
        potential.batch(*arrays(given), inputs={"charge_states": [0.0]})
    batch = potential.batch(given)
    with pytest.raises(InputError, match=r"positions: expected a torch\.float64 tensor of shape"):
        batch.positions = torch.zeros(3, 3)
    with pytest.raises(InputError, match=r"cell: expected a torch\.float64 tensor of shape"):
        batch.cell = torch.zeros(3, 3)


def test_the_name_before_still_works():
    potential = cace_fast.load("copper-emt", device="cpu")
    with pytest.warns(DeprecationWarning, match=r"Potential\.batch"):
        batch = potential.resident([bulk("Cu", cubic=True)])
    assert batch.n_systems == 1
