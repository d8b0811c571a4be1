"""Systems that move, for engines that take graphs with pairs."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import Tensor

from cace_fast.device_neighbors import DevicePairs
from cace_fast.graph import AtomicGraph, ModelOutput
from cace_fast.min_dist import MinDist

from .protocol import Engine
from .verlet import DeviceVerletList


class MovingGraph:
    """A graph whose positions move; its pairs are found in torch operations on the device.

    See :class:`cace_fast.engine.protocol.Moving`.

    Parameters
    ----------
    engine
        The engine that evaluates it.
    graph, skin
        As for :meth:`cace_fast.engine.protocol.Engine.moving`.

    Raises
    ------
    InputError
        For a skin that is no length.
    """

    def __init__(self, engine: Engine, graph: AtomicGraph, skin: float) -> None:
        self._engine = engine
        self._graph = replace(graph, positions=graph.positions.clone())
        self._list = DeviceVerletList(engine.spec.representation.cutoff, skin)

    @property
    def n_builds(self) -> int:
        """Number of neighbour searches so far (``docs/user/batches.md``)."""
        return self._list.n_builds

    @property
    def positions(self) -> Tensor:
        """The positions [n, 3] float64 in A, which may be written in place.

        See ``docs/user/batches.md``.
        """
        return self._graph.positions

    def set_cell(self, cell: Tensor) -> None:
        """Take new cells [n_systems, 3, 3] in A at the next evaluation.

        See ``docs/user/batches.md``.
        """
        self._graph = replace(self._graph, cell=cell)

    def pairs(self) -> DevicePairs:
        """Return a list that is valid for the present positions (``docs/theory.md``, section 1).

        Raises
        ------
        InputError
            For positions or cells that cannot be searched.
        """
        g = self._graph
        return self._list(g.positions, g.cell, g.pbc, g.batch)

    def evaluate(self, wanted: Collection[str], min_dist: MinDist) -> ModelOutput:
        """Evaluate the present positions and cells; see :meth:`.protocol.Engine.evaluate`."""
        whole = replace(self._graph, **self.pairs()._asdict())
        return self._engine.evaluate(whole, wanted, min_dist=min_dist)
