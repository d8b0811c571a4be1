"""The sum over k of large periodic systems by a mesh (``docs/theory.md``, "The mesh").

A smooth window spreads the charges on a periodic grid. A Fourier transform makes structure factors
of it, which are multiplied by g(k)/window^2 inside the sphere. A second transform makes a grid of
potentials, and the same window gathers potential and gradient at the atoms. Here is what is the
same on every device, in torch: the transforms and the product. Kernels spread and gather.
"""

from __future__ import annotations

from collections.abc import Callable
from math import pi
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cace_fast.kernels.ewald_method import MeshPlan
from cace_fast.kernels.kspace import k2_limit, kernel, require_cell
from cace_fast.kernels.window import quadrature

PART = 1 << 18  # numbers that a processor transforms at once


class BareSum(NamedTuple):
    """phi = K q [n, n_q] without norm and self terms, and of E = sum q phi/2 forces and virial."""

    potential: Tensor
    forces: Tensor
    virial: Tensor


class MeshKernels(Protocol):
    """Spreading and gathering on one kind of device, in the precision of the plan."""

    def spread(self, plan: MeshPlan, inverse: Tensor, r: Tensor, q: Tensor) -> Tensor:
        """Return the charges on the grid [n_q, N1, N2, N3].

        ``inverse`` [3, 3] is h^-1 in 1/A, ``r`` [n, 3] in A and ``q`` [n, n_q] are float64.
        """

    def gather(
        self, plan: MeshPlan, inverse: Tensor, r: Tensor, q: Tensor, grid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return potentials [n, n_q], and sum_c q_c dphi_c/dr [n, 3] in 1/A, both float64."""


class _Box(NamedTuple):
    """A cell, and what modes are multiplied by in it."""

    cell: Tensor  # [3, 3]
    k_cell: Tensor
    inverse: Tensor  # [3, 3] h^-1
    factor: Tensor  # [2 m1 + 1, 2 m2 + 1, m3 + 1] 2 g/(|V| window^2) inside the sphere, 0 outside
    slope: Tensor  # 2 dg/dk^2/(|V| window^2)


class MeshSum:
    """The sum over k of one periodic system after another, on the device of its tensors.

    Parameters
    ----------
    dl, sigma, exponent
        Of the Ewald module: resolution and width in A, and 1 or 6.
    kernels
        Who spreads and gathers.
    """

    def __init__(self, dl: float, sigma: float, exponent: int, kernels: MeshKernels) -> None:
        self._dl, self._sigma, self._exponent = dl, sigma, exponent
        self._kernels = kernels
        self._plan: MeshPlan | None = None
        self._box: _Box | None = None

    def set_cell(self, plan: MeshPlan, cell: Tensor, k_cell: Tensor) -> bool:
        """Take the mesh of a cell.

        Parameters
        ----------
        plan
            Window and grid, from :func:`cace_fast.kernels.ewald_method.choose`.
        cell
            [3, 3] in A, float64.
        k_cell
            The cell [3, 3] whose sphere chooses the integer vectors: ``cell`` itself, or the
            reference of a frozen set.

        Returns
        -------
        bool
            Whether everything stands where it stood: a captured :meth:`sum` is still right.

        Raises
        ------
        InputError
            If a cell is singular.
        """
        held, before = self._box, self._plan
        if held is not None and plan == before and held.cell.device == cell.device:
            if not (torch.equal(held.cell, cell) and torch.equal(held.k_cell, k_cell)):
                for old, new in zip(held, self._make_box(plan, cell, k_cell), strict=True):
                    old.copy_(new)
            return True
        self._plan, self._box = plan, self._make_box(plan, cell, k_cell)
        return False

    def sum(self, q: Tensor, r: Tensor) -> BareSum:
        """Return potentials, forces and virial of the cell that was set.

        The host does not look at the device: this can be captured.

        Parameters
        ----------
        q, r
            Charges [n, n_q] in internal units and positions [n, 3] in A, float64.
        """
        plan, box = self._plan, self._box
        assert plan is not None
        assert box is not None
        modes = to_modes(self._kernels.spread(plan, box.inverse, r, q), plan.modes)
        virial = _virial(box, plan, modes)
        grid = to_points(modes * box.factor, plan.size)
        potential, gradient = self._kernels.gather(plan, box.inverse, r, q, grid)
        return BareSum(potential, -gradient, virial)

    def evaluate(
        self, plan: MeshPlan, q: Tensor, r: Tensor, cell: Tensor, k_cell: Tensor
    ) -> BareSum:
        """Return :meth:`sum` of charges and positions after :meth:`set_cell`, with their errors."""
        self.set_cell(plan, cell, k_cell)
        return self.sum(q, r)

    def _make_box(self, plan: MeshPlan, cell: Tensor, k_cell: Tensor) -> _Box:
        require_cell(cell)
        require_cell(k_cell)
        axes = mode_axes(plan.modes, cell)
        k2 = _squares(axes, torch.linalg.inv(cell))
        chosen = k2 if torch.equal(cell, k_cell) else _squares(axes, torch.linalg.inv(k_cell))
        inside = chosen < k2_limit(self._dl)
        inside[0, 0, 0] = False
        scale = 2.0 / torch.linalg.det(cell).abs()
        for axis, (n, size) in enumerate(zip(axes, plan.size, strict=True)):
            shape = [-1 if a == axis else 1 for a in range(3)]
            scale = scale / _transform(plan, n.flatten(), size).reshape(shape) ** 2
        g, slope = kernel(k2[inside], self._sigma, self._exponent)
        factor, slopes = torch.zeros_like(k2), torch.zeros_like(k2)
        factor[inside], slopes[inside] = scale[inside] * g, scale[inside] * slope
        kept = cell.clone(), k_cell.clone(), torch.linalg.inv(cell)
        return _Box(*kept, factor.to(plan.dtype), slopes.to(plan.dtype))


def mode_axes(modes: tuple[int, int, int], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the wave numbers 0 .. m, -m .. -1 of two axes and 0 .. m of the last, to broadcast.

    Parameters
    ----------
    modes
        m of each axis.
    like
        A tensor of their dtype and device.
    """
    x, y, z = (
        torch.arange(m + 1, dtype=like.dtype, device=like.device)
        if a == 2
        else torch.cat(
            [
                torch.arange(m + 1, dtype=like.dtype, device=like.device),
                torch.arange(-m, 0, dtype=like.dtype, device=like.device),
            ]
        )
        for a, m in enumerate(modes)
    )
    return x[:, None, None], y[:, None], z


def to_modes(points: Tensor, modes: tuple[int, int, int]) -> Tensor:
    """Return the modes -m .. m of real grids, without factors.

    One-dimensional passes, each on what the modes need: they give the same bits whatever the
    number of threads.

    Parameters
    ----------
    points
        [t, N1, N2, N3] real.
    modes
        m of each axis.

    Returns
    -------
    Tensor
        [t, 2 m1 + 1, 2 m2 + 1, m3 + 1] complex: sums of points times exp(-i k x), in the order of
        :func:`mode_axes`.
    """
    m1, m2, m3 = modes

    def planes(x: Tensor) -> Tensor:
        x = torch.fft.rfft(x, dim=3).narrow(3, 0, m3 + 1)
        return _cut(torch.fft.fft(x, dim=2), m2, 2)

    def columns(x: Tensor) -> Tensor:
        return _cut(torch.fft.fft(x, dim=1), m1, 1)

    return _in_parts(columns, _in_parts(planes, points, 1), 2)


def to_points(modes: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Return real grids [t, N1, N2, N3], sums of modes times exp(i k x), without factors.

    ``modes`` are as :func:`to_modes` makes them; what they leave out is zero.
    """

    def columns(x: Tensor) -> Tensor:
        found: Tensor = torch.fft.ifft(_widen(x, size[0], 1), dim=1, norm="forward")
        return found

    def planes(x: Tensor) -> Tensor:
        x = torch.fft.ifft(_widen(x, size[1], 2), dim=2, norm="forward")
        points: Tensor = torch.fft.irfft(x, n=size[2], dim=3, norm="forward")
        return points

    return _in_parts(planes, _in_parts(columns, modes, 2), 1)


def _in_parts(transform: Callable[[Tensor], Tensor], x: Tensor, dim: int) -> Tensor:
    """Return the transform of x, made in parts along an axis that it leaves alone.

    On a CPU parts stay in the cache, and in memory that the process has already: half the time for
    large grids, and the same bits.
    """
    n = x.shape[dim]
    step = max(1, PART * n // max(1, x.numel()))
    if x.device.type != "cpu" or step >= n:
        return transform(x)
    out: Tensor | None = None
    for start in range(0, n, step):
        part = transform(x.narrow(dim, start, min(step, n - start)))
        if out is None:
            shape = [*part.shape]
            shape[dim] = n
            out = part.new_empty(shape)
        out.narrow(dim, start, part.shape[dim]).copy_(part)
    assert out is not None
    return out


def _cut(x: Tensor, m: int, dim: int) -> Tensor:
    """Return modes 0 .. m, -m .. -1 along an axis of all modes."""
    return torch.cat([x.narrow(dim, 0, m + 1), x.narrow(dim, x.shape[dim] - m, m)], dim)


def _widen(x: Tensor, size: int, dim: int) -> Tensor:
    """Return all ``size`` modes along an axis of modes 0 .. m, -m .. -1."""
    m = x.shape[dim] // 2
    shape = [*x.shape]
    shape[dim] = size - x.shape[dim]
    return torch.cat([x.narrow(dim, 0, m + 1), x.new_zeros(shape), x.narrow(dim, m + 1, m)], dim)


def _transform(plan: MeshPlan, n: Tensor, size: int) -> Tensor:
    """Return the Fourier transform of the window at modes n of a grid axis of ``size`` points."""
    x, w = torch.tensor(quadrature(plan.window), dtype=torch.float64).to(n).T
    found: Tensor = torch.cos(torch.outer(n * (2.0 * pi / size), x)) @ w
    return found


def _squares(axes: tuple[Tensor, Tensor, Tensor], inverse: Tensor) -> Tensor:
    """Return k^2 of modes, k = 2 pi n h^-T."""
    a, b, c = axes
    total = torch.zeros_like(a * b * c)
    for x, y, z in (2.0 * pi * inverse).tolist():
        total += (a * x + b * y + c * z) ** 2
    return total


def _virial(box: _Box, plan: MeshPlan, modes: Tensor) -> Tensor:
    """Return -dE/dstrain [3, 3], float64, the k set fixed; no product of matrices by a library."""
    power = (modes.real**2 + modes.imag**2).sum(0)
    power[:, :, 0] *= 0.5  # every other mode stands for its conjugate too
    energy = (box.factor * power).sum(dtype=torch.float64)
    steep = (box.slope * power).double()
    axes = mode_axes(plan.modes, box.inverse)
    # k/(2 pi), and the sums of its products
    inverse, (n1, n2, n3) = box.inverse, axes
    k = [n1 * inverse[x, 0] + n2 * inverse[x, 1] + n3 * inverse[x, 2] for x in range(3)]
    rows = [torch.stack([(steep * k[x] * k[y]).sum() for y in range(3)]) for x in range(3)]
    eye = torch.eye(3, dtype=torch.float64, device=modes.device)
    virial: Tensor = energy * eye + 8.0 * pi**2 * torch.stack(rows)
    return virial
