"""What can be computed, what an engine must give for it, and the numbers a user gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .engine import physical_charges
from .errors import InputError, PropertyNotImplementedError
from .graph import AtomicGraph, ModelOutput
from .spec import EwaldTerm
from .spec.units import E2_PER_INTERNAL

if TYPE_CHECKING:
    from ase import Atoms

PROPERTIES = (
    "energy",
    "energies",
    "energies_sr",
    "forces",
    "stress",
    "virials",
    "latent_charges",
    "charges",
    "dipole",
    "bec",
)
Names = Sequence[str]
USUAL = ("energy", "forces")
CHARGE_UNIT = 1.0 / E2_PER_INTERNAL**0.5  # e per internal unit, as upstream's calculator has it
NEEDS = {
    "forces": "forces",
    "stress": "virials",
    "virials": "virials",
    "latent_charges": "latent_charges",
    "charges": "latent_charges",
    "dipole": "latent_charges",
    "bec": "born_charges",
}

Result = dict[str, Any]


def needed(properties: Sequence[str]) -> list[str]:
    """Return what an engine has to give for these properties beyond energies."""
    return sorted({NEEDS[name] for name in properties if name in NEEDS})


def check_names(properties: Sequence[str]) -> None:
    """Raise InputError unless ``properties`` is a sequence of known names."""
    if isinstance(properties, str):
        raise InputError("properties", "a tuple of names", repr(properties))
    unknown = [str(name) for name in properties if name not in PROPERTIES]
    if unknown:
        raise InputError("properties", f"names among {', '.join(PROPERTIES)}", ", ".join(unknown))


def check_structure(properties: Sequence[str], atoms: Atoms) -> None:
    """Raise PropertyNotImplementedError for a property that the structure cannot have."""
    if "stress" in properties:
        volume(atoms)
    if "dipole" in properties and np.any(atoms.pbc):
        raise PropertyNotImplementedError(
            "dipole: defined for open systems only; this structure has "
            f"pbc {np.asarray(atoms.pbc).tolist()} (Born charges exist: 'bec')"
        )


def volume(atoms: Atoms) -> float:
    """Return |det cell| in A^3 of a structure that is periodic in two or three directions."""
    pbc = np.asarray(atoms.pbc)
    with np.errstate(all="ignore"):  # cells of no use are refused by the search
        size = abs(float(np.linalg.det(np.asarray(atoms.cell[:], dtype=np.float64))))
    if pbc.sum() < 2 or size == 0.0:
        raise PropertyNotImplementedError(
            "stress: defined for structures that are periodic in three directions, or in two with "
            f"a third cell vector; this one has pbc {pbc.tolist()} and volume {size:g} A^3 "
            "('virials' exists for every structure)"
        )
    return size


def has_stress(atoms: Atoms) -> bool:
    """Tell whether a structure is periodic enough to have a stress."""
    try:
        volume(atoms)
    except PropertyNotImplementedError:
        return False
    return True


def results_of(
    output: ModelOutput,
    graph: AtomicGraph,
    frames: Sequence[Atoms],
    properties: Sequence[str],
    term: EwaldTerm | None,
) -> list[Result]:
    """Return the ``properties`` of each frame of a batch, without atomic energies.

    ``term`` is the Ewald term that charges belong to, where they are asked for.
    """
    ends = np.cumsum([len(atoms) for atoms in frames])
    per_atom = _per_atom(output, graph, properties, term)
    results = []
    for number, atoms in enumerate(frames):
        own = slice(int(ends[number]) - len(atoms), int(ends[number]))
        result: Result = {}
        for name in properties:
            if name == "energy":
                result[name] = output.energy[number].item()
            elif name in ("virials", "stress"):
                assert output.virials is not None
                virials = to_numpy(output.virials[number])
                result[name] = virials if name == "virials" else -virials / volume(atoms)
            elif name == "dipole":
                result[name] = per_atom[name][own].sum(axis=0)
            else:
                result[name] = per_atom[name][own]
        results.append(result)
    return results


def _per_atom(
    output: ModelOutput, graph: AtomicGraph, properties: Sequence[str], term: EwaldTerm | None
) -> dict[str, NDArray[np.float64]]:
    """Return the per-atom arrays of a whole batch."""
    known: dict[str, Tensor | None] = {
        "energies": output.energies,
        "energies_sr": output.energies_sr,
        "forces": output.forces,
        "latent_charges": output.latent_charges,
        "bec": output.born_charges,
    }
    found = {name: known[name] for name in properties if name in known}
    if {"charges", "dipole"} & set(properties):
        assert output.latent_charges is not None
        assert term is not None
        q = output.latent_charges
        if q.shape[1] != 1:
            raise PropertyNotImplementedError(
                "charges: a model with one charge channel is needed, this one has "
                f"{q.shape[1]}; 'latent_charges' gives all of them"
            )
        found["charges"] = CHARGE_UNIT * q[:, 0].double()
        if "dipole" in properties:
            found["dipole"] = physical_charges(q[:, 0], graph, term)[:, None] * graph.positions
    return {name: to_numpy(t) for name, t in found.items() if t is not None}


def isolated_energies(energies: Mapping[int, float], numbers: NDArray[Any]) -> NDArray[np.float64]:
    """Return the energy of each isolated atom [n] from a table by atomic number; 0 beyond it."""
    table = np.zeros(max([*energies, int(numbers.max(initial=0))]) + 1)
    table[list(energies)] = list(energies.values())
    found: NDArray[np.float64] = table[numbers]
    return found


def isolated_table(energies: Mapping[int, float], elements: Sequence[int]) -> Tensor | None:
    """Return the energy of an isolated atom of each element [n_elements] float64; None without."""
    if not energies:
        return None
    return torch.tensor([energies.get(z, 0.0) for z in elements], dtype=torch.float64)


def add_isolated(result: Result, isolated: NDArray[np.float64]) -> None:
    """Add the energies of isolated atoms [n] to the energies of a result, in place."""
    if "energy" in result:
        result["energy"] += float(isolated.sum())
    if "energies" in result:
        result["energies"] = result["energies"] + isolated


def to_numpy(tensor: Tensor) -> NDArray[np.float64]:
    """Return a tensor of any device and dtype as a float64 array."""
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)
