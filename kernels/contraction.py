"""B basis: symmetric contractions, as :func:`cace_fast.reference.contraction.contraction`.

[n, n_radial, n_A, C] in, [n, n_radial, n_B, C] out. First and second derivatives.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from cace_fast import tables
from cace_fast.errors import InputError
from cace_fast.kernels import _checks
from cace_fast.kernels._autograd import differentiable, kept, refuse, slopes
from cace_fast.kernels._compiled import Model, array, compiled
from cace_fast.kernels.cpu.operations import Operations
from cace_fast.kernels.polynomials import rates_of_tensors
from cace_fast.spec import CutoffFunction, ModelSpec, RadialBasis, Representation
from cace_fast.weights import expected_shapes

BLOCK = 16_384  # lanes of the second derivatives on a CPU that are computed at once


def contraction(a: Tensor, l_max: int, nu_max: int, *, backend: str | None = None) -> Tensor:
    """Return the invariants B of the moments ``a`` (``docs/theory.md``, equations 13 to 16).

    Parameters
    ----------
    a
        A [n, n_radial, n_A, C].
    l_max, nu_max
        Highest degree (0 to 6) and highest correlation order (1 to 4).
    backend
        ``"cpu"`` or ``"triton"``; None for the best one of the device.

    Returns
    -------
    Tensor
        B [n, n_radial, n_B, C] in the order of :func:`cace_fast.tables.features`.

    Raises
    ------
    InputError
        For a wrong shape, dtype, degree or order.
    BackendUnavailableError
        If no kernels, or not the ones named, serve the device.
    """
    for name, value, high in (("l_max", l_max, tables.MAX_DEGREE), ("nu_max", nu_max, 4)):
        if not (name == "nu_max") <= value <= high:
            raise InputError(name, f"an integer up to {high}", value)
    _checks.require("a", a, (None, None, tables.n_monomials(l_max), None), _checks.FLOATS)
    chosen = _checks.select_backend(a.device, backend)
    out: Tensor = _contraction(a.contiguous(), l_max, nu_max, chosen)
    return out


def _operations(a: Tensor, l_max: int, nu_max: int) -> AbstractContextManager[Operations]:
    """Give the operations of a representation whose radial functions are the lanes of ``a``."""
    lanes = max(1, a.shape[1] * a.shape[3])
    key = ("contraction", lanes, l_max, nu_max)
    return compiled(key, (), a.dtype, lambda: _model(lanes, l_max, nu_max))


def _model(lanes: int, l_max: int, nu_max: int) -> Model:
    rep = Representation(
        (1,), 1, True, 1.0, RadialBasis("bessel", 1), CutoffFunction("polynomial", 1.0), lanes,
        l_max, nu_max,
    )  # fmt: skip
    spec = ModelSpec(rep)
    return spec, [torch.ones(shape, device="cpu") for shape in expected_shapes(spec).values()]


def _lanes(x: Tensor) -> Tensor:
    """Return [n, n_radial, m, C] as [n, n_radial C, m, 1]."""
    return x.movedim(3, 2).flatten(1, 2).unsqueeze(-1)


def _back(lanes: Tensor, like: Tensor) -> Tensor:
    split = torch.unflatten(lanes[..., 0], 1, (like.shape[1], like.shape[3]))
    return split.movedim(2, 3).contiguous()


@torch.library.custom_op("cace_fast::contraction", mutates_args=())
def _contraction(a: Tensor, l_max: int, nu_max: int, backend: str) -> Tensor:
    if backend == "triton":
        from cace_fast.kernels.triton import operators

        return operators.contraction(a, l_max, nu_max)
    with _operations(a, l_max, nu_max) as operations:
        found = operations.contraction(array(_lanes(a)))
    return _back(torch.from_numpy(found).to(a.dtype), a)


@_contraction.register_fake
def _(a: Tensor, l_max: int, nu_max: int, backend: str) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[1], tables.n_features(l_max, nu_max), a.shape[3])


@torch.library.custom_op("cace_fast::contraction_gradient", mutates_args=())
def _contraction_gradient(
    grad_out: Tensor, a: Tensor, l_max: int, nu_max: int, backend: str
) -> Tensor:
    if backend == "triton":
        from cace_fast.kernels.triton import operators

        return operators.contraction_gradient(grad_out, a, l_max, nu_max)
    with _operations(a, l_max, nu_max) as operations:
        found = operations.contraction_gradient(array(_lanes(a)), array(_lanes(grad_out)))
    return _back(torch.from_numpy(found).to(a.dtype), a)


@_contraction_gradient.register_fake
def _(grad_out: Tensor, a: Tensor, l_max: int, nu_max: int, backend: str) -> Tensor:
    return torch.empty_like(a)


@torch.library.custom_op("cace_fast::contraction_rates", mutates_args=())
def _contraction_rates(
    along: Tensor, grad_out: Tensor, a: Tensor, l_max: int, nu_max: int, backend: str
) -> tuple[Tensor, Tensor]:
    """Return the change of B, and of dE/dA at a fixed dE/dB, when A changes by ``along``."""
    if backend == "triton":
        from cace_fast.kernels.triton import operators

        return operators.contraction_rates(along, grad_out, a, l_max, nu_max)
    function = rates_of_tensors(l_max, nu_max)
    rows = [x.movedim(2, 0).flatten(1).contiguous() for x in (a, grad_out, along)]
    # a block of lanes at a time: the program has some hundred temporary arrays
    found = torch.cat(
        [torch.stack(function(*(x.unbind() for x in part))) for part in _blocks(rows)], 1
    )
    rates = found.unflatten(1, (a.shape[0], a.shape[1], a.shape[3])).movedim(0, 2)
    out = torch.empty_like(grad_out), torch.empty_like(a)
    for to, rate in zip(out, rates.split([grad_out.shape[2], a.shape[2]], 2), strict=True):
        to.copy_(rate)
    return out


def _blocks(rows: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """Return blocks of the lanes of arrays [components, lanes]; one, if there are none."""
    return list(zip(*(x.split(BLOCK, 1) for x in rows), strict=True))


@_contraction_rates.register_fake
def _(along: Tensor, grad_out: Tensor, a: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad_out), torch.empty_like(a)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    arguments = kept(ctx)
    return slopes(arguments, _contraction_gradient(grad_out, *arguments))


def _gradient_backward(ctx: Any, along: Tensor) -> tuple[Any, ...]:
    arguments = kept(ctx)
    return slopes(arguments, *_contraction_rates(along, *arguments))


differentiable(_contraction, _backward)
differentiable(_contraction_gradient, _gradient_backward)
differentiable(_contraction_rates, refuse("contraction", "second"))
