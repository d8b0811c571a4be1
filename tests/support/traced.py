"""Every public operator as torch traces it: a module, its inputs in two sizes, what is dynamic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from cace_fast import tables
from cace_fast.kernels.contraction import contraction
from cace_fast.kernels.ewald import EwaldOptions, ewald
from cace_fast.kernels.messages import messages
from cace_fast.kernels.moments import moments
from cace_fast.kernels.readout import readout
from cace_fast.spec import Ewald, Readout

from .cases import random_weights, with_step
from .operator_cases import CELLS, NETWORKS, network_weights, normal
from .training import sorted_case

REP = with_step(True, True, (False, False), l_max=1, nu_max=2, n_rbf=2, n_radial=2)
MODULE = Readout("E", NETWORKS["silu"], linear=True)


# What second derivatives run; other operators have none.
HIGHER = {"moments": ("moments_jvps", "moments_by_weights"), "contraction": ("contraction_jvps",)}


class Traced(NamedTuple):
    """``call`` is a function of tensors; ``dynamic`` names the first size of each, if it varies."""

    call: Callable[..., Tensor]
    inputs: Callable[[str], list[Tensor]]
    dynamic: tuple[str | None, ...]


class Model(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.call(*inputs)


def edges_of(size: str) -> list[Tensor]:
    return list(sorted_case({"small": "63 edges", "large": "400 edges"}[size]).values())


def atoms(size: str, *shape: int, seed: int = 1) -> Tensor:
    return 0.3 * normal(({"small": 5, "large": 9}[size], *shape), seed)


def operators(
    backend: str, dtype: torch.dtype, device: torch.device, *, trained: bool = False
) -> dict[str, Traced]:
    """Return all operators on a backend; those of moments with weights to train, if asked."""
    weights = {name: w.to(device, dtype) for name, w in random_weights(REP).items()}
    leaves = {name: w.clone().requires_grad_(trained) for name, w in weights.items()}
    net = network_weights(NETWORKS["silu"], "outputs.0.0", True)
    net = {name: w.to(device, dtype) for name, w in net.items()}
    shape = (REP.n_radial, REP.n_monomials, REP.n_channels)
    b_shape = (REP.n_radial, tables.n_features(1, 2), REP.n_channels)
    module, how = Ewald("q", "e", 1.9, 0.8), EwaldOptions(method="direct")
    cell = torch.tensor(CELLS["triclinic"], dtype=torch.float64)
    found = {
        "moments": Traced(
            lambda *edges: moments(*edges, leaves, REP, backend=backend),
            edges_of, ("edge", "edge", "edge", "atom"),
        ),
        "contraction": Traced(
            lambda a: contraction(a, 1, 2, backend=backend),
            lambda size: [atoms(size, *shape)], ("atom",),
        ),
        "messages": Traced(
            lambda *inputs: messages(*inputs, weights, REP, backend=backend),
            lambda size: [atoms(size, *shape), atoms(size, *b_shape, seed=2), *edges_of(size)],
            ("atom", "atom", "edge", "edge", "edge", "atom"),
        ),
        "readout": Traced(
            lambda x: readout(x, net, MODULE, "outputs.0.0", backend=backend),
            lambda size: [atoms(size, 21)], ("atom",),
        ),
        "ewald": Traced(
            lambda *x: ewald(*x, module, periodic=True, how=how, backend=backend).energies,
            lambda size: [atoms(size, 2), 9.0 * atoms(size, 3, seed=3), cell],
            ("atom", "atom", None),
        ),
    }  # fmt: skip

    def placed(make: Callable[[str], list[Tensor]]) -> Callable[[str], list[Tensor]]:
        return lambda size: [
            x.to(device, dtype) if x.is_floating_point() else x.to(device) for x in make(size)
        ]

    return {name: case._replace(inputs=placed(case.inputs)) for name, case in found.items()}


def value_and_slopes(call: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Return a value and the slopes of its sum by every floating input."""
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    value = call(*leaves)
    wanted = [x for x in leaves if x.requires_grad]
    return [value.detach(), *torch.autograd.grad(value.sin().sum(), wanted)]


def assert_compiles_whole(case: Traced, **tolerance: float) -> None:
    """Compile to one graph for any size, with gradients, by a ``backend`` of torch."""
    compiled = torch.compile(case.call, fullgraph=True, dynamic=True, backend="aot_eager")
    for size in ("small", "large"):
        inputs = case.inputs(size)
        expected = value_and_slopes(case.call, inputs)
        for found, want in zip(value_and_slopes(compiled, inputs), expected, strict=True):
            torch.testing.assert_close(found, want, **tolerance)


def assert_exports(case: Traced, **tolerance: float) -> None:
    """A program exported for small inputs runs on large ones."""
    dims = {name: torch.export.Dim(name) for name in case.dynamic if name}
    shapes = (tuple({0: dims[name]} if name else None for name in case.dynamic),)
    exported = torch.export.export(
        Model(case.call), tuple(case.inputs("small")), dynamic_shapes=shapes
    )
    inputs = case.inputs("large")
    torch.testing.assert_close(exported.module()(*inputs), case.call(*inputs), **tolerance)


class Recorder(TorchDispatchMode):
    """Keeps the first arguments of each operator of cace-fast."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[Any, tuple[Any, ...]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.namespace == "cace_fast":
            self.seen.setdefault(function, args)
        return function(*args, **(kwargs or {}))


def checks_of_torch(name: str, case: Traced) -> None:
    """Run opcheck on every operator of a call and its derivatives, with its arguments."""
    with Recorder() as recorder:
        leaves = [x.requires_grad_(x.is_floating_point()) for x in case.inputs("small")]
        energy = case.call(*leaves).sin().sum()
        wanted = [x for x in leaves if x.requires_grad]
        twice = name in HIGHER
        slopes = torch.autograd.grad(energy, wanted, create_graph=twice)
        if twice:
            slopes[0].sin().sum().backward()
    expected = {name, f"{name}_gradient", *HIGHER.get(name, ())}
    assert {function._opname for function in recorder.seen} == expected
    for function, given in recorder.seen.items():
        more = function._opname in (name, *(f"{x}_gradient" for x in HIGHER))
        torch.library.opcheck(function, tree_map(lambda x, more=more: _leaf(x, more), given))


def _leaf(x: Any, differentiable: bool) -> Any:
    """Return a tensor without its history, and with gradients if it can have them."""
    if not isinstance(x, Tensor):
        return x
    return x.detach().requires_grad_(differentiable and x.requires_grad)
