"""Right numbers in any state of the process: modes of torch, threads, forks, interrupts."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from support.process_scripts import FORK, SIGNALS
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights

import cace_fast
from cace_fast import CACECalculator, Potential
from cace_fast.engine import VerletList
from cace_fast.kernels.cpu.evaluator import Evaluator
from cace_fast.process import Lock, ordinary, ordinary_tensor

BACKENDS = ("reference", "cpu")
NAMES = ("energy", "energies", "forces", "stress", "latent_charges", "bec")
MODEL = {"steps": ("M+Ar+Bchi",), "ewald_channels": 1}


def model(backend="cpu", dtype="float64", **options):
    spec = tiny_spec(**(MODEL | options))
    return Potential(spec, tiny_weights(spec), dtype=dtype, backend=backend, device="cpu")


def structure(seed=0, side=2):
    return tiny_structure(tiny_spec(**MODEL), side, seed=seed)


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "another device": lambda: torch.device("meta"),
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
}


@pytest.fixture(params=MODES)
def mode(request):
    return MODES[request.param]


@pytest.fixture
def default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_the_same_in_every_mode(backend, mode):
    potential, atoms = model(backend), structure()
    want = potential.compute(atoms, NAMES)
    hessian, features = potential.hessian(atoms), potential.features(atoms)
    with mode():
        got = potential.compute(atoms, NAMES)
        assert np.array_equal(potential.hessian(atoms), hessian)
        assert np.array_equal(potential.features(atoms), features)
        made_here = potential.replace(backend=backend)
        system = potential.batch([atoms], skin=0.3)
        forces = system.evaluate().forces
    for name in NAMES:
        assert np.array_equal(got[name], want[name]), name
    assert np.abs(hessian).max() > 0.1
    np.testing.assert_allclose(forces, want["forces"], atol=1e-12)
    # what was made in the mode works outside of it
    assert np.array_equal(made_here.compute(atoms, NAMES)["forces"], want["forces"])
    assert np.array_equal(made_here.hessian(atoms), hessian)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_default_dtype_changes_nothing(backend, dtype, default_dtype):
    atoms = structure()
    want = model(backend, "float32").compute(atoms, NAMES)
    default_dtype(dtype)
    got = model(backend, "float32").compute(atoms, NAMES)
    for name in NAMES:
        assert np.array_equal(got[name], want[name]), name


def dictionary(atoms, potential):
    from cace_fast.neighbors import neighbor_list

    edges = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, potential.cutoff)
    return {
        "positions": torch.tensor(atoms.positions),
        "atomic_numbers": torch.tensor(atoms.numbers),
        "edge_index": torch.tensor(np.stack([edges.senders, edges.receivers])),
        "unit_shifts": torch.tensor(edges.shifts).double(),
        "shifts": torch.tensor(edges.shifts @ atoms.cell.array),
        "cell": torch.tensor(atoms.cell.array),
    }


@pytest.mark.parametrize("inside", ["no_grad", "inference_mode"])
@pytest.mark.parametrize("made_inside", [False, True], ids=["tensors before", "tensors inside"])
def test_dictionaries_give_detached_numbers_in_modes_without_gradients(inside, made_inside):
    potential, atoms = model(), structure()
    data = dictionary(atoms, potential)
    want = potential(data | {"positions": data["positions"].clone().requires_grad_()})
    key = next(key for key, value in want.items() if value.shape == (len(atoms), 3))
    assert want[key].abs().max() > 0.1
    assert any(value.requires_grad for value in want.values())
    with MODES[inside]():
        got = potential(dictionary(atoms, potential) if made_inside else data)
        assert not any(value.requires_grad for value in got.values())
    for name, value in want.items():
        assert torch.equal(got[name], value), name


def test_models_load_and_verify_in_inference_mode():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    want = cace_fast.load("copper-emt").compute(atoms)["forces"]
    with torch.inference_mode():
        potential = cace_fast.load("copper-emt", verify=True)
        calculator = CACECalculator("copper-emt", backend="reference", default_dtype="float64")
        atoms.calc = calculator
        np.testing.assert_allclose(atoms.get_forces(), want, atol=1e-4)
    assert np.array_equal(potential.compute(atoms)["forces"], want)
    assert np.abs(calculator.potential.hessian(atoms)).max() > 1.0


def test_ordinary_restores_the_modes_and_leaves_gradients_alone():
    @ordinary
    def look():
        return torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    assert look() == (False, True)
    with torch.inference_mode():
        assert look() == (False, False)
        assert torch.is_inference_mode_enabled()
        made = torch.zeros(2)
    assert not ordinary_tensor(made).is_inference()
    plain = torch.zeros(2)
    assert ordinary_tensor(plain) is plain


def at_once(work, n=4):
    """Run work(k) in n threads at once; return all results, or raise an error of one."""
    found, start = [None] * n, threading.Barrier(n)

    def one(k):
        start.wait()
        try:
            found[k] = work(k)
        except BaseException as error:
            found[k] = error

    threads = [threading.Thread(target=one, args=(k,)) for k in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in found:
        if isinstance(result, BaseException):
            raise result
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_calculator_in_several_threads_gives_each_its_own_numbers(backend):
    """Each thread moves its own atoms: lists of different sizes are made all the time."""
    calculator = CACECalculator(model(backend), skin=0.05)
    n_steps = 25 if backend == "cpu" else 6

    def walk(k, calc):
        atoms = structure(seed=k, side=1 + k % 2)
        rng = np.random.default_rng(k)
        found = []
        for _ in range(n_steps):
            atoms.positions += rng.normal(scale=0.05, size=atoms.positions.shape)
            atoms.calc = calc
            found.append((atoms.get_potential_energy(), atoms.get_forces()))
        return found

    got = at_once(lambda k: walk(k, calculator))
    for k, path in enumerate(got):
        want = walk(k, CACECalculator(calculator.potential, skin=0.05))
        for (energy, forces), (right, right_forces) in zip(path, want, strict=True):
            assert energy == pytest.approx(right, abs=1e-9)
            np.testing.assert_allclose(forces, right_forces, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_potential_and_one_list_in_several_threads(backend):
    potential = model(backend)
    shared = VerletList(potential.cutoff, 0.3, in_order=not potential.sorts_pairs)
    frames = [structure(seed=k, side=1 + k % 2) for k in range(4)]
    want = [potential.compute(atoms) for atoms in frames]

    def work(k):
        return [
            potential.evaluate([frames[k]], ("energy", "forces"), edges=shared)[0]
            for _ in range(20 if backend == "cpu" else 4)
        ]

    for k, results in enumerate(at_once(work)):
        for result in results:
            np.testing.assert_allclose(result["forces"], want[k]["forces"], atol=1e-9)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("threads", [False, True], ids=["alone", "while a thread evaluates"])
@pytest.mark.parametrize(
    ("backend", "method"), [("reference", "direct"), ("cpu", "direct"), ("cpu", "mesh")]
)
def test_a_child_forked_after_use_never_hangs(backend, method, threads):
    code = FORK.format(
        backend=backend,
        method=method,
        threads=threads,
        repeats=3 if backend == "reference" else 6,
        tests=os.path.dirname(__file__),
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "children are right" in done.stdout


def test_copies_and_pickles_have_locks_of_their_own():
    for made in (VerletList(4.0, 0.5), CACECalculator(model())):
        for twin in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            locks = [v for v in vars(twin).values() if isinstance(v, Lock)]
            assert locks, type(made).__name__
            assert not {id(v) for v in locks} & {id(v) for v in vars(made).values()}


class Stop(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("error", [Stop, MemoryError, RuntimeError])
@pytest.mark.parametrize("where", ["before", "after"])
def test_an_interrupted_step_leaves_no_list_behind(error, where, monkeypatch):
    """The list counts as held only after the step, whatever ends it early."""
    potential = model()
    first, second = structure(seed=0), structure(seed=1)
    second.positions[:] = second.positions[::-1]
    want = potential.compute(second)
    potential.compute(first)
    plain = Evaluator.run

    def interrupted(self, *args):
        if where == "after":
            plain(self, *args)
        raise error("now")

    kept = VerletList(potential.cutoff, 0.5, in_order=False)
    monkeypatch.setattr(Evaluator, "run", interrupted)
    with pytest.raises(error):
        potential.evaluate([second], ("energy", "forces"), edges=kept)
    monkeypatch.setattr(Evaluator, "run", plain)
    got = potential.evaluate([second], ("energy", "forces"), edges=kept)[0]
    np.testing.assert_allclose(got["forces"], want["forces"], atol=1e-10)
    assert np.abs(want["forces"]).max() > 0.1


def test_an_interrupted_search_keeps_the_list_before_it(monkeypatch):
    atoms = structure()
    kept = VerletList(4.0, 0.4)
    arrays = (atoms.cell.array, np.array(atoms.pbc))
    before = kept(atoms.positions, *arrays)
    moved = atoms.positions + np.linspace(0, 3, len(atoms))[:, None]

    def stop(*_, **__):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr("cace_fast.engine.verlet.neighbor_list", stop)
        with pytest.raises(Stop):
            kept(moved, *arrays)
    assert kept(atoms.positions, *arrays) is before
    fresh = VerletList(4.0, 0.4)(moved, *arrays)
    for got, want in zip(kept(moved, *arrays), fresh, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_signals_at_any_moment_change_no_later_number():
    """Another thread sends SIGINT at random moments; the next result is right.

    It runs in a separate process: here a signal would also hit pytest and hypothesis.
    """
    code = SIGNALS.format(tests=os.path.dirname(__file__))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 20


def test_a_file_that_changes_after_it_was_read_changes_nothing(tmp_path):
    potential = model()
    path = tmp_path / "model.safetensors"
    potential.save(path)
    loaded = cace_fast.load(path, dtype="float64")
    os.truncate(path, 100)
    loaded.save(tmp_path / "again.safetensors")
    again = cace_fast.load(tmp_path / "again.safetensors", dtype="float64")
    atoms = structure()
    assert np.array_equal(again.compute(atoms)["forces"], potential.compute(atoms)["forces"])


def test_atoms_are_not_changed():
    atoms = Atoms("Cu2", positions=[[0, 0, 0], [0, 0, 2.5]])
    before = atoms.copy()
    cace_fast.load("copper-emt").compute(atoms)
    assert atoms == before
