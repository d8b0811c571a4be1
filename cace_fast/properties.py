"""Properties of structures, what an engine has to compute for them, and the values for the user."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .engine import physical_charges
from .errors import InputError, PropertyNotImplementedError
from .graph import AtomicGraph, ModelOutput
from .reference.model import by_system
from .spec import EwaldTerm, ModelSpec
from .spec.units import E2_PER_INTERNAL

if TYPE_CHECKING:
    from ase import Atoms

Names = Sequence[str]
Result = dict[str, Any]
USUAL = ("energy", "forces")
CHARGE_UNIT = 1.0 / E2_PER_INTERNAL**0.5  # e per internal unit, as in upstream's calculator


class Evaluated(NamedTuple):
    """Results of an engine for structures (``docs/conventions.md``, "Results").

    ``term`` is the Ewald sum that charges belong to, ``isolated`` the energies in eV of isolated
    atoms by atomic number, which are added.
    """

    output: ModelOutput
    graph: AtomicGraph
    frames: Sequence[Atoms]
    term: EwaldTerm | None
    isolated: Mapping[int, float]


class Property(NamedTuple):
    """A property of structures (``docs/conventions.md``, "Results").

    Attributes
    ----------
    of
        Its values for all atoms or, where it is not ``per_atom``, for all systems.
    needs
        What an engine has to compute for it beyond energies.
    """

    of: Callable[[Evaluated], Tensor | None]
    needs: str | None = None
    per_atom: bool = False


def _one_charge(found: Evaluated) -> Tensor:
    """Return latent charges [n]."""
    q = found.output.latent_charges
    assert q is not None
    if q.shape[1] != 1:
        raise PropertyNotImplementedError(
            "charges: a model with one charge channel is needed, this one has "
            f"{q.shape[1]}; 'latent_charges' gives all of them"
        )
    return q[:, 0]


def _dipole(found: Evaluated) -> Tensor:
    assert found.term is not None
    charges = physical_charges(_one_charge(found), found.graph, found.term)
    return by_system(charges[:, None] * found.graph.positions, found.graph)


def _stress(found: Evaluated) -> Tensor:
    virials = found.output.virials
    assert virials is not None
    return -virials / virials.new_tensor([volume(atoms) for atoms in found.frames])[:, None, None]


def _heat_flux(found: Evaluated) -> Tensor:
    """Return the heat flux [n_systems, 3] (``docs/theory.md``, section 8)."""
    virials, energies = found.output.atom_virials, found.output.energies
    assert virials is not None
    frames = found.frames
    speeds = energies.new_tensor(np.concatenate([atoms.get_velocities() for atoms in frames]))
    masses = energies.new_tensor(np.concatenate([atoms.get_masses() for atoms in frames]))
    numbers = np.concatenate([atoms.numbers for atoms in frames])
    own = energies + 0.5 * masses * (speeds * speeds).sum(1)
    if found.isolated:
        own = own + energies.new_tensor(isolated_energies(found.isolated, numbers))
    carried = own[:, None] * speeds + (virials @ speeds[:, :, None])[:, :, 0]
    return by_system(carried, found.graph)


PROPERTIES = {
    "energy": Property(lambda found: found.output.energy),
    "energies": Property(lambda found: found.output.energies, per_atom=True),
    "energies_sr": Property(lambda found: found.output.energies_sr, per_atom=True),
    "energies_lr": Property(
        lambda found: found.output.energies - found.output.energies_sr, per_atom=True
    ),
    "forces": Property(lambda found: found.output.forces, "forces", per_atom=True),
    "stress": Property(_stress, "virials"),
    "virials": Property(lambda found: found.output.virials, "virials"),
    "latent_charges": Property(
        lambda found: found.output.latent_charges, "latent_charges", per_atom=True
    ),
    "charges": Property(
        lambda found: CHARGE_UNIT * _one_charge(found).double(), "latent_charges", per_atom=True
    ),
    "dipole": Property(_dipole, "latent_charges"),
    "atom_virials": Property(
        lambda found: found.output.atom_virials, "atom_virials", per_atom=True
    ),
    "heat_flux": Property(_heat_flux, "atom_virials"),
    "bec": Property(lambda found: found.output.born_charges, "born_charges", per_atom=True),
}


def needed(properties: Sequence[str]) -> list[str]:
    """Return what an engine has to compute for these properties beyond energies.

    See ``docs/conventions.md``, "Results".
    """
    return sorted({need for name in properties if (need := PROPERTIES[name].needs)})


def check_names(properties: Sequence[str]) -> None:
    """Raise InputError unless ``properties`` is a sequence of known names.

    See ``docs/conventions.md``.
    """
    if isinstance(properties, str):
        raise InputError("properties", "a tuple of names", repr(properties))
    unknown = [str(name) for name in properties if name not in PROPERTIES]
    if unknown:
        raise InputError("properties", f"names among {', '.join(PROPERTIES)}", ", ".join(unknown))


def require_energy(spec: ModelSpec) -> None:
    """Raise PropertyNotImplementedError for a bare descriptor, which has no energy.

    See ``docs/user/errors.md``.
    """
    if not spec.submodels:
        raise PropertyNotImplementedError(
            "energy: this file is a bare descriptor without a read-out; it has features only"
        )


def check_structure(properties: Sequence[str], atoms: Atoms) -> None:
    """Raise PropertyNotImplementedError for a property that the structure cannot have.

    See ``docs/user/errors.md``.
    """
    if "stress" in properties:
        volume(atoms)
    if "dipole" in properties and np.any(atoms.pbc):
        raise PropertyNotImplementedError(
            "dipole: defined for open systems only; this structure has "
            f"pbc {np.asarray(atoms.pbc).tolist()} (Born charges exist: 'bec')"
        )


def volume(atoms: Atoms) -> float:
    """Return |det cell| in A^3 of a structure that is periodic in two or three directions.

    Raises
    ------
    PropertyNotImplementedError
        For another structure, or one without volume (``docs/user/errors.md``).
    """
    pbc = np.asarray(atoms.pbc)
    with np.errstate(all="ignore"):  # the search refuses bad cells
        size = abs(float(np.linalg.det(np.asarray(atoms.cell[:], dtype=np.float64))))
    if pbc.sum() < 2 or size == 0.0:
        raise PropertyNotImplementedError(
            "stress: defined for structures that are periodic in three directions, or in two with "
            f"a third cell vector; this one has pbc {pbc.tolist()} and volume {size:g} A^3 "
            "('virials' exists for every structure)"
        )
    return size


def has_stress(atoms: Atoms) -> bool:
    """Tell whether a structure has a stress (equation 25)."""
    try:
        volume(atoms)
    except PropertyNotImplementedError:
        return False
    return True


def results_of(found: Evaluated, properties: Sequence[str]) -> list[Result]:
    """Return the ``properties`` of each structure, float64 (``docs/conventions.md``, "Results").

    Raises
    ------
    PropertyNotImplementedError
        For charges of a model with several channels.
    """
    values = {}
    for name in properties:
        value = PROPERTIES[name].of(found)
        assert value is not None
        values[name] = to_numpy(value)
    ends = np.cumsum([len(atoms) for atoms in found.frames]).tolist()
    results: list[Result] = []
    for number, (atoms, end) in enumerate(zip(found.frames, ends, strict=True)):
        own = slice(end - len(atoms), end)
        result = {n: v[own if PROPERTIES[n].per_atom else number] for n, v in values.items()}
        if found.isolated:
            isolated = isolated_energies(found.isolated, atoms.numbers)
            for name, more in (("energy", isolated.sum()), ("energies", isolated)):
                if name in result:
                    result[name] = result[name] + more
        results.append({n: v if v.ndim else v.item() for n, v in result.items()})
    return results


def isolated_energies(energies: Mapping[int, float], numbers: NDArray[Any]) -> NDArray[np.float64]:
    """Return the energy of each isolated atom [n] float64 by its atomic number; 0 without an entry.

    ``energies`` are in eV by atomic number, ``numbers`` is [n] int (``docs/conventions.md``).
    """
    table = np.zeros(max([*energies, int(numbers.max(initial=0))]) + 1)
    table[list(energies)] = list(energies.values())
    found: NDArray[np.float64] = table[numbers]
    return found


def isolated_table(energies: Mapping[int, float], elements: Sequence[int]) -> Tensor | None:
    """Return the energy of an isolated atom of each element [n_elements] float64 in eV, or None.

    None stands for a model without such energies (``docs/conventions.md``, "Results").
    """
    if not energies:
        return None
    return torch.tensor([energies.get(z, 0.0) for z in elements], dtype=torch.float64)


def to_numpy(tensor: Tensor) -> NDArray[np.float64]:
    """Return a tensor of any device and dtype as a float64 array.

    See ``docs/conventions.md``, "Results".
    """
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)
