"""Guards against what should not happen: each of these tests fails when its guard is loosened."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from support.tiny_models import tiny_potential, tiny_spec, tiny_structure, tiny_weights

from cace_fast import Potential
from cace_fast.errors import CaceFastError, InputError
from cace_fast.graph import ModelOutput
from cace_fast.kernels.cpu import evaluator
from cace_fast.neighbors import neighbor_list


def test_bins_that_reach_a_little_too_short_are_made_anew():
    """A cell shrinks until its bins reach 0.97 of the list's reach, and no pair goes missing."""
    pytest.importorskip("triton")
    from gpu_emulator import emulate

    with emulate("sm_90"):
        from support.moving import run_of, same_pairs

        cell, pbc = np.diag([23.0, 23.0, 23.0]), (True,) * 3
        positions = np.random.default_rng(0).random((90, 3)) @ cell
        # at the end of one bin of nine and at the start of the third after it
        positions[0], positions[1] = [23.0 / 9 - 1e-3, 1, 1], [23.0 * 3 / 9 + 1e-3, 1, 1]
        run = run_of([positions], [cell], [pbc])
        run.evaluate((), None)
        numbers = run.own.search.kept.grids[0].tolist()
        number, far = numbers[0], numbers[3]
        assert (number, far) == (9, 2)
        scale = 0.97 * run.own.search.reach * number / far / 23.0
        assert 0.5 < scale < 1.0
        run.positions.mul_(scale)
        run.set_cell(torch.from_numpy(cell * scale)[None])
        run.own.due = True
        run.evaluate((), None)
        same_pairs(run, [positions * scale], [cell * scale], [pbc])


def test_forces_that_are_not_finite_where_energies_are():
    """Steep radial functions: forces overflow float32 before energies do; the library says so."""
    spec = tiny_spec(l_max=0, nu_max=1)
    plain = tiny_weights(spec)
    width = 1e-4
    steep = dict(plain) | {"radial.widths": torch.full_like(plain["radial.widths"], width)}
    distance = float(plain["radial.offsets"][1]) + 2.0 * width
    pair = Atoms("OH", positions=[[0, 0, 0], [0, 0, distance]])
    said = []
    for exponent in range(30, 39):
        name = "outputs.0.0.linear.weight"
        weights = steep | {name: plain[name] * 10.0**exponent}
        potential = Potential(spec, type(plain)(spec, weights), backend="cpu")
        try:
            potential.compute(pair)
        except CaceFastError as error:
            said.append(str(error))
    assert any("forces: not finite, atom " in text for text in said), said


@pytest.mark.parametrize("stretch", [1.6, 1.0 / 1.6])
def test_a_frozen_set_is_refused_for_cells_far_from_its_own_both_ways(stretch):
    spec = tiny_spec(ewald_channels=1)
    potential = Potential(spec, tiny_weights(spec), k_set="frozen", backend="cpu")
    atoms = tiny_structure(spec, 3)
    potential.compute(atoms)
    atoms.set_cell(atoms.cell[:] * stretch, scale_atoms=True)
    with pytest.raises(InputError, match=r"cell: expected one within a stretch of 1\.5"):
        potential.compute(atoms)


@pytest.mark.parametrize("over", [1.01, 1.09])
def test_a_slab_that_reaches_a_little_beyond_its_cell_is_refused(over):
    spec = tiny_spec(ewald_channels=1)
    potential = Potential(spec, tiny_weights(spec), slab_vacuum=5.0)
    atoms = tiny_structure(spec, 2)
    atoms.pbc = (True, True, False)
    atoms.set_cell(np.diag(np.diag(atoms.cell[:])))
    atoms.cell[2] = [0.0, 0.0, np.ptp(atoms.positions[:, 2])]
    potential.compute(atoms)  # just fits
    atoms.cell[2, 2] /= over
    with pytest.raises(InputError, match="atoms of a slab within"):
        potential.compute(atoms)


def test_gradients_of_charges_are_those_of_a_step_and_not_of_features(monkeypatch):
    """``features`` overwrites what gradients would come from: they are refused after it."""
    spec = tiny_spec(ewald_channels=1)
    potential = Potential(spec, tiny_weights(spec), backend="cpu", dtype="float64")
    library = potential._engine._evaluator
    given = []
    plain = evaluator.Evaluator.run
    monkeypatch.setattr(
        evaluator.Evaluator, "run", lambda self, *a: given.append(a) or plain(self, *a)
    )
    potential.compute(tiny_structure(spec, 2))
    structures, pairs, _, threads = given[0]
    weights = np.ones((1, len(structures.species), 1))
    assert np.isfinite(library.charge_gradients(weights)).all()
    library.features(structures, pairs and None, threads)
    with pytest.raises(CaceFastError, match="gradients come after cf_step_run"):
        library.charge_gradients(weights)
    plain(library, structures, None, ["forces", "charges"], threads)
    library.charge_gradients(weights)


def test_images_within_the_cutoff_are_rounded_up():
    """A cell with 46.99 of its heights in the cutoff has 95^3 images and not 93^3."""
    cutoff, most = 4.0, 100_000
    edge = cutoff / 23.5  # 24 images each way: 49^3 = 117 649; 23 would be 47^3 = 103 823
    edge_below = cutoff / 22.5  # 23 each way: 103 823; 22 would be 45^3 = 91 125, which passes
    for size in (edge, edge_below):
        with pytest.raises(InputError, match=f"at most {most} images"):
            neighbor_list(np.zeros((1, 3)), np.eye(3) * size, np.ones(3, bool), cutoff)
    # 22 each way pass this check, and are then a crowd
    with pytest.raises(InputError, match="at most 5000 neighbours"):
        neighbor_list(np.zeros((1, 3)), np.eye(3) * cutoff / 21.5, np.ones(3, bool), cutoff)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["forces", "virials", "energies", "energy", "latent_charges"])
def test_nothing_that_is_not_finite_leaves_an_engine(backend, name, monkeypatch):
    """The check is in one place, behind every engine, whatever the cause."""
    spec = tiny_spec(ewald_channels=1)
    potential = Potential(spec, tiny_weights(spec), backend=backend, dtype="float64")

    def broken(**results):
        values = results[name].clone()
        values.view(-1)[-1] = torch.inf
        return ModelOutput(**results | {name: values})

    monkeypatch.setattr(f"cace_fast.engine.{backend}.ModelOutput", broken)
    with pytest.raises(CaceFastError, match=rf"{name}: not finite for (atoms|structures) \d"):
        potential.compute(tiny_structure(spec, 2), ("energy", "forces", "stress", "charges"))


def edges_of(atoms, potential):
    return neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, potential.cutoff)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e._replace(senders=e.senders[:-1]), r"edges.receivers: expected integers of"),
        (lambda e: e._replace(shifts=e.shifts[:, :2]), r"edges.shifts: expected integers of sha"),
        (lambda e: e._replace(shifts=e.shifts * 1.0), r"edges.shifts: .*float64"),
        (lambda e: e._replace(senders=e.senders + 1), r"edges.senders: expected numbers of atoms"),
        (lambda e: e._replace(receivers=e.receivers - 1), r"edges.receivers: .*from 0 to"),
    ],
)
def test_candidate_pairs_from_elsewhere_are_checked(backend, change, message):
    potential = tiny_potential()
    potential = Potential(potential.spec, potential.weights, backend=backend, dtype="float64")
    atoms = tiny_structure(potential.spec, 2)
    edges = edges_of(atoms, potential)
    want = potential.compute(atoms)["forces"]
    narrow = type(edges)(*(part.astype(np.int32) for part in edges))
    got = potential.evaluate([atoms], ("forces",), edges=lambda *_: narrow)[0]["forces"]
    np.testing.assert_allclose(got, want, atol=1e-12)
    with pytest.raises(InputError, match=message):
        potential.evaluate([atoms], ("forces",), edges=lambda *_: change(edges))


def dictionary(potential, atoms):
    edges = edges_of(atoms, potential)
    return {
        "positions": torch.tensor(atoms.positions),
        "atomic_numbers": torch.tensor(atoms.numbers),
        "edge_index": torch.tensor(np.stack([edges.senders, edges.receivers])),
        "unit_shifts": torch.tensor(edges.shifts).double(),
        "cell": torch.tensor(atoms.cell.array),
        "batch": torch.zeros(len(atoms), dtype=torch.int64),
    }


def change(key, function):
    return lambda data: data | {key: function(data[key].clone())}


def put(index, value):
    def function(tensor):
        tensor[index] = value
        return tensor

    return function


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (change("positions", put((1, 0), torch.nan)), "positions: expected finite .* atoms 1"),
        (change("positions", lambda t: t[:, :2]), r"positions'\]: .*shape \[8, 3\]"),
        (change("edge_index", put((0, 0), -1)), "edge_index.*numbers of atoms from 0 to 7, got -1"),
        (change("edge_index", put((1, -1), 8)), "edge_index.*numbers of atoms from 0 to 7, got 0 "),
        (change("edge_index", lambda t: t.double()), "edge_index.*integers of shape"),
        (change("edge_index", lambda t: t[0]), "edge_index.*integers of shape"),
        (change("unit_shifts", put((3, 1), 0.5)), "unit_shifts.*whole numbers.*for edge 3"),
        (change("unit_shifts", put((3, 1), torch.nan)), "unit_shifts.*whole numbers.*for edge 3"),
        (change("unit_shifts", lambda t: t[1:]), "unit_shifts.*shape"),
        (change("cell", put((0, 0), torch.inf)), "cell"),
        (change("batch", put(0, 3)), "expected 4 cells"),
        (change("batch", put(0, -1)), "batch.*numbers of structures from 0 to 0, got -1"),
        (change("atomic_numbers", lambda t: t[:-1]), r"atomic_numbers.*shape \[8\]"),
    ],
)
def test_a_dictionary_with_senseless_entries_is_refused(changed, message):
    potential = tiny_potential()
    atoms = tiny_structure(potential.spec, 2)
    data = dictionary(potential, atoms)
    potential(data)
    with pytest.raises(InputError, match=message):
        potential(changed(data))


def test_cartesian_shifts_have_to_be_lattice_vectors():
    potential = tiny_potential()
    atoms = tiny_structure(potential.spec, 2)
    data = dictionary(potential, atoms)
    exact = data["unit_shifts"] @ data["cell"]
    del data["unit_shifts"]
    potential(data | {"shifts": exact.float()})
    with pytest.raises(InputError, match=r"data\['shifts'\]: expected whole numbers of cells"):
        potential(data | {"shifts": exact + 0.3})
    open_ = data | {"cell": torch.zeros(3, 3), "shifts": exact}
    with pytest.raises(InputError, match="no shifts in a structure without a cell"):
        potential(open_)


def test_outputs_of_a_dictionary_that_are_not_finite_are_refused():
    spec = tiny_spec()
    weights = dict(tiny_weights(spec))
    name = "outputs.0.0.linear.weight"
    weights[name] = weights[name] * 1e38
    potential = Potential(spec, type(tiny_weights(spec))(spec, weights))
    with pytest.raises(CaceFastError, match="not finite"):
        potential(dictionary(potential, tiny_structure(spec, 2)))


def test_no_atoms_leave_nothing_to_check():
    assert tiny_potential().compute(Atoms())["energy"] == 0.0
