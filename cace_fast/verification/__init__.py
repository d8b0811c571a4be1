"""Self-check of a potential: whether it gives the right numbers on this machine.

Each result is compared with something independent: the float64 reference, differences of the
energy, symmetries, conservation of energy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from cace_fast.errors import InputError, VerificationError

from .checks import (
    Subject,
    check_batching,
    check_cutoff,
    check_symmetries,
    compare_features,
    compare_forces,
    compare_reference,
    compare_strain,
    random_rotation,
)
from .dynamics import check_dynamics
from .limits import EPSILON, GROWTH, largest
from .oracle import Oracle, Verifiable
from .probe_structure import completed, trial_structure
from .report import Check, Report

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["Check", "Report", "Verifiable", "completed", "quick_check", "trial_structure", "verify"]

QUICK_ATOMS = 12


def verify(
    potential: Verifiable,
    atoms: Atoms | None = None,
    *,
    steps: int = 100,
    on_check: Callable[[Check], None] | None = None,
) -> Report:
    """Check a potential against the reference, differences of energies, and symmetries.

    ``docs/user/first_run.md`` explains how to read the report.

    Parameters
    ----------
    potential
        A :class:`cace_fast.Potential`.
    atoms
        The structure to check on; by default one made from the model's elements. It is not
        changed.
    steps
        Length of the dynamics.
    on_check
        Called with each row as soon as it is known.

    Returns
    -------
    Report
        A table of deviations and limits; ``report.ok`` tells whether all are within them.

    Raises
    ------
    InputError
        For a structure that the model does not cover.
    """
    spec = potential.spec
    trial = trial_structure(spec) if atoms is None else completed(atoms, spec)
    if not len(trial):
        raise InputError("atoms", "a structure with atoms", "none")
    rows = []
    for check in _all_checks(potential, trial, steps):
        rows.append(check)
        if on_check is not None:
            on_check(check)
    made = "" if atoms is not None else ", made for this check"
    return Report(f"{potential!r} on {trial.get_chemical_formula()}{made}", tuple(rows))


def quick_check(potential: Verifiable) -> None:
    """Check a potential quickly, on a small structure of its elements (``docs/user/first_run.md``).

    Raises
    ------
    VerificationError
        If a deviation is above its limit.
    """
    atoms = trial_structure(potential.spec, QUICK_ATOMS)
    checks = list(_quick_checks(potential, atoms))
    failed = [check for check in checks if not check.ok]
    if failed:
        rows = "; ".join(f"{c.name}: {c.value:.2e} {c.unit}, limit {c.limit:.2e}" for c in failed)
        raise VerificationError(
            f"{potential!r} failed {len(failed)} of {len(checks)} checks ({rows}). "
            "Do not use it; 'cace-fast verify' shows more, backend='reference' may be sound."
        )


def _all_checks(potential: Verifiable, atoms: Atoms, steps: int) -> Iterator[Check]:
    if not potential.spec.submodels:
        yield from _descriptor_checks(potential, atoms)
        return
    subject = Subject.of(potential, atoms)
    yield from compare_reference(subject)
    yield from compare_forces(subject)
    yield from compare_strain(subject)
    yield from check_symmetries(subject)
    yield from check_batching(subject)
    yield from check_cutoff(subject)
    yield from check_dynamics(subject, steps)


def _quick_checks(potential: Verifiable, atoms: Atoms) -> Iterator[Check]:
    if not potential.spec.submodels:
        yield from _descriptor_checks(potential, atoms)
        return
    subject = Subject.of(potential, atoms)
    yield from compare_reference(subject)
    yield from compare_forces(subject, count=2)
    yield from compare_strain(subject)


def _descriptor_checks(potential: Verifiable, atoms: Atoms) -> Iterator[Check]:
    """Check the features of a file without a read-out."""
    limit = 2.0 * GROWTH * EPSILON[potential.dtype]
    yield compare_features(potential, Oracle(potential), atoms, limit)
    base = np.asarray(potential.features(atoms), dtype=np.float64)
    rng = np.random.default_rng(5)
    rotation, order = random_rotation(rng), rng.permutation(len(atoms))
    turned = atoms.copy()
    turned.set_cell(atoms.cell[:] @ rotation)
    turned.positions = atoms.positions @ rotation
    for name, other, expected in (
        ("rotation: features", turned, base),
        ("permutation: features", atoms[order], base[order]),
    ):
        deviation = largest(potential.features(other) - expected) / (largest(base) or 1.0)
        yield Check(name, deviation, 2.0 * limit, "relative")
