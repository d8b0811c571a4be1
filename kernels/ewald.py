"""Latent Ewald summation, as :func:`cace_fast.reference.ewald.ewald`; float64 whatever comes in.

The operator is the linear map phi = K(r, h) q of the sum over k (or of the open pair sum), without
self terms. Its derivative with respect to r and h is that of the energy E(x) = x K x / 2, taken at
two sets of charges: u K v = (E(u + v) - E(u - v)) / 2. First derivatives only.
"""

from __future__ import annotations

from math import pi
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cace_fast.errors import InputError
from cace_fast.kernels import _operators as shared
from cace_fast.kernels.cpu.interface import EwaldSpec
from cace_fast.kernels.cpu.long_range import EwaldSum
from cace_fast.kernels.ewald_method import Sphere, choose, require_method
from cace_fast.kernels.mesh import BareSum, MeshSum
from cace_fast.kernels.plain_mesh import PlainMesh
from cace_fast.slab import planar_potential, require_fit, slab_of
from cace_fast.spec import Ewald

TOLERANCE = 1e-10  # of forces, where nothing else is asked for


class EwaldOutput(NamedTuple):
    """Energy of each atom and channel [n, n_q] in eV, and the potential dE_c/dq_c [n, n_q]."""

    energies: Tensor
    potential: Tensor


class EwaldOptions(NamedTuple):
    """How periodic systems are summed.

    ``k_cell`` [3, 3]: the cell whose sphere chooses the integer vectors k; by default each cell's
    own. ``method``: ``"direct"``, ``"mesh"``, or ``"auto"`` for the cheaper one. ``tolerance``: the
    error of forces by a mesh, relative to max(max |F|, F0) (docs/theory.md, "The mesh").
    ``slab_vacuum``: what the box of a slab has beyond the height of its cell, in A.
    """

    k_cell: Tensor | None = None
    method: str = "auto"
    tolerance: float = TOLERANCE
    slab_vacuum: float | None = None


BEST = EwaldOptions()


def ewald(
    charges: Tensor,
    positions: Tensor,
    cell: Tensor,
    spec: Ewald,
    *,
    periodic: bool,
    how: EwaldOptions = BEST,
    open_axis: int | None = None,
    backend: str | None = None,
) -> EwaldOutput:
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
    how
        Which vectors k a periodic system takes, and which way they are summed over.
    open_axis
        Of a slab, ``periodic`` too: the lattice vector along which it is not.
    backend
        ``"cpu"`` or ``"triton"``; None for the best one of the device.

    Returns
    -------
    EwaldOutput
        float64; ``energies`` sum over atoms and channels to E.

    Raises
    ------
    InputError
        For wrong shapes, exponent 6 without periodicity in all directions, a singular cell with
        it, a slab whose vacuum is not stated or whose atoms do not fit its cell, or an unknown
        method.
    BackendUnavailableError
        If no kernels, or not the ones named, serve the device.
    """
    shared.require("charges", charges, (None, None), shared.FLOATS)
    shared.require("positions", positions, (charges.shape[0], 3), shared.FLOATS)
    shared.require("cell", cell, (3, 3), shared.FLOATS)
    chosen = shared.select_backend(charges.device, backend)
    if spec.exponent != 1 and (not periodic or open_axis is not None):
        got = "a slab" if periodic else "an open one"
        raise InputError("pbc", "a periodic system for an Ewald sum of exponent 6", got)
    q, r, h = (t.to(torch.float64) for t in (charges, positions, cell))
    slab = None
    if periodic and open_axis is not None:
        if how.slab_vacuum is None:
            raise InputError("how.slab_vacuum", "the vacuum of a slab in A", None)
        slab = slab_of(h, open_axis, how.slab_vacuum)
        require_fit(r, slab)
        h = slab.cell
    k_cell = (h if how.k_cell is None else how.k_cell.to(h)).detach()
    way = (how.method if periodic else "open", how.tolerance)
    potential = potentials(q, r, h, k_cell, spec, way, chosen)
    if slab is not None:
        potential = potential + planar_potential(q, r, slab, spec.sigma)
    energies, own = 0.5 * q * potential, (2.0 * pi) ** -1.5 / spec.sigma
    if periodic and spec.remove_self_interaction and spec.exponent == 1:
        # every channel loses the self term of all channels together: files were trained so
        energies = energies - own * (q * q).sum(1, keepdim=True)
        potential = potential - 2.0 * own * q
    elif not periodic and not spec.remove_self_interaction:
        energies, potential = energies + own * q * q, potential + 2.0 * own * q
    return EwaldOutput(spec.norm_factor * energies, spec.norm_factor * potential)


def potentials(
    q: Tensor,
    r: Tensor,
    cell: Tensor,
    k_cell: Tensor,
    spec: Ewald,
    way: tuple[str, float],
    backend: str,
) -> Tensor:
    """Return phi = K q [n, n_q] without norm and self terms, differentiable once.

    Parameters
    ----------
    q, r, cell
        As for :func:`ewald`, float64.
    k_cell
        The cell [3, 3] whose sphere chooses the integer vectors k; no gradient goes there.
    spec
        The Ewald module.
    way
        A method as :class:`EwaldOptions` has it, or ``"open"``, and the tolerance.
    backend
        ``"cpu"``, ``"triton"``, or ``"torch"``: a mesh alone, in plain torch.
    """
    numbers = [spec.dl, spec.sigma, float(spec.exponent), way[1]]
    found: Tensor = _ewald(q, r, cell, k_cell.detach(), numbers, way[0], backend)
    return found


def _bare(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor], numbers: list[float], way: str, backend: str
) -> BareSum:
    """Return K q, and forces and virial of E = sum q K q / 2, without norm and self terms.

    ``tensors`` are q, positions, the cell, and that of the k vectors.
    """
    q, r, cell, k_cell = tensors
    dl, sigma, exponent = numbers[0], numbers[1], int(numbers[2])
    tolerance = numbers[3]
    if way != "open":
        require_method(way, tolerance)
    if backend == "cpu":
        spec = EwaldSpec(
            dl=dl,
            sigma=sigma,
            norm=1.0,
            field=0.0,
            neutral_lambda=0.0,
            exponent=exponent,
            remove_self=way == "open",  # the open sum removes its self terms itself
            field_direction=0,
        )
        summed = EwaldSum(
            spec,
            None if way == "open" else shared.array(k_cell),
            method="direct" if way == "open" else way,
            tolerance=tolerance,
        )
        found = summed.evaluate(
            shared.array(q),
            shared.array(r),
            shared.array(cell),
            periodic=way != "open",
            n_threads=torch.get_num_threads(),
        )
        return BareSum(*(torch.from_numpy(x) for x in found[1:]))
    plan = None
    if way != "open":  # here and not where it is called: a traced call has no cell to look at
        cells, sphere = (cell.cpu().numpy(), k_cell.cpu().numpy()), Sphere(dl, sigma)
        n, n_q = q.shape
        plan = choose(way, tolerance, n, n_q, cells[0], sphere, cells[1]).plan
    if plan is not None:
        return MeshSum(dl, sigma, exponent, PlainMesh()).evaluate(plan, q, r, cell, k_cell)
    from cace_fast.kernels.triton import operators

    module = Ewald("q", "e", dl, sigma, exponent, remove_self_interaction=way == "open")
    return BareSum(*operators.ewald(q, r, cell, k_cell, module, periodic=way != "open"))


@torch.library.custom_op("cace_fast::ewald", mutates_args=())
def _ewald(
    charges: Tensor,
    positions: Tensor,
    cell: Tensor,
    k_cell: Tensor,
    numbers: list[float],
    way: str,
    backend: str,
) -> Tensor:
    return _bare((charges, positions, cell, k_cell), numbers, way, backend).potential


@_ewald.register_fake
def _(charges: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(charges)


@torch.library.custom_op("cace_fast::ewald_gradient", mutates_args=())
def _ewald_gradient(
    grad_out: Tensor,
    charges: Tensor,
    positions: Tensor,
    cell: Tensor,
    k_cell: Tensor,
    numbers: list[float],
    way: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    plus, minus = (
        _bare((x, positions, cell, k_cell), numbers, way, backend)
        for x in (grad_out + charges, grad_out - charges)
    )
    forces, strain = 0.5 * (plus.forces - minus.forces), 0.5 * (plus.virial - minus.virial)
    by_cell = torch.zeros_like(cell)
    if way != "open":  # dE/dstrain = r (dE/dr) + h (dE/dh)
        by_cell = torch.linalg.solve(cell.T, positions.T @ forces - strain).contiguous()
    return 0.5 * (plus.potential + minus.potential), -forces, by_cell


@_ewald_gradient.register_fake
def _(
    grad_out: Tensor, charges: Tensor, positions: Tensor, cell: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(charges), torch.empty_like(positions), torch.empty_like(cell)


shared.differentiable_once(_ewald, _ewald_gradient, "ewald")
