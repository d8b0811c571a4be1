"""Born charges that do not depend on the cell (docs/theory.md, equation 34)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import make_supercell
from support.physics import displaced
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights

from cace_fast import InputError, Potential
from cace_fast.structures import graph_of

MODELS = {
    "no messages": {},
    "memory, Ar, Bchi": {"steps": ("M+Ar+Bchi",)},
    "two steps": {"steps": ("Bchi", "M+Ar"), "l_max": 2},
}
BACKENDS = ("reference", "cpu")


def made(name, **options):
    spec = tiny_spec(ewald_channels=1, **MODELS[name])
    return Potential(spec, tiny_weights(spec), **({"dtype": "float64"} | options))


def crystal(side=2, **options):
    return tiny_structure(tiny_spec(ewald_channels=1), side, **options)


def born(potential, atoms):
    return potential.compute(atoms, ("bec",))["bec"]


def charges(potential, atoms):
    """Physical charges, their mean not removed."""
    return potential.compute(atoms, ("latent_charges",))["latent_charges"][:, 0] / 90.0474**0.5


def raw(potential, atoms):
    """Z* without the neutralisation of charges."""
    q = charges(potential, atoms)
    return born(potential, atoms) + q.mean() * np.eye(3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_repeats_and_another_basis_change_nothing(name, backend):
    own, atoms = made(name, backend=backend), crystal()
    want = born(own, atoms)
    assert np.abs(want).max() > 0.05
    for times in (2, (3, 1, 2), (1, 4, 1)):
        got = born(own, atoms.repeat(times))
        np.testing.assert_allclose(got[: len(atoms)], want, rtol=0, atol=1e-9)
    basis = make_supercell(atoms, [[1, 1, 0], [0, 1, -1], [0, 0, 1]])
    wrapped = basis.copy()
    wrapped.wrap()
    for other in (basis, wrapped):
        np.testing.assert_allclose(born(own, other), want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_the_dephased_form_converges_to_it(name):
    own = made(name, backend="cpu")
    dephased, atoms = own.replace(born_charges="dephased"), crystal()
    want = born(own, atoms)
    found = [
        np.abs(born(dephased, atoms.repeat((n, 1, 1)))[: len(atoms), :, 0] - want[:, :, 0]).max()
        for n in (1, 4, 16)
    ]
    assert found[0] > 10 * found[2]
    assert found[1] > 4 * found[2]
    assert found[2] < 0.02


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_two_atoms_by_hand(name, backend):
    """In a huge cell: the charge of the one, and where the charge of the other appears."""
    atoms = Atoms("HO", [[0.0, 0.0, 0.0], [0.7, 0.4, -0.5]], cell=[60.0] * 3, pbc=True)
    own, h = made(name, backend=backend), 1e-4
    q = charges(own, atoms)
    away = atoms.positions[1] - atoms.positions[0]
    found = born(own, atoms)
    for a in range(3):
        slope = np.subtract(*(charges(own, displaced(atoms, 0, a, s * h)) for s in (1, -1))) / (
            2 * h
        )
        want = (q[0] - q.mean()) * np.eye(3)[a] + slope[1] * away
        np.testing.assert_allclose(found[0, a], want, rtol=0, atol=1e-8)
    # the same two across a face of the cell
    atoms.positions += [59.7, 0.0, 0.2]
    atoms.wrap()
    np.testing.assert_allclose(born(own, atoms), found, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_what_charges_do_in_a_large_cell(name):
    """Differences of charges, each counted at its place nearest to the atom that moves."""
    own, atoms, h = made(name, backend="cpu"), crystal(2).repeat(4), 1e-4
    found, q = born(own, atoms), charges(own, atoms)
    for i, a in ((0, 0), (11, 2)):
        high, low = (charges(own, displaced(atoms, i, a, s * h)) for s in (1, -1))
        slope = (high - low) / (2 * h)
        away = atoms.get_distances(i, range(len(atoms)), mic=True, vector=True)
        want = (q[i] - q.mean()) * np.eye(3)[a] + slope @ away
        np.testing.assert_allclose(found[i, a], want, rtol=0, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_their_sum_is_what_strain_does_to_the_total_charge(name, backend):
    """sum_i Z*[i, a, b] = Q delta_ab - dQ/dstrain_ab, nothing neutralised."""
    own, atoms, h = made(name, backend=backend), crystal(), 1e-5
    q = charges(own, atoms).sum()
    total = raw(own, atoms).sum(0)
    for a, b in ((0, 0), (1, 2), (2, 0)):
        sums = []
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += sign * h
            moved = atoms.copy()
            moved.set_cell(np.asarray(atoms.cell) @ strain, scale_atoms=True)
            sums.append(charges(own, moved).sum())
        slope = (sums[0] - sums[1]) / (2 * h)
        assert total[a, b] == pytest.approx(q * (a == b) - slope, abs=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_a_slab_has_either_form_in_its_directions(name, backend):
    own, atoms = made(name, backend=backend, slab_vacuum=9.0), crystal()
    atoms.pbc = (True, True, False)
    want = born(own, atoms)
    wide = born(own, atoms.repeat((2, 3, 1)))[: len(atoms)]
    across = np.cross(atoms.cell[0], atoms.cell[1])
    normal = across / np.linalg.norm(across)
    in_plane = np.eye(3) - np.outer(normal, normal)
    np.testing.assert_allclose(wide @ in_plane, want @ in_plane, rtol=0, atol=1e-9)
    h = 1e-4

    def dipole(moved):
        q = charges(own, moved)
        return (q - q.mean()) @ (moved.positions @ normal)

    for i, a in ((0, 0), (3, 2)):
        slope = np.subtract(*(dipole(displaced(atoms, i, a, s * h)) for s in (1, -1))) / (2 * h)
        assert want[i, a] @ normal == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("name", MODELS)
def test_open_systems_keep_the_derivative_of_their_dipole(name):
    own, atoms = made(name, backend="cpu"), crystal(pbc=False)
    np.testing.assert_array_equal(
        born(own, atoms), born(own.replace(born_charges="dephased"), atoms)
    )


@pytest.mark.parametrize("name", MODELS)
def test_batches_and_single_precision(name):
    own = made(name, backend="cpu")
    frames = [crystal(), crystal(pbc=False, seed=3), crystal(3), crystal()[:1]]
    together = own.compute(frames, ("bec",))
    single = made(name, backend="cpu", dtype="float32").compute(frames, ("bec",))
    for atoms, got, rough in zip(frames, together, single, strict=True):
        want = born(own, atoms)
        np.testing.assert_allclose(got["bec"], want, rtol=0, atol=1e-12)
        np.testing.assert_allclose(rough["bec"], want, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", MODELS)
def test_weighted_gradients_of_energies(name):
    """The routine takes any values of atoms: of weights 1 it is the virial, summed over atoms."""
    from cace_fast.reference.images import weighted_gradients

    own, atoms = made(name, backend="reference"), crystal()
    engine = own._engine
    graph = graph_of(atoms, own.spec.representation)
    found = weighted_gradients(
        graph,
        own.weights,
        own.spec.representation,
        lambda feats: engine._energies(graph, feats).short_range,
    )
    short = own.replace(energy_key="E_sr")
    virial = torch.from_numpy(np.asarray(short.compute(atoms, ("virials",))["virials"]))
    torch.testing.assert_close(found.sum(0), virial, rtol=0, atol=1e-9)


def test_another_kind_is_refused():
    with pytest.raises(InputError, match="born_charges: expected one of local, dephased, got"):
        made("no messages", born_charges="upstream")
