"""How an engine sums the long range: which method, how accurately, over which vectors k."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cace_fast.errors import InputError
from cace_fast.graph import AtomicGraph
from cace_fast.kernels.ewald import potentials
from cace_fast.kernels.ewald_method import Sphere, choose, require_method, require_size
from cace_fast.reference.ewald import Summation
from cace_fast.reference.long_range import boundary
from cace_fast.slab import Slab, slab_of
from cace_fast.spec import Ewald

K_SETS = ("sphere", "frozen")
BORN_CHARGES = ("local", "dephased")
DEFAULT_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-10}
OPEN, PERIODIC, SLAB = 0, 1, 2  # of a system; SLAB + a: periodic in all directions but a
STRETCH = 1.5  # how far a cell may be stretched or compressed from that of a frozen k set


@dataclass
class LongRange:
    """Settings of the long-range sum, and the reference cell of a frozen k set.

    Attributes
    ----------
    method
        Of periodic systems: ``"direct"``, ``"mesh"`` or ``"auto"``, the cheaper one. ``"nufft"``
        is what the mesh was called; it is accepted with a DeprecationWarning.
    tolerance
        Error of long-range forces by the mesh relative to max(max |F|, F0), where F0 =
        (norm/2 pi) q_rms^2/sigma^2 (docs/theory.md, "The mesh").
    k_set
        ``"sphere"``: the vectors k of each cell, as the models were trained. ``"frozen"``: the
        integer vectors of one reference cell in every cell.
    reference_cell
        That cell [3, 3] in A; the first periodic one that is evaluated, unless it is set. Of a
        slab it is the box that is summed.
    slab_vacuum
        What the box of a slab (two periodic directions) has beyond the height of its cell, in A;
        None refuses slabs.
    born_charges
        ``"local"``: the same in every cell of a crystal (docs/theory.md, equation 34).
        ``"dephased"``: as upstream has them, which depend on the cell (equation 34a).
    """

    method: str = "auto"
    tolerance: float = 1e-10
    k_set: str = "sphere"
    reference_cell: NDArray[np.float64] | None = None
    slab_vacuum: float | None = None
    born_charges: str = "local"
    _checked: Tensor | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        dtype: torch.dtype,
        method: str = "auto",
        tolerance: float | None = None,
        k_set: str = "sphere",
        slab_vacuum: float | None = None,
        born_charges: str = "local",
    ) -> LongRange:
        """Return settings, with the default tolerance of the precision if it is None."""
        tolerance = DEFAULT_TOLERANCE.get(dtype, 1e-6) if tolerance is None else tolerance
        return cls(method, tolerance, k_set, slab_vacuum=slab_vacuum, born_charges=born_charges)

    def __post_init__(self) -> None:
        if self.method == "nufft":
            text = "long_range='nufft' is called 'mesh' now; the old name goes in the next release"
            warnings.warn(text, DeprecationWarning, stacklevel=3)
            self.method = "mesh"
        require_method(self.method, self.tolerance)
        if self.k_set not in K_SETS:
            raise InputError("k_set", f"one of {', '.join(K_SETS)}", repr(self.k_set))
        if self.born_charges not in BORN_CHARGES:
            names = ", ".join(BORN_CHARGES)
            raise InputError("born_charges", f"one of {names}", repr(self.born_charges))
        if not 0 < self.tolerance < 1:
            raise InputError("long_range_tolerance", "a number between 0 and 1", self.tolerance)
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

    def check_size(self, graph: AtomicGraph, modules: Iterable[object]) -> None:
        """Raise InputError for a periodic box whose sum takes too much memory or time.

        Parameters
        ----------
        graph
            The systems.
        modules
            Ewald modules; others are passed over. One channel counts.
        """
        ewalds = [m for m in modules if isinstance(m, Ewald)]
        if not ewalds or graph.cell is self._checked:
            return
        cells = graph.cell.detach().cpu().numpy()
        boxes = {int(s): cells[s] for s in np.flatnonzero(graph.pbc.cpu().numpy().all(1))}
        boxes |= {s: b.cell.detach().cpu().numpy() for s, b in self.slabs(graph).items()}
        counts = torch.bincount(graph.batch, minlength=graph.n_systems).tolist()
        for s, box in boxes.items():
            n, volume = counts[s], abs(float(np.linalg.det(box)))
            for module in ewalds:
                sphere = Sphere(module.dl, module.sigma)
                require_size(choose(self.method, self.tolerance, n, 1, box, sphere), n, volume)
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
        cells, sphere = (
            (cell.detach().cpu().numpy(), k_cell.cpu().numpy()),
            Sphere(spec.dl, spec.sigma),
        )
        n, n_q = q.shape
        choice = choose(self.method, self.tolerance, n, n_q, cells[0], sphere, cells[1])
        if choice.plan is None:
            return None
        return potentials(q, r, cell, k_cell, spec, ("mesh", self.tolerance), "torch")
