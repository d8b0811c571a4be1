"""Systems that move on the device: their list, full buffers, reads of the host."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from ase import units
from ase.md.verlet import VelocityVerlet
from gpu_emulator import emulate
from gpu_models import DENSITY, SHAPES, potential, structure
from support.boxes import CELLS, PBC, places
from support.moving import (
    MODEL,
    SKIN,
    engine_of,
    graph_without_pairs,
    moving_of,
    run_of,
    same_pairs,
)
from support.tiny_models import tiny_potential, tiny_structure
from torch.utils._python_dispatch import TorchDispatchMode

from cace_fast.engine import Batch, ReferenceEngine
from cace_fast.engine.own_list import OwnList
from cace_fast.engine.runner import Runner
from cace_fast.engine.triton import TritonEngine
from cace_fast.errors import CaceFastError, InputError
from cace_fast.interfaces.ase import CACECalculator
from cace_fast.neighbors import neighbor_list
from cace_fast.potential import Potential
from cace_fast.structures import graph_of

WANTED = ("forces", "virials")


@pytest.mark.parametrize("pbc", PBC)
@pytest.mark.parametrize("cell", CELLS)
def test_pairs_are_those_of_vesin(cell: str, pbc: str, device: torch.device) -> None:
    r = places(40, CELLS[cell])
    run = run_of([r], [CELLS[cell]], [PBC[pbc]], device=device)
    run.evaluate((), None)
    same_pairs(run, [r], [CELLS[cell]], [PBC[pbc]])


def test_systems_of_a_batch_do_not_see_each_other(device: torch.device) -> None:
    names, flags = ["cubic", "small", "triclinic"], [PBC["ppp"], PBC["ppp"], PBC["ooo"]]
    cells = [CELLS[name] for name in names]
    parts = [
        places(n, cell, seed) for seed, (n, cell) in enumerate(zip((20, 7, 13), cells, strict=True))
    ]
    run = run_of(parts, cells, flags, device=device)
    run.evaluate((), None)
    same_pairs(run, parts, cells, flags)


def test_open_systems_may_drift_and_spread(device: torch.device) -> None:
    cell, flags = np.zeros((3, 3)), PBC["ooo"]
    r = places(30, CELLS["cubic"])
    run = run_of([r], [cell], [flags], device=device)
    run.evaluate((), None)
    for change in (lambda x: x + 1e5, lambda x: 1.5 * x, lambda x: 0.2 * x - 900.0):
        moved = change(r)
        run.positions.copy_(torch.from_numpy(moved))
        run.evaluate((), None)
        same_pairs(run, [moved], [cell], [flags])


def reference(run: Runner, engine: Any, wanted: tuple[str, ...] = WANTED) -> Any:
    """Return what the reference gives in float64 for the positions of a run, pairs by vesin."""
    g = run.own.graph.to(torch.device("cpu"))
    r = run.positions.cpu()
    assert g.n_systems == 1
    found = neighbor_list(
        r.numpy(), g.cell[0].numpy(), g.pbc[0].numpy(), engine.spec.representation.cutoff
    )
    pairs = {
        name: torch.from_numpy(getattr(found, name)) for name in ("senders", "receivers", "shifts")
    }
    exact = replace(g, positions=r, **pairs)
    weights = {name: w.cpu().double() for name, w in engine.weights.items()}
    return ReferenceEngine(engine.spec, weights, engine.program).evaluate(exact, wanted)


def assert_equal(found: Any, expected: Any) -> None:
    for name in ("energy", "energies", *WANTED):
        got, want = getattr(found, name).cpu(), getattr(expected, name)
        scale = max(float(want.abs().max()), 1.0)
        assert float((got - want).abs().max()) < 4e-6 * scale, name


def moving(device: torch.device, n: int = 24, **options: Any) -> tuple[Runner, Any]:
    """Return a rattled crystal without close pairs, and its engine."""
    engine = engine_of(torch.float32, device, **options)
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), -1).reshape(-1, 3)[:n]
    r, cell = 2.6 * grid + rng.uniform(-0.2, 0.2, (n, 3)), 7.8 * np.eye(3)
    graph = graph_without_pairs([r], [cell], [PBC["ppp"]]).to(device)
    return moving_of(engine, graph), engine


@pytest.mark.parametrize("field", ["edges", "segments"])
def test_a_list_that_does_not_fit_gives_larger_buffers_and_right_numbers(
    field: str, device: torch.device
) -> None:
    run, engine = moving(device)
    expected = run.evaluate(WANTED, None)
    small = run.step.capacity._replace(**{field: 256 if field == "edges" else 8})
    run._fill(small)
    run.own.due = True
    found = run.evaluate(WANTED, None)
    assert getattr(run.step.capacity, field) > getattr(small, field)
    for name in ("energy", *WANTED):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert_equal(found, reference(run, engine))


def test_buffers_that_do_not_fit_the_device_are_asked_for_again(device: torch.device) -> None:
    run, engine = moving(device)
    expected = run.evaluate(WANTED, None)
    full = mock.Mock(side_effect=torch.OutOfMemoryError)
    with mock.patch("cace_fast.engine.runner.Step", full):
        with pytest.raises(CaceFastError, match="memory: 24 atoms with 512 pairs do not fit on"):
            run._fill(run.step.capacity)
        with pytest.raises(CaceFastError, match="memory: 24 atoms with"):
            run.evaluate(WANTED, None)
    found = run.evaluate(WANTED, None)
    for name in ("energy", *WANTED):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert_equal(found, reference(run, engine))


def test_a_list_is_made_before_atoms_leave_the_skin_and_again_where_they_have_left(
    device: torch.device,
) -> None:
    run, engine = moving(device)
    run.evaluate(WANTED, None)
    builds = run.n_builds
    run.positions[0, 0] += 0.2
    run.evaluate(WANTED, None)
    assert run.n_builds == builds
    run.positions[0, 0] += 0.04  # 0.24 of the 0.25 that are allowed: the next step makes a list
    found = run.evaluate(WANTED, None)
    assert_equal(found, reference(run, engine))
    assert run.n_builds == builds
    run.evaluate(WANTED, None)
    assert run.n_builds == builds + 1
    run.positions[1] -= 1.0  # far out of the skin: the step itself is repeated with a list
    found = run.evaluate(WANTED, None)
    assert run.n_builds == builds + 2
    assert_equal(found, reference(run, engine))


def test_a_cell_may_change_as_long_as_the_list_allows_it(device: torch.device) -> None:
    run, engine = moving(device)
    run.evaluate(WANTED, None)
    builds = run.n_builds
    for factor, lists in ((1.01, 0), (0.99, 0), (0.9, 1), (0.6, 2)):
        cell = factor * 7.8 * torch.eye(3, dtype=torch.float64, device=device)[None]
        run.positions.mul_(float(cell[0, 0, 0] / run.own.graph.cell[0, 0, 0]))
        run.set_cell(cell)
        assert_equal(run.evaluate(WANTED, None), reference(run, engine))
        assert (run.n_builds > builds) == (lists > 0)
        if lists:
            same_pairs_of(run)


def same_pairs_of(run: Runner) -> None:
    cell, pbc = run.own.graph.cell[0].cpu().numpy(), tuple(run.own.graph.pbc[0].tolist())
    same_pairs(run, [run.positions.cpu().numpy()], [cell], [pbc])


def test_a_position_that_is_no_number_is_named_and_does_not_stay(device: torch.device) -> None:
    run, engine = moving(device)
    good = run.positions.clone()
    run.evaluate(WANTED, None)
    for _ in range(2):
        run.positions[2, 1] = torch.nan
        with pytest.raises(InputError, match=r"NaN or infinity for atoms 2"):
            run.evaluate(WANTED, None)
    run.positions.copy_(good)
    assert_equal(run.evaluate(WANTED, None), reference(run, engine))


def test_a_resident_system_with_charges_and_born_charges(device: torch.device) -> None:
    engine = engine_of(torch.float32, device, ewald_channels=1)
    run, _ = moving(device, ewald_channels=1)
    system = Batch(engine, run.own.graph, SKIN)
    found = system.evaluate(wanted=(*WANTED, "born_charges"))
    assert_equal(found, reference(run, engine))
    expected = reference(run, engine, ("born_charges",))
    assert torch.allclose(found.born_charges.cpu(), expected.born_charges, atol=1e-5)
    system.positions[:] += 0.5  # in place: the sum rule and forces do not notice
    assert_equal(system.evaluate(wanted=WANTED), reference(run, engine))


def test_bits_do_not_depend_on_when_the_list_was_made(device: torch.device) -> None:
    run, _ = moving(device)
    run.evaluate(WANTED, None)
    run.positions[:, 1] += 0.1
    old = run.evaluate(WANTED, None)
    run.own.due = True
    new = run.evaluate(WANTED, None)
    for name in ("energy", "energies", "forces"):
        assert torch.allclose(getattr(old, name), getattr(new, name), rtol=0, atol=1e-6), name


SYNCHRONISING = {
    "_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "repeat_interleave", "is_nonzero", "equal", "item",
    "tolist", "_to_cpu", "masked_scatter", "nonzero_static", "histc", "linalg_inv_ex",
}  # fmt: skip


class NoLook(TorchDispatchMode):
    """Refuses operations that make the host wait for a device, or whose shape depends on data."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split("::")[1].split(".")[0]
        assert name not in SYNCHRONISING, f"{func.name()}: the host would look at the device"
        if name in ("index", "index_put_", "index_put"):
            kinds = [t.dtype for t in args[1] if t is not None]
            assert torch.bool not in kinds, "an index of a mask has a size that depends on data"
        if name in ("_to_copy", "copy_"):
            assert "device" not in (kwargs or {}), f"{func.name()} between devices"
        return func(*args, **(kwargs or {}))


@contextmanager
def steps_without_a_look() -> Iterator[list[bool]]:
    """Run every step under :class:`NoLook`, up to the read of its status; record rebuilds."""
    plain, seen = Runner._replay, []

    def replay(self: Runner, key: tuple[bool, ...], work: Any) -> None:
        seen.append(key[0])
        with NoLook():
            plain(self, key, work)

    with mock.patch.object(Runner, "_replay", replay):
        yield seen


@pytest.mark.parametrize("options", [{}, {"ewald_channels": 2}, {"steps": ("M+Ar+Bchi",)}],
                         ids=["plain", "charges", "messages"])  # fmt: skip
def test_nothing_in_a_step_makes_the_host_wait(options: dict, device: torch.device) -> None:
    run, engine = moving(device, **options)
    run.evaluate(WANTED, None)
    with steps_without_a_look() as seen:
        run.evaluate(WANTED, None)
        run.positions[0] += 1.0
        found = run.evaluate(WANTED, None)
    assert seen == [False, False, True]
    assert_equal(found, reference(run, engine))
    with pytest.raises(AssertionError, match="the host would look"), NoLook():
        torch.nonzero(run.positions)
    with pytest.raises(AssertionError, match="depends on data"), NoLook():
        run.positions[run.positions[:, 0] > 0]


def test_mistakes_are_named(device: torch.device) -> None:
    run = run_of([np.zeros((1, 3))], [np.eye(3) * 9], [PBC["ppp"]], device=device)
    empty = graph_without_pairs([np.zeros((0, 3))], [np.eye(3)], [PBC["ooo"]]).to(device)
    with pytest.raises(InputError, match="graph: expected at least one atom"):
        OwnList(empty, 4.0, SKIN)
    with pytest.raises(InputError, match="skin: expected a length"):
        OwnList(run.own.graph, 4.0, -1.0)
    with pytest.raises(InputError, match="images"):
        run_of([np.zeros((1, 3))], [np.diag([0.05, 0.05, 0.05])], [PBC["ppp"]])


def test_dynamics_on_the_device_keeps_its_energy_and_ends_where_ase_ends(
    device: torch.device,
) -> None:
    model = tiny_potential(dtype="float64", **MODEL)
    spec, weights = model.spec, model.weights
    fast = Potential(spec, weights, device=device, dtype="float32", backend="triton")
    frames = [tiny_structure(spec, side=2, seed=k, spacing=2.7) for k in (1, 2)]
    system = fast.batch(frames, skin=0.3)
    n, dt, mass = len(frames[0]), 1.0 * units.fs, 12.0
    velocities = torch.zeros_like(system.positions)
    forces, start = None, None
    for _ in range(40):
        if forces is not None:
            velocities += 0.5 * dt / mass * forces
            system.positions += dt * velocities
        found = system.evaluate(wanted=("forces",))
        if forces is None:
            start = found.energy
        else:
            velocities += 0.5 * dt / mass * found.forces
        forces = found.forces
    kinetic = 0.5 * mass * (velocities**2).sum(1).reshape(2, n).sum(1)
    assert float(kinetic.min()) > 0.01
    assert torch.allclose(found.energy + kinetic, start, atol=2e-3 * float(kinetic.max()))
    for atoms, end in zip(frames, system.positions.cpu().split(n), strict=True):
        atoms.set_masses([mass] * n)
        atoms.calc = CACECalculator(model)
        VelocityVerlet(atoms, dt).run(39)
        np.testing.assert_allclose(atoms.positions, end, atol=2e-4)
    assert system.n_builds > 1


def live_bytes() -> int:
    """Return the memory of all tensors that are alive."""
    gc.collect()
    storages = (x.untyped_storage() for x in gc.get_objects() if issubclass(type(x), torch.Tensor))
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


def test_memory_is_what_info_counts_beforehand() -> None:
    shape, skin = SHAPES["ag-cluster"], 0.5
    with emulate("sm_90"):
        engine, atoms = potential(shape)._engine, structure(shape)
        assert isinstance(engine, TritonEngine)
        n = len(atoms)
        expected = n * engine.bytes_per_atom(DENSITY, skin, shape.elements, n)
        graph, before = graph_of(atoms, engine.spec.representation), live_bytes()
        system = engine.moving(graph, skin)
        system.evaluate((), None)
    assert isinstance(system, Runner)
    assert system.step.n_bytes == pytest.approx(expected, rel=0.05)
    assert live_bytes() - before == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("apart", [1e6, 3e9, 1e12, 1e17])
@pytest.mark.parametrize("pbc", ["ooo", "ppo"])
def test_atoms_any_distance_apart_along_open_directions(
    pbc: str, apart: float, device: torch.device
) -> None:
    group = np.array([[0.0, 0, 0], [1.0, 0.5, 2.0], [2.0, 1.0, 0.3]])
    away = group * [1, 1, 0] + [0, 0, apart]
    cell = np.diag([9.0, 9.0, 9.0])
    run = run_of([np.concatenate([group, away])], [cell], [PBC[pbc]], device=device)
    run.evaluate((), None)
    alone = run_of([group], [cell], [PBC[pbc]], device=device)
    alone.evaluate((), None)
    found, want = run.pairs(), alone.pairs()
    here = found.receivers < 3
    assert bool((here == (found.senders < 3)).all())
    for got, right in zip(found, want, strict=True):
        assert torch.equal(got[here], right)


def test_atoms_that_are_too_many_cells_away_or_too_crowded_are_refused(
    device: torch.device,
) -> None:
    cell = np.diag([9.0, 9.0, 9.0])
    run = run_of([places(20, CELLS["cubic"])], [cell], [PBC["ppp"]], device=device)
    run.evaluate((), None)
    good = run.positions.clone()
    run.positions[3, 0] += 9e8 * 9.0  # right, though a double is coarse there
    run.evaluate((), None)
    run.positions[3, 0] = 1.1e9 * 9.0
    for _ in range(2):
        with pytest.raises(InputError, match=r"within 1e\+09 cells .* got atoms 3 beyond"):
            run.evaluate((), None)
    run.positions.copy_(good)
    run.evaluate((), None)
    crowd = run_of([np.random.default_rng(0).random((80, 3))], [np.eye(3) * 1.1], [PBC["ppp"]],
                   device=device)  # fmt: skip
    with pytest.raises(InputError, match="at most 5000 neighbours of an atom"):
        crowd.evaluate((), None)
