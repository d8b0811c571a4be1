"""The GPU engine end to end on compiled kernels: results, stored state, and refusals."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights

from cace_fast.engine import Batch, ReferenceEngine, step_output
from cace_fast.engine.long_range import LongRange
from cace_fast.engine.moving import MovingGraph
from cace_fast.engine.runner import Runner
from cace_fast.engine.triton import TritonEngine
from cace_fast.errors import CaceFastError, InputError, UnsupportedModelError
from cace_fast.graph import AtomicGraph, ModelOutput, join
from cace_fast.kernels.triton.edge_buffers import Capacity, listed, with_headroom
from cace_fast.neighbors import neighbor_list
from cace_fast.spec import ModelSpec, energy_program
from cace_fast.structures import extra_inputs, graph_of

WANTED = ("forces", "virials")
PLAIN = {"l_max": 1, "n_rbf": 2, "n_radial": 2}
MODELS = {
    "plain": PLAIN,
    "one step": PLAIN | {"steps": ("M+Ar+Bchi",)},
    "two steps": PLAIN | {"steps": ("M+Bchi", "M+Ar")},
    "charges": PLAIN | {"ewald_channels": 2},
    "inputs": PLAIN | {"inputs": ("charge_states",)},
}


Engines = Callable[..., tuple[ModelSpec, TritonEngine, ReferenceEngine]]


@pytest.fixture
def engines(device: torch.device) -> Engines:
    """Return a maker of the engine to test and the reference in float64, with the same weights."""

    def make(**options) -> tuple[ModelSpec, TritonEngine, ReferenceEngine]:
        spec = tiny_spec(**options)
        single, program = tiny_weights(spec).to(device, torch.float32), energy_program(spec)
        double = {name: w.cpu().double() for name, w in single.items()}
        engine = TritonEngine(ReferenceEngine(spec, single, program))
        return spec, engine, ReferenceEngine(spec, double, program)

    return make


def graph(spec: ModelSpec, reach: float = 0.0, **options) -> AtomicGraph:
    """Return a small structure; ``reach`` adds pairs beyond the cutoff."""
    atoms, rep = tiny_structure(spec, **options), spec.representation
    if not reach:
        return graph_of(atoms, rep, inputs=extra_inputs(spec))

    def edges(positions, cell, pbc):
        return neighbor_list(positions, cell, pbc, rep.cutoff + reach)

    return graph_of(atoms, rep, inputs=extra_inputs(spec), edges=edges)


def assert_equal(found, expected, names=("energy", "energies", "energies_sr", *WANTED)) -> None:
    for name in names:
        got, want = getattr(found, name).cpu(), getattr(expected, name)
        assert got.dtype == torch.float64, name
        scale = max(float(want.abs().max()), 1.0)
        assert float((got - want).abs().max()) < 4e-6 * scale, name


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pbc", [True, False])
def test_results_are_those_of_the_reference(name: str, pbc: bool, engines: Engines) -> None:
    spec, engine, reference = engines(**MODELS[name])
    given = graph(spec, pbc=pbc)
    assert_equal(engine.evaluate(given, WANTED), reference.evaluate(given, WANTED))
    assert torch.allclose(
        engine.features(given).double(), reference.features(given), rtol=1e-5, atol=1e-5
    )
    if name == "charges":
        charges = ("latent_charges",)
        found, expected = engine.evaluate(given, charges), reference.evaluate(given, charges)
        assert torch.allclose(found.latent_charges.double(), expected.latent_charges, atol=1e-5)


def test_pairs_beyond_the_cutoff_and_their_order_do_not_matter(engines: Engines) -> None:
    spec, engine, _ = engines(**PLAIN)
    expected = engine.evaluate(graph(spec), WANTED)
    wide = graph(spec, reach=1.0)
    order = torch.randperm(len(wide.senders), generator=torch.Generator().manual_seed(0))
    assert_equal(engine.evaluate(wide.select(order), WANTED), expected)


def test_results_are_the_same_bits_from_run_to_run(engines: Engines) -> None:
    spec, engine, _ = engines(**MODELS["one step"])
    one, two = (engine.evaluate(graph(spec), WANTED) for _ in range(2))
    for name in ("energy", "energies", *WANTED):
        assert torch.equal(getattr(one, name), getattr(two, name))


def test_a_batch_of_different_systems(engines: Engines) -> None:
    spec, engine, reference = engines(**MODELS["charges"])
    parts = [graph(spec), graph(spec, side=1, seed=5), graph(spec, pbc=False, seed=4)]
    batch = join(parts)
    found = engine.evaluate(batch, WANTED)
    assert_equal(found, reference.evaluate(batch, WANTED))
    alone = [reference.evaluate(part, WANTED) for part in parts]
    assert torch.allclose(found.virials, torch.cat([a.virials for a in alone]), atol=1e-3)


def test_new_positions_and_cells_in_a_kept_list(engines: Engines) -> None:
    spec, engine, reference = engines(**MODELS["charges"])
    given = graph(spec, reach=0.5)
    engine.evaluate(given, WANTED)
    step = engine._runner.step
    moved = AtomicGraph(**{
        **vars(given), "positions": given.positions * 1.01, "cell": given.cell * 1.01,
    })  # fmt: skip
    assert_equal(engine.evaluate(moved, WANTED), reference.evaluate(moved, WANTED))
    assert engine._runner.step is step


def test_a_frozen_k_set_is_that_of_the_first_cell(device: torch.device) -> None:
    spec = tiny_spec(**MODELS["charges"], ewald={"sigma": 0.1, "dl": 1.7, "norm_factor": 100.0})
    single, program = tiny_weights(spec).to(device, torch.float32), energy_program(spec)
    double = {name: w.cpu().double() for name, w in single.items()}
    given = graph(spec, reach=1.0)
    wide = replace(given, positions=given.positions * 1.2, cell=given.cell * 1.2)
    found = {}
    for k_set in ("frozen", "sphere"):
        how = [LongRange("direct", 1e-6, k_set) for _ in range(2)]
        engine = TritonEngine(ReferenceEngine(spec, single, program, how[0]))
        reference = ReferenceEngine(spec, double, program, how[1])
        for one in (given, wide):
            found[k_set] = engine.evaluate(one, WANTED)
            assert_equal(found[k_set], reference.evaluate(one, WANTED))
    assert float((found["frozen"].energy - found["sphere"].energy).abs()) > 1e-3


def test_capacities_grow_with_a_list_and_are_used_again(engines: Engines) -> None:
    spec, engine, reference = engines(**PLAIN)
    small, large = graph(spec), graph(spec, reach=3.0)
    engine.evaluate(small)
    held = engine.n_bytes
    found = engine.evaluate(large, WANTED)
    assert engine.n_bytes > held
    assert_equal(found, reference.evaluate(large, WANTED))
    step = engine._runner.step
    again = graph(spec, reach=3.0, seed=9)
    assert_equal(engine.evaluate(again, WANTED), reference.evaluate(again, WANTED))
    assert engine._runner.step is step


def test_positions_that_stay_on_the_device(engines: Engines, device: torch.device) -> None:
    spec, engine, reference = engines(**PLAIN)
    given = graph(spec)
    system = Batch(engine, given, skin=0.4)
    generator = torch.Generator().manual_seed(3)
    kick = 0.02 * torch.randn(given.positions.shape, generator=generator, dtype=torch.float64)
    for k in range(0, 12, 3):
        moved = given.positions + k * kick
        found = system.evaluate(WANTED, positions=moved.to(device))
        exact = graph_of_positions(spec, given, moved)
        assert_equal(found, reference.evaluate(exact, WANTED))
    assert 1 < system.n_builds < 4
    builds = system.n_builds
    wider = given.cell * 1.02
    found = system.evaluate(cell=wider.to(device), wanted=WANTED)
    exact = graph_of_positions(spec, replace(given, cell=wider), moved)
    assert_equal(found, reference.evaluate(exact, WANTED))
    assert system.n_builds == builds + 1
    with pytest.raises(InputError, match=r"positions: expected a torch.float64 tensor of shape"):
        system.evaluate(positions=moved.float())


def graph_of_positions(spec: ModelSpec, like: AtomicGraph, positions: torch.Tensor) -> AtomicGraph:
    """Return a graph with other positions and a new list."""
    pairs = neighbor_list(
        positions.numpy(), like.cell[0].numpy(), like.pbc[0].numpy(), spec.representation.cutoff
    )
    names = ("senders", "receivers", "shifts")
    edges = {name: torch.from_numpy(getattr(pairs, name)) for name in names}
    return replace(like, positions=positions, **edges)


def test_segments_are_the_elements_around_each_atom_and_lists_have_one_order() -> None:
    spec = tiny_spec(**PLAIN, elements=(8, 1, 29))
    given = graph(spec, side=3)
    order = torch.randperm(len(given.senders), generator=torch.Generator().manual_seed(2))
    one, two = listed(given, 3), listed(given.select(order), 3)
    for got, want in zip([*one.edges[1:], *one[1:]], [*two.edges[1:], *two[1:]], strict=True):
        assert torch.equal(got, want)
    around = given.receivers * 3 + given.species[given.senders]
    assert len(one.edges.seg_atom) == len(around.unique())
    assert torch.equal(one.edges.seg_atom * 3 + one.edges.seg_species, around.unique())
    assert int(one.edges.seg_count.sum()) == len(given.senders)
    shifts = one.numbers[:, one.shift].T
    d = (
        given.positions[one.edges.receiver]
        - given.positions[one.edges.sender]
        + shifts.double() @ given.cell[0]
    )
    assert float(d.norm(dim=1).max()) < spec.representation.cutoff
    assert torch.equal(one.edges.sender[one.edges.sent_edge], one.edges.sender.sort().values)


def test_capacity_holds_what_fits_and_is_not_wasted() -> None:
    have = Capacity(8, 25_600, 256, 32, 1)
    assert have.holds(Capacity(8, 25_600, 256, 32, 1))
    assert not have.holds(Capacity(8, 25_601, 256, 32, 1))
    assert not have.holds(Capacity(8, 25_600, 257, 32, 1))
    assert not have.holds(Capacity(9, 20_000, 256, 32, 1))
    assert not have.holds(Capacity(8, 1_000, 256, 32, 1))
    assert with_headroom(have).holds(have)


def test_atoms_alone_have_the_energy_of_no_neighbours(engines: Engines) -> None:
    spec, engine, reference = engines(**PLAIN)
    lonely = graph(spec, side=1, pbc=False)
    assert len(lonely.senders) == 0
    assert_equal(engine.evaluate(lonely, WANTED), reference.evaluate(lonely, WANTED))


def test_mistakes_are_named(engines: Engines) -> None:
    spec, engine, _ = engines(**PLAIN)
    given = graph(spec)
    near = given.positions.clone()
    near[1] = near[0] + torch.tensor([0.0, 0.0, 0.01])
    with pytest.raises(
        InputError, match=r"atoms at least 0.05 A apart, got atoms 0 and 1 at 0.0100"
    ):
        engine.evaluate(AtomicGraph(**{**vars(given), "positions": near}), min_dist=0.05)
    with pytest.raises(InputError, match=r"apart, got atoms 0 and 1 at 0.0100"):
        engine.evaluate(AtomicGraph(**{**vars(given), "positions": near}), min_dist="auto")
    near[1] = near[0]
    with pytest.raises(CaceFastError, match="energy: not finite at atom"):
        engine.evaluate(AtomicGraph(**{**vars(given), "positions": near}))
    near[1, 0] = torch.nan
    with pytest.raises(InputError, match=r"NaN or infinity for atoms 1"):
        engine.evaluate(AtomicGraph(**{**vars(given), "positions": near}))
    assert torch.isfinite(engine.evaluate(given).energy).all()


@pytest.mark.parametrize("name", ["energy", "forces", "virials"])
def test_nothing_that_is_not_finite_leaves_the_engine(
    name: str, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, engine, _ = engines(**PLAIN)
    given = graph(spec)

    def broken(**results: torch.Tensor) -> ModelOutput:
        values = results[name].clone()
        values[-1] = torch.inf
        return ModelOutput(**results | {name: values})

    monkeypatch.setattr(step_output, "ModelOutput", broken)
    with pytest.raises(CaceFastError, match=rf"{name}: not finite for (atoms|structures) \d"):
        engine.evaluate(given, WANTED)
    with pytest.raises(CaceFastError, match=rf"{name}: not finite for (atoms|structures) \d"):
        engine.moving(given, 0.5).evaluate(WANTED, None)


def test_systems_without_atoms_move_too(engines: Engines, device: torch.device) -> None:
    spec, engine, _ = engines(**PLAIN)
    given = graph(spec)
    none = given.batch[:0]
    empty = replace(
        given, positions=given.positions[:0], species=none, batch=none, senders=none,
        receivers=none, shifts=given.shifts[:0],
    )  # fmt: skip
    assert isinstance(Batch(engine, empty, skin=0.5)._moving, MovingGraph)
    assert isinstance(Batch(engine, given, skin=0.5)._moving, Runner)


def test_second_derivatives_are_those_of_the_reference(engines: Engines) -> None:
    spec, engine, reference = engines(**PLAIN)
    given = graph(spec)
    found, expected = engine.hessian(given.to(engine.device)), reference.hessian(given)
    assert float(expected.abs().max()) > 0.1
    assert torch.allclose(found.cpu(), expected, atol=1e-4)


def test_what_it_does_not_do_is_refused() -> None:
    spec = tiny_spec(**MODELS["charges"])
    weights, program = tiny_weights(spec), energy_program(spec)
    with pytest.raises(UnsupportedModelError, match="float64: these kernels compute in float32"):
        TritonEngine(ReferenceEngine(spec, weights.to("cpu", torch.float64), program))


def test_copies_compute_the_same_and_threads_wait_for_each_other(engines: Engines) -> None:
    spec, engine, _ = engines(**PLAIN)
    given = [graph(spec, seed=k) for k in range(3)]
    expected = [engine.evaluate(g, WANTED).forces for g in given]
    copy = pickle.loads(pickle.dumps(engine))
    assert torch.equal(copy.evaluate(given[0], WANTED).forces, expected[0])
    found = [None] * 3

    def work(k: int) -> None:
        found[k] = engine.evaluate(given[k], WANTED).forces

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_born_charges_of_the_reference_are_made_where_the_graph_is() -> None:
    spec = tiny_spec(**PLAIN, ewald_channels=1)
    weights = tiny_weights(spec).to("cpu", torch.float64)
    engine = ReferenceEngine(spec, weights, energy_program(spec))
    for pbc in (True, False):
        given = graph(spec, pbc=pbc)
        with torch.device("meta"):  # what names no device would go there
            found = engine.evaluate(given, (*WANTED, "born_charges"))
        assert found.born_charges.device.type == "cpu"
