"""Derivatives that training needs, and a tiny model to train, on kernels or on the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from cace_fast.nn import Contraction, Moments
from cace_fast.reference.contraction import contraction as reference_contraction
from cace_fast.reference.moments import moments as reference_moments
from cace_fast.spec import Representation

from .cases import EDGE_CASES


def wave(like: Tensor, shift: float = 0.0) -> Tensor:
    """Return fixed numbers of the shape of a tensor."""
    steps = torch.arange(like.numel(), dtype=torch.float64, device=like.device)
    return torch.sin(steps + shift).reshape(like.shape).to(like)


def sorted_case(name: str) -> dict[str, Tensor]:
    """Return the edges of a case ascending in the receiver, as the reference needs them."""
    case = dict(EDGE_CASES[name])
    order = torch.argsort(case["receivers"], stable=True)
    return {key: case[key][order] if key != "species" else case[key] for key in case}


def derivatives(function: Callable[..., Tensor], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a function of named tensors, the first of which is that of forces, and derivatives.

    The value y; the slopes of E = w y + y y / 2 by every leaf; and those of u F + F F / 2, F the
    slope of E by the first leaf.
    """
    own = {name: t.detach().clone().requires_grad_(True) for name, t in leaves.items()}
    first = next(iter(own))
    y = function(**own)
    energy = (wave(y) * y).sum() + 0.5 * (y * y).sum()
    slopes = torch.autograd.grad(energy, list(own.values()), retain_graph=True)
    (force,) = torch.autograd.grad(energy, own[first], create_graph=True)
    loss = (wave(force, 1.0) * force).sum() + 0.5 * (force * force).sum()
    again = torch.autograd.grad(loss, list(own.values()))
    found = {"value": y.detach()}
    for name, slope, second in zip(own, slopes, again, strict=True):
        found[f"d/d{name}"], found[f"dF/d{name}"] = slope, second
    return found


def moments_of(
    function: Callable[..., Tensor], case: Mapping[str, Tensor], rep: Representation, **options: str
) -> Callable[..., Tensor]:
    """Return A as a function of the vectors and of every weight."""

    def run(vectors: Tensor, **weights: Tensor) -> Tensor:
        rest = (case["senders"], case["receivers"], case["species"])
        return function(vectors, *rest, weights, rep, **options)

    return run


class PlainMoments(Moments):
    """The reference instead of the kernels."""

    def forward(self, *edges: Tensor) -> Tensor:
        return reference_moments(*edges, dict(self.named_parameters()), self.spec)


class PlainContraction(Contraction):
    """The reference instead of the kernels."""

    def forward(self, a: Tensor) -> Tensor:
        return reference_contraction(a, self.l_max, self.nu_max)


class Model(nn.Module):
    """Energies of atoms by a small network on the invariants."""

    def __init__(self, a: Moments, b: Contraction, n_features: int) -> None:
        super().__init__()
        self.a, self.b = a, b
        generator = torch.Generator().manual_seed(4)
        like = a.mixing["0"]
        for name, shape in (("inner", (n_features, 5)), ("outer", (5,))):
            draw = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(draw.to(like) / shape[0] ** 0.5))

    def forward(self, vectors: Tensor, *rest: Tensor) -> Tensor:
        b = self.b(self.a(vectors, *rest))
        return torch.tanh(0.1 * b.flatten(1) @ self.inner) @ self.outer


def train(model: Model, edges: list[Tensor], steps: int, rate: float = 0.02) -> list[float]:
    """Return the losses, on energies and slopes of edges, of some steps down the gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        vectors = edges[0].detach().clone().requires_grad_(True)
        energies = model(vectors, *edges[1:])
        (force,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
        wrong_energy = energies - wave(energies)
        wrong_force = force - 0.1 * wave(force, 2.0)
        loss = (wrong_energy**2).mean() + (wrong_force**2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
