"""Random structures, however odd: results as by brute force, or a typed error with a reason."""

from __future__ import annotations

import faulthandler
import itertools
import re
import resource
import time
from functools import partial

import numpy as np
import pytest
import torch
from ase import Atoms
from hypothesis import given
from hypothesis import strategies as st
from support.fuzzing import cases
from support.tiny_models import tiny_potential

from cace_fast import Potential, load
from cace_fast.device_neighbors import device_neighbor_list
from cace_fast.engine import VerletList
from cace_fast.errors import CaceFastError
from cace_fast.geometry import MAX_IMAGES, MAX_LENGTH, MAX_NEIGHBORS, MAX_WRAPS, complete_cell
from cace_fast.min_dist import half_distances
from cace_fast.neighbors import NeighborList, neighbor_list

NAMES = ("energy", "forces", "virials")
SECONDS, MEGABYTES = 10.0, 2_000.0
SKIN = 0.4
STEEPEST = 1e4  # eV/A^2: no force of these models changes faster where atoms are far enough apart
TINY = tiny_potential(steps=("M+Ar+Bchi",))
MODELS = {
    "copper": load("copper-emt", dtype="float64", device="cpu"),
    "messages": Potential(TINY.spec, TINY.weights, dtype="float64", backend="cpu"),
}
ORACLES = {name: model.replace(backend="reference") for name, model in MODELS.items()}

axes = st.sampled_from((0.0, 1e-6, 0.3, 1.0, 2.2, 2.7, 4.0, 9.0, 40.0, 1e3, 1e6, 1e12, 1e150))
common = st.sampled_from((2.5, 3.6, 5.0, 8.0))
unit = st.floats(0.0, 1.0, allow_nan=False)


@st.composite
def structures(draw: st.DrawFn) -> tuple[str, Atoms]:
    """Return the name of a model and a structure for it."""
    name = draw(st.sampled_from(sorted(MODELS)))
    elements = MODELS[name].spec.representation.elements
    pbc = draw(st.tuples(*[st.booleans()] * 3))
    lengths = draw(st.one_of(st.tuples(common, common, common), st.tuples(axes, axes, axes)))
    cell = np.diag(lengths)
    shear = draw(st.sampled_from(("none", "some", "much", "left-handed", "flat")))
    if shear in ("some", "much"):
        cell[1, 0] = (0.4 if shear == "some" else 7.0) * lengths[0]
        cell[2, 1] = (-0.3 if shear == "some" else 4.0) * lengths[1]
    elif shear == "left-handed":
        cell = cell[[1, 0, 2]]
    elif shear == "flat":
        cell[2] = cell[0]
    n = draw(st.integers(0, 7))
    spread = draw(st.sampled_from((0.0, 0.5, 4.0, 9.0, 50.0, 1e3, 1e6, 1e12, 1e200)))
    inside = np.array(draw(st.lists(st.tuples(unit, unit, unit), min_size=n, max_size=n)))
    positions = inside.reshape(n, 3) * spread
    if draw(st.booleans()) and np.isfinite(cell).all():
        positions = positions + inside.reshape(n, 3) @ np.clip(cell, -1e15, 1e15)
    if draw(st.integers(0, 3)):  # apart, as atoms of real structures are
        corners = np.array(list(itertools.product(range(2), repeat=3)))[:n]
        positions = 0.3 * np.clip(positions, -3.0, 3.0) + 2.6 * corners
        if max(lengths) < 10.0:
            cell = cell * (6.0 / max(2.0, min(lengths)))
        positions = positions + draw(st.sampled_from((0.0, 0.0, 30.0, 1e5))) * inside.reshape(n, 3)
    if n and draw(st.integers(0, 30)) == 17:
        value = draw(st.sampled_from((np.nan, np.inf, -np.inf, 1e308, -1e12, 1e9)))
        positions[draw(st.integers(0, n - 1)), draw(st.integers(0, 2))] = value
    numbers = [draw(st.sampled_from(elements)) for _ in range(n)]
    if n and draw(st.integers(0, 40)) == 23:
        numbers[0] = draw(st.sampled_from((0, 1, 118, 92)))
    atoms = Atoms(numbers=numbers, positions=positions, cell=cell, pbc=pbc)
    kind = draw(st.sampled_from(("float64", "float32", "not contiguous", "big endian")))
    if kind == "float32":
        with np.errstate(over="ignore"):
            atoms.arrays["positions"] = atoms.positions.astype(np.float32)
    elif kind == "not contiguous":
        atoms.arrays["positions"] = np.repeat(atoms.positions, 2, axis=0)[::2]
    elif kind == "big endian":
        atoms.arrays["positions"] = atoms.positions.astype(">f8")
    return name, atoms


def reason_to_refuse(atoms: Atoms, cutoff: float) -> str | None:
    """Return why numbers alone make a structure senseless; None if they do not."""
    positions, pbc = np.asarray(atoms.positions, float), np.array(atoms.pbc)
    if not np.isfinite(positions).all() or not np.isfinite(atoms.cell.array).all():
        return "finite"
    if not pbc.any():
        return None
    periodic = atoms.cell.array[pbc]
    lengths = np.linalg.norm(periodic, axis=1)
    if not (lengths > 0).all() or np.isinf(lengths).any():
        return "independent|finite"
    scaled = periodic / lengths[:, None]
    if np.prod(np.linalg.svd(scaled, compute_uv=False)) <= 1e-9:
        return "independent"
    if lengths.max() > MAX_LENGTH:
        return "at most"
    full = complete_cell(atoms.cell.array, pbc)
    inverse = np.linalg.inv(full)
    heights = 1.0 / np.linalg.norm(inverse, axis=0)
    if np.prod((2 * np.ceil(cutoff / heights) + 1)[pbc]) > MAX_IMAGES:
        return "images"
    if len(atoms) and not (np.abs(positions @ inverse[:, pbc]) <= MAX_WRAPS).all():
        return "1e\\+09 cells"
    return None


def brute_force(atoms: Atoms, cutoff: float) -> tuple[np.ndarray, NeighborList]:
    """Return positions inside the cell, and all pairs within the cutoff by trying all images."""
    pbc = np.array(atoms.pbc)
    full = complete_cell(atoms.cell.array, pbc)
    inverse = np.linalg.inv(full)
    r = np.array(atoms.positions, float)
    r = r - np.where(pbc, np.floor(r @ inverse), 0.0) @ full
    heights = 1.0 / np.linalg.norm(inverse, axis=0)
    most = np.where(pbc, np.ceil(cutoff / heights), 0).astype(int) + pbc
    shifts = np.array(list(itertools.product(*(range(-m, m + 1) for m in most))))
    with np.errstate(over="ignore"):
        found = []
        for part in np.array_split(shifts, 1 + len(shifts) // 20_000):
            d = r[:, None, None] - r[None, :, None] + (part @ full)
            near = (d * d).sum(-1) < cutoff * cutoff
            near &= ~(np.eye(len(r), dtype=bool)[:, :, None] & ~part.any(1))
            i, j, k = np.nonzero(near)
            found.append(np.column_stack([i, j, part[k]]))
    rows = np.concatenate(found)
    rows = rows[np.lexsort(rows.T[::-1])]
    return r, NeighborList(rows[:, 1].copy(), rows[:, 0].copy(), rows[:, 2:].copy())


def expected(name: str, atoms: Atoms) -> tuple[str, object]:
    """Return ("error", its text) or ("numbers", results), by brute force and the reference."""
    oracle = ORACLES[name]
    known = set(oracle.spec.representation.elements)
    reach = oracle.cutoff
    if not set(atoms.numbers.tolist()) <= known:
        return "error", "elements among|finite|cell|positions"
    for cutoff in (reach, reach + SKIN):
        reason = reason_to_refuse(atoms, cutoff)
        if reason is not None:
            return "error" if cutoff == reach else "either", reason
    inside, edges = brute_force(atoms, reach)
    wide = len(brute_force(atoms, reach + SKIN)[1].senders)
    if len(edges.senders) > MAX_NEIGHBORS * len(atoms):
        return "error", "5000 neighbours"
    if wide > MAX_NEIGHBORS * len(atoms):
        return "either", "5000 neighbours"
    d = inside[edges.receivers] - inside[edges.senders]
    d += edges.shifts @ complete_cell(atoms.cell.array, np.array(atoms.pbc))
    halves = half_distances(tuple(range(120)), "auto")
    assert halves is not None
    limit = halves[atoms.numbers[edges.senders]] + halves[atoms.numbers[edges.receivers]]
    lengths = np.linalg.norm(d, axis=1)
    blur = blur_of(atoms)
    if blur > 1e-2:
        return "either", "atoms so far away that a double does not tell them apart"
    if (lengths < limit - blur).any():
        return "error", "A apart"
    wrapped = atoms.copy()
    wrapped.arrays["positions"] = inside
    (result,) = oracle.evaluate([wrapped], NAMES, edges=lambda *_: edges, min_dist=None)
    return ("either" if (lengths < limit + blur).any() else "numbers"), result


def blur_of(atoms: Atoms) -> float:
    """Return how far apart a double may see two atoms that are elsewhere, in A."""
    far = np.abs(np.asarray(atoms.positions, float)).max(initial=1.0)
    periodic = np.abs(atoms.cell.array[np.array(atoms.pbc)]).max(initial=0.0)
    return 8 * float(np.finfo(float).eps * max(far, periodic))


def check(name: str, atoms: Atoms, lists: dict[str, VerletList]) -> None:
    """Compare a new list and a reused one with the expected result."""
    kind, want = expected(name, atoms)
    model = MODELS[name]
    before = atoms.copy()
    for edges in (None, lists[name]):
        start = time.perf_counter()
        got, said = None, ""
        try:
            (got,) = model.evaluate([atoms], NAMES, edges=edges)
        except CaceFastError as error:
            said = str(error)
        assert time.perf_counter() - start < SECONDS
        if got is None:
            assert kind in ("error", "either"), (kind, said)
            assert kind == "either" or re.search(str(want), said), (want, said)
            continue
        assert kind in ("numbers", "either"), (kind, want)
        if isinstance(want, dict):
            compare(got, want, atoms)
    np.testing.assert_array_equal(atoms.positions, before.positions)


def compare(got: dict[str, np.ndarray], want: dict[str, np.ndarray], atoms: Atoms) -> None:
    """Compare within the rounding of positions, which is large far from the origin."""
    blur = blur_of(atoms)
    for key in ("energy", "forces"):
        size = np.abs(want[key]).max(initial=0.0)
        allowed = 1e-9 * (1.0 + size) + blur * STEEPEST * (1.0 + size)
        assert np.abs(np.asarray(got[key]) - want[key]).max(initial=0.0) <= allowed, key


@pytest.fixture(autouse=True)
def guarded():
    """End the process with all stacks if compiled code hangs; bound memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    faulthandler.cancel_dump_traceback_later()
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    assert used < MEGABYTES


@cases(300, 5_000)
@given(st.lists(structures(), min_size=1, max_size=3))
def test_structures_are_right_or_refused(given_structures) -> None:
    faulthandler.dump_traceback_later(60, exit=True)
    lists = {n: VerletList(m.cutoff, SKIN, in_order=False) for n, m in MODELS.items()}
    for name, atoms in given_structures:
        check(name, atoms, lists)


def as_set(edges) -> set[tuple[int, ...]]:
    columns = [np.asarray(part) for part in (edges.receivers, edges.senders, edges.shifts)]
    return {tuple(row) for row in np.column_stack(columns).tolist()}


@cases(100, 2_000)
@given(structures())
def test_pairs_of_both_searches_are_those_of_brute_force(case) -> None:
    faulthandler.dump_traceback_later(60, exit=True)
    _, atoms = case
    cutoff, pbc = 4.3, np.array(atoms.pbc)
    if reason_to_refuse(atoms, cutoff) is not None:
        return
    r, want = brute_force(atoms, cutoff)
    if len(want.senders) > MAX_NEIGHBORS * len(r):
        return
    arrays = (torch.from_numpy(r), torch.from_numpy(atoms.cell.array)[None])
    host = partial(neighbor_list, r, atoms.cell.array, pbc, cutoff)
    device = partial(device_neighbor_list, *arrays, torch.from_numpy(pbc)[None], cutoff)
    scale = max(np.abs(r).max(initial=1.0), np.abs(atoms.cell.array[pbc]).max(initial=1.0))
    blur = 64 * np.finfo(float).eps * scale
    for search in (host, device):
        found = search()
        rows = [np.column_stack([np.asarray(x) for x in (e[1], e[0], e[2])]) for e in (found, want)]
        missing = {tuple(row) for row in rows[0].tolist()} ^ {
            tuple(row) for row in rows[1].tolist()
        }
        full = complete_cell(atoms.cell.array, pbc)
        for i, j, *shift in missing:  # only pairs at the cutoff, within rounding
            d = np.linalg.norm(r[i] - r[j] + np.array(shift) @ full)
            assert abs(d - cutoff) <= blur, (i, j, shift, d)
