"""The engine of ``backend="cpu"``: one call of the compiled library for each evaluation."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cace_fast.errors import CaceFastError, InputError
from cace_fast.graph import AtomicGraph, ModelOutput, same_memory
from cace_fast.kernels.cpu import evaluator, library
from cace_fast.kernels.cpu.program import evaluator_of
from cace_fast.min_dist import MinDist, check_min_dist, too_close
from cace_fast.process import Lock
from cace_fast.reference import model
from cace_fast.reference.atomic import fixed_charges
from cace_fast.slab import require_fit

from .charges import BORN_CHARGES, ChargeDerivatives
from .checks import checked, require_atom_virials
from .inputs import check_elements, extra_inputs, fields
from .long_range import SLAB
from .moving import MovingGraph
from .reference import ReferenceEngine

Pairs = tuple[library.Ints, library.Ints, library.Ints]


class _Held(NamedTuple):
    """The graph whose pair list the library holds, and its arrays.

    The graph is kept alive, so that equal addresses mean equal lists.
    """

    graph: AtomicGraph
    structures: evaluator.Structures


class CpuEngine:
    """Evaluates a model with the compiled kernels; see :class:`cace_fast.engine.protocol.Engine`.

    The library computes everything except second derivatives, which the reference computes. It
    takes candidate pairs and drops those beyond the cutoff itself. Calls from several threads wait
    for each other (``docs/user/threads_and_processes.md``).

    Parameters
    ----------
    reference
        The model in plain torch; the library copies its tensors.

    Raises
    ------
    UnsupportedModelError
        If the library does not have a part of the model.
    """

    backend = "cpu"
    note = ""
    sorts_pairs = True

    def __init__(self, reference: ReferenceEngine) -> None:
        self._reference = reference
        self.spec, self.weights = reference.spec, reference.weights
        self.program, self.long_range = reference.program, reference.long_range
        self._dtype = self.weights["embedding.sender"].dtype
        exact = {name: t.detach().to("cpu", torch.float64) for name, t in self.weights.items()}
        arrays = {name: t.numpy() for name, t in exact.items()}
        precision = 64 if self._dtype == torch.float64 else 32
        self._evaluator = evaluator_of(self.spec, self.program, arrays, precision)
        if self.program.terms:
            self._evaluator.sum_by(self.long_range.method, self.long_range.tolerance)
        self._lock = Lock(self)
        self._held: _Held | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._reference,)

    def reset(self) -> None:
        """Drop the list that the library holds."""
        self._held = None

    @property
    def description(self) -> str:
        """Instruction set and path of the contraction (``docs/user/install.md``)."""
        path = "unrolled" if self._evaluator.query("unrolled") == 1 else "general"
        return f"{library.isa()}, {path} contraction"

    @property
    def n_bytes(self) -> int:
        """Memory in bytes held by the library for this model's evaluation.

        See ``docs/user/performance.md``.
        """
        return self._evaluator.n_bytes

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent in each part of the library so far, summed over threads.

        See ``docs/user/performance.md``.
        """
        return self._evaluator.seconds()

    def to_device(self, graph: AtomicGraph) -> AtomicGraph:
        """Return the graph on the CPU (decision 0018)."""
        return self._reference.to_device(graph)

    def moving(self, graph: AtomicGraph, skin: float) -> MovingGraph:
        """Return systems that move; see :meth:`cace_fast.engine.protocol.Engine.moving`."""
        return MovingGraph(self, graph, skin)

    def hessian(self, graph: AtomicGraph) -> Tensor:
        """Return the second derivatives of the energy [n, 3, n, 3] float64 in eV/A^2.

        See ``docs/conventions.md``, "Results".

        The reference computes them.

        Raises
        ------
        InputError
            For positions or cells that are not finite.
        """
        return self._reference.hessian(graph)

    @checked
    def evaluate(
        self, graph: AtomicGraph, wanted: Collection[str] = (), *, min_dist: MinDist = None
    ) -> ModelOutput:
        """Return energies and what else is wanted; pairs beyond the cutoff do no harm.

        See :meth:`cace_fast.engine.protocol.Engine.evaluate` for arguments, results and errors.
        """
        self.program.check()
        require_atom_virials(self.program, wanted)
        names = [name for name in ("forces", "virials") if name in wanted]
        needs_charges = "latent_charges" in wanted or "born_charges" in wanted
        term = self.program.charge_term if needs_charges else None
        structures = self._structures(graph, min_dist)
        with self._lock:
            if self.program.terms:
                self._evaluator.freeze(self.long_range.k_cell(graph))
                self._evaluator.slabs(self.long_range.slab_vacuum)
                if (given := fields(self.program, graph)) is not None:
                    self._evaluator.fields(given)
                if (structures.periodic >= SLAB).any():
                    self._require_fit(graph)
            with self._holding(graph, structures) as pairs:
                found = self._evaluator.run(
                    structures, pairs, [*names, "charges"], torch.get_num_threads()
                )
                latent = None if term is None else self._latent(found.charges, graph)
                born = None
                if "born_charges" in wanted and term is not None and latent is not None:
                    slabs = self.long_range.slabs(graph)
                    by = ChargeDerivatives(
                        self._charge_gradients, lambda: self._weighted_gradients(structures)
                    )
                    make = BORN_CHARGES[self.long_range.born_charges]
                    born = make(latent, graph, term, slabs, by)
                virials_of_atoms = None
                if "atom_virials" in wanted:
                    placed = self._evaluator.weighted_gradients(structures, None)
                    virials_of_atoms = torch.from_numpy(placed).transpose(1, 2).contiguous()
        energies = torch.from_numpy(found.energies_sr + found.energies_lr)
        return ModelOutput(
            energy=model.by_system(energies, graph),
            energies=energies,
            energies_sr=torch.from_numpy(found.energies_sr),
            forces=None if found.forces is None else torch.from_numpy(found.forces),
            virials=None if found.virials is None else torch.from_numpy(found.virials),
            latent_charges=latent,
            born_charges=born,
            atom_virials=virials_of_atoms,
        )

    def features(self, graph: AtomicGraph) -> Tensor:
        """Return the invariants [n, n_radial, n_B, C, T] in the working dtype (equation 21)."""
        structures = self._structures(graph, None, with_extras=False)
        with self._lock, self._holding(graph, structures) as pairs:
            found = self._evaluator.features(structures, pairs, torch.get_num_threads())
        return torch.from_numpy(found).to(self._dtype)

    def _structures(
        self, graph: AtomicGraph, min_dist: MinDist, *, with_extras: bool = True
    ) -> evaluator.Structures:
        positions = np.ascontiguousarray(graph.positions.detach().numpy(), dtype=np.float64)
        distance = _in_library(min_dist)
        held = self._held
        if held is not None and _moved(held.graph, graph):
            return held.structures._replace(positions=positions, min_dist=distance)
        periodic = np.zeros(graph.n_systems, dtype=np.int32)
        if self.program.terms:
            periodic = self.long_range.boundaries(graph.pbc)
        check_elements(self.program, self.spec.representation, graph)
        batch = graph.batch.numpy()
        return evaluator.Structures(
            species=graph.species.numpy().astype(np.int32),
            positions=positions,
            first_atom=np.searchsorted(batch, np.arange(graph.n_systems + 1)).astype(np.int32),
            cells=np.ascontiguousarray(graph.cell.detach().numpy(), dtype=np.float64),
            periodic=periodic,
            extras=self._extras(graph) if with_extras else self._no_extras(graph.n_atoms),
            min_dist=distance,
        )

    def _extras(self, graph: AtomicGraph) -> list[library.Floats | None]:
        """Return the extra inputs [n, n_extra] of every head, None where it has none."""
        rep = self.spec.representation
        found = [extra_inputs(head, rep, graph) for head in self.program.heads]
        return [None if x is None else np.ascontiguousarray(x.numpy()) for x in found]

    def _no_extras(self, n_atoms: int) -> list[library.Floats | None]:
        """Return zeros instead of extra inputs, for results that do not depend on them."""
        widths = [sum(x.width for x in head.extras or ()) for head in self.program.heads]
        return [np.zeros((n_atoms, width)) if width else None for width in widths]

    def _require_fit(self, graph: AtomicGraph) -> None:
        """Raise InputError, with the numbers, for a slab that does not fit its cell."""
        for system, slab in self.long_range.slabs(graph).items():
            require_fit(graph.positions[graph.batch == system], slab)

    @contextmanager
    def _holding(
        self, graph: AtomicGraph, structures: evaluator.Structures
    ) -> Iterator[Pairs | None]:
        """Yield the pairs for the library, or None if it holds them; afterwards it holds them.

        After an interrupt or a lack of memory nothing counts as held: the library may have taken
        the list or not.
        """
        held, self._held = self._held, None
        try:
            yield self._new_pairs(held, graph, structures)
        except CaceFastError as error:
            raise as_user_error(error, graph) from None
        self._held = _Held(graph, structures)

    @staticmethod
    def _new_pairs(
        held: _Held | None, graph: AtomicGraph, structures: evaluator.Structures
    ) -> Pairs | None:
        """Return the pairs for the library, or None where it holds them already."""
        edges = (graph.senders, graph.receivers, graph.shifts)
        if held is not None:
            before, old = held.graph, held.structures
            if (
                same_memory(edges, (before.senders, before.receivers, before.shifts))
                and np.array_equal(old.species, structures.species)
                and np.array_equal(old.first_atom, structures.first_atom)
            ):
                return None
        senders, receivers, shifts = (np.ascontiguousarray(t.numpy()) for t in edges)
        return senders, receivers, shifts.astype(np.int64, copy=False)

    def _charge_gradients(self, weights: Tensor) -> Tensor:
        """Return the gradients [m, n, 3] of sum_i weights_i q_i at the last evaluation."""
        head = self.program.charge_term.head
        if head is None:  # charges that do not depend on positions
            return torch.zeros((*weights.shape, 3), dtype=torch.float64)
        given = np.zeros((*weights.shape, self._evaluator.n_charges))
        given[:, :, self.program.first_charge(head)] = weights.numpy()
        return torch.from_numpy(self._evaluator.charge_gradients(given))

    def _weighted_gradients(self, structures: evaluator.Structures) -> Tensor:
        """Return sum_j (r_j - r_i)_b dq_j/dr_ia [n, 3, 3] of the structures just evaluated."""
        n, head = len(structures.species), self.program.charge_term.head
        if head is None:  # charges that do not depend on positions
            return torch.zeros((n, 3, 3), dtype=torch.float64)
        ones = np.zeros((n, self._evaluator.n_charges))
        ones[:, self.program.first_charge(head)] = 1.0
        return torch.from_numpy(self._evaluator.weighted_gradients(structures, ones))

    def _latent(self, charges: library.Floats | None, graph: AtomicGraph) -> Tensor:
        """Return the latent charges [n, n_q] of the Ewald term."""
        assert charges is not None
        term = self.program.charge_term
        if term.fixed is not None:
            q = fixed_charges(term.fixed, self.spec.representation, graph.species)
            return q.to(self._dtype)
        assert term.head is not None
        first, n_charges = self.program.first_charge(term.head), self.program.heads[term.head].n_out
        assert n_charges is not None
        columns = slice(first, first + n_charges)
        return torch.from_numpy(charges[:, columns]).to(self._dtype)


def _moved(before: AtomicGraph, graph: AtomicGraph) -> bool:
    """Tell whether only positions differ: everything else is the same tensors (see VerletList)."""
    return (
        graph.species is before.species
        and graph.cell is before.cell
        and graph.pbc is before.pbc
        and graph.batch is before.batch
        and not graph.inputs
    )


def _in_library(min_dist: MinDist) -> float:
    """Return ``min_dist`` as ``cf_structures`` has it."""
    check_min_dist(min_dist)
    if isinstance(min_dist, str):
        return 0.0
    return -1.0 if min_dist is None or min_dist == 0.0 else float(min_dist)


def as_user_error(error: CaceFastError, graph: AtomicGraph) -> CaceFastError:
    """Return the error in terms of the structure that a user gave (``docs/user/errors.md``)."""
    if isinstance(error, library.TooCloseError):
        return too_close(error.atoms, error.distance, error.allowed)
    if isinstance(error, library.NotFiniteError) and error.atom >= 0:
        if bool(torch.isfinite(graph.positions[error.atom]).all()):
            return CaceFastError(str(error))
        return InputError("positions", "finite numbers", f"NaN or infinity for atoms {error.atom}")
    return error
