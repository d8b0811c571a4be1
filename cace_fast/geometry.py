"""Checks of cells, periodicity and positions before neighbours are searched."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

MAX_IMAGES = 100_000  # images of the cell within the cutoff; beyond it the cell is a mistake
MAX_LENGTH = 1e12  # A, of a periodic vector; in a longer cell float64 does not resolve neighbours
MAX_WRAPS = 1e9  # cells that an atom may lie away; beyond, float64 loses its position
MAX_NEIGHBORS = 5_000  # of an atom, on average
MAX_PAIRS = 2**31 - 1  # of one list: engines number them in 32 bits

Floats = NDArray[np.float64]


def check_geometry(positions: Floats, cell: Floats, pbc: NDArray[np.bool_], cutoff: float) -> None:
    """Raise InputError for positions [n, 3], cell [3, 3] or pbc [3] without a neighbour list.

    Lengths are in A (``docs/user/errors.md``).
    """
    if positions.ndim != 2 or positions.shape[1] != 3:
        raise InputError("positions", "an array of shape [n_atoms, 3]", positions.shape)
    check_finite(np.flatnonzero(~np.isfinite(positions).all(axis=1)))
    if not np.isfinite(cell).all():
        raise InputError("cell", "finite numbers", cell.tolist())
    if not pbc.any():
        return
    periodic = complete_cell(cell, pbc)
    lengths = np.linalg.norm(periodic, axis=1)
    # a product of lengths would underflow or overflow for cells that are only small or large
    if not (lengths > 0).all() or abs(np.linalg.det(periodic / lengths[:, None])) <= 1e-9:
        raise InputError("cell", "independent vectors along periodic directions", cell.tolist())
    if lengths[pbc].max() > MAX_LENGTH:
        expected = f"periodic vectors of at most {MAX_LENGTH:g} A"
        raise InputError("cell", expected, cell.tolist())
    inverse = np.linalg.inv(periodic)
    heights = 1.0 / np.linalg.norm(inverse, axis=0)
    images = np.prod((2 * np.ceil(cutoff / heights) + 1)[pbc])
    if images > MAX_IMAGES:
        expected = f"a cell with at most {MAX_IMAGES} images within {cutoff:g} A"
        raise InputError("cell", expected, f"{images:.3g} images for {cell.tolist()}")
    if len(positions):
        away = np.abs(positions @ inverse[:, pbc]).max(axis=1)
        check_wraps(np.flatnonzero(~(away <= MAX_WRAPS)))


def check_finite(bad: NDArray[np.intp]) -> None:
    """Raise InputError for atoms ``bad`` [m] whose positions are not finite, if any.

    See ``docs/user/errors.md``.
    """
    if len(bad):
        raise InputError("positions", "finite numbers", f"NaN or infinity for atoms {some(bad)}")


def check_wraps(far: NDArray[np.intp]) -> None:
    """Raise InputError for atoms ``far`` [m] that lie more than MAX_WRAPS cells away, if any.

    See ``docs/user/errors.md``.
    """
    if len(far):
        raise InputError(
            "positions",
            f"atoms within {MAX_WRAPS:g} cells of the origin along periodic directions",
            f"atoms {some(far)} beyond",
            "Wrap them into the cell (ASE: atoms.wrap()), and look whether the run exploded.",
        )


def check_crowd(n_pairs: int, n_atoms: int, cutoff: float) -> None:
    """Raise InputError for more pairs within a cutoff in A than a list may hold.

    A search calls this while it counts, so that the error comes before the memory is taken
    (``docs/user/errors.md``).
    """
    if n_pairs > min(MAX_NEIGHBORS * n_atoms, MAX_PAIRS):
        raise InputError(
            "positions",
            f"at most {MAX_NEIGHBORS} neighbours of an atom on average, {MAX_PAIRS} pairs in all",
            f"{n_pairs} pairs or more of {n_atoms} atoms within {cutoff:g} A",
            "Check the cell and the units (A) of the structure.",
        )


def complete_cell(cell: Floats, pbc: NDArray[np.bool_]) -> Floats:
    """Return the cell [3, 3] with open directions replaced by unit vectors normal to the rest.

    Lengths are in A (``docs/conventions.md``, "Graph").
    """
    full = np.array(cell, dtype=np.float64)
    if pbc.all():
        return full
    full[~pbc] = 0.0
    if pbc.sum() == 0:
        return np.eye(3)
    # rows of v beyond the rank of the periodic vectors span what is normal to them
    _, _, v = np.linalg.svd(full[pbc])
    full[~pbc] = v[pbc.sum() :]
    return full


def some(indices: NDArray[np.intp]) -> str:
    """Return the first few indices as text, with the number of the others.

    See ``docs/user/errors.md``.
    """
    shown = ", ".join(str(i) for i in indices[:5])
    return shown + (f" and {len(indices) - 5} more" if len(indices) > 5 else "")
