"""B basis: symmetric contractions, as :func:`cace_fast.reference.contraction.contraction`.

The operator takes [n, n_radial, n_A, C] and returns [n, n_radial, n_B, C]. It has first and second
derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cace_fast import tables
from cace_fast.errors import InputError
from cace_fast.kernels import _operators as shared
from cace_fast.kernels.cpu import operations
from cace_fast.kernels.polynomials import jvps_of_tensors

BLOCK = 16_384  # lanes of second derivatives that a CPU computes at once


def contraction(a: Tensor, l_max: int, nu_max: int, *, backend: str | None = None) -> Tensor:
    """Return the invariants B of the moments ``a`` (``docs/theory.md``, equations 13 to 16).

    Parameters
    ----------
    a
        A [n, n_radial, n_A, C], float32 or float64.
    l_max, nu_max
        Highest degree (0 to 6) and highest correlation order (1 to 4).
    backend
        ``"cpu"`` or ``"triton"``; None for the best one of the device.

    Returns
    -------
    Tensor
        B [n, n_radial, n_B, C] in the dtype of ``a``, in the order of
        :func:`cace_fast.tables.features`.

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
    shared.require("a", a, (None, None, tables.n_monomials(l_max), None), shared.FLOATS)
    chosen = shared.select_backend(a.device, backend)
    out: Tensor = _contraction(a.contiguous(), l_max, nu_max, chosen)
    return out


@torch.library.custom_op("cace_fast::contraction", mutates_args=())
def _contraction(a: Tensor, l_max: int, nu_max: int, backend: str) -> Tensor:
    if backend == "triton":
        from cace_fast.kernels.triton import operators

        return operators.contraction(a, l_max, nu_max)
    found = operations.contraction(shared.array(a), l_max, nu_max, shared.precision_of(a.dtype))
    return torch.from_numpy(found).to(a.dtype)


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
    given = shared.array(a), shared.array(grad_out)
    found = operations.contraction_gradient(*given, l_max, nu_max, shared.precision_of(a.dtype))
    return torch.from_numpy(found).to(a.dtype)


@_contraction_gradient.register_fake
def _(grad_out: Tensor, a: Tensor, l_max: int, nu_max: int, backend: str) -> Tensor:
    return torch.empty_like(a)


@torch.library.custom_op("cace_fast::contraction_jvps", mutates_args=())
def _contraction_jvps(
    tangent: Tensor, grad_out: Tensor, a: Tensor, l_max: int, nu_max: int, backend: str
) -> tuple[Tensor, Tensor]:
    """Return the change of B, and of dE/dA at a fixed dE/dB, when A changes by ``tangent``."""
    if backend == "triton":
        from cace_fast.kernels.triton import operators

        return operators.contraction_jvps(tangent, grad_out, a, l_max, nu_max)
    function = jvps_of_tensors(l_max, nu_max)
    rows = [x.movedim(2, 0).flatten(1).contiguous() for x in (a, grad_out, tangent)]
    # a block of lanes at a time: the program has some hundred temporary arrays
    found = torch.cat(
        [torch.stack(function(*(x.unbind() for x in part))) for part in _blocks(rows)], 1
    )
    jvps = found.unflatten(1, (a.shape[0], a.shape[1], a.shape[3])).movedim(0, 2)
    out = torch.empty_like(grad_out), torch.empty_like(a)
    for to, jvp in zip(out, jvps.split([grad_out.shape[2], a.shape[2]], 2), strict=True):
        to.copy_(jvp)
    return out


def _blocks(rows: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """Return blocks of the lanes of arrays [components, lanes]; one block if there are no lanes."""
    return list(zip(*(x.split(BLOCK, 1) for x in rows), strict=True))


@_contraction_jvps.register_fake
def _(tangent: Tensor, grad_out: Tensor, a: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad_out), torch.empty_like(a)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    arguments = shared.saved_inputs(ctx)
    return shared.pad_grads(arguments, _contraction_gradient(grad_out, *arguments))


def _gradient_backward(ctx: Any, tangent: Tensor) -> tuple[Any, ...]:
    arguments = shared.saved_inputs(ctx)
    return shared.pad_grads(arguments, *_contraction_jvps(tangent, *arguments))


shared.differentiable(_contraction, _backward)
shared.differentiable(_contraction_gradient, _gradient_backward)
shared.differentiable(_contraction_jvps, shared.no_higher_derivative("contraction", "second"))
