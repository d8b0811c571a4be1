"""`cace-fast bench`: its report, its files and its comparison."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from support.command import cace_fast, succeed
from support.tiny_models import tiny_potential, tiny_structure

from cace_fast.cli import measure
from cace_fast.cli.counted import counted
from cace_fast.cli.measure import Way, memory, spread, times
from cace_fast.spec import Readout


@pytest.fixture
def files(tmp_path, monkeypatch):
    potential = tiny_potential()
    potential.save(tmp_path / "m.safetensors")
    tiny_structure(potential.spec, 2).write(tmp_path / "in.xyz")
    monkeypatch.setattr(measure, "SHORTEST", 1e-4)
    return tmp_path


@pytest.fixture
def no_child(monkeypatch):
    monkeypatch.setattr("cace_fast.cli.bench.memory", lambda model, way, atoms: 8000 * len(atoms))


def test_numbers_agree_with_each_other(files, no_child):
    arguments = ("--default-dtype", "float32", "--default-dtype", "float64", "--rounds", "3")
    options = ("--timestep", "2", "--json", "--repeat", "2")
    out = succeed("bench", files / "m.safetensors", files / "in.xyz", *arguments, *options).stdout
    found = json.loads(out)
    assert [row["dtype"] for row in found["results"]] == ["float32", "float64"]
    assert found["structure"]["atoms"] == 64
    assert found["structure"]["edges_per_atom"] > 5
    assert found["rounds"] == 3
    assert found["versions"]["torch"]
    for row in found["results"]:
        low, high = row["us_per_atom_quartiles"]
        assert 0 < low <= row["us_per_atom"] <= high
        step = row["us_per_atom"] * 64 * 1e-6
        assert row["ns_per_day"] == pytest.approx(86400 / step * 2e-6)
        assert row["bytes_per_atom"] == 8000


def test_parts_are_timed_beside_what_they_need(files, no_child):
    base = ("bench", files / "m.safetensors", files / "in.xyz", "--rounds", "1")
    ways = ("--backend", "cpu", "--backend", "reference")
    found = json.loads(succeed(*base, *ways, "--json").stdout)
    cpu, plain = found["results"]
    assert plain["parts"] == {}
    assert set(cpu["parts"]) == set(found["mflop_needed"])
    assert all(cpu["parts"][part] > 0 for part in ("pairs", "mix", "contract", "readout", "edges"))
    assert sum(cpu["parts"].values()) < 1.5 * cpu["us_per_atom"]
    assert found["core"]["float32"] > found["core"]["float64"] > 0
    text = succeed(*base, *ways).stdout
    assert "parts of the engine" in text
    assert text.count("\ncontract ") == 1


def test_needed_operations_are_those_of_the_formulas():
    """Shapes of the water model, counted by hand: 6 functions, 20 monomials, 12 x 9 lanes."""
    spec = tiny_potential(n_rbf=6, l_max=3, nu_max=3, n_radial=12, n_embedding=3).spec
    need = counted(spec, neighbours=70.0)
    assert need["sums"] == 70 * 6 * 20
    groups = 3 * spec.representation.n_elements * 6 * 20
    assert need["mix"] == 2 * (108 * 6 * 20 + groups)
    rows = sum(
        m.mlp.widths[1] + m.linear * m.n_out
        for sub in spec.submodels
        for m in sub.modules
        if isinstance(m, Readout)
    )
    assert need["readout"] == 2 * rows * 108 * 6
    assert 108 * 100 < need["contract"] < 108 * 400
    assert need["messages"] == 0


def test_structures_are_made_where_none_is_given(files, no_child):
    text = succeed("bench", files / "m.safetensors", "--rounds", "1").stdout
    assert "H96O96 (192 atoms" in text
    assert "ns/day at 1 fs" in text


def test_stored_runs_are_compared(files, no_child):
    base = ("bench", files / "m.safetensors", files / "in.xyz", "--rounds", "1")
    base = (*base, "--backend", "reference")
    store = files / "run.json"
    succeed(*base, "--output", store)
    result = cace_fast(*base, "--output", store)
    assert result.exit_code == 3
    assert "run.json exists already" in result.stderr
    stored = json.loads(store.read_text())
    stored["results"][0]["us_per_atom"] *= 1000.0
    stored["machine"] = "an abacus"
    store.write_text(json.dumps(stored))
    compared = succeed(*base, "--compare", store)
    line = compared.stdout.splitlines()[-1]
    assert line.startswith("reference float32 cpu: ")
    assert float(line.split(", ")[1].split()[0]) > 100.0
    assert "machine differs from the earlier run: an abacus -> " in compared.stderr
    other = succeed(*base, "--default-dtype", "float64", "--compare", store)
    assert "reference float64 cpu: not in the earlier run" in other.stdout


def test_wrong_arguments(files):
    (files / "no.json").write_text('{"results": [{}]}')
    base = ("bench", files / "m.safetensors", files / "in.xyz")
    cases = (
        (("--compare", files / "no.json"), "--compare: expected a file that bench --output wrote"),
        (("--compare", files / "nothing"), "--compare: no such file"),
        (("--timestep", "0"), "--timestep: expected a time above 0"),
        (("--default-dtype", "float16"), "dtype: expected 'float32' or 'float64'"),
    )
    for arguments, text in cases:
        result = cace_fast(*base, *arguments)
        assert result.exit_code == 3
        assert text in result.stderr
    atoms = tiny_structure(tiny_potential().spec, pbc=False)
    atoms.write(files / "in.xyz")
    assert "--repeat: expected 1 for a structure" in cace_fast(*base, "--repeat", "2").stderr


def test_rounds_alternate():
    potentials = [tiny_potential(), tiny_potential(dtype="float32")]
    order: list[str] = []
    for potential in potentials:
        honest = potential.evaluate

        def evaluate(*a, honest=honest, name=str(potential.dtype), **k):
            order.append(name)
            return honest(*a, **k)

        potential.evaluate = evaluate
    atoms = tiny_structure(potentials[0].spec)
    rounds: list[int] = []
    found = times(potentials, atoms, 4, lambda: rounds.append(1))
    assert np.shape(found) == (2, 4)
    assert len(rounds) == 4
    changes = sum(a != b for a, b in pairwise(order))
    assert changes == 1 + 2 * 4  # one for the first calls, then two in each round


def test_spread():
    assert spread([3.0]) == (3.0, 3.0, 3.0)
    assert spread([1.0, 2.0, 3.0, 4.0, 100.0]) == (2.0, 3.0, 4.0)


def test_memory_is_that_of_the_evaluation(files):
    """More atoms need more, and the imports, hundreds of megabytes, are not counted."""
    atoms = tiny_structure(tiny_potential().spec, 4)
    way = Way("reference", "float64", "cpu")
    small, large = (memory(str(files / "m.safetensors"), way, atoms * n) for n in (1, (4, 4, 4)))
    assert 0 < small < 150e6
    assert large > small + 4096 * 1000


def test_a_failing_child_is_reported(files):
    with pytest.raises(RuntimeError, match=r"measuring memory failed: [^$]*no such file"):
        memory(
            str(files / "gone"),
            Way("auto", "float32", "cpu"),
            tiny_structure(tiny_potential().spec),
        )
