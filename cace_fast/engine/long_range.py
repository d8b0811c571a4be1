"""How an engine sums the long range: which method, how accurately, over which vectors k."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cace_fast.errors import InputError
from cace_fast.graph import AtomicGraph
from cace_fast.kernels.ewald import potentials
from cace_fast.kernels.ewald_method import METHODS, TIGHTEST, choose, n_k_vectors
from cace_fast.reference.ewald import Summation
from cace_fast.reference.long_range import boundary
from cace_fast.slab import Slab, slab_of
from cace_fast.spec import Ewald

K_SETS = ("sphere", "frozen")
DEFAULT_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-10}
OPEN, PERIODIC, SLAB = 0, 1, 2  # of a system; SLAB + a: periodic in all directions but a
# Of a box: 4 GB, as measured on transforms, or what so many atoms of a liquid have.
MOST_VECTORS, VECTORS_OF_ATOM, BYTES_OF_VECTOR = 1.2e7, 10, 350.0
STRETCH = 1.5  # how far a cell may be stretched or compressed from that of a frozen k set


@dataclass
class LongRange:
    """Settings of the long-range sum, and the reference cell of a frozen k set.

    Attributes
    ----------
    method
        Of periodic systems: ``"direct"``, ``"nufft"`` (non-uniform Fourier transforms) or
        ``"auto"``, the cheaper one.
    tolerance
        Largest error of long-range forces by transforms, relative to the largest such force.
    k_set
        ``"sphere"``: the vectors k of each cell, as the models were trained. ``"frozen"``: the
        integer vectors of one reference cell in every cell.
    reference_cell
        That cell [3, 3] in A; the first periodic one that is evaluated, unless it is set. Of a
        slab it is the box that is summed.
    slab_vacuum
        What the box of a slab (two periodic directions) has beyond the height of its cell, in A;
        None refuses slabs.
    """

    method: str = "auto"
    tolerance: float = 1e-10
    k_set: str = "sphere"
    reference_cell: NDArray[np.float64] | None = None
    slab_vacuum: float | None = None
    _checked: Tensor | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        dtype: torch.dtype,
        method: str = "auto",
        tolerance: float | None = None,
        k_set: str = "sphere",
        slab_vacuum: float | None = None,
    ) -> LongRange:
        """Return settings, with the default tolerance of the precision if it is None."""
        tolerance = DEFAULT_TOLERANCE.get(dtype, 1e-6) if tolerance is None else tolerance
        return cls(method, tolerance, k_set, slab_vacuum=slab_vacuum)

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError("long_range", f"one of {', '.join(METHODS)}", repr(self.method))
        if self.k_set not in K_SETS:
            raise InputError("k_set", f"one of {', '.join(K_SETS)}", repr(self.k_set))
        if not 0 < self.tolerance < 1:
            raise InputError("long_range_tolerance", "a number between 0 and 1", self.tolerance)
        if self.method == "nufft" and self.tolerance < TIGHTEST:
            raise InputError(
                "long_range_tolerance",
                f"at least {TIGHTEST:g} for long_range='nufft'",
                self.tolerance,
                "Use long_range='direct', which has no error of its own.",
            )
        if self.slab_vacuum is not None and not 0 < self.slab_vacuum < np.inf:
            raise InputError("slab_vacuum", "a length above 0 A, or None", self.slab_vacuum)

    def boundaries(self, pbc: Tensor) -> NDArray[np.int32]:
        """Return the kind of each system by its pbc [n_systems, 3]: OPEN, PERIODIC or SLAB + axis.

        Raises
        ------
        InputError
            For a wire, and for a slab if ``slab_vacuum`` is None.
        """
        found = [boundary(row, self.slab_vacuum) for row in pbc.tolist()]
        kinds = [SLAB + axis if axis is not None else int(periodic) for periodic, axis in found]
        return np.array(kinds, dtype=np.int32)

    def slabs(self, graph: AtomicGraph) -> dict[int, Slab]:
        """Return the boxes of the slabs among the systems of a graph, by number."""
        kinds = self.boundaries(graph.pbc)
        assert self.slab_vacuum is not None or not (kinds >= SLAB).any()
        return {
            int(s): slab_of(graph.cell[s].detach(), int(kinds[s]) - SLAB, self.slab_vacuum or 0.0)
            for s in np.flatnonzero(kinds >= SLAB)
        }

    def check_size(self, graph: AtomicGraph, dl: float | None) -> None:
        """Raise InputError for a periodic box with too many vectors k for memory.

        Parameters
        ----------
        graph
            The systems.
        dl
            Finest resolution of the sums in A; None where nothing is summed.
        """
        if dl is None or graph.cell is self._checked:
            return
        cells = graph.cell.detach().cpu().numpy()
        boxes = [cells[s] for s in np.flatnonzero(graph.pbc.cpu().numpy().all(1))]
        boxes += [slab.cell.detach().cpu().numpy() for slab in self.slabs(graph).values()]
        most = max(MOST_VECTORS, VECTORS_OF_ATOM * graph.n_atoms)
        for box in boxes:
            n_vectors = n_k_vectors(box, dl)
            if not n_vectors <= most:
                volume = abs(float(np.linalg.det(box)))
                raise InputError(
                    "cell",
                    f"a box with at most {most:.3g} vectors k for the long range",
                    f"{n_vectors:.2g} of them, for {volume:.3g} A^3 at a resolution of {dl:g} A "
                    f"(about {n_vectors * BYTES_OF_VECTOR / 1e9:.3g} GB)",
                    "A molecule or cluster is open: set pbc=False; else take a smaller cell.",
                )
        self._checked = graph.cell

    def k_cell(self, graph: AtomicGraph) -> NDArray[np.float64] | None:
        """Return the cell of the frozen set, chosen now if there is none; None for the sphere.

        Raises
        ------
        InputError
            If a cell of the graph is far from it: the set would be a wrong one.
        """
        if self.k_set == "sphere":
            return None
        boxes = {s: slab.cell for s, slab in self.slabs(graph).items()}
        boxes |= {s: graph.cell[s] for s, whole in enumerate(graph.pbc.all(1).tolist()) if whole}
        cells = [boxes[s].detach().cpu().numpy() for s in sorted(boxes)]
        if self.reference_cell is None and len(cells):
            self.reference_cell = np.array(cells[0], dtype=np.float64)
        for cell in cells:
            assert self.reference_cell is not None
            change = np.linalg.solve(self.reference_cell, cell)
            stretches = np.linalg.svd(change, compute_uv=False)
            if not (stretches.max() <= STRETCH and stretches.min() >= 1.0 / STRETCH):
                raise InputError(
                    "cell",
                    f"one within a stretch of {STRETCH:g} of the cell of the frozen k set",
                    f"stretches {np.round(stretches, 3).tolist()}",
                    "Use one potential for each system, or k_set='sphere'.",
                )
        return self.reference_cell

    def summation(
        self, graph: AtomicGraph, *, twice: bool = False, cheapest: bool = False
    ) -> Summation:
        """Return the settings of the sum for the reference.

        By itself on the CPU, whatever the cost, as it is there to be trusted; by transforms on
        other devices, and if ``cheapest``, where these are cheaper; and as ``method`` says where
        it says something. ``twice``: second derivatives are wanted, which only the direct sum has.
        """
        kept = self.k_cell(graph)
        k_cell = None if kept is None else torch.from_numpy(kept).to(graph.cell.device)
        plain = self.method == "auto" and graph.cell.device.type == "cpu" and not cheapest
        return Summation(k_cell, None if twice or plain else self._potential, self.slab_vacuum)

    def _potential(
        self, q: Tensor, r: Tensor, cell: Tensor, k_cell: Tensor, spec: Ewald
    ) -> Tensor | None:
        n, n_q = q.shape
        where = k_cell.cpu().numpy()
        if choose(self.method, n, n_q, where, spec.dl, self.tolerance) == "direct":
            return None
        return potentials(q, r, cell, k_cell, spec, ("nufft", self.tolerance), "nufft")


def finest(modules: Iterable[object]) -> float | None:
    """Return the finest resolution in A of the Ewald sums among modules; None without one."""
    return min((m.dl for m in modules if isinstance(m, Ewald)), default=None)
