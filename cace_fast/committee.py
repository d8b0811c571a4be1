"""Several potentials as one: mean and spread of their predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .geometry import Floats
from .min_dist import AUTO, MinDist
from .neighbors import NeighborList, neighbor_list
from .potential import Potential
from .properties import USUAL, Names, Result
from .structures import EdgeSource, is_atoms

if TYPE_CHECKING:
    from ase import Atoms

SPREADS = {"energy_std": "energy", "forces_std": "forces"}


class Committee:
    """Potentials for the same elements, evaluated on one neighbour list (``docs/conventions.md``).

    ``compute`` returns means, and on request the standard deviations over the members
    ``energy_std`` (float, eV) and ``forces_std`` [n, 3] (eV/A).

    Parameters
    ----------
    members
        At least two potentials.

    Raises
    ------
    InputError
        If there are fewer than two.
    """

    def __init__(self, members: Sequence[Potential]) -> None:
        if len(members) < 2:
            raise InputError("members", "at least two potentials", len(members))
        self.members = tuple(members)
        self.spec = self.members[0].spec

    @property
    def cutoff(self) -> float:
        """Largest cutoff of the members in A (``docs/conventions.md``, "Results")."""
        return max(member.cutoff for member in self.members)

    def compute(
        self, atoms: Atoms | Sequence[Atoms], properties: Names = USUAL, *, min_dist: MinDist = AUTO
    ) -> Any:
        """Return means and spreads; see :meth:`cace_fast.Potential.compute`."""
        if is_atoms(atoms):
            return self.evaluate([atoms], properties, min_dist=min_dist)[0]
        return self.evaluate(list(atoms), properties, min_dist=min_dist)

    def evaluate(
        self,
        frames: Sequence[Atoms],
        properties: Sequence[str],
        *,
        edges: EdgeSource | None = None,
        inputs: Mapping[str, str] | None = None,
        min_dist: MinDist = AUTO,
    ) -> list[Result]:
        """Return :meth:`compute` of every frame; see :meth:`cace_fast.Potential.evaluate`."""
        asked = list(dict.fromkeys(SPREADS.get(name, name) for name in properties))
        shared = _Remembered(edges or partial(neighbor_list, cutoff=self.cutoff))
        found = []
        for member in self.members:
            shared.restart()
            found.append(
                member.evaluate(frames, asked, edges=shared, inputs=inputs, min_dist=min_dist)
            )
        return [self._summary(properties, of_frame) for of_frame in zip(*found, strict=True)]

    def _summary(self, properties: Sequence[str], results: Sequence[Result]) -> Result:
        summary: Result = {}
        for name in properties:
            values = np.array([result[SPREADS.get(name, name)] for result in results])
            reduced = values.std(axis=0) if name in SPREADS else values.mean(axis=0)
            summary[name] = float(reduced) if reduced.ndim == 0 else reduced
        return summary


class _Remembered:
    """Candidate pairs of a sequence of frames, searched once and repeated for every member."""

    def __init__(self, source: EdgeSource) -> None:
        self._source, self._found, self._next = source, list[NeighborList](), 0

    def restart(self) -> None:
        self._next = 0

    def __call__(self, positions: Floats, cell: Floats, pbc: NDArray[np.bool_]) -> NeighborList:
        if self._next == len(self._found):
            self._found.append(self._source(positions, cell, pbc))
        self._next += 1
        return self._found[self._next - 1]
