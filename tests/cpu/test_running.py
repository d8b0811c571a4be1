"""How the compiled engine runs: threads, processes, instruction sets, copies, refusals."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from support.paths import REPOSITORY
from support.tiny_models import tiny_potential, tiny_spec, tiny_structure, tiny_weights

from cace_fast import CACECalculator, Potential
from cace_fast.engine import CpuEngine, VerletList, choose_backend
from cace_fast.errors import (
    BackendUnavailableError,
    CaceFastError,
    InputError,
    UnsupportedModelError,
)
from cace_fast.kernels import backend
from cace_fast.kernels.cpu import library
from cace_fast.neighbors import NeighborList, neighbor_list
from cace_fast.spec import Ewald

NAMES = ("energy", "energies", "forces", "virials")
FULL = {"steps": ("M+Ar+Bchi",), "ewald_channels": 2}


def potential_of(dtype="float32", **options):
    spec = tiny_spec(**(options or FULL))
    return Potential(spec, tiny_weights(spec), dtype=dtype, backend="cpu")


@pytest.fixture
def threads():
    """Set torch's number of threads, and back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("options", [{}, FULL], ids=["short range", "everything"])
def test_threads_change_no_bit(options, dtype, threads):
    atoms = tiny_structure(tiny_spec(), 7)
    frames = [tiny_structure(tiny_spec(), 2, seed=k) for k in range(9)]
    found = []
    for n in (1, 2, 3, 1):
        threads(n)
        potential = potential_of(dtype, **(options or {"nu_max": 3}))
        found.append([potential.compute(atoms, NAMES), *potential.compute(frames, NAMES)])
    for other in found[1:]:
        assert all(same(a, b) for a, b in zip(found[0], other, strict=True))


def test_the_order_of_the_pairs_changes_no_bit():
    potential, atoms = potential_of(), tiny_structure(tiny_spec(), 3)
    rng = np.random.default_rng(5)

    def shuffled(positions, cell, pbc):
        edges = neighbor_list(positions, cell, pbc, potential.cutoff + 1.3)
        order = rng.permutation(len(edges.senders))
        return NeighborList(edges.senders[order], edges.receivers[order], edges.shifts[order])

    first = potential.evaluate([atoms], NAMES)[0]
    assert same(first, potential.evaluate([atoms], NAMES, edges=shuffled)[0])


@pytest.mark.parametrize("options", [{"nu_max": 3}, FULL], ids=["short range", "everything"])
def test_nothing_changes_where_a_block_of_atoms_ends(options):
    """Blocks hold 2 to 16 atoms: every size up to two blocks, and every place in a block."""
    spec = tiny_spec(**options)
    potential = potential_of("float64", **options)
    plain = Potential(spec, potential.weights, dtype="float64", backend="reference")
    atoms = tiny_structure(spec, 4, pbc=False)[:34]
    for n in (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33):
        found, right = potential.compute(atoms[:n], NAMES), plain.compute(atoms[:n], NAMES)
        for name in NAMES:
            np.testing.assert_allclose(found[name], right[name], rtol=1e-10, atol=1e-10)
    still = potential.compute(atoms, NAMES)
    for places in range(1, len(atoms)):
        moved = potential.compute(atoms[np.roll(np.arange(len(atoms)), places)], NAMES)
        np.testing.assert_allclose(np.roll(moved["forces"], -places, axis=0), still["forces"],
                                   rtol=0, atol=1e-11)  # fmt: skip
        assert moved["energy"] == pytest.approx(still["energy"], abs=1e-11)


def test_a_kept_list_gives_what_a_new_one_gives():
    potential, atoms = potential_of("float64"), tiny_structure(tiny_spec(), 3)
    kept = VerletList(potential.cutoff, 1.0)
    for _ in range(3):
        atoms.positions += np.random.default_rng(3).uniform(-0.05, 0.05, atoms.positions.shape)
        assert same(
            potential.evaluate([atoms], NAMES)[0], potential.evaluate([atoms], NAMES, edges=kept)[0]
        )
    assert kept.n_builds == 1
    atoms.numbers[:] = atoms.numbers[::-1].copy()  # the same list, other elements
    assert same(
        potential.evaluate([atoms], NAMES)[0], potential.evaluate([atoms], NAMES, edges=kept)[0]
    )
    assert kept.n_builds == 1


def test_python_threads_share_a_potential():
    potential = potential_of()
    frames = [tiny_structure(tiny_spec(), 3, seed=k) for k in range(4)]
    alone = [potential.compute(atoms, NAMES) for atoms in frames]
    wrong = []

    def work(k):
        own = potential if k % 2 else potential_of()
        for _ in range(10):
            if not same(own.compute(frames[k], NAMES), alone[k]):
                wrong.append(k)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_copies_work():
    potential, atoms = potential_of(), tiny_structure(tiny_spec(), 2)
    want = potential.compute(atoms, NAMES)
    for other in (copy.deepcopy(potential), pickle.loads(pickle.dumps(potential))):
        assert other.backend == "cpu"
        assert same(want, other.compute(atoms, NAMES))


PROGRAM = """
import json, sys, warnings
warnings.simplefilter("ignore")  # Python warns of forks while threads live: that is the test
sys.path.insert(0, "tests")
import torch
torch.set_num_threads(2)
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights
from cace_fast import Potential
spec = tiny_spec(steps=("M+Ar+Bchi",), ewald_channels=2)
potential = Potential(spec, tiny_weights(spec), dtype="float64", backend="cpu")
atoms = tiny_structure(tiny_spec(), 7)
def run():
    found = potential.compute(atoms, ("energy", "forces"))
    return [found["energy"], found["forces"].tolist()]
"""


def run_program(more, **variables):
    command = [sys.executable, "-c", PROGRAM + more]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, timeout=120, check=False,
        env=os.environ | variables,
    )  # fmt: skip


def test_a_forked_child_works():
    done = run_program("""
import multiprocessing
before = run()
with multiprocessing.get_context("fork").Pool(2) as pool:
    after = pool.starmap(run, [(), ()])
print(json.dumps([before == a for a in after] + [run() == before]))
""")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [True, True, True]


def runs(isa):
    done = run_program("from cace_fast.kernels.cpu.library import isa\n"
                       "print(json.dumps([isa(), *run()]))", CACE_FAST_ISA=isa)  # fmt: skip
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr


def test_every_instruction_set_gives_the_same():
    want = potential_of("float64").compute(tiny_structure(tiny_spec(), 7), ("energy", "forces"))
    tried = []
    for isa in ("base", "avx2", "avx512"):
        found = runs(isa)
        if isinstance(found, str):
            assert "CACE_FAST_ISA: expected one of" in found  # this processor lacks it
            continue
        assert found[0] == isa
        tried.append(isa)
        assert found[1] == pytest.approx(want["energy"], rel=1e-12)
        np.testing.assert_allclose(found[2], want["forces"], rtol=0, atol=1e-11)
    assert "base" in tried
    assert library.isa() in tried


def test_an_unknown_instruction_set_is_refused():
    error = runs("sse9")
    assert "BackendUnavailableError: backend: 'cpu' is not available here" in error
    assert "CACE_FAST_ISA: expected one of" in error
    assert "got 'sse9'" in error
    assert "Unset CACE_FAST_ISA" in error


def test_auto_takes_the_engine():
    spec = tiny_spec()
    potential = Potential(spec, tiny_weights(spec))
    assert potential.backend == choose_backend("auto") == "cpu"
    assert potential.backend_note == f"{library.isa()}, unrolled contraction"
    assert tiny_potential(l_max=5, nu_max=2).backend_note.endswith("general contraction")
    assert CACECalculator(potential).potential is potential


def test_a_model_that_the_engine_lacks_takes_the_reference():
    spec = tiny_spec(ewald_channels=1)
    modules = list(spec.submodels[0].modules)
    modules[2] = replace(modules[2], feature_key="given")
    spec = replace(spec, submodels=(replace(spec.submodels[0], modules=tuple(modules)),))
    potential = Potential(spec, tiny_weights(spec))
    assert potential.backend == "reference"
    reason = "charges that are an input of the structure"
    assert potential.backend_note == f"plain torch (cpu: {reason})"
    with pytest.raises(UnsupportedModelError, match=f"backend 'cpu': {reason}"):
        Potential(spec, tiny_weights(spec), backend="cpu")


def test_without_the_library(monkeypatch):
    def missing():
        raise library.NotLoadedError("its library was not compiled", "Install a C++ compiler.")

    monkeypatch.setattr(library, "isa", missing)
    assert [s.available for s in backend.states()] == [False, False]
    assert choose_backend("auto") == "reference"
    assert tiny_potential().backend_note == "plain torch (cpu: its library was not compiled)"
    with pytest.raises(
        BackendUnavailableError,
        match=r"'cpu' is not available here \(its library was not compiled\)\. "
        r"Available: reference\. Install a C\+\+ compiler\.",
    ):
        choose_backend("cpu")


def test_another_device_is_refused():
    with pytest.raises(BackendUnavailableError, match="it does not serve the device 'cuda'"):
        choose_backend("cpu", "cuda")


def test_atoms_that_are_too_close_are_named():
    potential = potential_of()
    atoms = Atoms("OHH", [[0, 0, 0], [3, 0, 0], [3, 0, 0.01]])
    with pytest.raises(InputError, match=r"apart, got atoms 1 and 2 at 0\.010000 A"):
        potential.compute(atoms)
    potential.evaluate([atoms], ("energy",), min_dist=None)
    crystal = Atoms("O", cell=[0.04, 3, 3], pbc=True)
    with pytest.raises(InputError, match=r"atom 0 and its own image at 0\.04"):
        potential.compute(crystal)


def nan_edges(positions, cell, pbc):
    """A list made elsewhere, of a structure that was sound then."""
    return neighbor_list(np.nan_to_num(positions, posinf=0.0), cell, pbc, 4.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_position_that_is_not_finite_names_the_atom(value):
    potential, atoms = potential_of(), tiny_structure(tiny_spec(), 2)
    before = potential.compute(atoms, NAMES)
    broken = atoms.copy()
    broken.positions[3, 1] = value
    with pytest.raises(InputError, match="positions: expected finite numbers, got NaN or infinity"):
        potential.compute(broken)
    with pytest.raises(InputError, match="NaN or infinity for atoms 3"):
        potential.evaluate([broken], ("energy", "forces"), edges=nan_edges)
    assert same(before, potential.compute(atoms, NAMES))  # the engine is as good as before


def test_overflow_is_an_error():
    spec = tiny_spec()
    weights = dict(tiny_weights(spec))
    weights["outputs.0.0.linear.weight"] = weights["outputs.0.0.linear.weight"] * 1e38
    potential = Potential(spec, type(tiny_weights(spec))(spec, weights), backend="cpu")
    with pytest.raises(CaceFastError, match="not finite"):
        potential.compute(tiny_structure(spec, 2))


def test_atoms_without_neighbours():
    potential = potential_of("float64", nu_max=3)
    reference = tiny_potential()
    for atoms in (Atoms("O"), Atoms("OH", [[0, 0, 0], [9, 0, 0]])):
        got, want = potential.compute(atoms, NAMES), reference.compute(atoms, NAMES)
        assert got["energy"] == pytest.approx(want["energy"], abs=1e-13)
        assert not got["forces"].any()


def test_partly_periodic_charges_are_refused():
    atoms = tiny_structure(tiny_spec(), 2)
    atoms.pbc = (True, True, False)
    with pytest.raises(InputError, match="pbc: expected all or no directions periodic"):
        potential_of().compute(atoms)


def test_second_derivatives_come_from_the_reference_and_charges_agree():
    spec = tiny_spec(ewald_channels=1)
    weights, atoms = tiny_weights(spec), tiny_structure(spec, 1)
    atoms = tiny_structure(spec, 2, pbc=False)[:3]
    ours, reference = (
        Potential(spec, weights, dtype="float64", backend=name) for name in ("cpu", "reference")
    )
    np.testing.assert_array_equal(ours.hessian(atoms), reference.hessian(atoms))
    names = ("bec", "dipole", "charges")
    got, want = ours.compute(atoms, names), reference.compute(atoms, names)
    for name in names:
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-12)


def test_which_energy_has_to_be_said():
    spec = tiny_spec()
    module = spec.submodels[0].modules[0]
    wide = replace(module, mlp=replace(module.mlp, widths=(*module.mlp.widths[:-1], 2)))
    assert not isinstance(wide, Ewald)
    made = replace(spec, submodels=(replace(spec.submodels[0], modules=(wide,)),))
    generator = torch.Generator().manual_seed(1)
    tensors = dict(tiny_weights(spec))
    for name in ("layers.1.weight", "layers.1.bias", "linear.weight", "linear.bias"):
        old = tensors[f"outputs.0.0.{name}"]
        shape = (2, *old.shape[1:])
        tensors[f"outputs.0.0.{name}"] = torch.randn(shape, generator=generator, dtype=old.dtype)
    weights, atoms = type(tiny_weights(spec))(made, tensors), tiny_structure(spec, 2)
    with pytest.raises(InputError, match="output_index: expected 0 to 1"):
        Potential(made, weights, backend="cpu").compute(atoms)
    for index in (0, 1, -1):
        got, want = (
            Potential(made, weights, dtype="float64", backend=name, output_index=index)
            for name in ("cpu", "reference")
        )
        assert got.compute(atoms)["energy"] == pytest.approx(want.compute(atoms)["energy"])


def test_the_engine_holds_no_more_than_it_says():
    potential = potential_of("float32", nu_max=3)
    assert isinstance(potential._engine, CpuEngine)
    potential.compute(tiny_structure(tiny_spec(), 7))
    assert 0 < potential._engine.n_bytes / 343 < 20_000
