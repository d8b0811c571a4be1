"""LAMMPS' ``pair_style mliap unified``: short-range and message models, on CPUs and GPUs.

``docs/user/lammps_gpu.md`` says when to use it; on CPUs ``pair_style cace`` is faster.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from cace_fast import Potential
from cace_fast.errors import InputError, PropertyNotImplementedError
from cace_fast.graph import AtomicGraph
from cace_fast.kernels.contraction import contraction
from cace_fast.kernels.messages import messages
from cace_fast.kernels.moments import moments
from cace_fast.properties import isolated_energies
from cace_fast.reference import model


class Data(Protocol):
    """What LAMMPS gives for a step (``docs/user/lammps_gpu.md``, "The object").

    Arrays are numpy's, or those of the device with Kokkos, which have ``forward_exchange`` and
    ``reverse_exchange`` too.
    """

    nlocal: int
    ntotal: int
    elems: Any  # [ntotal] number in element_types
    pair_i: Any  # [npairs] receivers, atoms of this rank
    pair_j: Any  # [npairs] senders, ghosts too
    rij: Any  # [npairs, 3] r_j - r_i
    eatoms: Any  # [nlocal]
    energy: float

    def update_pair_forces(self, gradients: Any) -> None:
        """Take dE/drij [npairs, 3]."""


class UnifiedCACE:
    """A potential as ``pair_style mliap unified`` takes it, pickled or in memory.

    See ``docs/user/lammps_gpu.md``.

    Parameters
    ----------
    potential
        Without charges; its device and precision are used.

    Attributes
    ----------
    element_types
        Names for ``pair_coeff * * ...``.
    rcutfac
        Half the cutoff in A: LAMMPS takes twice of it.

    Raises
    ------
    PropertyNotImplementedError
        For a potential with charges, with inputs of atoms beside positions, or whose energy is
        divided by the number of atoms: LAMMPS' interface has no place for these.

    Examples
    --------
    >>> import pickle, cace_fast
    >>> from cace_fast.interfaces.mliap import UnifiedCACE
    >>> unified = UnifiedCACE(cace_fast.load("copper-emt"))
    >>> unified.element_types, unified.rcutfac
    (['Cu'], 3.25)
    >>> size = len(pickle.dumps(unified))
    """

    def __init__(self, potential: Potential) -> None:
        program = potential.program
        if program.terms:
            raise PropertyNotImplementedError(
                "mliap: this model has charges, whose sums over all ranks LAMMPS' ML-IAP has no "
                "place for; use 'pair_style cace'"
            )
        if any(head.extras for head in program.heads):
            raise PropertyNotImplementedError(
                "mliap: this model takes inputs of atoms beside positions; use 'pair_style cace'"
            )
        if any(head.average for head in program.heads):
            raise PropertyNotImplementedError(
                "mliap: this model divides its energy by the number of atoms, which a rank does "
                "not know; use 'pair_style cace'"
            )
        program.check()
        rep = potential.spec.representation
        self.potential = potential
        self._weights = {
            name: t.detach().to(potential.device, potential.dtype)
            for name, t in potential.weights.items()
        }
        self.element_types = [chemical_symbols[z] for z in rep.elements]
        self.rcutfac = 0.5 * rep.cutoff
        self.interface, self.ndescriptors, self.nparams = None, 1, 1

    def compute_gradients(self, data: Data) -> None:
        """Do nothing: it is for linear models (``docs/user/lammps_gpu.md``)."""

    def compute_descriptors(self, data: Data) -> None:
        """Do nothing: it is for linear models (``docs/user/lammps_gpu.md``)."""

    def compute_forces(self, data: Data) -> None:
        """Give LAMMPS the energies of its atoms and the gradients of its pairs.

        Ranks without atoms take part in the exchanges of a message model.

        Raises
        ------
        InputError
            If a message model runs in a LAMMPS whose coupling cannot exchange ghosts.
        """
        device = self.potential.device
        rij = torch.as_tensor(data.rij, device=device).to(torch.float64).detach()
        vectors = (-rij).requires_grad_()
        energies = self._energies(data, vectors)
        gradients = torch.zeros_like(vectors)
        if energies.requires_grad:
            (gradients,) = torch.autograd.grad(energies.sum(), vectors)
        energies = energies.detach() + self._isolated(data)
        with_numpy = isinstance(data.rij, np.ndarray)
        data.eatoms[: data.nlocal] = energies.cpu().numpy() if with_numpy else energies
        data.energy = float(energies.sum())
        gradients = -gradients  # by r_j - r_i
        data.update_pair_forces(gradients.cpu().numpy() if with_numpy else gradients)

    def _species(self, data: Data) -> Tensor:
        device = self.potential.device
        return torch.as_tensor(data.elems, device=device)[: data.ntotal].to(torch.int64)

    def _isolated(self, data: Data) -> Tensor:
        elements = np.array(self.potential.spec.representation.elements)
        species = self._species(data)[: data.nlocal]
        given = dict(self.potential.program.isolated)
        if not given:
            return torch.zeros(len(species), dtype=torch.float64, device=species.device)
        found = isolated_energies(given, elements[species.cpu().numpy()])
        return torch.as_tensor(found, device=species.device)

    def _energies(self, data: Data, vectors: Tensor) -> Tensor:
        """Return the energies [nlocal] float64 of the atoms of this rank, without isolated ones."""
        weights, spec = self._weights, self.potential.spec
        rep, species = spec.representation, self._species(data)
        device = species.device
        receivers = torch.as_tensor(data.pair_i, device=device).to(torch.int64)
        senders = torch.as_tensor(data.pair_j, device=device).to(torch.int64)
        order = torch.argsort(receivers, stable=True)
        exact = vectors[order].to(self.potential.dtype)
        edges = (exact, senders[order], receivers[order], species, weights, rep)
        a = moments(*edges)
        b = contraction(a, rep.l_max, rep.nu_max)
        generations = [b[: data.nlocal]]
        for step in range(len(rep.steps)):
            a = _exchanged(a, data)
            b = contraction(a, rep.l_max, rep.nu_max)
            a = messages(a, b, *edges, step)
            b = contraction(a, rep.l_max, rep.nu_max)
            generations.append(b[: data.nlocal])
        feats = torch.stack(generations, -1)
        graph = _without_edges(species[: data.nlocal])
        return model.energies(graph, feats, weights, spec, self.potential.program).short_range


def _without_edges(species: Tensor) -> AtomicGraph:
    """Return atoms as read-outs see them: what they have of neighbours is in the features."""
    n, device = len(species), species.device
    none = torch.zeros(0, dtype=torch.int64, device=device)
    return AtomicGraph(
        positions=torch.zeros(n, 3, dtype=torch.float64, device=device),
        species=species,
        cell=torch.zeros(1, 3, 3, dtype=torch.float64, device=device),
        pbc=torch.zeros(1, 3, dtype=torch.bool, device=device),
        batch=torch.zeros(n, dtype=torch.int64, device=device),
        senders=none,
        receivers=none,
        shifts=none.reshape(0, 3),
    )


def _exchanged(a: Tensor, data: Data) -> Tensor:
    """Return A [ntotal, ...] with that of ghosts from their owners."""
    if not hasattr(data, "forward_exchange"):
        raise InputError(
            "data",
            "an exchange of ghosts, which message models need",
            "a coupling without forward_exchange",
            "Use a LAMMPS built with Kokkos from July 2026 on, or 'pair_style cace'.",
        )
    found: Tensor = _Exchange.apply(a.flatten(1), data)  # type: ignore[no-untyped-call]
    return found.reshape(a.shape)


class _Exchange(torch.autograd.Function):
    """Rows of owners to their ghosts; gradients of ghosts to their owners."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, data: Any) -> Tensor:
        ctx.data = data
        out = rows.clone().contiguous()
        data.forward_exchange(rows.contiguous(), out, rows.shape[1])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        out = grad.clone().contiguous()
        ctx.data.reverse_exchange(grad.contiguous(), out, grad.shape[1])
        out[ctx.data.nlocal :] = 0.0  # a ghost's own row was replaced
        return out, None
