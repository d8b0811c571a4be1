"""Radial functions R_n(r) and cutoff functions f_c(r), ``docs/theory.md`` section 2."""

from __future__ import annotations

from collections.abc import Mapping
from math import pi

import torch
from torch import Tensor

from cace_fast.spec import CutoffFunction, RadialBasis


def radial_basis(
    r: Tensor, weights: Mapping[str, Tensor], spec: RadialBasis, cutoff: float
) -> Tensor:
    """Return R_n(r) [n_edges, n_rbf] for distances ``r`` [n_edges] and r_c in A.

    See ``docs/theory.md``, equations 3 to 5a.
    """
    r = r[:, None]
    if spec.kind == "bessel":
        return spec.prefactor * torch.sin(weights["radial.frequencies"] * r) / r
    if spec.kind == "gaussian":
        return torch.exp(-0.5 * ((r - weights["radial.offsets"]) / weights["radial.widths"]) ** 2)
    if spec.kind == "chebyshev":
        return _chebyshev(torch.clamp(2.0 * r[:, 0] / cutoff - 1.0, max=1.0), spec.n_rbf)
    return spec.prefactor * torch.exp(-r / weights["radial.ranges"])


def _chebyshev(y: Tensor, n: int) -> Tensor:
    """Return T_0 to T_(n-1) of y [n_edges, n]."""
    found = [torch.ones_like(y), y]
    while len(found) < n:
        found.append(2.0 * y * found[-1] - found[-2])
    return torch.stack(found[:n], 1)


def cutoff_function(r: Tensor, spec: CutoffFunction) -> Tensor:
    """Return f_c(r) [n_edges] for ``r`` [n_edges] in A, zero for r >= cutoff (equations 6 to 9)."""
    inside = r < spec.cutoff
    x = torch.where(inside, r / spec.cutoff, torch.zeros_like(r))
    if spec.kind == "polynomial":
        value = _polynomial(x, spec.p)
    elif spec.kind == "cosine":
        value = 0.5 * (1.0 + torch.cos(pi * x))
    elif spec.kind == "mollifier":
        inside = r + spec.eps < spec.cutoff
        x = torch.where(inside, x, torch.zeros_like(x))
        value = torch.exp(1.0 - 1.0 / (1.0 - x * x))
    else:
        return _switch(r, spec)
    return torch.where(inside, value, torch.zeros_like(r))


def _polynomial(x: Tensor, p: float) -> Tensor:
    """Return 1 - (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) - p(p+1)/2 x^(p+2) for x in [0, 1).

    For integer p this is (1-x)^3 sum_k (k+1)(k+2)/2 x^k, k < p: without the cancellation that costs
    the expanded form 5e-6 in float32.
    """
    if p != int(p):
        high = p * (p + 2.0) * x ** (p + 1.0) - p * (p + 1.0) / 2.0 * x ** (p + 2.0)
        return 1.0 - (p + 1.0) * (p + 2.0) / 2.0 * x**p + high
    series = torch.full_like(x, p * (p + 1.0) / 2.0)
    for k in reversed(range(int(p) - 1)):
        series = series * x + (k + 1.0) * (k + 2.0) / 2.0
    return (1.0 - x) ** 3 * series


def _switch(r: Tensor, spec: CutoffFunction) -> Tensor:
    """Return 1 up to ``switch_on``, 0 from ``cutoff`` on, and a smooth step between."""
    y = (r - spec.switch_on) / (spec.cutoff - spec.switch_on)
    between = (y > 0.0) & (y < 1.0)
    inner = torch.where(between, y, torch.full_like(y, 0.5))
    falling, rising = torch.exp(-1.0 / (1.0 - inner)), torch.exp(-1.0 / inner)
    return torch.where(between, falling / (rising + falling), (y <= 0.0).to(r.dtype))
