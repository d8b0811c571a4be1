"""The shortest allowed distance of two atoms, by default and as set, in all interfaces."""

from __future__ import annotations

import ase.data
import numpy as np
import pytest
from ase import Atoms
from ase.io import read
from ase.neighborlist import neighbor_list
from support.paths import upstream_checkpoints
from support.tiny_models import tiny_spec, tiny_weights

from cace_fast import CACECalculator, InputError, Potential, load
from cace_fast.engine import VerletList
from cace_fast.graph import AtomicGraph
from cace_fast.min_dist import covalent_radius, half_distances
from cace_fast.structures import graph_of
from cace_fast.tables import COVALENT_RADII


def pair(distance: float, symbols: str = "Cu2", **more: object) -> Atoms:
    return Atoms(symbols, positions=[[0, 0, 0], [distance, 0, 0]], **more)


@pytest.fixture(scope="module", params=["reference", "cpu"])
def potential(request: pytest.FixtureRequest) -> Potential:
    return load("copper-emt", backend=request.param, dtype="float64")


@pytest.fixture(scope="module", params=["reference", "cpu"])
def hydrogen_cesium(request: pytest.FixtureRequest) -> Potential:
    """A model whose elements differ most in size."""
    spec = tiny_spec(elements=(1, 55), cutoff=6.0)
    return Potential(spec, tiny_weights(spec), backend=request.param, dtype="float64")


def test_radii_are_those_of_ase():
    np.testing.assert_array_equal(COVALENT_RADII, ase.data.covalent_radii)
    assert [covalent_radius(z) for z in (0, -1, 119, 10_000)] == [0.2] * 4


def test_limits_of_pairs():
    halves = half_distances((1, 29), "auto")
    np.testing.assert_allclose(2 * halves, [0.217, 0.924], rtol=1e-12)
    np.testing.assert_allclose(half_distances((1, 29), 0.6), [0.3, 0.3])
    assert half_distances((1, 29), None) is None


@pytest.mark.parametrize("bad", ["none", -0.1, float("nan"), float("inf"), True, [1.0]])
def test_other_limits_are_refused(potential, bad):
    with pytest.raises(InputError, match="min_dist: expected a length of at least 0 A, "):
        potential.compute(pair(2.5), min_dist=bad)


def test_default_depends_on_the_elements(potential):
    message = (
        r"positions: expected atoms at least 0.924 A apart, got atoms 0 and 1 at 0.910000 A. Mend "
        r"the structure, or allow it by min_dist=None or a smaller number."
    )
    with pytest.raises(InputError, match=message):
        potential.compute(pair(0.91))
    assert np.isfinite(potential.compute(pair(0.93))["energy"])
    for allowed in (None, 0.0, 0.9):
        assert np.isfinite(potential.compute(pair(0.91), min_dist=allowed)["energy"])
    with pytest.raises(InputError, match=r"at least 2.6 A apart, got atoms 0 and 1 at 2.500000 A"):
        potential.compute(pair(2.5), min_dist=2.6)


def test_small_atoms_may_be_closer_than_the_limit_of_large_ones(hydrogen_cesium):
    atoms = Atoms("H2Cs2", positions=[[0, 0, 0], [0.25, 0, 0], [3, 0, 0], [5, 0, 0]])
    assert np.isfinite(hydrogen_cesium.compute(atoms)["energy"])
    atoms.positions[3, 0] = 4.6  # farther apart than the hydrogen atoms, and too close
    with pytest.raises(InputError, match=r"1.71 A apart, got atoms 2 and 3 at 1.600000 A"):
        hydrogen_cesium.compute(atoms)
    atoms.positions[3, 0], atoms.positions[1, 0] = 5.0, 0.2
    with pytest.raises(InputError, match=r"0.217 A apart, got atoms 0 and 1 at 0.200000 A"):
        hydrogen_cesium.compute(atoms)
    mixed = pair(0.95, "HCs")
    with pytest.raises(InputError, match=r"0.963 A apart, got atoms 0 and 1 at 0.950000 A"):
        hydrogen_cesium.compute(mixed)


def test_own_image_counts(potential):
    atoms = Atoms("Cu", cell=[0.9, 9, 9], pbc=True)
    with pytest.raises(InputError, match=r"atom 0 and its own image at 0.900000 A"):
        potential.compute(atoms)


def test_structure_of_a_batch_is_named(potential):
    with pytest.raises(InputError, match=r"structure 1: positions: expected atoms at least 0.924"):
        potential.compute([pair(2.5), pair(0.8), pair(2.4)])
    found = potential.compute([pair(2.5), pair(0.8)], min_dist=None)
    assert all(np.isfinite(result["energy"]) for result in found)


@pytest.mark.parametrize("call", ["features", "hessian"])
def test_other_results_have_the_same_limit(potential, call):
    with pytest.raises(InputError, match=r"at least 0.924 A apart"):
        getattr(potential, call)(pair(0.9))
    assert np.isfinite(getattr(potential, call)(pair(0.9), min_dist=None)).all()


def test_calculator(potential):
    atoms = pair(0.9)
    atoms.calc = CACECalculator(potential)
    with pytest.raises(InputError, match=r"at least 0.924 A apart"):
        atoms.get_potential_energy()
    atoms.calc = CACECalculator(potential, min_dist=0.85)
    assert np.isfinite(atoms.get_potential_energy())
    with pytest.raises(InputError, match="min_dist: expected a length"):
        CACECalculator(potential, min_dist="any")


def test_resident_system_checks_as_it_moves(potential):
    with pytest.raises(InputError, match=r"at least 0.924 A apart"):
        potential.batch([pair(0.9)]).evaluate()
    system = potential.batch([pair(2.5)])
    system.positions[1, 0] = 0.9
    with pytest.raises(InputError, match=r"at least 0.924 A apart"):
        system.evaluate()
    free = potential.batch([pair(0.9)], min_dist=None)
    assert free.evaluate().forces is not None


def test_engine_takes_pairs_of_a_list_beyond_the_cutoff(hydrogen_cesium):
    graph = graph_of(pair(1.6, "Cs2"), hydrogen_cesium.spec.representation, edges=VerletList(6, 1))
    assert isinstance(graph, AtomicGraph)
    with pytest.raises(InputError, match=r"at least 1.71 A apart"):
        hydrogen_cesium._engine.evaluate(graph, min_dist="auto")


@pytest.mark.parametrize("folder", upstream_checkpoints(), ids=lambda folder: folder.name)
def test_recorded_structures_pass(folder):
    for atoms in read(folder / "structures.xyz", ":"):
        i, j, distances = neighbor_list("ijd", atoms, 2.0)
        halves = np.array([0.35 * covalent_radius(z) for z in atoms.numbers])
        assert (distances > halves[i] + halves[j]).all()
