"""The long range of whole models: methods, their agreement, frozen k sets, distributed sums."""

from __future__ import annotations

import itertools
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from support import distributed
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights

from cace_fast import InputError, Potential
from cace_fast.kernels.cpu import long_range as cpu_long_range

PROPERTIES = ("energy", "energies", "forces", "virials", "latent_charges")
MODELS = {
    "one channel": {"ewald_channels": 1},
    "three channels": {"ewald_channels": 3, "ewald": {"remove_self_interaction": True}},
    "exponent 6": {"ewald_channels": 1, "ewald": {"exponent": 6}},
    "field": {
        "ewald_channels": 2,
        "ewald": {"external_field": 0.3, "external_field_direction": 1, "norm_factor": 1.2},
    },
}


def potential(name="one channel", **options):
    spec = tiny_spec(**MODELS[name])
    return Potential(spec, tiny_weights(spec), **({"dtype": "float64"} | options))


def structure(side=3, **options):
    return tiny_structure(tiny_spec(), side=side, **options)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", MODELS)
def test_methods_agree(name, backend, dtype):
    atoms = structure()
    want = potential(name, dtype=dtype, backend=backend, long_range="direct")
    got = potential(name, dtype=dtype, backend=backend, long_range="mesh")
    limit = 1e-9 if dtype == "float64" else 3e-6
    for key in PROPERTIES:
        a, b = (np.asarray(p.compute(atoms, PROPERTIES)[key]) for p in (got, want))
        assert np.abs(a - b).max() <= limit * max(1.0, np.abs(b).max()), key


def test_the_cheaper_method_is_taken(monkeypatch):
    taken = []

    def watched(points, modes):
        taken.append(tuple(points.shape[1:]))
        return to_modes(points, modes)

    to_modes = cpu_long_range.to_modes
    monkeypatch.setattr(cpu_long_range, "to_modes", watched)
    small, large = structure(2), structure(14)
    auto = potential(backend="cpu")
    auto.compute([small, large, structure(2, pbc=False), small])
    assert len(taken) == 1
    potential(backend="cpu", long_range="direct").compute(large)
    assert len(taken) == 1
    potential(backend="cpu", long_range="mesh").compute([small, structure(2, pbc=False)])
    assert len(taken) == 2
    assert taken[0] > taken[1]


def test_both_methods_agree_where_auto_changes_over():
    sizes, jumps = (10, 11, 12), []
    for side in sizes:
        results = [
            potential(backend="cpu", long_range=method).compute(structure(side))["forces"]
            for method in ("direct", "mesh")
        ]
        jumps.append(np.abs(results[0] - results[1]).max())
    assert max(jumps) < 1e-9


def test_batches_of_different_cells():
    frames = [structure(3), structure(4), structure(3, pbc=False), structure(2)]
    for method in ("mesh", "direct"):
        one = potential(backend="cpu", long_range=method)
        for got, atoms in zip(one.compute(frames, PROPERTIES), frames, strict=True):
            alone = potential(backend="cpu", long_range="direct").compute(atoms, PROPERTIES)
            for key in PROPERTIES:
                np.testing.assert_allclose(got[key], alone[key], rtol=1e-9, atol=1e-9)


def test_threads_change_nothing_but_rounding():
    atoms = structure(5)
    own = potential(backend="cpu", long_range="mesh")
    one = own.compute(atoms)["forces"]
    torch.set_num_threads(2)
    np.testing.assert_allclose(own.compute(atoms)["forces"], one, rtol=0, atol=1e-10)


def test_errors_of_transforms_reach_the_caller(monkeypatch):
    own = potential(backend="cpu", long_range="mesh")
    atoms = structure()
    want = own.compute(atoms)["energy"]

    def broken(*arguments):
        raise MemoryError("no memory for the grid")

    for name in ("to_modes", "to_points"):
        with monkeypatch.context() as patch:
            patch.setattr(cpu_long_range, name, broken)
            with pytest.raises(MemoryError, match="no memory for the grid"):
                own.compute(atoms)
    assert own.compute(atoms)["energy"] == want


def test_the_old_name_of_the_mesh_is_accepted():
    with pytest.warns(DeprecationWarning, match="long_range='nufft' is called 'mesh' now"):
        old = potential(backend="cpu", long_range="nufft")
    atoms = structure()
    new = potential(backend="cpu", long_range="mesh")
    np.testing.assert_array_equal(old.compute(atoms)["forces"], new.compute(atoms)["forces"])


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("method", ["direct", "mesh"])
def test_a_frozen_set_makes_stress_exact(backend, method):
    """Also where a vector crosses the sphere, and with the same set in both backends."""
    atoms = structure(3)
    own = potential(backend=backend, long_range=method, k_set="frozen")
    sphere = potential(backend=backend, long_range=method)
    assert own.long_range.reference_cell is None
    first = own.compute(atoms, PROPERTIES)
    np.testing.assert_array_equal(own.long_range.reference_cell, atoms.cell[:])
    assert first["energy"] == pytest.approx(sphere.compute(atoms)["energy"], abs=1e-9)

    def strained(potential, x):
        moved = atoms.copy()
        moved.set_cell(atoms.cell[:] * (1.0 + x), scale_atoms=True)
        return potential.compute(moved, ("energy", "virials"))

    edge = 0.0
    for x in np.linspace(0.0, 0.06, 61):  # where does the sphere take in another shell?
        if abs(strained(sphere, x)["energy"] - strained(own, x)["energy"]) > 1e-7:
            edge = x
            break
    assert edge > 0.0
    h = 5e-4
    slope = (strained(own, edge + h)["energy"] - strained(own, edge - h)["energy"]) / (2 * h)
    virial = strained(own, edge)["virials"]
    assert slope * (1.0 + edge) == pytest.approx(-np.trace(virial), rel=2e-4)


def test_the_reference_cell_of_a_frozen_set():
    own = potential(k_set="frozen", backend="cpu")
    atoms = structure()
    other = atoms.copy()
    other.set_cell(atoms.cell[:] * 1.04, scale_atoms=True)
    own.long_range.reference_cell = other.cell[:]
    here = own.compute(atoms)["energy"]
    np.testing.assert_array_equal(own.long_range.reference_cell, other.cell[:])
    copied = pickle.loads(pickle.dumps(own._engine))
    np.testing.assert_array_equal(copied.long_range.reference_cell, other.cell[:])
    own.long_range.reference_cell = None
    assert own.compute(atoms)["energy"] != here
    assert own.compute(structure(3, pbc=False))["energy"] != 0.0
    far = atoms.copy()
    far.set_cell(atoms.cell[:] * [2.0, 1.0, 1.0], scale_atoms=True)
    with pytest.raises(InputError, match=r"cell: expected one within a stretch of 1\.5"):
        own.compute(far)


def test_forward_takes_the_method_too():
    atoms = structure(3)
    data = dictionary(atoms)
    results = []
    for method in ("direct", "mesh"):
        own = potential("three channels", long_range=method)
        out = own(data)
        results.append(out)
    assert set(results[0]) == set(results[1])
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-8, atol=1e-8)
    assert not torch.equal(results[0]["CACE_forces"], results[1]["CACE_forces"])
    # second derivatives: the direct sum has them
    leaf = data["positions"].clone().requires_grad_(True)
    out = potential(long_range="mesh")(data | {"positions": leaf}, training=True)
    (second,) = torch.autograd.grad(out["CACE_forces"].square().sum(), leaf)
    assert torch.isfinite(second).all()


def dictionary(atoms):
    from cace_fast.neighbors import neighbor_list

    edges = neighbor_list(atoms.positions, atoms.cell[:], atoms.pbc, 4.0)
    return {
        "positions": torch.tensor(atoms.positions),
        "atomic_numbers": torch.tensor(atoms.numbers, dtype=torch.int64),
        "edge_index": torch.from_numpy(np.stack([edges.senders, edges.receivers])),
        "unit_shifts": torch.from_numpy(edges.shifts).double(),
        "cell": torch.tensor(atoms.cell[:]),
    }


def test_hessian_is_that_of_the_direct_sum():
    atoms = structure(2)
    got, want = (potential(long_range=m).hessian(atoms) for m in ("mesh", "direct"))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


@pytest.fixture(scope="module")
def processes():
    """Start four processes that share nothing with this one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    with context.Pool(4) as pool:
        yield pool
        pool.close()
        pool.join()


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("method", ["direct", "mesh"])
@pytest.mark.parametrize("periodic", [1, 4], ids=["box", "slab"])
def test_several_processes(processes, periodic, method, size):
    """Each process has its atoms, with one sum over all in between; field and penalty included."""
    rng = np.random.default_rng(0)
    cell = np.array([[12.0, 0.3, -0.2], [5.1, 11.4, 0.4], [-4.3, 2.7, 13.1]])
    q, r = rng.normal(size=(131, 2)), rng.uniform(0.0, 0.9, (131, 3)) @ cell
    want = distributed.ewald(method).evaluate(q, r, cell, periodic=periodic, n_threads=1)
    ends = [k * len(q) // size for k in range(size + 1)]
    how = (len(q), periodic, method)
    parts = [(q[a:b].copy(), r[a:b].copy(), cell, how) for a, b in itertools.pairwise(ends)]
    total = sum(processes.starmap(distributed.sums, parts))
    found = processes.starmap(distributed.finish, [(total, *part) for part in parts])
    for k in range(3):
        got, scale = np.concatenate([f[k] for f in found]), np.abs(want[k]).max()
        np.testing.assert_allclose(got, want[k], rtol=0, atol=1e-12 * scale)
    virial = sum(f[3] for f in found)
    np.testing.assert_allclose(virial, want[3], rtol=0, atol=1e-12 * np.abs(want[3]).max())
