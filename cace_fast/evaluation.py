"""Many structures evaluated by an engine, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from .engine import VerletList
from .engine.protocol import Engine
from .errors import CaceFastError, InputError
from .graph import AtomicGraph, join
from .min_dist import MinDist
from .neighbors import neighbor_list
from .properties import Evaluated, Names, Result, needed, results_of
from .spec import EnergyProgram
from .structures import EdgeSource, graph_of, with_index

if TYPE_CHECKING:
    from ase import Atoms

# evaluated together: enough to fill the machine, few enough for the caches and for bounded memory
BATCH_EDGES, BATCH_ATOMS = 200_000, 2_000


def evaluate_frames(
    engine: Engine,
    program: EnergyProgram,
    frames: Sequence[Atoms],
    properties: Names,
    *,
    edges: EdgeSource | None,
    inputs: Mapping[str, str],
    min_dist: MinDist,
) -> list[Result]:
    """Return the properties of every frame (``docs/conventions.md``, "Results").

    Parameters
    ----------
    engine, program
        The model, and what its energy is made of.
    frames, properties, min_dist
        As in :meth:`cace_fast.Potential.compute`; the names are known.
    edges
        Source of candidate pairs; by default a search for each frame.
    inputs
        For each further input of the model its name in ``info`` or ``arrays``.

    Raises
    ------
    InputError, PropertyNotImplementedError, CaceFastError
        As for :meth:`cace_fast.Potential.compute`; the text has the index of the frame, if there
        are several.
    """
    rep = engine.spec.representation
    in_order = not engine.sorts_pairs
    source = edges or partial(neighbor_list, cutoff=rep.cutoff, in_order=in_order)
    results: list[Result] = []
    pending: list[AtomicGraph] = []
    n_edges = n_atoms = 0
    for number, atoms in enumerate(frames):
        try:
            if isinstance(source, VerletList):
                graph = source.graph(atoms, rep, dict(inputs))
            else:
                graph = graph_of(atoms, rep, inputs=dict(inputs), edges=source)
        except InputError as error:
            raise with_index(error, number, len(frames)) from None
        pending.append(graph)
        n_edges, n_atoms = n_edges + len(graph.senders), n_atoms + graph.n_atoms
        full = n_edges > BATCH_EDGES or n_atoms > BATCH_ATOMS
        if full or number == len(frames) - 1:
            batch = frames[len(results) : number + 1]
            try:
                results += _evaluate_batch(engine, program, batch, pending, properties, min_dist)
            except CaceFastError:
                for k, one in enumerate(pending, start=len(results)):
                    _raise_with_index(engine, one, properties, min_dist, (k, len(frames)))
                raise
            pending, n_edges, n_atoms = [], 0, 0
    return results


def _evaluate_batch(
    engine: Engine,
    program: EnergyProgram,
    frames: Sequence[Atoms],
    graphs: Sequence[AtomicGraph],
    properties: Names,
    min_dist: MinDist,
) -> list[Result]:
    graph = engine.to_device(join(graphs))
    wanted = needed(properties)
    output = engine.evaluate(graph, wanted, min_dist=min_dist)
    term = program.charge_term if "latent_charges" in wanted else None
    return results_of(Evaluated(output, graph, frames, term, dict(program.isolated)), properties)


def _raise_with_index(
    engine: Engine, graph: AtomicGraph, properties: Names, min_dist: MinDist, place: tuple[int, int]
) -> None:
    """Raise the error of one structure of a batch, if it has one.

    ``place`` is its index and the number of structures.
    """
    try:
        engine.evaluate(engine.to_device(graph), needed(properties), min_dist=min_dist)
    except CaceFastError as error:
        raise with_index(error, *place) from None
