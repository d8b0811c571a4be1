"""Slabs: systems periodic along two lattice vectors, with charges (``docs/user/slabs.md``).

Their long range is the sum over k of a box with vacuum, and terms that remove the interaction of
its images along the normal (``docs/theory.md``, equations 35 to 37). Plain torch, float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cace_fast.errors import InputError


class Slab(NamedTuple):
    """The box of a slab (``docs/theory.md``, equation 35), float64 in A.

    ``cell`` [3, 3] has the two periodic lattice vectors, and ``period`` along the unit vector
    ``normal`` [3] as the third; ``height`` is that of the structure's cell.
    """

    cell: Tensor
    normal: Tensor
    height: Tensor
    period: Tensor


def slab_of(cell: Tensor, open_axis: int, vacuum: float) -> Slab:
    """Return the periodic box in which a slab is summed (equation 35); differentiable in the cell.

    Parameters
    ----------
    cell
        [3, 3] float64, A; of the vector that is not periodic, only the height above the plane of
        the two others counts.
    open_axis
        Which lattice vector is not periodic.
    vacuum
        Width added to the height, in A.

    Raises
    ------
    InputError
        If the three vectors are not independent.
    """
    first, second = (a for a in range(3) if a != open_axis)
    across = torch.linalg.cross(cell[first], cell[second])
    area = torch.linalg.vector_norm(across)
    height = (across * cell[open_axis]).sum() / area
    if not bool(height.abs() * area > 1e-9 * torch.linalg.vector_norm(cell, dim=1).prod()):
        raise InputError(
            "cell",
            "three independent lattice vectors for a slab with an Ewald sum",
            cell.tolist(),
            "The vector that is not periodic says how high the atoms may reach; set one, for "
            f"example by atoms.center(vacuum=5.0, axis={open_axis}).",
        )
    normal, height = across / area, height.abs()
    period = height + vacuum
    rows = [cell[first], cell[second]]
    rows.insert(open_axis, period * normal)
    return Slab(torch.stack(rows), normal, height, period)


def require_fit(positions: Tensor, slab: Slab) -> None:
    """Raise InputError if atoms [n, 3] in A reach farther along the normal than the cell.

    See ``docs/theory.md``, section 11.
    """
    if not len(positions):
        return
    along = (positions @ slab.normal).detach()
    extent, height = float(along.max() - along.min()), float(slab.height.detach())
    if extent > height * (1.0 + 1e-9):
        raise InputError(
            "positions",
            f"atoms of a slab within {height:.6g} A along its normal, the height of its cell",
            f"{extent:.6g} A",
            "Give the cell a longer vector in the direction that is not periodic.",
        )


def planar_potential(q: Tensor, r: Tensor, slab: Slab, sigma: float) -> Tensor:
    """Return what is added to the potential K q [n, n_q] of the box, without norm (equation 37).

    It is twice differentiable with respect to charges ``q`` [n, n_q], positions ``r`` [n, 3] in A
    and the slab. Channels do not interact. ``sigma`` is in A.
    """
    along = r @ slab.normal
    z = along - along.detach().mean()
    return planar_terms(q, z, slab, sigma, planar_moments(q, z))[0]


def planar_moments(q: Tensor, z: Tensor) -> Tensor:
    """Return sum q, sum q z and sum q z^2 [3, n_q] of atoms (equation 36); those of parts add up.

    ``q`` [n, n_q] are charges in internal units, and the sums are in these, times A and A^2. ``z``
    [n] are coordinates along the normal in A, from one origin for all parts, near the slab.
    """
    height = z[:, None]
    return torch.stack([q.sum(0), (q * height).sum(0), (q * height * height).sum(0)])


def planar_terms(
    q: Tensor, z: Tensor, slab: Slab, sigma: float, moments: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what is added to potential [n, n_q] and forces [n, 3] of the box.

    See ``docs/theory.md``, equations 36 and 37.

    ``q`` [n, n_q] and ``z`` [n] in A belong to the atoms, ``moments`` [3, n_q] to the whole slab;
    ``sigma`` is in A. Both results are without norm.
    """
    Q, M, S = moments  # sum q, sum q z, sum q z^2
    V, L, column = torch.linalg.det(slab.cell).abs(), slab.period, z[:, None]
    constant = L**2 / 6.0 + sigma**2
    potential = (2.0 * M * column - S - Q * (column * column + constant)) / V  # equation 37
    force = -2.0 * (q * (M - Q * column)).sum(1) / V
    return potential, force[:, None] * slab.normal


def planar_virial(
    slab: Slab, sigma: float, moments: Tensor, force_z: Tensor, virial: Tensor
) -> Tensor:
    """Return the virial [3, 3] of a slab, in whose strain the vacuum keeps its width (equation 36).

    Parameters
    ----------
    slab, sigma
        Its box, and the width of the charges in A.
    moments
        [3, n_q] of all atoms, from :func:`planar_moments`.
    force_z
        The sum of F z [3] over all atoms, F being forces of the sum over k; parts add up.
    virial
        That of the sum over k in ``slab.cell`` [3, 3], without norm.
    """
    n, (Q, M, S) = slab.normal, moments
    V, H, L = torch.linalg.det(slab.cell).abs(), slab.height, slab.period
    constant = L**2 / 6.0 + sigma**2
    # the sum over k: only in the plane does its strain move its box as it moves the slab
    nn = torch.outer(n, n)
    plane = torch.eye(3, dtype=virial.dtype, device=virial.device) - nn
    shear = torch.outer(n, plane @ force_z)
    along_n = (1.0 - H / L) * (n @ force_z) + H / L * (n @ virial @ n)
    of_sum = plane @ virial @ plane + shear + shear.T + along_n * nn
    # the terms of equation 36
    squares = (M * M - Q * S).sum()
    energy = (squares - 0.5 * (Q * Q).sum() * constant) / V
    slope = (2.0 * squares - (Q * Q).sum() * L * H / 6.0) / V
    found: Tensor = of_sum + energy * (plane + H / L * nn) - slope * nn
    return found


def planar_sum(
    q: Tensor, r: Tensor, slab: Slab, sigma: float, forces: Tensor, virial: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return potential, forces and virial of a slab in closed form (equations 36 and 37).

    Parameters
    ----------
    q, r
        Charges [n, n_q] in internal units and positions [n, 3] in A, float64.
    slab, sigma
        Its box, and the width of the charges in A.
    forces, virial
        Of the sum over k in ``slab.cell``, [n, 3] and [3, 3], without norm.

    Returns
    -------
    tuple of Tensor
        What is to be added to the potential [n, n_q] of that sum; and the forces [n, 3] and the
        virial [3, 3] of the slab, in whose strain the vacuum keeps its width.
    """
    along = r @ slab.normal
    z = along - along.mean()
    moments = planar_moments(q, z)
    potential, more = planar_terms(q, z, slab, sigma, moments)
    force_z = (forces * z[:, None]).sum(0)
    return potential, forces + more, planar_virial(slab, sigma, moments, force_z, virial)
