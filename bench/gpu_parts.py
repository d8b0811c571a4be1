"""What `gpu.py` measures on a GPU: whole steps, their kernels, and plain torch beside them."""

from __future__ import annotations

import csv
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_emulator as emulation
import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from gpu_models import DENSITY, SKIN, Shape, specification
from systems import random_weights
from torch import Tensor

from cace_fast.engine import choose_backend
from cace_fast.graph import AtomicGraph
from cace_fast.neighbors import NeighborList
from cace_fast.potential import Potential
from cace_fast.structures import graph_of
from cace_fast.weights import Weights

REBUILD_EVERY = 20
REPEATS, WARM = 10, 3
PAGE = Path(__file__).resolve().parents[1] / "docs" / "developer"
NO_PAIRS = NeighborList(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.int64))


def gpu() -> tuple[torch.device, str]:
    """Return where tensors belong and what runs; BackendUnavailableError without any."""
    driver = emulation.from_environment()
    device = torch.device("cuda" if driver is None else "cpu")
    choose_backend("triton", device.type)
    return device, torch.cuda.get_device_name() if driver is None else f"emulated {driver.number}"


def structure(shape: Shape, n_atoms: int) -> Atoms:
    """Return a rattled crystal of at least ``n_atoms`` atoms."""
    n_cells = int(np.ceil((n_atoms / 4) ** (1 / 3) - 1e-9))
    atoms = bulk("Cu", "fcc", a=(4 / DENSITY) ** (1 / 3), cubic=True).repeat(n_cells)
    atoms.rattle(0.15, seed=1)
    atoms.numbers = np.random.default_rng(2).integers(1, shape.elements + 1, len(atoms))
    return atoms


def potential(shape: Shape, backend: str) -> Potential:
    """Return a potential with random weights on the GPU."""
    spec = specification(shape)
    weights = Weights(spec, random_weights(spec, torch.float64))
    return Potential(spec, weights, device=gpu()[0], dtype="float32", backend=backend)


def synchronize() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_time(work: Callable[[], object]) -> float:
    """Return the median time of some work in us."""
    if not torch.cuda.is_available():
        start = time.perf_counter()
        work()
        return 1e6 * (time.perf_counter() - start)
    for _ in range(WARM):
        work()
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * start.elapsed_time(end))
    return float(np.median(times))


class Moving:
    """A system on the device: a step that keeps its list, and one that makes a new one."""

    def __init__(self, shape: Shape, n_atoms: int) -> None:
        atoms = structure(shape, n_atoms)
        engine = potential(shape, "triton")._engine
        rep = engine.spec.representation
        graph = graph_of(atoms, rep, edges=lambda *_: NO_PAIRS).to(gpu()[0])
        synchronize()
        self.n, before = len(atoms), _allocated()
        start = time.perf_counter()
        self._system: Any = engine.moving(graph, SKIN)
        self.kept()
        synchronize()
        self.first = time.perf_counter() - start
        self.renewed()  # captures both kinds of step
        self.kept()
        self.bytes = _peak() - before

    def kept(self) -> None:
        """Run a step."""
        self._system.evaluate(("forces",), None)

    def renewed(self) -> None:
        """Run a step with a new list."""
        self._system.own.due = True
        self.kept()


def _allocated() -> int:
    if not torch.cuda.is_available():
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def step_row(shape: Shape, n_atoms: int, name: str) -> tuple[dict[str, Any], Moving]:
    """Return the row of a size, and its system."""
    moving = Moving(shape, n_atoms)
    kept, renewed = median_time(moving.kept), median_time(moving.renewed)
    taken, n = kept + (renewed - kept) / REBUILD_EVERY, moving.n
    return {
        "atoms": n, "us/step": taken, "us/atom": taken / n, "kept us": kept,
        "list us": renewed - kept, "bytes/atom": moving.bytes / n, "first s": moving.first,
        "predicted us/atom": predicted(name, n),
    }, moving  # fmt: skip


def kernel_rows(moving: Moving, name: str) -> list[dict[str, Any]]:
    """Return a row for each kernel of a step with a list kept, the longest first."""
    found: list[tuple[str, float, int]]
    driver = emulation.active()
    if driver is not None:
        driver.forget()
        moving.kept()
        found = [(key, 0.0, n) for key, n in Counter(k.name for k in driver.launched).items()]
    else:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            for _ in range(REPEATS):
                moving.kept()
            torch.cuda.synchronize()
        found = [(e.key[:60], float(e.self_device_time_total) / REPEATS, e.count // REPEATS)
                 for e in seen.key_averages()]  # fmt: skip
    total = sum(us for _, us, _ in found) or 1.0
    return [
        {"atoms": moving.n, "kernel": key, "calls": n, "us": us, "share": us / total,
         "predicted us": predicted_kernel(name, key, moving.n)}
        for key, us, n in sorted(found, key=lambda row: -row[1])
    ]  # fmt: skip


def _like() -> str:
    """Return this GPU's name; an H200 is an H100 with faster memory, and predicted as one."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "H100"
    return name.replace("H200", "H100")


def predicted(model: str, n_atoms: int) -> float | str:
    """Return what ``docs/developer/roofline.csv`` says of this GPU in us per atom, or nothing."""
    with open(PAGE / "roofline.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["model"] == model and r["device"] in _like()]
    if not rows or n_atoms > 2 * max(int(r["atoms"]) for r in rows):
        return ""
    x, y = (np.log([float(r[key]) for r in rows]) for key in ("atoms", "us/atom"))
    return float(np.exp(np.interp(np.log(n_atoms), x, y)))


def predicted_kernel(model: str, kernel: str, n_atoms: int) -> float | str:
    """Return what ``roofline_kernels.csv`` says there of all calls of a kernel, us, or nothing."""
    with open(PAGE / "roofline_kernels.csv", newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["model"] == model and r["kernel"] == kernel
                and r["device"] in _like() and 0.5 < int(r["atoms"]) / n_atoms < 2]  # fmt: skip
    return sum(float(r["us"]) for r in rows) if rows else ""


def plain_row(shape: Shape, n_atoms: int, compiled: Callable[..., Tensor]) -> dict[str, Any]:
    """Return the row of plain torch, eager and by ``torch.compile``, with its list kept."""
    atoms, model = structure(shape, n_atoms), potential(shape, "reference")
    graph = model._engine.to_device(graph_of(atoms, model.spec.representation))
    row: dict[str, Any] = {"atoms": len(atoms)}
    expected = model._engine.evaluate(graph, ("forces",)).forces
    assert expected is not None
    eager = median_time(lambda: model._engine.evaluate(graph, ("forces",)))
    row["eager us/atom"] = eager / len(atoms)
    start = time.perf_counter()
    found = compiled(graph)
    synchronize()
    row["first s"] = time.perf_counter() - start
    row["compiled us/atom"] = median_time(lambda: compiled(graph)) / len(atoms)
    error = float((found - expected).abs().max() / expected.abs().max())
    row["note"] = "" if error < 1e-4 else f"compiled forces are wrong by {error:.1e}"
    return row


def _outer_sum(left: Tensor, right: Tensor, receivers: Tensor, n_atoms: int) -> Tensor:
    """Do what the reference's `outer_sum` does, without sizes that depend on data."""
    each = left[:, :, None] * right[:, None, :]
    return each.new_zeros(n_atoms, *each.shape[1:]).index_add(0, receivers, each)


def compiled_forces(shape: Shape) -> Callable[[AtomicGraph], Tensor]:
    """Return forces of plain torch with all of the model but its long range in one graph."""
    from cace_fast.reference import contraction, messages, moments, readout

    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
    for module in (moments, messages):
        module.outer_sum = _outer_sum  # this process measures nothing else
    model = potential(shape, "reference")
    rep, weights = model.spec.representation, model._engine.weights
    head = model.spec.submodels[0].modules[0]

    def energy(vectors: Tensor, *edges: Tensor) -> Tensor:
        inputs = (vectors.to(torch.float32), *edges, weights, rep)
        a = moments.moments(*inputs)
        parts = [contraction.contraction(a, rep.l_max, rep.nu_max)]
        for step in range(len(rep.steps)):
            a = messages.messages(a, parts[-1], *inputs, step)
            parts.append(contraction.contraction(a, rep.l_max, rep.nu_max))
        x = torch.stack(parts, -1).flatten(1)
        return readout.readout(x, weights, head, "outputs.0.0").double().sum()

    fast = torch.compile(energy, dynamic=False, fullgraph=True)

    def forces(graph: AtomicGraph) -> Tensor:
        positions = graph.positions.detach().requires_grad_(True)
        cells = graph.cell[graph.batch[graph.receivers]]
        shift = torch.einsum("ek,ekx->ex", graph.shifts.to(cells.dtype), cells)
        vectors = positions[graph.receivers] - positions[graph.senders] + shift
        total = fast(vectors, graph.senders, graph.receivers, graph.species)
        return -torch.autograd.grad(total, positions)[0]

    return forces
