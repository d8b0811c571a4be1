"""What a step on the device has left: shortest distances, and results."""

from __future__ import annotations

from collections.abc import Collection

import torch

from cace_fast.errors import CaceFastError
from cace_fast.graph import ModelOutput
from cace_fast.kernels.triton.step import Status, Step
from cace_fast.min_dist import MinDist, half_distances, too_close

from .checks import check_positions

VIRIAL_ROWS = (0, 5, 4, 5, 1, 3, 4, 3, 2)  # of xx yy zz yz xz xy, as a 3 x 3 matrix


def check_distances(step: Step, status: Status, min_dist: MinDist) -> None:
    """Raise an error for atoms that are too close to each other, or whose positions are not finite.

    See ``docs/user/errors.md``.

    Raises
    ------
    InputError
        If atoms are closer than ``min_dist`` (in A), or positions are not finite.
    CaceFastError
        If two atoms coincide and ``min_dist`` allows it.
    """
    shortest = status.closest**0.5
    halves = half_distances(step.launchers.rep.elements, min_dist)
    if shortest > 0.0 and (halves is None or shortest >= 2.0 * halves.max()):
        return
    check_positions(step.inputs.positions)
    edges = step.pairs.edges
    lengths = torch.linalg.vector_norm(edges.vectors, dim=0)
    limits = torch.zeros_like(lengths)
    if halves is not None:
        of_atoms = torch.tensor(halves, device=lengths.device)[step.inputs.species.long()]
        limits = of_atoms[edges.sender.long()] + of_atoms[edges.receiver.long()]
    bad = torch.nonzero((lengths < limits) | ~(lengths > 0.0)).flatten()
    if not len(bad):
        return
    k = int(bad[lengths[bad].argmin()])
    pair = (int(edges.sender[k]), int(edges.receiver[k]))
    if halves is None:
        raise CaceFastError(f"energy: not finite at atom {pair[1]} (atom {pair[0]} is there)")
    raise too_close(pair, float(lengths[k]), float(limits[k]))


def output_of(step: Step, wanted: Collection[str]) -> ModelOutput:
    """Return copies of the results, on the device (``docs/conventions.md``, "Results")."""
    results, virials = step.results, None
    if "virials" in wanted:
        rows = torch.tensor(VIRIAL_ROWS, device=results.virial_sums.device)
        virials = results.virial_sums[rows].T.reshape(-1, 3, 3).clone()
    energies = results.energies[0].clone()
    charges = {"latent_charges", "born_charges"} & set(wanted)
    return ModelOutput(
        energy=results.totals.sum(0),
        energies=results.energies.sum(0) if step.terms else energies,
        energies_sr=energies,
        forces=results.forces.T.double() if "forces" in wanted else None,
        virials=virials,
        latent_charges=step.terms[0].charges.T.clone() if charges else None,
    )
