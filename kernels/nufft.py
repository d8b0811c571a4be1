"""The sum over k of large periodic systems by non-uniform fast Fourier transforms.

Structure factors of ``docs/theory.md``, equation 27, on the integer grid are a type-1 transform of
the charges at fractional coordinates, potentials and fields are type-2 transforms of what is left
after multiplication by g(k): time O(N log N), memory O(N), the sharp sphere as trained. Real
quantities travel in pairs, as real and imaginary part of one complex transform.
"""

from __future__ import annotations

import threading
from math import pi, sqrt
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cace_fast.errors import InputError
from cace_fast.kernels.kspace import axes_of, k2_limit, kernel, require_cell

SINGLE_FROM = 3e-3  # tolerances that transforms in single precision keep, also in crystals
SAFETY = 0.003  # accuracy that a transform has to have, as a fraction of that of the forces
LOOSEST = 3e-4  # tolerance: coarser kernels than it needs are not accurate in proportion
MAX_POINTS = 2**31  # of the grid of integer vectors


class Transforms(Protocol):
    """Non-uniform Fourier transforms in three dimensions, at points that are set before."""

    def set_points(self, theta: Tensor, n_modes: tuple[int, int, int]) -> None:
        """Take points [3, n] in [-pi, pi) and the odd numbers of modes -m .. m of each axis."""

    def to_modes(self, strengths: Tensor, out: Tensor) -> None:
        """Write sum_i c_i exp(+i n.theta_i) [t, M1, M2, M3] for strengths [t, n] to ``out``."""

    def to_points(self, modes: Tensor) -> Tensor:
        """Return sum_n f_n exp(-i n.theta_i) [t, n] for modes [t, M1, M2, M3]."""


class BareSum(NamedTuple):
    """phi = K q [n, n_q] without norm and self terms, and of E = sum q phi/2 forces and virial."""

    potential: Tensor
    forces: Tensor
    virial: Tensor


class _Grid(NamedTuple):
    """Integer vectors -m .. m of each axis, and what multiplies structure factors there."""

    axes: tuple[Tensor, Tensor, Tensor]  # each broadcasts over the grid
    reciprocal: Tensor  # [3, 3] rows 2 pi h^-T
    inverse: Tensor  # [3, 3] h^-1
    factor: Tensor  # [M1, M2, M3] 2 g/|V| inside the sphere, 0 outside
    slope: Tensor  # 2 dg/dk^2/|V|

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of modes of each axis."""
        m1, m2, m3 = self.factor.shape
        return m1, m2, m3


class NufftSum:
    """The sum over k of one periodic system after another, on the device of its tensors.

    Parameters
    ----------
    dl, sigma, exponent
        Of the Ewald module.
    transforms
        Who transforms; it has to be as accurate as :func:`accuracy` asks.
    dtype
        Complex type of the transforms, from :func:`accuracy`.
    """

    def __init__(
        self, dl: float, sigma: float, exponent: int, transforms: Transforms, dtype: torch.dtype
    ) -> None:
        self._dl, self._sigma, self._exponent = dl, sigma, exponent
        self._transforms, self._dtype = transforms, dtype
        self._grid: tuple[Tensor, Tensor, _Grid] | None = None
        # arrays of the size of the grid, used again: memory new to a process has its cost
        self._memory: dict[str, Tensor] = {}
        self._lock = threading.Lock()

    def evaluate(
        self, q: Tensor, r: Tensor, cell: Tensor, k_cell: Tensor, *, derivatives: bool = True
    ) -> BareSum:
        """Return potentials, forces and virial.

        Parameters
        ----------
        q, r, cell
            Charges [n, n_q], positions [n, 3] and cell [3, 3], float64.
        k_cell
            The cell [3, 3] whose sphere chooses the integer vectors: ``cell`` itself, or the
            reference of a frozen set.
        derivatives
            Whether forces and virial are wanted; zeros otherwise.

        Raises
        ------
        InputError
            If a cell is singular, or has too many k vectors.
        """
        with self._lock:
            grid = self._prepare(r, cell, k_cell)
            shape = (_n_pairs(q), *grid.shape)
            structure = self._structure(q, self._array("structure", shape, q.device, self._dtype))
            return self._finish(grid, structure, q, derivatives)

    def structure_factors(self, q: Tensor, r: Tensor, cell: Tensor, k_cell: Tensor) -> Tensor:
        """Return S(k) [ceil(n_q/2), M1, M2, M3] of a part of the atoms; parts add up.

        Entry p holds channels 2p and 2p + 1 as S_a + i S_b. Arguments as in :meth:`evaluate`.
        """
        with self._lock:
            grid = self._prepare(r, cell, k_cell)
            shape = (_n_pairs(q), *grid.shape)
            return self._structure(q, torch.empty(shape, dtype=self._dtype, device=q.device))

    def finish(
        self, structure: Tensor, q: Tensor, r: Tensor, cell: Tensor, k_cell: Tensor
    ) -> BareSum:
        """Return :meth:`evaluate` of a part of the atoms, given the sum of all parts' S(k).

        The virial is that of all atoms, whole in every part.
        """
        with self._lock:
            grid = self._prepare(r, cell, k_cell)
            return self._finish(grid, structure, q, True)

    def _prepare(self, r: Tensor, cell: Tensor, k_cell: Tensor) -> _Grid:
        """Return the grid of a cell, points set."""
        held = self._grid
        if held is None or not (torch.equal(held[0], cell) and torch.equal(held[1], k_cell)):
            made = _grid(cell, k_cell, self._dl, self._sigma, self._exponent)
            real = torch.float32 if self._dtype == torch.complex64 else torch.float64
            x, y, z = (n.to(real) for n in made.axes)
            made = made._replace(
                axes=(x, y, z), factor=made.factor.to(real), slope=made.slope.to(real)
            )
            held = self._grid = (cell.clone(), k_cell.clone(), made)
        grid = held[2]
        fraction = (r @ grid.inverse).T
        theta = fraction.sub_(torch.round(fraction)).mul_(2.0 * pi)
        self._transforms.set_points(theta.to(grid.factor.dtype).contiguous(), grid.shape)
        return grid

    def _array(
        self, name: str, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Return an array, that of the last call of this name where it fits; it is not cleared."""
        held = self._memory.get(name)
        if held is None or held.shape != shape or held.device != device:
            held = self._memory[name] = torch.empty(shape, dtype=dtype, device=device)
        return held

    def _structure(self, q: Tensor, out: Tensor) -> Tensor:
        n, n_q = q.shape
        pairs = torch.zeros((len(out), n), dtype=self._dtype, device=q.device)
        pairs.real = q[:, 0::2].T.to(pairs.real.dtype)
        pairs.imag[: n_q // 2] = q[:, 1::2].T.to(pairs.real.dtype)
        # one after the other: the grid inside a transform is the largest array there is
        for p in range(len(out)):
            self._transforms.to_modes(pairs[p : p + 1], out[p : p + 1])
        return out

    def _finish(self, grid: _Grid, structure: Tensor, q: Tensor, derivatives: bool) -> BareSum:
        n, n_q = q.shape
        potential = torch.empty_like(q)
        forces = torch.zeros((n, 3), dtype=q.dtype, device=q.device)
        virial = torch.zeros((3, 3), dtype=q.dtype, device=q.device)
        modes = self._array("modes", (2, *grid.shape), q.device, self._dtype)
        for p, s in enumerate(structure):
            own = slice(2 * p, min(2 * p + 2, n_q))
            alone = own.stop - own.start == 1
            if not derivatives:
                phi = self._transforms.to_points(_scaled(s, grid.factor, modes[0])[None])[0]
                potential[:, own] = torch.view_as_real(phi)[:, : own.stop - own.start].to(q)
                continue
            phi, gradient = (self._single if alone else self._pair)(grid, s, modes)
            potential[:, own] = phi
            forces -= (q[:, own, None] * gradient).sum(1)
            power = self._array("power", grid.shape, q.device, grid.factor.dtype)
            torch.mul(s.real, s.real, out=power).addcmul_(s.imag, s.imag)
            virial += _virial(grid, power).to(virial)
        return BareSum(potential, forces, virial)

    def _single(self, grid: _Grid, s: Tensor, modes: Tensor) -> tuple[Tensor, Tensor]:
        """Return potential [n, 1] and gradient [n, 1, 3] of one channel, by two transforms."""
        lengths = torch.linalg.vector_norm(grid.reciprocal, dim=1).tolist()
        # k along each reciprocal vector
        x, y, z = (n * length for n, length in zip(grid.axes, lengths, strict=True))
        weighted = _scaled(s, grid.factor, modes[1])
        planes = torch.view_as_real(weighted).flatten(2).flatten(0, 1)  # [M1 M2, 2 M3]
        size = torch.linalg.vector_norm(planes, dim=0).square().reshape(-1, 2).sum(1)
        # potential and slope share a transform, hence its error: they are made equally large
        whole, along = float(size.sum()), float((size * z.flatten() ** 2).sum())
        scale = sqrt(along / whole) if along > 0.0 and whole > 0.0 else 1.0
        torch.mul(weighted, torch.complex(*_together(y, -x)), out=modes[0])
        weighted.mul_(scale - z)
        found = torch.view_as_real(self._transforms.to_points(modes)).to(torch.float64)
        # the second one lacks a factor i: (u + i v) i = -v + i u
        slopes = torch.stack([found[0, :, 0], found[0, :, 1], -found[1, :, 1]], -1)
        return found[1, :, :1] / scale, (slopes @ _unit(grid))[:, None]

    def _pair(self, grid: _Grid, s: Tensor, modes: Tensor) -> tuple[Tensor, Tensor]:
        """Return potentials [n, 2] and gradients [n, 2, 3] of two channels."""
        lengths = torch.linalg.vector_norm(grid.reciprocal, dim=1).tolist()
        x, y, z = (-1j * n * length for n, length in zip(grid.axes, lengths, strict=True))
        weighted = _scaled(s, grid.factor, modes[0])
        torch.mul(weighted, x, out=modes[1])
        phi, first = self._transforms.to_points(modes)
        torch.mul(weighted, z, out=modes[1])
        weighted.mul_(y)
        rest = self._transforms.to_points(modes)
        found = torch.view_as_real(torch.stack([first, *rest], -1)).to(torch.float64)
        gradient = found.transpose(1, 2) @ _unit(grid)
        return torch.view_as_real(phi).to(torch.float64), gradient


def accuracy(tolerance: float) -> tuple[float, torch.dtype]:
    """Return what to ask of transforms for an error of forces: their accuracy, and their type."""
    single = tolerance >= SINGLE_FROM
    return SAFETY * min(tolerance, LOOSEST), torch.complex64 if single else torch.complex128


def _grid(cell: Tensor, k_cell: Tensor, dl: float, sigma: float, exponent: int) -> _Grid:
    require_cell(cell)
    x, y, z = axes_of(k_cell, dl)
    if (points := len(x) * len(y) * len(z)) >= MAX_POINTS:
        raise InputError("cell", f"one with fewer k vectors than {MAX_POINTS}", f"{points}")
    axes = (x[:, None, None], y[:, None], z)
    inverse = torch.linalg.inv(cell)
    k2 = _squares(axes, inverse)
    chosen = k2 if torch.equal(cell, k_cell) else _squares(axes, torch.linalg.inv(k_cell))
    inside = chosen < k2_limit(dl)
    inside[len(x) // 2, len(y) // 2, len(z) // 2] = False  # k = 0
    found = k2[inside]
    g, slope = kernel(found, sigma, exponent)
    volume = torch.linalg.det(cell).abs()
    factor, slopes = torch.zeros_like(k2), torch.zeros_like(k2)
    factor[inside], slopes[inside] = 2.0 * g / volume, 2.0 * slope / volume
    return _Grid(axes, 2.0 * pi * inverse.T, inverse, factor, slopes)


def _squares(axes: tuple[Tensor, Tensor, Tensor], inverse: Tensor) -> Tensor:
    """Return k^2 on the grid."""
    metric = (4.0 * pi**2 * inverse.T @ inverse).tolist()
    x, y, z = axes
    plane: Tensor = metric[0][0] * x * x + metric[1][1] * y * y + 2.0 * metric[0][1] * x * y
    slant = 2.0 * (metric[0][2] * x + metric[1][2] * y) + metric[2][2] * z
    return torch.add(plane, slant * z)


def _virial(grid: _Grid, power: Tensor) -> Tensor:
    """Return -dE/dstrain [3, 3] of two channels; ``power`` |S_a|^2 + |S_b|^2 is overwritten."""
    energy = 0.5 * torch.vdot(grid.factor.flatten(), power.flatten()).to(torch.float64)
    steep = power.mul_(grid.slope)
    by_axis = [n.flatten().to(torch.float64) for n in grid.axes]
    planes = {(0, 1): steep.sum(2), (0, 2): steep.sum(1), (1, 2): steep.sum(0)}
    moments = torch.zeros((3, 3), dtype=torch.float64, device=power.device)
    for (a, b), plane in planes.items():
        of_plane = plane.to(torch.float64)
        moments[a, b] = moments[b, a] = by_axis[a] @ of_plane @ by_axis[b]
        if b == a + 1:
            moments[a, a] = (by_axis[a] ** 2) @ of_plane.sum(1)
    moments[2, 2] = (by_axis[2] ** 2) @ planes[0, 2].to(torch.float64).sum(0)
    eye = torch.eye(3, dtype=torch.float64, device=power.device)
    virial: Tensor = energy * eye + grid.reciprocal.T @ moments @ grid.reciprocal
    return virial


def _n_pairs(q: Tensor) -> int:
    return (q.shape[1] + 1) // 2


def _scaled(values: Tensor, factor: Tensor, out: Tensor) -> Tensor:
    """Write complex values times real factors to ``out``; no array of factors is made complex."""
    torch.mul(values.real, factor, out=out.real)
    torch.mul(values.imag, factor, out=out.imag)
    return out


def _unit(grid: _Grid) -> Tensor:
    """Return the directions of the reciprocal vectors [3, 3], rows."""
    return torch.nn.functional.normalize(grid.reciprocal, dim=1)


def _together(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    first, second = torch.broadcast_tensors(a, b)
    return first.contiguous(), second.contiguous()
