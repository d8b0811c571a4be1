"""The object for ``pair_style mliap unified``, on stand-ins for LAMMPS' data of some ranks."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest
import torch
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights

from cace_fast import InputError, Potential, PropertyNotImplementedError
from cace_fast.interfaces.mliap import UnifiedCACE
from cace_fast.neighbors import neighbor_list

MODELS = {
    "short range": {"atomic_energies": ((8, -3.0), (1, -0.5))},
    "messages": {"steps": ("M+Ar+Bchi",)},
    "two steps": {"steps": ("Bchi", "M+Ar"), "l_max": 2},
}


class Ranks:
    """Atoms of a box on some ranks, images as ghosts; they exchange rows when all have come."""

    def __init__(self, atoms, elements, cutoff, owner):
        found = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff, in_order=True)
        self.n = int(owner.max(initial=0)) + 1
        self.barrier = threading.Barrier(self.n)
        self.forces = np.zeros((len(atoms), 3))
        self.virial = np.zeros((3, 3))
        self.data = []
        for rank in range(self.n):
            self.data.append(Data(self, rank, atoms, elements, found, owner))

    def exchange(self, rank, rows):
        """Return the rows of all ranks."""
        self.data[rank].given = rows
        self.barrier.wait()
        everything = [d.given for d in self.data]
        self.barrier.wait()
        return everything


class Data:
    """What LAMMPS gives one rank."""

    def __init__(self, ranks, rank, atoms, elements, found, owner):
        receivers, senders = np.asarray(found.receivers), np.asarray(found.senders)
        shifts = np.asarray(found.shifts)
        self.ranks, self.rank = ranks, rank
        self.own = np.flatnonzero(owner == rank)
        place = {(i, 0, 0, 0): k for k, i in enumerate(self.own)}
        mine = np.flatnonzero(owner[receivers] == rank)
        pair_i, pair_j, rij = [], [], []
        for e in mine[::-1]:  # in an order of their own
            i, j = int(receivers[e]), int(senders[e])
            key = (j, *(int(s) for s in shifts[e]))
            pair_i.append(place[i, 0, 0, 0])
            pair_j.append(place.setdefault(key, len(place)))
            d = atoms.positions[i] - atoms.positions[j] + shifts[e] @ atoms.cell.array
            rij.append(-d)
        self.atom = np.array([key[0] for key in place], dtype=int)
        self.nlocal, self.ntotal, self.npairs = len(self.own), len(place), len(rij)
        self.pair_i, self.pair_j = (
            np.array(pair_i, dtype=np.int32),
            np.array(pair_j, dtype=np.int32),
        )
        self.rij = np.array(rij).reshape(-1, 3)
        self.elems = np.array([elements.index(z) for z in atoms.numbers[self.atom]], dtype=np.int32)
        self.eatoms, self.energy = np.zeros(self.nlocal), 0.0

    def update_pair_forces(self, gradients):
        assert gradients.dtype == np.float64
        assert gradients.flags.c_contiguous
        np.add.at(self.ranks.forces, self.atom[self.pair_i], gradients)
        np.add.at(self.ranks.forces, self.atom[self.pair_j], -gradients)
        self.ranks.virial -= np.einsum("ea,eb->ab", self.rij, gradients)

    def forward_exchange(self, copy_from, copy_to, width):
        everything = self.ranks.exchange(self.rank, copy_from.detach().clone())
        whole = {}
        for data, rows in zip(self.ranks.data, everything, strict=True):
            whole |= {int(i): rows[k] for k, i in enumerate(data.own)}
        for k, i in enumerate(self.atom):
            copy_to[k] = whole[int(i)]
        assert copy_to.shape[1] == width

    def reverse_exchange(self, copy_from, copy_to, width):
        everything = self.ranks.exchange(self.rank, copy_from.detach().clone())
        place = {int(i): k for k, i in enumerate(self.own)}
        copy_to[: self.nlocal] = copy_from[: self.nlocal]
        for data, rows in zip(self.ranks.data, everything, strict=True):
            for k in range(data.nlocal, data.ntotal):
                to = place.get(int(data.atom[k]))
                if to is not None:
                    copy_to[to] += rows[k]
        assert copy_to.shape[1] == width


def run(potential, atoms, owner):
    """Return energy, energies of atoms, forces, virial."""
    elements = list(potential.spec.representation.elements)
    ranks = Ranks(atoms, elements, potential.spec.representation.cutoff, owner)
    unified = pickle.loads(pickle.dumps(UnifiedCACE(potential)))
    failures = []

    def work(data):
        try:
            unified.compute_forces(data)
        except Exception as error:
            failures.append(error)
            ranks.barrier.abort()

    threads = [threading.Thread(target=work, args=(d,)) for d in ranks.data]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures, failures
    energies = np.zeros(len(atoms))
    for data in ranks.data:
        energies[data.own] = data.eatoms
    return sum(d.energy for d in ranks.data), energies, ranks.forces, ranks.virial


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_it_gives_what_the_potential_gives(name, n_ranks):
    """With three ranks one has no atoms."""
    spec = tiny_spec(**MODELS[name])
    potential = Potential(spec, tiny_weights(spec), dtype="float64")
    atoms = tiny_structure(spec, 2, spacing=2.6)
    owner = np.arange(len(atoms)) % 2 * (n_ranks - 1)
    energy, energies, forces, virial = run(potential, atoms, owner)
    expected = potential.compute(atoms, ("energy", "energies", "forces", "virials"))
    limit = {"rtol": 0, "atol": 1e-10}
    np.testing.assert_allclose(energy, expected["energy"], **limit)
    np.testing.assert_allclose(energies, expected["energies"], **limit)
    np.testing.assert_allclose(forces, expected["forces"], **limit)
    np.testing.assert_allclose(virial, expected["virials"], **limit)


def test_a_coupling_without_exchange_is_refused_for_messages():
    spec = tiny_spec(steps=("Bchi",))
    unified = UnifiedCACE(Potential(spec, tiny_weights(spec)))
    atoms = tiny_structure(spec, 2)
    ranks = Ranks(atoms, list(spec.representation.elements), 4.0, np.zeros(len(atoms), dtype=int))

    class Old:
        """LAMMPS' coupling on CPUs."""

    old = Old()
    for name in ("nlocal", "ntotal", "elems", "pair_i", "pair_j", "rij", "eatoms", "energy"):
        setattr(old, name, getattr(ranks.data[0], name))
    with pytest.raises(InputError, match="exchange of ghosts"):
        unified.compute_forces(old)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"ewald_channels": 1}, "charges"), ({"inputs": ("charge_states",)}, "inputs of atoms")],
)
def test_what_has_no_place_in_the_interface_is_refused(options, words):
    spec = tiny_spec(**options)
    with pytest.raises(PropertyNotImplementedError, match=words):
        UnifiedCACE(Potential(spec, tiny_weights(spec)))


def test_names_and_cutoff_are_those_of_the_potential():
    spec = tiny_spec()
    unified = UnifiedCACE(Potential(spec, tiny_weights(spec)))
    assert unified.rcutfac == 0.5 * spec.representation.cutoff
    assert len(unified.element_types) == len(spec.representation.elements)
    assert not torch.is_grad_enabled() or unified.compute_gradients(None) is None
