"""Latent Ewald summation, as :func:`cace_fast.reference.ewald.ewald`; float64 whatever comes in.

The operator is the linear map phi = K(r, h) q of the sum over k (or of the open pair sum), without
self terms. Its derivative with respect to r and h is that of the energy E(x) = x K x / 2, taken at
two sets of charges: u K v = (E(u + v) - E(u - v)) / 2. First derivatives only.
"""

from __future__ import annotations

from math import pi
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cace_fast.errors import InputError
from cace_fast.kernels import _checks
from cace_fast.kernels.cpu.library import EwaldSpec
from cace_fast.kernels.cpu.long_range import EwaldSum
from cace_fast.kernels.moments import array
from cace_fast.spec import Ewald


class EwaldResult(NamedTuple):
    """Energy of each atom and channel [n, n_q] in eV, and the potential dE_c/dq_c [n, n_q]."""

    energies: Tensor
    potential: Tensor


def ewald(
    charges: Tensor,
    positions: Tensor,
    cell: Tensor,
    spec: Ewald,
    *,
    periodic: bool,
    backend: str | None = None,
) -> EwaldResult:
    """Return the long-range energies and potentials of one system.

    Parameters
    ----------
    charges
        q [n, n_q], internal units.
    positions
        [n, 3], A; need not lie inside the cell.
    cell
        [3, 3], A, lattice vectors as rows; ignored without periodicity.
    spec
        The Ewald module; external field and neutrality penalty are not part of this operation.
    periodic
        Whether the system is periodic in all directions or open.
    backend
        ``"cpu"``; None for the best one of the device.

    Returns
    -------
    EwaldResult
        float64; ``energies`` sum over atoms and channels to E.

    Raises
    ------
    InputError
        For wrong shapes, exponent 6 without periodicity, or a singular cell with it.
    BackendUnavailableError
        If no kernels, or not the ones named, serve the device.
    """
    _checks.require("charges", charges, (None, None), _checks.FLOATS)
    _checks.require("positions", positions, (charges.shape[0], 3), _checks.FLOATS)
    _checks.require("cell", cell, (3, 3), _checks.FLOATS)
    chosen = _checks.select_backend(charges.device, backend)
    if not periodic and spec.exponent != 1:
        raise InputError("pbc", "a periodic system for an Ewald sum of exponent 6", "an open one")
    q, r, h = (t.to(torch.float64) for t in (charges, positions, cell))
    potential = _ewald(q, r, h, spec.dl, spec.sigma, spec.exponent, periodic, chosen)
    energies, own = 0.5 * q * potential, (2.0 * pi) ** -1.5 / spec.sigma
    if periodic and spec.remove_self_interaction and spec.exponent == 1:
        # every channel loses the self term of all channels together: files were trained so
        energies = energies - own * (q * q).sum(1, keepdim=True)
        potential = potential - 2.0 * own * q
    elif not periodic and not spec.remove_self_interaction:
        energies, potential = energies + own * q * q, potential + 2.0 * own * q
    return EwaldResult(spec.norm_factor * energies, spec.norm_factor * potential)


def _sum(dl: float, sigma: float, exponent: int, periodic: bool) -> EwaldSum:
    """Return the sum without self terms: the open one removes them itself."""
    return EwaldSum(EwaldSpec(dl, sigma, 1.0, 0.0, 0.0, exponent, not periodic, 0))


@torch.library.custom_op("cace_fast::ewald", mutates_args=())
def _ewald(
    charges: Tensor,
    positions: Tensor,
    cell: Tensor,
    dl: float,
    sigma: float,
    exponent: int,
    periodic: bool,
    backend: str,
) -> Tensor:
    slopes = _sum(dl, sigma, exponent, periodic).evaluate(
        array(charges), array(positions), array(cell), periodic=periodic,
        n_threads=torch.get_num_threads(),
    )[1]  # fmt: skip
    return torch.from_numpy(slopes)


@_ewald.register_fake
def _(charges: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(charges)


@torch.library.custom_op("cace_fast::ewald_gradient", mutates_args=())
def _ewald_gradient(
    grad_out: Tensor,
    charges: Tensor,
    positions: Tensor,
    cell: Tensor,
    dl: float,
    sigma: float,
    exponent: int,
    periodic: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    u, v, r, h = array(grad_out), array(charges), array(positions), array(cell)
    total = _sum(dl, sigma, exponent, periodic)
    threads = torch.get_num_threads()
    found = [
        total.evaluate(x, r, h, periodic=periodic, n_threads=threads)[1:] for x in (u + v, u - v)
    ]
    (plus, force, virial), (minus, other_force, other_virial) = found
    forces, strain = 0.5 * (force - other_force), 0.5 * (virial - other_virial)
    by_cell = np.zeros((3, 3))
    if periodic:  # dE/dstrain = r (dE/dr) + h (dE/dh)
        by_cell = np.linalg.solve(h.T, r.T @ forces - strain)
    by_charge = 0.5 * (plus + minus)
    return torch.from_numpy(by_charge), torch.from_numpy(-forces), torch.from_numpy(by_cell)


@_ewald_gradient.register_fake
def _(
    grad_out: Tensor, charges: Tensor, positions: Tensor, cell: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(charges), torch.empty_like(positions), torch.empty_like(cell)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    charges, positions, cell, *ctx.options = inputs
    ctx.save_for_backward(charges, positions, cell)


def _backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    found = _ewald_gradient(grad_out, *ctx.saved_tensors, *ctx.options)
    return (*found, *(None for _ in ctx.options))


_ewald.register_autograd(_backward, setup_context=_setup)
