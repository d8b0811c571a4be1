"""Latent Ewald summation over charges, ``docs/theory.md`` section 9.

Everything here is in float64 whatever the working precision: phases k.r reach hundreds of radians.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi, sqrt
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cace_fast.errors import InputError
from cace_fast.slab import Slab, planar_potential, require_fit, slab_of
from cace_fast.spec import Ewald

PAIRS_AT_ONCE = 4_000_000  # atoms x k vectors in one block; more blocks are recomputed backward
SPHERE = 1.0 - 1e-6  # k^2 below this fraction of k_max^2: vectors on the sphere are always out


class EwaldResult(NamedTuple):
    """Energy of each atom and channel, and the potential dE_c/dq_c (section 9).

    Both are [n, n_q] float64: the energies in eV, the potential in eV per internal unit of charge.
    """

    energies: Tensor
    potential: Tensor


class Summation(NamedTuple):
    """How periodic systems are summed (section 9).

    ``k_cell`` [3, 3] in A is the cell whose sphere chooses the integer vectors k; by default each
    system has its own sphere. ``potential`` may take over the sum: it is called with q, r, cell,
    k_cell and the module, and returns K q [n, n_q] without norm and self terms, or None to leave it
    to the direct sum here. ``slab_vacuum`` in A is what the box of a slab has beyond the height of
    its cell; None refuses slabs.
    """

    k_cell: Tensor | None = None
    potential: Callable[[Tensor, Tensor, Tensor, Tensor, Ewald], Tensor | None] | None = None
    slab_vacuum: float | None = None


OWN_SPHERE = Summation()


def ewald(
    charges: Tensor,
    positions: Tensor,
    cell: Tensor,
    spec: Ewald,
    *,
    periodic: bool,
    how: Summation = OWN_SPHERE,
    open_axis: int | None = None,
) -> EwaldResult:
    """Return the long-range energies and potentials of one system.

    Parameters
    ----------
    charges
        q [n, n_q], internal units.
    positions
        [n, 3], A; they need not lie inside the cell.
    cell
        [3, 3], A, lattice vectors as rows; ignored without periodicity.
    spec
        The Ewald module.
    periodic
        Whether the system is periodic in all directions (sum over k, equation 27) or open
        (pair sum, equation 29).
    how
        Which vectors k a periodic system takes, and who sums.
    open_axis
        For a slab, where ``periodic`` is true as well: the lattice vector (0 to 2) along which the
        system is open (equation 36).

    Returns
    -------
    EwaldResult
        ``energies`` sum over atoms and channels to E; ``potential`` is dE_c/dq_c of each channel.

    Raises
    ------
    InputError
        For exponent 6 without periodicity in all directions, a periodic system with a singular
        cell, or a slab whose atoms do not fit its cell.
    """
    q, r = charges.to(torch.float64), positions.to(torch.float64)
    whole = periodic and open_axis is None
    if spec.exponent != 1 and not whole:
        got = "a slab" if periodic else "an open one"
        raise InputError("pbc", "a periodic system for an Ewald sum of exponent 6", got)
    if not periodic:
        return _open(q, r, spec)
    if whole:
        return _periodic(q, r, cell.to(torch.float64), spec, how)
    assert open_axis is not None
    assert how.slab_vacuum is not None
    slab = slab_of(cell.to(torch.float64), open_axis, how.slab_vacuum)
    require_fit(r, slab)
    return _periodic(q, r, slab.cell, spec, how, slab)


def self_factor(spec: Ewald) -> float:
    """Return the self-interaction energy 1/(sigma (2 pi)^1.5), in 1/A, of a unit charge.

    See ``docs/theory.md``, equation 28.
    """
    return float((2.0 * pi) ** -1.5 / spec.sigma)


def _periodic(
    q: Tensor, r: Tensor, cell: Tensor, spec: Ewald, how: Summation, slab: Slab | None = None
) -> EwaldResult:
    k_cell = cell.detach() if how.k_cell is None else how.k_cell
    potential = None
    if how.potential is not None:
        potential = how.potential(q, r, cell, k_cell, spec)
    if potential is None:
        potential = _direct(q, r, cell, k_cell, spec)
    if slab is not None:
        potential = potential + planar_potential(q, r, slab, spec.sigma)
    energies, own = 0.5 * q * potential, self_factor(spec)
    if spec.remove_self_interaction and spec.exponent == 1:
        # every channel loses the self term of all channels together, as in training
        energies = energies - own * (q * q).sum(1, keepdim=True)
        potential = potential - 2.0 * own * q
    return EwaldResult(spec.norm_factor * energies, spec.norm_factor * potential)


def _direct(q: Tensor, r: Tensor, cell: Tensor, k_cell: Tensor, spec: Ewald) -> Tensor:
    """Return K q [n, n_q], one block of k vectors after the other."""
    n = k_vectors(k_cell, spec.dl)
    volume = torch.linalg.det(cell).abs()
    inverse = torch.linalg.inv(cell)
    k = 2.0 * pi * n @ inverse.T
    g = kernel((k * k).sum(1), spec) / volume
    fraction = r @ inverse
    potential = torch.zeros_like(q)
    block = max(1, PAIRS_AT_ONCE // max(1, len(q)))
    for start in range(0, len(n), block):
        part = (q, fraction, n[start : start + block], g[start : start + block])
        whole = len(n) <= block
        potential = potential + (
            _block_potential(*part)
            if whole
            else checkpoint(_block_potential, *part, use_reentrant=False)
        )
    return potential


def _block_potential(q: Tensor, fraction: Tensor, n: Tensor, g: Tensor) -> Tensor:
    """Return sum over a block of k of 4 g Re[exp(i k.r) conj S(k)]."""
    phase = 2.0 * pi * (fraction @ n.T)
    cos, sin = torch.cos(phase), torch.sin(phase)
    real, imaginary = cos.T @ q, sin.T @ q
    weight = 4.0 * g[:, None]
    return cos @ (weight * real) + sin @ (weight * imaginary)


def _open(q: Tensor, r: Tensor, spec: Ewald) -> EwaldResult:
    i, j = torch.triu_indices(len(q), len(q), offset=1, device=q.device)
    distance = torch.linalg.vector_norm(r[i] - r[j], dim=1)
    # 1e-6 A in the denominator as in the trained models
    v = torch.erf(distance / (spec.sigma * sqrt(2.0))) / (distance + 1e-6) / (2.0 * pi)
    potential = (
        torch.zeros_like(q).index_add(0, i, v[:, None] * q[j]).index_add(0, j, v[:, None] * q[i])
    )
    if not spec.remove_self_interaction:
        potential = potential + 2.0 * self_factor(spec) * q
    return EwaldResult(spec.norm_factor * 0.5 * q * potential, spec.norm_factor * potential)


def k_vectors(cell: Tensor, dl: float) -> Tensor:
    """Return the integer vectors n with 0 < |k| < 2 pi/dl, one of each pair +-k (equation 27).

    The set depends on the cell in steps; it is chosen for the given cell and then held fixed.

    Parameters
    ----------
    cell
        [3, 3], A, lattice vectors as rows.
    dl
        Resolution in A.

    Returns
    -------
    Tensor
        n [n_k, 3] float64.

    Raises
    ------
    InputError
        If the cell is singular.
    """
    h = cell.detach()
    lengths = torch.linalg.vector_norm(h, dim=1)
    if not bool(torch.linalg.det(h).abs() > 1e-9 * lengths.prod()):
        raise InputError(
            "cell", "three independent lattice vectors for a periodic Ewald sum", h.tolist()
        )
    limits = [max(1, int(length / dl)) for length in lengths.tolist()]
    axes = [torch.arange(-m, m + 1, dtype=torch.float64, device=h.device) for m in limits]
    axes[0] = axes[0][limits[0] :]  # first component >= 0; ties are broken below
    n = torch.cartesian_prod(*axes)
    first_positive = (n[:, 0] > 0) | (
        (n[:, 0] == 0) & ((n[:, 1] > 0) | ((n[:, 1] == 0) & (n[:, 2] > 0)))
    )
    k = 2.0 * pi * n @ torch.linalg.inv(h).T
    return n[first_positive & ((k * k).sum(1) < (2.0 * pi / dl) ** 2 * SPHERE)]


def kernel(k2: Tensor, spec: Ewald) -> Tensor:
    """Return g(k) [n_k] for squared wave vectors ``k2`` [n_k] in 1/A^2 (equation 26)."""
    if spec.exponent == 1:
        return torch.exp(-0.5 * spec.sigma**2 * k2) / k2
    k = k2.sqrt()
    b = spec.sigma * k / sqrt(2.0)
    bracket = sqrt(pi) * torch.erfc(b) + (0.5 / b**3 - 1.0 / b) * torch.exp(-b * b)
    return -(k**3) * bracket
