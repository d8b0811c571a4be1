"""B basis: symmetric contractions of the moments, ``docs/theory.md`` section 5.

All orders are made of the partial contractions u_(l,d)[s] = sum_a M(a) A_a A_(a+s), a of degree l
and s of degree d (equation 12): nu = 2 is u_(l,0), nu = 3 pairs A with a u, nu = 4 two u.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from cace_fast import tables
from cace_fast.reference.moments import monomial_slice


def contraction(a: Tensor, l_max: int, nu_max: int) -> Tensor:
    """Return the invariants B of the moments ``a`` (equations 13 to 16).

    Parameters
    ----------
    a
        A [n, n_radial, n_A, C], float32 or float64.
    l_max, nu_max
        Highest degree (0 to 6) and highest correlation order (1 to 4).

    Returns
    -------
    Tensor
        B [n, n_radial, n_B, C] in the dtype of ``a``, in the order of
        :func:`cace_fast.tables.features`.
    """
    lanes = a.movedim(2, 0)
    shape = lanes.shape[1:]
    lanes = lanes.flatten(1)  # [n_A, n * n_radial * C]: every operation below runs along lanes
    partial: dict[tuple[int, int], Tensor] = {}

    def u(degree: int, d: int) -> Tensor:
        if (degree, d) not in partial:
            partners, weight = _partners(degree, d, a.device)
            weighted = weight.to(a.dtype)[:, None] * lanes[monomial_slice(degree)]
            partial[degree, d] = (weighted[:, None, :] * lanes[partners]).sum(0)
        return partial[degree, d]

    def pair(left: Tensor, right: Tensor, degree: int) -> Tensor:
        return (_multinomials(degree, a.device).to(a.dtype)[:, None] * left * right).sum(0)

    found = []
    for nu, degrees in tables.features(l_max, nu_max):
        if nu == 1:
            found.append(lanes[0])
        elif nu == 2:
            found.append(u(degrees[0], 0)[0])
        elif nu == 3:
            l1, l2 = degrees
            found.append(pair(lanes[monomial_slice(l1)], u(l2, l1), l1))
        else:
            l1, l2, d = degrees
            found.append(pair(u(l1, d), u(l2, d), d))
    return torch.stack(found).reshape(len(found), *shape).movedim(0, 2)


@cache
@torch.inference_mode(False)  # cached, and used in differentiated code later
def _multinomials(degree: int, device: torch.device) -> Tensor:
    values = [tables.multinomial(m) for m in tables.monomials_of(degree)]
    return torch.tensor(values, dtype=torch.float64, device=device)


@cache
@torch.inference_mode(False)
def _partners(degree: int, d: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the index of a + s [n_l, n_d] and the multinomial of a [n_l]."""
    rows = [
        [tables.index(tables.add(a, s)) for s in tables.monomials_of(d)]
        for a in tables.monomials_of(degree)
    ]
    return torch.tensor(rows, device=device), _multinomials(degree, device)
