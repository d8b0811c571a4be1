"""Non-uniform Fourier transforms in plain torch, for any device.

Gridding with the exponential of a semicircle (Barnett, Magland, af Klinteberg, SIAM J. Sci. Comput.
41, C479 (2019)) on a grid twice as fine as the modes, and ``torch.fft``.
"""

from __future__ import annotations

from math import ceil, log10, pi

import numpy as np
import torch
from torch import Tensor

FINER = 2.0  # fine grid points for each mode
SHAPE = 2.30  # beta of the kernel for each point of its width, for that grid
POINTS_AT_ONCE = 2_000_000  # atoms x points of the kernel in one block
WIDEST = 16


class PlainTransforms:
    """Transforms by gridding; see :class:`cace_fast.kernels.nufft.Transforms`.

    Parameters
    ----------
    accuracy
        Relative accuracy of a transform.
    """

    def __init__(self, accuracy: float) -> None:
        self.width = min(WIDEST, max(3, ceil(-log10(accuracy)) + 2))
        self._beta = SHAPE * self.width
        self._modes: tuple[int, ...] = ()
        self._fine: tuple[int, ...] = ()
        self._weights: list[Tensor] = []
        self._indices: list[Tensor] = []
        self._corrections: list[Tensor] = []

    def set_points(self, theta: Tensor, n_modes: tuple[int, int, int]) -> None:
        """Take points [3, n] in [-pi, pi) and the odd numbers of modes."""
        if n_modes != self._modes or self._corrections[0].device != theta.device:
            self._modes = n_modes
            self._fine = tuple(_good(max(int(FINER * m) + 1, 2 * self.width)) for m in n_modes)
            self._corrections = [
                self._correction(m, fine).to(theta)
                for m, fine in zip(n_modes, self._fine, strict=True)
            ]
        offsets = torch.arange(self.width, device=theta.device)
        self._weights, self._indices = [], []
        for row, fine in zip(theta, self._fine, strict=True):
            x = row * (fine / (2.0 * pi))
            first = torch.ceil(x - 0.5 * self.width)
            z = (first[:, None] + offsets - x[:, None]) * (2.0 / self.width)
            self._weights.append(self._kernel(z))
            self._indices.append((first.long()[:, None] + offsets) % fine)

    def to_modes(self, strengths: Tensor, out: Tensor) -> None:
        """Transform of type 1."""
        t, n = strengths.shape
        fine = torch.zeros((t, int(np.prod(self._fine))), dtype=strengths.dtype).to(strengths)
        for own in self._blocks(n):
            index, weight = self._stencil(own)
            values = strengths[:, own, None] * weight
            fine.index_add_(1, index.flatten(), values.flatten(1))
        spectrum: Tensor = torch.fft.ifftn(
            fine.reshape(t, *self._fine), dim=(1, 2, 3), norm="forward"
        )
        for axis, (m, factor) in enumerate(zip(self._modes, self._corrections, strict=True)):
            order = torch.arange(-(m // 2), m // 2 + 1, device=fine.device) % self._fine[axis]
            spectrum = spectrum.index_select(axis + 1, order) * _along(factor, axis)
        out.copy_(spectrum)

    def to_points(self, modes: Tensor) -> Tensor:
        """Transform of type 2."""
        for axis, (m, factor) in enumerate(zip(self._modes, self._corrections, strict=True)):
            order = torch.arange(-(m // 2), m // 2 + 1, device=modes.device) % self._fine[axis]
            shape = [*modes.shape]
            shape[axis + 1] = self._fine[axis]
            padded = torch.zeros(shape, dtype=modes.dtype, device=modes.device)
            modes = padded.index_copy_(axis + 1, order, modes * _along(factor, axis))
        fine = torch.fft.fftn(modes, dim=(1, 2, 3)).flatten(1)
        n = len(self._weights[0])
        found = torch.zeros((len(fine), n), dtype=fine.dtype, device=fine.device)
        for own in self._blocks(n):
            index, weight = self._stencil(own)
            found[:, own] = (fine[:, index.flatten()].unflatten(1, index.shape) * weight).sum(-1)
        return found

    def _blocks(self, n: int) -> list[slice]:
        size = max(1, POINTS_AT_ONCE // self.width**3)
        return [slice(start, start + size) for start in range(0, n, size)]

    def _stencil(self, own: slice) -> tuple[Tensor, Tensor]:
        """Return where the kernel of each atom meets the fine grid, and its values there."""
        (a, b, c), (x, y, z) = (
            [part[own] for part in parts] for parts in (self._indices, self._weights)
        )
        _, second, third = self._fine
        index = (a[:, :, None] * second + b[:, None, :])[..., None] * third + c[:, None, None, :]
        weight = (x[:, :, None] * y[:, None, :])[..., None] * z[:, None, None, :]
        return index.flatten(1), weight.flatten(1)

    def _kernel(self, z: Tensor) -> Tensor:
        inside = torch.sqrt(torch.clamp(1.0 - z * z, min=0.0))
        return torch.where(z.abs() <= 1.0, torch.exp(self._beta * (inside - 1.0)), 0.0)

    def _correction(self, n_modes: int, fine: int) -> Tensor:
        """Return 1/(Fourier transform of the kernel) at the modes [n_modes], by quadrature."""
        nodes, weights = np.polynomial.legendre.leggauss(4 * self.width + 40)
        values = weights * np.exp(self._beta * (np.sqrt(1.0 - nodes**2) - 1.0))
        numbers = np.arange(-(n_modes // 2), n_modes // 2 + 1)
        phase = np.outer(numbers * (pi * self.width / fine), nodes)
        return torch.from_numpy(1.0 / (0.5 * self.width * (np.cos(phase) @ values)))


def _along(values: Tensor, axis: int) -> Tensor:
    """Return a vector such that it broadcasts along one axis of [t, M1, M2, M3]."""
    shape = [1, 1, 1, 1]
    shape[axis + 1] = -1
    return values.reshape(shape)


def _good(least: int) -> int:
    """Return the smallest even number from ``least`` on without prime factors above 5."""
    number = least + least % 2
    while True:
        rest = number
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return number
        number += 2
