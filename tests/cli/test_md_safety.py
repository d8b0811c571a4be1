"""`cace-fast md` where runs stop, explode, collide, or begin from structures they cannot keep."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.constraints import FixAtoms, FixScaled
from ase.io import read, write
from support.command import cace_fast, start, succeed
from support.md_runs import (
    ENSEMBLES,
    OPTIONS,
    WAVE,
    arguments,
    assert_equal_runs,
    log,
    simulation,
    whole_run,
)
from support.tiny_models import tiny_spec, tiny_structure

from cace_fast.cli.restart import Restart
from cace_fast.cli.simulation import LIST


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_a_molecule_without_a_cell(md_files, ensemble):
    tiny_structure(tiny_spec(**OPTIONS), 2, pbc=False).write("in.xyz")
    succeed(*arguments(ensemble))
    assert [int(row["step"]) for row in log()] == list(range(13))
    assert {float(row["volume_A3"]) for row in log()} == {0.0}
    assert not read("run.extxyz", "-1").pbc.any()


@pytest.mark.parametrize("field", [None, WAVE], ids=["", "field"])
@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_runs_that_stop_after_any_step_continue_bit_for_bit(md_files, ensemble, field):
    whole_run(ensemble, field)
    for last in (1, 3, 5, 7, 11):
        run = simulation(ensemble, "cut", field=field)
        with closing(run.outputs):
            run.begin(force=True)
            run.run(12, 5, lambda: None, lambda run=run, last=last: run.step >= last)
            assert run.step == last
        saved = Restart.load(Path("cut.restart.npz"))
        assert saved.step == last
        assert (LIST[0] in saved.arrays) == (last != 5)
        again = simulation(ensemble, "cut", field=field)
        with closing(again.outputs):
            again.resume()
            assert again.step == last
            again.run(12, 5, lambda: None)
        assert_equal_runs("whole", "cut")


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_signals_lose_no_step(md_files, number, code, text):
    words = [*arguments(steps=100_000, **{"restart-every": 90_000}), "--restart"]
    process = start(*words)
    deadline = time.monotonic() + 120
    while not Path("run.csv").exists() or Path("run.csv").read_bytes().count(b"\n") < 8:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(number)
    _, stderr = process.communicate()
    assert process.returncode == code, stderr
    step = Restart.load(Path("run.restart.npz")).step
    assert f"{text} after step {step}; --restart continues" in stderr
    assert int(log()[-1]["step"]) == step > 0


def test_a_signal_between_two_looks_loses_no_step(md_files):
    """The signal came between the check that saves and the check that returns."""
    run = simulation("nve", "run")
    answers = iter([False, False, False, True])
    with closing(run.outputs):
        run.begin(force=False)
        run.run(10, 100, lambda: None, lambda: next(answers))
    assert Restart.load(Path("run.restart.npz")).step == run.step == 4


def test_two_runs_on_one_output_exclude_each_other(md_files):
    run = simulation("nve", "run")
    with closing(run.outputs):
        run.begin(force=False)
        before = {p.name: p.read_bytes() for p in md_files.iterdir()}
        for more in ((), ("--force",), ("--restart",)):
            result = cace_fast(*arguments(), *more)
            assert result.exit_code == 3
            if more != ("--restart",):  # whose other settings are refused before that
                assert "--output: expected files that no other run writes" in result.stderr
        second = simulation("nve", "run")
        with closing(second.outputs), pytest.raises(ValueError, match="no other run writes, got"):
            second.resume()
        assert {p.name: p.read_bytes() for p in md_files.iterdir()} == before
    succeed(*arguments(), "--force")


def test_outputs_without_their_restart_file(md_files):
    succeed(*arguments(steps=2))
    Path("run.restart.npz").unlink()
    result = cace_fast(*arguments(), "--restart")
    assert result.exit_code == 3
    assert "run.extxyz exists already, without run.restart.npz, from which" in result.stderr
    assert "Pass --restart" not in result.stderr


def test_a_refused_restart_leaves_nothing(md_files):
    succeed(*arguments(steps=2))
    Path("run.csv").unlink()
    assert cace_fast(*arguments(), "--restart").exit_code == 3
    assert not Path("run.csv").exists()


def test_explosions_are_told(md_files):
    atoms = read("in.xyz")
    atoms.set_momenta(np.random.default_rng(0).normal(0, 300, (8, 3)))
    atoms.write("in.xyz")
    result = cace_fast(*arguments())
    assert result.exit_code == 3
    assert "the run has exploded: " in result.stderr
    assert "K, energy changed by" in result.stderr
    again = cace_fast(*arguments(output="hot", temperature=1e9, steps=1))  # as was asked for
    assert "exploded" not in again.stderr


def test_first_momenta_have_the_temperature_asked_for(md_files):
    """Drawn many times for few atoms, where the centre of mass takes a quarter of it."""
    for pbc, constraint in ((True, None), (False, None), (True, FixAtoms([0]))):
        atoms = tiny_structure(tiny_spec(**OPTIONS), 2, pbc=pbc)[:4]
        atoms.set_constraint(constraint)
        write("in.xyz", atoms)
        kelvin = [
            simulation("nve", "run", seed=seed).atoms.get_temperature() for seed in range(300)
        ]
        # of 9 or more degrees of freedom a mean of 300 draws has a deviation of 3 %
        assert np.mean(kelvin) == pytest.approx(300, rel=0.1)
    write("in.xyz", atoms[1:2])
    assert simulation("nve", "run").atoms.get_temperature() > 0


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--ensemble", "nve", "--friction", 0.1), "--friction: expected it with --ensemble nvt"),
        (("--ensemble", "npt", "--friction", 0.1), "--friction: expected it with --ensemble nvt"),
        (("--ensemble", "nvt", "--pressure", 1), "--pressure: expected it with --ensemble npt"),
        (("--output", "no/such/run"), "--output: no such folder: no/such. Make it first."),
        (("--min-dist", "-1"), "--min-dist: expected a length of at least 0 A, auto or none"),
        (("--min-dist", "3.5"), "at least 3.5 A apart"),
        (("--output", "x" * 400), "--output: expected a path of this system, got 'xxx"),
    ],
)
def test_options_without_an_effect_or_a_sense(md_files, words, text):
    result = cace_fast("md", "m.safetensors", "in.xyz", "--output", "run", "--steps", 3, *words)
    assert result.exit_code == 3
    assert text in result.stderr
    assert sorted(p.name for p in md_files.iterdir()) == ["in.xyz", "m.safetensors"]


def test_fewer_steps_than_are_done(md_files):
    succeed(*arguments(steps=8))
    result = cace_fast(*arguments(steps=5), "--restart")
    assert result.exit_code == 3
    assert "--steps: expected at least 8, as many as are done, got 5" in result.stderr


def test_close_atoms_may_be_allowed(md_files):
    atoms = Atoms("OH", positions=[[0, 0, 0], [0.3, 0, 0]])
    atoms.write("in.xyz")
    refused = cace_fast(*arguments(steps=1))
    assert "Mend the structure, or allow it by --min-dist none or a smaller" in refused.stderr
    assert "smaller number" in refused.stderr
    told = cace_fast(*arguments(steps=1), "--min-dist", "none", "--temperature", "0")
    assert "apart" not in told.stderr


def fixed(md_files, *constraints, cell=None):
    atoms = read("in.xyz")
    if cell is not None:
        atoms.set_cell(cell)
    atoms.set_constraint(list(constraints))
    write("POSCAR", atoms)
    words = arguments()
    words[2] = "POSCAR"
    return atoms, words


@pytest.mark.parametrize(
    "constraints",
    [
        [FixAtoms([0, 3])],
        [FixScaled(1, [True, True, False])],
        [FixAtoms([0]), FixScaled(1, [True, False, False])],
        [FixScaled(2, [True, True, True])],
    ],
)
def test_fixed_atoms_and_components_are_kept_in_the_output(md_files, constraints):
    _, words = fixed(md_files, *constraints)
    succeed(*words)
    first, *_, last = read("run.extxyz", ":")
    mask = np.zeros((8, 3), dtype=bool)
    for constraint in constraints:
        mask[constraint.index] |= constraint.mask if isinstance(constraint, FixScaled) else True
    assert np.array_equal(first.positions == last.positions, mask)
    write("again.extxyz", last)
    again = read("again.extxyz")
    before = again.positions.copy()
    again.set_positions(before + 1.0)
    assert np.array_equal(again.positions == before, mask)
    assert float(log()[0]["temperature_K"]) > 0


def test_constraints_that_the_output_cannot_keep_are_refused(md_files):
    skewed = [[5, 0, 0], [1, 5, 0], [0, 0, 5]]
    _, words = fixed(md_files, FixScaled(1, [True, False, False]), cell=skewed)
    result = cace_fast(*words)
    assert result.exit_code == 3
    assert "constraints: expected fixed atoms, or fixed x, y or z" in result.stderr
    assert "got FixScaled of atoms [1]" in result.stderr
    assert not Path("run.csv").exists()


def test_fixed_atoms_at_constant_pressure_and_atoms_all_fixed(md_files):
    _, words = fixed(md_files, FixAtoms([0]))
    words[words.index("nve")] = "npt"
    assert "--ensemble npt: needs atoms that are all free" in cace_fast(*words).stderr
    write("in.xyz", read("in.xyz"))
    for ensemble in ("nve", "nvt"):
        _, words = fixed(md_files, FixAtoms(list(range(8))))
        words[words.index("nve")] = ensemble
        result = cace_fast(*words)
        assert result.exit_code == 3
        assert "STRUCTURE: expected atoms that can move, got all of them fixed" in result.stderr


def edited(**changes):
    """Return what changes entries of the head of a restart file."""

    def edit(path):
        saved = dict(np.load(path))
        head = json.loads(saved["head"].tobytes())
        for name, value in changes.items():
            if value is None:
                head.pop(name)
            else:
                head[name] = value
        saved["head"] = np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)
        np.savez(path, **saved)

    return edit


def arrays(**changes):
    """Return what changes arrays of a restart file."""

    def edit(path):
        saved = dict(np.load(path))
        for name, value in changes.items():
            key = name.replace("__", ".")
            saved[key] = np.array(value(saved[key]) if callable(value) else value)
        np.savez(path, **saved)

    return edit


EDITS = {
    "step negative": edited(step=-1),
    "step huge": edited(step=10**30),
    "step a text": edited(step="6"),
    "step another": edited(step=5),
    "lengths a list": edited(lengths=[1]),
    "lengths of others": edited(lengths={"trajectory": 0}),
    "lengths negative": edited(lengths={"trajectory": -5, "log": 0}),
    "lengths a text": edited(lengths={"trajectory": "a", "log": 0}),
    "no random": edited(random=None),
    "random of another kind": edited(random={"bit_generator": "MT19937", "state": {}}),
    "random without state": edited(random={}),
    "random huge": edited(
        random={"bit_generator": "PCG64", "state": {"state": -1, "inc": 10**60},
                "has_uint32": 0, "uinteger": 0}
    ),
    "settings a number": edited(settings=3),
    "head of another kind": edited(more=1),
    "positions of fewer atoms": arrays(atoms__positions=lambda a: a[:-1]),
    "positions not finite": arrays(atoms__positions=lambda a: a * np.nan),
    "positions of texts": arrays(atoms__positions=lambda a: a.astype(str)),
    "momenta complex": arrays(atoms__momenta=lambda a: a * 1j),
    "cell flat": arrays(atoms__cell=lambda a: a.ravel()),
    "nsteps negative": arrays(dynamics__nsteps=-3),
    "nsteps huge": arrays(dynamics__nsteps=2**62),
    "nsteps a fraction": arrays(dynamics__nsteps=6.5),
    "nsteps several": arrays(dynamics__nsteps=[6, 6]),
    "a method": arrays(dynamics__run=1.0),
    "a stranger": arrays(somebody__x=1.0),
    "work several": arrays(field__work=[1.0, 2.0]),
    "list of fewer atoms": arrays(list__positions=np.zeros((2, 3)), list__cell=np.eye(3)),
    "k cell flat": arrays(long_range__reference_cell=np.zeros(9)),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_edited_restart_files(md_files, edit):
    succeed(*arguments("nvt", steps=6))
    before = {p.name: p.read_bytes() for p in md_files.iterdir() if p.suffix != ".npz"}
    edit(Path("run.restart.npz"))
    result = cace_fast(*arguments("nvt"), "--restart")
    assert result.exit_code == 3, result.stderr
    assert "--restart" in result.stderr
    assert {p.name: p.read_bytes() for p in md_files.iterdir() if p.suffix != ".npz"} == before


def test_a_pipe_is_no_restart_file(md_files):
    os.mkfifo("run.restart.npz")
    result = cace_fast(*arguments(), "--restart")
    assert result.exit_code == 3
    assert "run.restart.npz, a pipe or device" in result.stderr
