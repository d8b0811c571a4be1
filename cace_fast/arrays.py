"""Systems given as arrays: they are checked, and become a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .graph import AtomicGraph
from .spec import Representation
from .structures import species_of


@dataclass(frozen=True)
class Arrays:
    """Arrays of systems, one after the other (``docs/user/batches.md``).

    Attributes
    ----------
    positions
        [n, 3] float64, A.
    numbers
        [n] int64, atomic numbers.
    cell
        [n_systems, 3, 3] float64, A, lattice vectors as rows; zero without a cell.
    pbc
        [n_systems, 3] bool.
    system_index
        [n] int64, ascending from 0.
    """

    positions: NDArray[np.float64]
    numbers: NDArray[np.int64]
    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    system_index: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        positions: Any,
        numbers: ArrayLike,
        cell: ArrayLike | None = None,
        pbc: ArrayLike = False,
        system_index: ArrayLike | None = None,
    ) -> Arrays:
        """Return systems of numpy arrays, tensors or lists (``docs/user/batches.md``).

        Parameters
        ----------
        positions
            [n, 3], A.
        numbers
            [n], atomic numbers.
        cell
            [n_systems, 3, 3] in A, or one [3, 3] for all systems; None without a cell.
        pbc
            [n_systems, 3], or one row [3] or one bool for all systems.
        system_index
            [n], ascending from 0; None for one system.

        Raises
        ------
        InputError
            For another shape or type, and systems that do not ascend.
        """
        r = _array("positions", positions, np.float64)
        if r.ndim != 2 or r.shape[1] != 3:
            raise InputError("positions", "an array of shape [n, 3]", r.shape)
        z = _array("numbers", numbers, np.int64)
        if z.shape != (len(r),):
            raise InputError("numbers", f"an array of shape [{len(r)}]", z.shape)
        index = (
            np.zeros(len(r), dtype=np.int64)
            if system_index is None
            else _array("system_index", system_index, np.int64)
        )
        cells = np.zeros((3, 3)) if cell is None else _array("cell", cell, np.float64)
        if index.shape != (len(r),) or (
            len(index) and (index[0] < 0 or (np.diff(index) < 0).any())
        ):
            expected = f"numbers [{len(r)}] of systems that ascend from 0"
            raise InputError("system_index", expected, f"shape {index.shape}, {index[:5].tolist()}")
        given = len(cells) if cells.ndim == 3 else 0
        n_systems = given or (int(index[-1]) + 1 if len(index) else 1)
        if len(index) and int(index[-1]) >= n_systems:
            raise InputError("cell", f"a cell for each of {int(index[-1]) + 1} systems", given)
        flags = _array("pbc", pbc, np.bool_)
        try:
            cells = np.broadcast_to(cells, (n_systems, 3, 3)).copy()
            flags = np.broadcast_to(flags, (n_systems, 3)).copy()
        except ValueError:
            expected = f"shapes [{n_systems}, 3, 3] and [{n_systems}, 3], or one for all"
            raise InputError("cell, pbc", expected, f"{cells.shape} and {flags.shape}") from None
        return cls(r, z, cells, flags, index)

    def graph(
        self, spec: Representation, names: Sequence[str], inputs: Mapping[str, ArrayLike]
    ) -> AtomicGraph:
        """Return the graph without pairs, with the inputs [n, ...] that a model takes.

        ``docs/conventions.md``, "Graph", describes it.

        Raises
        ------
        UnknownElementError
            If an element is not among the model's.
        InputError
            If an input is missing, or of another length.
        """
        n, none = len(self.positions), torch.zeros(0, dtype=torch.int64)
        found = {}
        for name in names:
            if name not in inputs:
                raise InputError(name, "an input of this model, a number for each atom", "nothing")
            value = _array(name, inputs[name], np.float64)
            if value.ndim == 0 or len(value) != n or not np.isfinite(value).all():
                raise InputError(name, f"finite numbers for {n} atoms", f"shape {value.shape}")
            found[name] = torch.from_numpy(value)
        return AtomicGraph(
            positions=torch.from_numpy(self.positions),
            species=torch.from_numpy(species_of(self.numbers, spec)),
            cell=torch.from_numpy(self.cell),
            pbc=torch.from_numpy(self.pbc),
            batch=torch.from_numpy(self.system_index),
            senders=none,
            receivers=none,
            shifts=none.reshape(0, 3),
            inputs=found,
        )


def _array(name: str, given: Any, dtype: Any) -> NDArray[Any]:
    """Return a copy of what a user gives as an array of a type that holds it."""
    if isinstance(given, torch.Tensor):
        given = given.detach().cpu().numpy()
    try:
        raw = np.asarray(given)
        whole = dtype == np.float64 or raw.dtype.kind in "biu"
        if not whole:
            raise TypeError
        return np.array(raw, dtype=dtype, order="C")
    except (TypeError, ValueError):
        kind = "numbers" if dtype == np.float64 else "integers" if dtype == np.int64 else "bools"
        raise InputError(name, kind, type(given).__name__) from None
