"""Models of the shapes that real checkpoints have, and what a step of each launches on a GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from gpu_emulator import Launch, emulate
from gpu_emulator.resources import Specialised
from systems import random_weights
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.jit import JITFunction

from cace_fast.engine.triton import TritonEngine
from cace_fast.graph import AtomicGraph
from cace_fast.kernels.ewald_method import MeshPlan, Sphere, mesh_plan
from cace_fast.kernels.triton import configs, host_readout
from cace_fast.kernels.triton.host_mesh import DeviceMesh
from cace_fast.nn import Contraction, Moments
from cace_fast.potential import Potential
from cace_fast.spec import (
    MLP,
    Add,
    Bchi,
    CutoffFunction,
    Ewald,
    Forces,
    MessageStep,
    ModelSpec,
    OutputModule,
    RadialBasis,
    Readout,
    Representation,
    SubModel,
)
from cace_fast.structures import graph_of
from cace_fast.weights import Weights

SKIN = 1.0
DENSITY = 0.1  # atoms per cubic Angstrom, as in liquid water
DL = 2.0  # A, of the sums over k


@dataclass(frozen=True)
class Shape:
    """What decides which kernels a model launches, and what they cost.

    ``step`` names the parts of its message passing step, if it has one; ``charges`` is the number
    of latent charges of the long-range part, ``head`` the hidden layers of the read-out.
    """

    elements: int = 2
    embedding: int = 3
    radial: int = 12
    l_max: int = 3
    nu_max: int = 3
    cutoff: float = 5.5
    step: str = ""
    charges: int = 0
    head: tuple[int, ...] = (32, 16)


# The names are those of the recorded checkpoints that have this shape.
SHAPES = {
    "water-mp0-sr": Shape(),
    "water-mp1-lr": Shape(step="bchi", charges=4),
    "cacefit-water": Shape(step="bchi"),
    "cacefit-hea25": Shape(elements=25, embedding=4, radial=8, cutoff=4.5, step="bchi"),
    "licl-gaf3-lr0": Shape(elements=4, radial=8, step="memory ar bchi", charges=1),
    "cacefit-ethanol": Shape(elements=3, embedding=4, l_max=4, cutoff=4.0, step="memory ar bchi"),
    "alchemical-rep": Shape(elements=94, embedding=4, radial=8, l_max=2, nu_max=2, cutoff=4.0),
    "electrolyte-lr-c5.5": Shape(elements=5, embedding=5, charges=1),
    "ag-cluster": Shape(elements=1, embedding=1, radial=8, cutoff=5.29),
}

# Descriptors for training on forces, whose second derivatives are kernels that no step launches.
TRAINING = {
    "training-l2-nu2": Shape(l_max=2, nu_max=2),
    "training-l3-nu3": Shape(),
    "training-l4-nu3": Shape(elements=3, embedding=4, l_max=4, cutoff=4.0),
}
MESHES = {"mesh-f32": torch.float32, "mesh-f64": torch.float64}  # precisions of the grid
MESH_ATOMS = 96
TRAINED = ("moments_jvp", "moments_vjp_jvp", "moments_by_table", "contract_jvps")


def specification(shape: Shape) -> ModelSpec:
    """Return a specification of this shape."""
    s = shape
    channels = s.embedding**2
    plain = Representation(
        tuple(range(1, s.elements + 1)), s.embedding, False, s.cutoff,
        RadialBasis("bessel", 6, math.sqrt(2.0 / s.cutoff)),
        CutoffFunction("polynomial", s.cutoff, 5.0), s.radial, s.l_max, s.nu_max,
    )  # fmt: skip
    width = s.radial * plain.n_invariants * channels
    steps = ()
    if s.step:
        network = Bchi(False, False, MLP((width, (s.l_max + 1) * channels), bias=False))
        steps = (MessageStep("memory" in s.step, "ar" in s.step, network),)
    rep = Representation(
        plain.elements, s.embedding, False, s.cutoff, plain.radial, plain.cutoff_function,
        s.radial, s.l_max, s.nu_max, steps=steps, mp_norm_factor=0.1 if steps else 1.0,
    )  # fmt: skip
    modules: list[OutputModule] = [Readout("energy", MLP((rep.n_features, *s.head, 1)))]
    total = "energy"
    if s.charges:
        network = MLP((rep.n_features, *s.head, s.charges), bias=False)
        modules += [
            Readout("charges", network, per_atom_key="q"),
            Ewald("q", "lr", dl=DL, sigma=1.0), Add(("energy", "lr"), "sum"),
        ]  # fmt: skip
        total = "sum"
    modules.append(Forces(total, "forces", calc_stress=True))
    return ModelSpec(rep, (SubModel(tuple(modules), strain=True),))


def structure(shape: Shape, n_cells: int = 3) -> Atoms:
    """Return a rattled crystal of 4 n_cells^3 atoms of all elements, at water's density."""
    atoms = bulk("Cu", "fcc", a=(4 / DENSITY) ** (1 / 3), cubic=True).repeat(n_cells)
    atoms.rattle(0.15, seed=1)
    rng = np.random.default_rng(2)
    atoms.numbers = rng.integers(1, shape.elements + 1, len(atoms))
    return atoms


VIEWS = frozenset({
    "view", "slice", "select", "expand", "t", "transpose", "permute", "unsqueeze", "squeeze",
    "as_strided", "detach", "alias", "set_", "empty", "empty_strided", "_unsafe_view", "split",
    "unbind", "new_empty", "reshape", "diagonal", "lift_fresh", "empty_like",
})  # fmt: skip
PASSES = {"sort": 8, "unique": 8, "cumsum": 2}  # how often these read their data


class TorchTraffic(TorchDispatchMode):
    """Counts operations of torch that launch something, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.name().split("::")[1].split(".")[0]
        if name not in VIEWS:
            leaves = torch.utils._pytree.tree_leaves((args, kwargs, out))
            size = sum(x.numel() * x.element_size() for x in leaves if isinstance(x, torch.Tensor))
            self.calls += 1
            self.bytes += size * next((n for k, n in PASSES.items() if k in name), 1)
        return out


@dataclass(frozen=True)
class Recording:
    """What a step of a model launched, for a number of atoms, in order, and what a new list did."""

    n_atoms: int
    launches: tuple[Launch, ...]
    kernels: tuple[Specialised, ...]  # of each launch
    torch: TorchTraffic
    list_launches: tuple[Launch, ...]
    list_kernels: tuple[Specialised, ...]
    list_torch: TorchTraffic


@contextmanager
def tiles(number: int) -> Iterator[None]:
    """Let a system of any size run as one for that entry of the table of tiles would."""
    held, large = configs.TILES, host_readout.LARGE
    configs.TILES = ((2**31, held[number][1]),)
    host_readout.LARGE = 0 if number == len(held) - 1 else 2**31
    try:
        yield
    finally:
        configs.TILES, host_readout.LARGE = held, large


def potential(shape: Shape) -> Potential:
    """Return a potential of this shape with random weights, on the emulated device."""
    spec = specification(shape)
    weights = Weights(spec, random_weights(spec, torch.float64))
    return Potential(spec, weights, device="cpu", dtype="float32", backend="triton")


def record(shape: Shape, n_cells: int = 3, *, architecture: str = "sm_90") -> Recording:
    """Run a step of a system that stays on the emulated device; return what it launched.

    The step is whole: what hands energy and forces out belongs to it.
    """
    atoms = structure(shape, n_cells)
    with emulate(architecture, count_traffic=True) as device:
        engine = potential(shape)._engine
        assert isinstance(engine, TritonEngine)
        graph = graph_of(atoms, engine.spec.representation)
        system = engine.moving(graph, SKIN)
        wanted = ("forces", "virials")
        system.evaluate(wanted, None)
        device.forget()
        with TorchTraffic() as traffic:
            system.evaluate(wanted, None)
        step = tuple(device.launches), tuple(device.launched), traffic
        device.forget()
        with TorchTraffic() as list_traffic:
            system.make_list()
        lists = tuple(device.launches), tuple(device.launched), list_traffic
        return Recording(len(atoms), *step, *lists)


def training(shape: Shape, graph: AtomicGraph) -> None:
    """Run what training on forces needs of the descriptor of a model, on the emulated device."""
    rep = specification(shape).representation
    vectors = graph.vectors().float().requires_grad_(True)
    a = Moments(rep, backend="triton")(vectors, graph.senders, graph.receivers, graph.species)
    b = Contraction(rep.l_max, rep.nu_max, backend="triton")(a)
    (slope,) = torch.autograd.grad(b.square().sum(), vectors, create_graph=True)
    slope.square().sum().backward()


def record_mesh(
    dtype: torch.dtype, tolerance: float = 1e-5
) -> tuple[MeshPlan, tuple[Launch, ...], tuple[Specialised, ...]]:
    """Return the mesh of MESH_ATOMS atoms, what spreads and gathers on it, and their kernels."""
    cell = (MESH_ATOMS / DENSITY) ** (1.0 / 3.0) * np.eye(3)
    plan = mesh_plan(MESH_ATOMS, cell, cell, Sphere(DL, 1.0), tolerance)._replace(dtype=dtype)
    fractions = torch.rand(MESH_ATOMS, 3, generator=torch.Generator().manual_seed(1)).double()
    q = torch.ones(MESH_ATOMS, 1, dtype=torch.float64)
    with emulate("sm_90", count_traffic=True) as device:
        given = torch.from_numpy(np.linalg.inv(cell)), fractions @ torch.from_numpy(cell), q
        grid = DeviceMesh().spread(plan, *given)
        DeviceMesh().gather(plan, *given, grid)
        return plan, tuple(device.launches), tuple(device.launched)


def training_kernels(shape: Shape) -> tuple[Specialised, ...]:
    """Return the kernels that only :func:`training` launches, each once: compiled, not run."""
    found: dict[int, Specialised] = {}
    original: Callable[..., Any] = JITFunction.run

    def run(self: Any, *args: Any, **options: Any) -> None:
        if self.fn.__name__ in TRAINED:
            kernel = original(self, *args, **options | {"warmup": True})
            warps = kernel.metadata.num_warps
            found[id(kernel.src)] = Specialised(kernel.src.name, kernel.src, warps)

    graph = graph_of(structure(shape, 1), specification(shape).representation)
    JITFunction.run = run
    try:
        with emulate("sm_90"), tiles(len(configs.TILES) - 1):
            training(shape, graph)
    finally:
        JITFunction.run = original
    return tuple(found.values())
