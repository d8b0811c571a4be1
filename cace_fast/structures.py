"""From ASE Atoms to an :class:`~cace_fast.graph.AtomicGraph`: validation and edges.

Only attributes of Atoms are used (``positions``, ``numbers``, ``cell``, ``pbc``, ``arrays``,
``info``), so that importing this module does not load ASE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import CaceFastError, InputError, UnknownElementError
from .geometry import Floats
from .graph import AtomicGraph
from .min_dist import MinDist, half_distances, too_close
from .neighbors import NeighborList, neighbor_list
from .spec import Add, Ewald, ModelSpec, Polarization, Readout, Representation

if TYPE_CHECKING:
    from ase import Atoms
    from typing_extensions import TypeIs

FULL = 1.0 - 1e-6  # an occupancy below is partial
EdgeSource = Callable[[Floats, Floats, NDArray[np.bool_]], NeighborList]


def is_atoms(value: object) -> TypeIs[Atoms]:
    """Tell whether this is one structure, and not a sequence; see :meth:`.Potential.compute`."""
    return hasattr(value, "numbers") and hasattr(value, "positions")


def extra_inputs(spec: ModelSpec, *, unused: bool = False) -> tuple[str, ...]:
    """Return the names of the inputs beyond positions and elements that the modules take.

    See ``docs/theory.md``, section 7.

    With ``unused`` also inputs of sums that no module takes for each atom.
    """
    found: list[str] = []
    for sub in spec.submodels:
        taken: set[int] = set()  # sums that a module takes per atom; others are of energies
        lists: list[list[str]] = []
        for index, module in reversed(list(enumerate(sub.modules))):
            keys: tuple[object, ...] = ()
            if isinstance(module, Readout) or (
                isinstance(module, Add) and (unused or index in taken)
            ):
                keys = module.features
            elif isinstance(module, Ewald):
                settings = (module.external_field, module.external_field_direction)
                keys = (module.feature_key, *settings)
            elif isinstance(module, Polarization):
                keys = (module.charge_key,)
            names = [key for key in keys if isinstance(key, str) and key != "node_feats"]
            places = [sub.producer(key, index) for key in names]
            taken |= {place for place in places if place is not None}
            pairs = zip(names, places, strict=True)
            lists.append([key for key, place in pairs if place is None])
        found += [key for keys in reversed(lists) for key in keys]
    return tuple(dict.fromkeys(found))


def graph_of(
    atoms: Atoms,
    spec: Representation,
    *,
    inputs: Sequence[str] | dict[str, str] = (),
    edges: EdgeSource | None = None,
    min_dist: MinDist = None,
) -> AtomicGraph:
    """Return the graph of one structure (``docs/conventions.md``, "Graph").

    Parameters
    ----------
    atoms
        The structure; it is not changed.
    spec
        The representation: elements and cutoff.
    inputs
        Names of further inputs, looked up in ``atoms.info``, then ``atoms.arrays``; a dict maps
        the model's name to the name in the structure.
    edges
        Source of candidate pairs, which are not trimmed: engines do that. By default a new
        search, trimmed.
    min_dist
        Shortest distance allowed between two atoms of a new search, in A; see :func:`trim`.

    Raises
    ------
    UnknownElementError
        If an element is not among the model's.
    InputError
        For positions or cells that make no sense, a missing input, candidate pairs of other atoms
        or of the wrong type, or a pair that is too close.
    """
    positions, cell, pbc = geometry_of(atoms)
    species = species_of(np.asarray(atoms.numbers), spec)
    source = edges if edges is not None else partial(neighbor_list, cutoff=spec.cutoff)
    found = _checked(source(positions, cell, pbc), len(positions))
    graph = AtomicGraph(
        positions=torch.from_numpy(positions),
        species=torch.from_numpy(species),
        cell=torch.from_numpy(cell)[None],
        pbc=torch.from_numpy(pbc)[None],
        batch=torch.zeros(len(positions), dtype=torch.int64),
        senders=torch.from_numpy(found.senders),
        receivers=torch.from_numpy(found.receivers),
        shifts=torch.from_numpy(found.shifts),
        inputs={name: _input(atoms, name, key) for name, key in _pairs(inputs)},
    )
    return graph if edges is not None else trim(graph, spec, min_dist)


def _checked(edges: NeighborList, n_atoms: int) -> NeighborList:
    """Return candidate pairs as int64 arrays for engines; InputError for anything else."""
    arrays = [np.asarray(part) for part in edges]
    n = len(arrays[0]) if arrays[0].ndim else 0
    for name, array, shape in zip(NeighborList._fields, arrays, ((n,), (n,), (n, 3)), strict=True):
        if array.dtype.kind not in "iu" or array.shape != shape:
            got = f"{array.dtype} {list(array.shape)}"
            raise InputError(f"edges.{name}", f"integers of shape {list(shape)}", got)
        if name != "shifts" and n and not 0 <= int(array.min()) <= int(array.max()) < n_atoms:
            got = f"{int(array.min())} to {int(array.max())}"
            raise InputError(f"edges.{name}", f"numbers of atoms from 0 to {n_atoms - 1}", got)
    return NeighborList(*(np.ascontiguousarray(a, dtype=np.int64) for a in arrays))


def no_edges(*_: object) -> NeighborList:
    """Return an empty list of pairs, for a graph whose pairs are found later.

    See ``docs/conventions.md``, "Graph".
    """
    none = np.zeros(0, dtype=np.int64)
    return NeighborList(none, none, np.zeros((0, 3), dtype=np.int64))


def geometry_of(atoms: Atoms) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return copies of positions [n, 3] and cell [3, 3] in A, float64, and pbc [3] of a structure.

    Raises
    ------
    InputError
        As for :func:`check_occupancies`.
    """
    check_occupancies(atoms)
    return (
        np.array(atoms.positions, dtype=np.float64, order="C"),
        np.array(atoms.cell.array, dtype=np.float64),
        np.array(atoms.pbc, dtype=bool),
    )


def check_occupancies(atoms: Atoms) -> None:
    """Raise InputError for partial or mixed occupancy of a site (``docs/user/errors.md``).

    ASE's readers put one whole atom there, and the file's values into ``info["occupancy"]`` (CIF)
    or ``arrays["occupancy"]`` (PDB).
    """
    said = atoms.info.get("occupancy")
    if isinstance(said, dict):
        kinds = atoms.arrays.get("spacegroup_kinds")
        here = range(len(said)) if kinds is None else dict.fromkeys(kinds.tolist())
        for site in here:
            own = said.get(str(site), said.get(site))
            if isinstance(own, dict) and not _whole(own):
                parts = ", ".join(f"{element} {share}" for element, share in own.items())
                at = site if kinds is None else int((kinds == site).argmax())
                raise _partial(f"{parts} at atom {at}", 'info["occupancy"]')
    shares = atoms.arrays.get("occupancy")
    if shares is not None and shares.shape == (len(atoms),) and shares.dtype.kind in "fiu":
        partial_ones = np.flatnonzero((shares > 0) & (shares < FULL))
        if len(partial_ones):
            at = int(partial_ones[0])
            raise _partial(f"{shares[at]:g} at atom {at}", 'arrays["occupancy"]')


def _whole(site: dict[str, Any]) -> bool:
    shares = list(site.values())
    return len(shares) == 1 and isinstance(shares[0], int | float) and shares[0] >= FULL


def _partial(got: str, entry: str) -> InputError:
    return InputError(
        "occupancy",
        "sites with one whole atom each",
        got,
        f"Make a structure without partial occupancies, and delete atoms.{entry} from it.",
    )


def trim(graph: AtomicGraph, spec: Representation, min_dist: MinDist = None) -> AtomicGraph:
    """Return the graph without the edges beyond the cutoff (``docs/theory.md``, section 1).

    ``min_dist`` is a length in A, or ``"auto"`` for 0.35 times the sum of the covalent radii; None
    allows any distance.

    Raises
    ------
    InputError
        If two atoms are closer than ``min_dist``.
    """
    lengths = torch.linalg.vector_norm(graph.vectors(), dim=1)
    halves = half_distances(spec.elements, min_dist)
    if halves is not None and len(lengths):
        of_atoms = torch.tensor(halves).to(lengths)[graph.species]
        limits = of_atoms[graph.senders] + of_atoms[graph.receivers]
        near = torch.nonzero(lengths < limits).flatten()
        if len(near):
            k = int(near[lengths[near].argmin()])
            pair = (int(graph.senders[k]), int(graph.receivers[k]))
            raise too_close(pair, float(lengths[k]), float(limits[k]))
    near = lengths < spec.cutoff
    return graph if bool(near.all()) else graph.select(near)


def with_index(error: CaceFastError, number: int, n_structures: int) -> CaceFastError:
    """Return the error with the index of its structure in its text, if there are several.

    See ``docs/user/errors.md``.
    """
    if n_structures > 1:
        error.args = (f"structure {number}: {error}",)
    return error


def species_of(numbers: NDArray[Any], spec: Representation) -> NDArray[np.int64]:
    """Return the embedding row [n] int64 of each atomic number [n].

    See ``docs/conventions.md``, "Graph".

    Raises
    ------
    UnknownElementError
        If an element is not among the model's.
    """
    last = max(spec.elements)
    table = np.full(last + 2, -1, dtype=np.int64)  # the last row is for all larger numbers
    table[list(spec.elements)] = np.arange(len(spec.elements))
    if len(numbers) and int(numbers.min()) < 0:
        raise UnknownElementError("numbers", "atomic numbers of at least 0", int(numbers.min()))
    species: NDArray[np.int64] = table[np.minimum(numbers, last + 1)]
    unknown_elements = np.flatnonzero(species < 0)
    if len(unknown_elements):
        names = ", ".join(dict.fromkeys(symbol(int(numbers[i])) for i in unknown_elements))
        known = ", ".join(symbol(z) for z in sorted(spec.elements))
        where = ", ".join(map(str, unknown_elements[:5])) + (
            ", ..." if len(unknown_elements) > 5 else ""
        )
        raise UnknownElementError("numbers", f"elements among {known}", f"{names} (atoms {where})")
    return species


def symbol(number: int) -> str:
    """Return the chemical symbol of an atomic number; ``Z=number`` if it has none.

    See ``docs/user/errors.md``.
    """
    from ase.data import chemical_symbols

    return chemical_symbols[number] if 0 < number < len(chemical_symbols) else f"Z={number}"


def _pairs(inputs: Sequence[str] | dict[str, str]) -> list[tuple[str, str]]:
    return list(inputs.items()) if isinstance(inputs, dict) else [(name, name) for name in inputs]


def _input(atoms: Atoms, name: str, key: str) -> torch.Tensor:
    """Return one further input [n, ...] float64; one of the structure is repeated for each atom."""
    n = len(atoms)
    raw = atoms.info.get(key, atoms.arrays.get(key))
    remedy = f"Set atoms.arrays[{key!r}] or atoms.info[{key!r}]."
    if raw is None:
        raise InputError(name, "an input of this model, a number for each atom", "nothing", remedy)
    try:
        value = np.array(raw, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(name, "numbers", repr(raw), remedy) from None
    if value.ndim == 0 or (value.ndim == 1 and len(value) != n):
        value = np.broadcast_to(value.reshape(1, -1), (n, value.size)).copy()
    if len(value) != n or not np.isfinite(value).all():
        raise InputError(name, f"finite numbers for {n} atoms", f"shape {value.shape}", remedy)
    return torch.from_numpy(value)
