"""The long range of the GPU engine by each method, in slabs, and in cells that change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_models import tiny_program, tiny_spec, tiny_structure, tiny_weights

from cace_fast.engine import Batch, ReferenceEngine
from cace_fast.engine.long_range import LongRange
from cace_fast.engine.triton import TritonEngine
from cace_fast.errors import InputError
from cace_fast.graph import AtomicGraph, join
from cace_fast.kernels.triton import kvectors
from cace_fast.neighbors import neighbor_list
from cace_fast.spec import energy_program
from cace_fast.structures import graph_of

WANTED = ("forces", "virials")
SPEC = tiny_spec(l_max=1, n_rbf=2, n_radial=2, ewald_channels=3)
METHODS = {"direct": LongRange("direct", 1e-7), "mesh": LongRange("mesh", 1e-7)}


def engines(device: torch.device, how: LongRange) -> tuple[TritonEngine, ReferenceEngine]:
    """Return the engine, and the reference in float64 with the direct sum."""
    single, program = tiny_weights(SPEC).to(device, torch.float32), energy_program(SPEC)
    double = {name: w.cpu().double() for name, w in single.items()}
    exact = LongRange("direct", 1e-10, how.k_set, slab_vacuum=how.slab_vacuum)
    engine = TritonEngine(ReferenceEngine(SPEC, single, program, how))
    return engine, ReferenceEngine(SPEC, double, program, exact)


def system(
    pbc: Any = True, reach: float = 0.0, stretch: float = 1.0, **options: Any
) -> AtomicGraph:
    atoms, rep = tiny_structure(SPEC, **options), SPEC.representation
    atoms.set_cell(stretch * (atoms.cell[:] + 0.3 * np.eye(3, k=1)), scale_atoms=True)
    atoms.pbc = pbc

    def edges(positions, cell, flags):
        return neighbor_list(positions, cell, flags, rep.cutoff + reach)

    return graph_of(atoms, rep, edges=edges)


def assert_equal(found: Any, expected: Any) -> None:
    for name in ("energy", "energies", "energies_sr", *WANTED):
        got, want = getattr(found, name).cpu(), getattr(expected, name)
        scale = max(float(want.abs().max()), 1.0)
        assert float((got - want).abs().max()) < 5e-6 * scale, name


@pytest.mark.parametrize("k_set", ["sphere", "frozen"])
@pytest.mark.parametrize("method", METHODS)
def test_each_method_gives_what_the_reference_gives(
    method: str, k_set: str, device: torch.device
) -> None:
    engine, reference = engines(device, LongRange(method, 1e-7, k_set))
    for stretch in (1.0, 1.15):
        given = system(stretch=stretch, reach=0.5)
        assert_equal(engine.evaluate(given, WANTED), reference.evaluate(given, WANTED))
    (total,) = engine._runner.step.sums
    assert bool(total._meshes) == (method == "mesh")


@pytest.mark.parametrize("method", METHODS)
def test_open_systems_slabs_and_crystals_in_one_batch(method: str, device: torch.device) -> None:
    how = LongRange(method, 1e-7, slab_vacuum=8.0)
    engine, reference = engines(device, how)
    batch = join([
        system(), system((True, True, False), seed=4), system(False, seed=3), system(side=1),
        system((True, False, True), seed=6),
    ])  # fmt: skip
    assert_equal(engine.evaluate(batch, WANTED), reference.evaluate(batch, WANTED))


@pytest.mark.parametrize("method", METHODS)
def test_terms_with_field_penalty_and_fixed_charges_in_one_energy(
    method: str, device: torch.device
) -> None:
    spec, program = tiny_program()
    single, how = tiny_weights(spec).to(device, torch.float32), METHODS[method]
    double = {name: w.cpu().double() for name, w in single.items()}
    parts = [system(), system(False, seed=3), system(side=1)]
    engine = TritonEngine(ReferenceEngine(spec, single, program, how))
    reference = ReferenceEngine(spec, double, program, METHODS["direct"])
    for graph in (join(parts), parts[1], join(parts)):  # buffers of another size in between
        assert_equal(engine.evaluate(graph, WANTED), reference.evaluate(graph, WANTED))


def test_slabs_are_refused_without_vacuum_and_wires_always(device: torch.device) -> None:
    engine, _ = engines(device, LongRange())
    with pytest.raises(InputError, match="pbc"):
        engine.evaluate(system((True, True, False)), WANTED)
    engine, _ = engines(device, LongRange(slab_vacuum=8.0))
    with pytest.raises(InputError, match="pbc"):
        engine.evaluate(system((True, False, False)), WANTED)
    high = system((True, True, False))
    high.positions[0, 2] += 40.0
    with pytest.raises(InputError, match="atoms of a slab within"):
        engine.evaluate(high, WANTED)
    moving = Batch(engine, high, skin=0.5)
    with pytest.raises(InputError, match="atoms of a slab within"):
        moving.evaluate(wanted=WANTED)


def test_by_itself_the_sum_is_direct_up_to_a_number_of_pairs(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = system()
    for most, by_mesh in ((3e8, False), (1.0, True)):
        monkeypatch.setattr(kvectors, "MOST_PAIRS_ON_GPU", most)
        engine, reference = engines(device, LongRange("auto", 1e-7))
        assert_equal(engine.evaluate(given, WANTED), reference.evaluate(given, WANTED))
        assert bool(engine._runner.step.sums[0]._meshes) == by_mesh


@pytest.mark.parametrize(
    ("how", "always"),
    [
        (LongRange("direct", 1e-7), False),
        (LongRange("direct", 1e-7, "frozen"), True),
        (LongRange("mesh", 1e-7), False),
        (LongRange("mesh", 1e-7, "frozen"), True),
    ],
    ids=["direct", "direct, frozen", "mesh", "mesh, frozen"],
)
def test_a_cell_that_changes_keeps_what_was_captured_where_it_can(
    how: LongRange, always: bool, device: torch.device
) -> None:
    engine, reference = engines(device, how)
    given = system()
    moving = Batch(engine, given, skin=0.6)
    run = moving._moving
    moving.evaluate(wanted=WANTED)
    captured = run._captured
    for factor in (1.0, 1.004, 0.998):
        positions, cell = factor * given.positions, factor * given.cell
        exact = replace(given, positions=positions, cell=cell)
        expected = reference.evaluate(with_pairs(exact), WANTED)
        found = moving.evaluate(WANTED, positions=positions.to(device), cell=cell.to(device))
        assert_equal(found, expected)
        assert run._captured is captured
    assert moving.n_builds == 1
    moving.evaluate(cell=(1.3 * given.cell).to(device))
    assert (run._captured is captured) == always


def test_a_cell_that_is_refused_is_refused_until_there_is_another(device: torch.device) -> None:
    engine, reference = engines(device, LongRange("direct", 1e-7, "frozen"))
    given = system()
    moving = Batch(engine, given, skin=0.6)
    moving.evaluate(WANTED)
    moving.cell = (2.0 * given.cell).to(device)
    for _ in range(2):
        with pytest.raises(InputError, match="one within a stretch of"):
            moving.evaluate(WANTED)
    moving.cell = given.cell.to(device)
    assert_equal(moving.evaluate(WANTED), reference.evaluate(given, WANTED))


def test_a_new_box_of_a_slab_needs_a_new_capture(device: torch.device) -> None:
    engine, reference = engines(device, LongRange("direct", 1e-7, "frozen", slab_vacuum=8.0))
    given = system((True, True, False))
    moving = Batch(engine, given, skin=0.6)
    moving.evaluate(wanted=WANTED)
    captured = moving._moving._captured
    wider = replace(given, positions=1.004 * given.positions, cell=1.004 * given.cell)
    found = moving.evaluate(
        WANTED, positions=wider.positions.to(device), cell=wider.cell.to(device)
    )
    assert_equal(found, reference.evaluate(with_pairs(wider), WANTED))
    assert moving._moving._captured is not captured


def with_pairs(graph: AtomicGraph) -> AtomicGraph:
    found = neighbor_list(
        graph.positions.numpy(), graph.cell[0].numpy(), graph.pbc[0].numpy(),
        SPEC.representation.cutoff,
    )  # fmt: skip
    names = ("senders", "receivers", "shifts")
    return replace(graph, **{name: torch.from_numpy(getattr(found, name)) for name in names})
