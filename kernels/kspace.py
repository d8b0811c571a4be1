"""The vectors k of fast sums, and their weights g(k)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import pi
from types import FunctionType

import torch
from torch import Tensor

from cace_fast.errors import InputError
from cace_fast.kernels import formulas

FUNCTIONS = {"exp": torch.exp, "sqrt": torch.sqrt, "erfc": torch.erfc}


def kernel(k2: Tensor, sigma: float, exponent: int) -> tuple[Tensor, Tensor]:
    """Return g [n_k] of squared wave vectors ``k2`` [n_k] in 1/A^2, and dg/dk^2 [n_k].

    See ``docs/theory.md``, equation 26.

    ``sigma`` is in A.
    """
    return _on_tensors(exponent)(k2, sigma)


@cache
def _on_tensors(exponent: int) -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
    formula = formulas.KERNELS[exponent]
    return FunctionType(formula.__code__, vars(formulas) | FUNCTIONS)


def k2_limit(dl: float) -> float:
    """Return the upper bound of k^2 in 1/A^2 inside the sphere |k| < 2 pi/dl, dl in A.

    See ``docs/theory.md``, section 9.
    """
    return (2.0 * pi / dl) ** 2 * formulas.SPHERE


def require_cell(cell: Tensor) -> None:
    """Raise InputError for a cell [3, 3] that is singular (``docs/theory.md``, section 9)."""
    lengths = torch.linalg.vector_norm(cell, dim=1)
    if not bool(torch.linalg.det(cell).abs() > 1e-9 * lengths.prod()):
        raise InputError(
            "cell", "three independent lattice vectors for a periodic Ewald sum", cell.tolist()
        )


def axes_of(cell: Tensor, dl: float) -> list[Tensor]:
    """Return the integers -m .. m along each axis that contain the sphere of a cell [3, 3] in A.

    ``dl`` is in A; the integers are those of equation 27, in the dtype of the cell.

    Raises
    ------
    InputError
        If the cell is singular.
    """
    require_cell(cell)
    lengths = torch.linalg.vector_norm(cell, dim=1).tolist()
    limits = [max(1, int(length / dl)) for length in lengths]
    return [torch.arange(-m, m + 1, dtype=cell.dtype, device=cell.device) for m in limits]
