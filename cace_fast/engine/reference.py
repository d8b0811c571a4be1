"""The engine of ``backend="reference"``: plain torch, derivatives by automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from cace_fast.graph import AtomicGraph, ModelOutput
from cace_fast.min_dist import MinDist
from cace_fast.reference import model
from cace_fast.reference.images import weighted_gradients
from cace_fast.spec import EnergyProgram, ModelSpec
from cace_fast.structures import trim

from .charges import BORN_CHARGES, ChargeDerivatives
from .checks import check_input, checked, require_atom_virials
from .long_range import LongRange
from .moving import MovingGraph


class ReferenceEngine:
    """Evaluates a model in plain torch; see :class:`cace_fast.engine.protocol.Engine`.

    Parameters
    ----------
    spec, weights
        The model; ``weights`` on the device and in the dtype to compute with.
    program
        What the energy is made of, from :func:`cace_fast.spec.energy_program`.
    long_range
        How to sum the long range (``docs/theory.md``, section 9).
    """

    backend = "reference"
    note = ""
    sorts_pairs = False  # edges have to ascend in the receiver

    def __init__(
        self,
        spec: ModelSpec,
        weights: Mapping[str, Tensor],
        program: EnergyProgram,
        long_range: LongRange | None = None,
    ) -> None:
        self.spec, self.weights, self.program = spec, weights, program
        self.long_range = LongRange() if long_range is None else long_range

    @property
    def description(self) -> str:
        """Which code runs (``docs/user/install.md``)."""
        return "plain torch"

    def seconds(self) -> dict[str, float]:
        """Return an empty dictionary: times are not measured (``docs/user/performance.md``)."""
        return {}

    def to_device(self, graph: AtomicGraph) -> AtomicGraph:
        """Return the graph on the device of the weights (decision 0018)."""
        return graph.to(self.weights["embedding.sender"].device)

    def moving(self, graph: AtomicGraph, skin: float) -> MovingGraph:
        """Return systems that move; see :meth:`cace_fast.engine.protocol.Engine.moving`."""
        return MovingGraph(self, graph, skin)

    def features(self, graph: AtomicGraph) -> Tensor:
        """Return the invariants [n, n_radial, n_B, C, T] in the working dtype (equation 21)."""
        with torch.no_grad():
            return model.features(graph, self.weights, self.spec.representation)

    @checked
    def evaluate(
        self, graph: AtomicGraph, wanted: Collection[str] = (), *, min_dist: MinDist = None
    ) -> ModelOutput:
        """Return energies and what else is wanted.

        See :meth:`cace_fast.engine.protocol.Engine.evaluate` for arguments, results and errors.
        Pairs have to ascend in the receiver.
        """
        require_atom_virials(self.program, wanted)
        graph = trim(graph, self.spec.representation, min_dist)
        derivatives = {"forces", "virials", "born_charges"} & set(wanted)
        with torch.set_grad_enabled(bool(derivatives)):
            strain = torch.zeros_like(graph.cell, requires_grad="virials" in wanted)
            leaf = model.with_gradients(graph) if derivatives else graph
            moved = leaf.strained(strain) if "virials" in wanted else leaf
            feats = model.features(moved, self.weights, self.spec.representation)
            parts = self._energies(moved, feats)
            per_atom = parts.short_range + parts.long_range
            charges = self._charges(moved, feats) if _needs_charges(wanted) else None
            born = None
            if "born_charges" in wanted and charges is not None:
                by = ChargeDerivatives(
                    _gradients_of(charges, leaf.positions), lambda: self.weighted_gradients(graph)
                )
                born = BORN_CHARGES[self.long_range.born_charges](
                    charges, moved, self.program.charge_term, self.long_range.slabs(moved), by
                )
            forces, virials = self._derivatives(per_atom, leaf.positions, strain, wanted)
            virials_of_atoms = self._atom_virials(graph) if "atom_virials" in wanted else None
        return ModelOutput(
            energy=model.by_system(per_atom.detach(), graph),
            energies=per_atom.detach(),
            energies_sr=parts.short_range.detach(),
            forces=forces,
            virials=virials,
            latent_charges=None if charges is None else charges.detach(),
            born_charges=born,
            atom_virials=virials_of_atoms,
        )

    def _atom_virials(self, graph: AtomicGraph) -> Tensor:
        """Return sum_j (r_j - r_i)_a dE_j/dr_ib [n, 3, 3] float64 of energies without charges."""
        found = weighted_gradients(
            graph,
            self.weights,
            self.spec.representation,
            lambda feats: self._energies(graph, feats).short_range,
        )
        return found.transpose(1, 2).contiguous()

    def weighted_gradients(self, graph: AtomicGraph) -> Tensor:
        """Return sum_j (r_j - r_i)_b dq_j/dr_ia [n, 3, 3] float64 of the latent charges.

        See :func:`cace_fast.reference.images.weighted_gradients`; pairs beyond the cutoff do no
        harm, and have to ascend in the receiver.
        """
        graph = trim(graph, self.spec.representation, None)
        return weighted_gradients(
            graph,
            self.weights,
            self.spec.representation,
            lambda feats: self._charges(graph, feats)[:, 0],
        )

    def hessian(self, graph: AtomicGraph) -> Tensor:
        """Return the second derivatives of the energy [n, 3, n, 3] float64 in eV/A^2.

        See ``docs/conventions.md``, "Results".

        Raises
        ------
        InputError
            For positions or cells that are not finite.
        """
        check_input(self, graph)
        with torch.enable_grad():
            return self._hessian(model.with_gradients(graph))

    def _hessian(self, leaf: AtomicGraph) -> Tensor:
        feats = model.features(leaf, self.weights, self.spec.representation)
        energy = sum(part.sum() for part in self._energies(leaf, feats, twice=True))
        assert isinstance(energy, Tensor)
        (gradient,) = _grad(energy, (leaf.positions,), create_graph=True)
        rows = [
            _grad(component, (leaf.positions,), retain_graph=True)[0]
            for component in gradient.flatten()
        ]
        n = leaf.n_atoms
        return torch.stack(rows).reshape(n, 3, n, 3) if rows else gradient.new_zeros(n, 3, n, 3)

    def _energies(
        self, graph: AtomicGraph, feats: Tensor, *, twice: bool = False
    ) -> model.Energies:
        how = self.long_range.summation(graph, twice=twice)
        return model.energies(graph, feats, self.weights, self.spec, self.program, how)

    def _charges(self, graph: AtomicGraph, feats: Tensor) -> Tensor:
        term = self.program.charge_term
        return model.charges_of(graph, feats, self.weights, self.spec, term)

    def _derivatives(
        self, per_atom: Tensor, positions: Tensor, strain: Tensor, wanted: Collection[str]
    ) -> tuple[Tensor | None, Tensor | None]:
        leaves = [
            leaf for name, leaf in (("forces", positions), ("virials", strain)) if name in wanted
        ]
        gradients = iter(_grad(per_atom.sum(), leaves) if leaves else ())
        forces = -next(gradients) if "forces" in wanted else None
        return forces, -next(gradients) if "virials" in wanted else None


def _gradients_of(q: Tensor, positions: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function of weights w [m, n]: the gradients [m, n, 3] of sum_i w_i q_i."""

    def gradients(weights: Tensor) -> Tensor:
        sums = (weights * q[:, 0].to(torch.float64)).sum(1)
        return torch.stack([_grad(y, (positions,), retain_graph=True)[0] for y in sums])

    return gradients


def _needs_charges(wanted: Collection[str]) -> bool:
    return "latent_charges" in wanted or "born_charges" in wanted


def _grad(
    y: Tensor, leaves: Sequence[Tensor], *, create_graph: bool = False, retain_graph: bool = False
) -> tuple[Tensor, ...]:
    """Return dy/dleaf for each leaf, zeros where ``y`` does not depend on it."""
    if not y.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    return torch.autograd.grad(
        y,
        tuple(leaves),
        create_graph=create_graph,
        retain_graph=retain_graph or create_graph,
        materialize_grads=True,
    )
