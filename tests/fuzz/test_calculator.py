"""Random sequences of ASE calls on several structures, each beside a fresh calculator."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from hypothesis import given
from hypothesis import strategies as st
from support.fuzzing import cases
from support.tiny_models import tiny_potential

from cace_fast import CACECalculator, Potential, load
from cace_fast.errors import CaceFastError

COPPER = load("copper-emt", dtype="float64", device="cpu")
CHARGED = tiny_potential(ewald_channels=1)
NAMES = CACECalculator.implemented_properties
CLOSE = 1e-9  # of the largest number

Call = tuple[Any, ...]
which = st.integers(0, 2)
small = st.floats(-0.6, 0.6)
vectors = st.tuples(small, small, small)
fields = st.one_of(st.none(), st.tuples(small, small, small), st.just("of time"))
CALLS = st.one_of(
    st.tuples(st.just("get"), which, st.sampled_from(NAMES)),
    st.tuples(st.just("get"), which, st.sampled_from(("energy", "forces", "stress"))),
    st.tuples(st.just("calculate"), which, st.lists(st.sampled_from(NAMES), max_size=4)),
    st.tuples(st.just("move"), which, st.integers(0, 4), vectors),
    st.tuples(st.just("far"), which, st.integers(0, 4), st.integers(-3, 3)),
    st.tuples(st.just("strain"), which, st.integers(0, 2), st.floats(0.9, 1.1)),
    st.tuples(st.just("pbc"), which, st.tuples(*[st.booleans()] * 3)),
    st.tuples(st.just("number"), which, st.integers(0, 4)),
    st.tuples(st.just("shorten"), which),
    st.tuples(st.just("append"), which, vectors),
    st.tuples(st.just("replace"), which, which),
    st.tuples(st.just("broken"), which, st.sampled_from(("nan", "stranger", "input", "cell"))),
    st.tuples(st.just("interrupted"), which, st.sampled_from(("before", "after"))),
    st.tuples(st.just("set"), st.just("skin"), st.sampled_from((0.0, 0.4, 1.5))),
    st.tuples(st.just("set"), st.just("min_dist"), st.sampled_from((None, "auto", 1.0))),
    st.tuples(st.just("set"), st.just("compute_stress"), st.sampled_from((None, True, False))),
    st.tuples(st.just("set"), st.just("backend"), st.sampled_from(("auto", "reference"))),
    st.tuples(st.just("set"), st.just("energy_units_to_eV"), st.sampled_from((1.0, 0.5))),
    st.tuples(st.just("set"), st.just("external_field"), fields),
    st.tuples(st.just("time"), st.floats(0.0, 20.0)),
    st.tuples(st.just("forget"), st.sampled_from(("reset", "reset_neighbors"))),
)


def in_time(time: float) -> list[float]:
    return [0.1 * np.sin(time), 0.0, 0.05]


def structures(potential: Potential) -> list[Atoms]:
    """Return a crystal, a slab or a second crystal, and a molecule."""
    numbers = (list(potential.spec.representation.elements) * 4)[:4]
    places = 2.3 * np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]])
    crystal = Atoms(numbers, positions=places, cell=[4.6, 4.7, 4.8], pbc=True)
    other = Atoms(numbers, positions=places + 0.1, cell=[4.6, 4.6, 12.0], pbc=[True, True, False])
    return [crystal, other, Atoms(numbers[:3], positions=places[:3])]


class Pair:
    """One calculator through all calls, and what a new one says after each."""

    def __init__(self, potential: Potential) -> None:
        self.potential = potential
        self.atoms = structures(potential)
        self.keywords: dict[str, Any] = {"min_dist": "auto"}
        self.calculator = CACECalculator(potential)

    def do(self, call: Call) -> None:
        """Make a call, and compare if it gave numbers."""
        kind, *arguments = call
        getattr(self, kind)(*arguments)

    def fresh(self) -> CACECalculator:
        """Return a calculator that has seen nothing, with the field of the old one."""
        model = self.potential.replace(backend=self.keywords.get("backend", "auto"))
        keywords = dict(self.keywords)
        keywords.pop("backend", None)
        if self.calculator.field is not None:
            keywords["external_field"] = self.calculator.field
        return CACECalculator(model, **keywords)

    def compare(self, k: int, call: Callable[[CACECalculator, Atoms], Any]) -> None:
        """Compare the outcome of a call, and all results that it leaves."""
        atoms = self.atoms[k]
        got = outcome(call, self.calculator, atoms.copy())
        want = outcome(call, self.fresh(), atoms.copy())
        same(got, want)
        if isinstance(got, Exception):
            if not isinstance(got, PropertyNotImplementedError):
                assert self.calculator.results == {}
            return
        for name, value in self.calculator.results.items():
            same(value, self.fresh().get_property(name, atoms.copy()))

    def get(self, k: int, name: str) -> None:
        self.compare(k, lambda calc, atoms: calc.get_property(name, atoms))

    def calculate(self, k: int, names: list[str]) -> None:
        def call(calc: CACECalculator, atoms: Atoms) -> list[Any]:
            calc.calculate(atoms, names)
            assert {"energy", "forces", *names} <= set(calc.results)
            return [calc.results[name] for name in names]

        self.compare(k, call)

    def move(self, k: int, i: int, vector: tuple[float, ...]) -> None:
        self.atoms[k].positions[i % len(self.atoms[k])] += vector

    def far(self, k: int, i: int, n: int) -> None:
        atoms = self.atoms[k]
        atoms.positions[i % len(atoms)] += n * (atoms.cell[:].sum(0) if atoms.pbc.all() else 5.0)

    def strain(self, k: int, axis: int, factor: float) -> None:
        cell = self.atoms[k].cell[:]
        cell[:, axis] *= factor
        self.atoms[k].set_cell(cell, scale_atoms=bool(k % 2))

    def pbc(self, k: int, pbc: tuple[bool, ...]) -> None:
        if self.atoms[k].cell.rank == 3:
            self.atoms[k].pbc = pbc

    def number(self, k: int, i: int) -> None:
        elements, atoms = self.potential.spec.representation.elements, self.atoms[k]
        i %= len(atoms)
        atoms.numbers[i] = elements[(elements.index(atoms.numbers[i]) + 1) % len(elements)]

    def shorten(self, k: int) -> None:
        if len(self.atoms[k]) > 1:
            del self.atoms[k][-1]

    def append(self, k: int, vector: tuple[float, ...]) -> None:
        if len(self.atoms[k]) < 6:
            extra = self.atoms[k][:1]
            extra.positions += np.array(vector) + 1.6
            self.atoms[k] += extra

    def replace(self, k: int, other: int) -> None:
        """Put a copy with its atoms in another order in the place of a structure."""
        self.atoms[k] = self.atoms[other][::-1]

    def broken(self, k: int, how: str) -> None:
        """Ask about a structure that makes no sense, twice."""
        good = self.atoms[k]
        bad = self.atoms[k] = good.copy()
        if how == "nan":
            bad.positions[0, 1] = np.nan
        elif how == "stranger":
            bad.numbers[-1] = 40
        elif how == "cell":
            bad.set_cell(np.diag([np.nan, 4.0, 4.0]))
        else:
            bad += bad[:1]  # on top of each other
        for _ in range(2):
            self.get(k, "forces")
        self.atoms[k] = good

    def interrupted(self, k: int, when: str) -> None:
        """Stop the calculator in the middle; the structure is asked about again."""
        with contextlib.suppress(CaceFastError), interruption(self.calculator, when):
            self.calculator.get_property("energy", self.atoms[k].copy())
        self.get(k, "forces")

    def set(self, name: str, value: Any) -> None:
        if name == "external_field":
            if self.potential is COPPER:
                return
            value = in_time if value == "of time" else value
            self.calculator.set(external_field=value)
            return
        self.keywords[name] = value
        self.calculator.set(**{name: value})

    def time(self, time: float) -> None:
        """Set the clock twice; each next structure has the field of its time."""
        if self.potential is CHARGED:
            self.calculator.set(external_field=in_time)
        for k, moment in enumerate((time, time + 1.5)):
            self.calculator.time = moment
            self.move(k, 0, (0.01, 0.0, 0.0))
            self.get(k, "energy")
            if self.potential is CHARGED:
                np.testing.assert_array_equal(self.calculator.field, in_time(moment))

    def forget(self, how: str) -> None:
        getattr(self.calculator, how)()


@contextlib.contextmanager
def interruption(calculator: CACECalculator, when: str) -> Iterator[None]:
    """Raise KeyboardInterrupt before or after the next evaluation, if there is one."""
    potential = calculator.potential
    plain = potential.evaluate

    def evaluate(*arguments: Any, **options: Any) -> None:
        if when == "after":
            plain(*arguments, **options)
        raise KeyboardInterrupt

    with mock.patch.object(potential, "evaluate", evaluate), contextlib.suppress(KeyboardInterrupt):
        yield


def outcome(
    call: Callable[[CACECalculator, Atoms], Any], calc: CACECalculator, atoms: Atoms
) -> Any:
    """Return the result of a call, or the error that it may raise."""
    try:
        return call(calc, atoms)
    except CaceFastError as error:
        return error


def same(got: Any, want: Any) -> None:
    """Compare two outcomes."""
    assert isinstance(got, Exception) == isinstance(want, Exception), (got, want)
    if isinstance(got, Exception):
        assert (type(got), str(got)) == (type(want), str(want))
        return
    for one, other in zip(*(x if isinstance(x, list) else [x] for x in (got, want)), strict=True):
        scale = max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(one, other, rtol=0, atol=CLOSE * scale)


@pytest.mark.parametrize("potential", [COPPER, CHARGED], ids=["copper", "charged"])
@given(calls=st.lists(CALLS, min_size=4, max_size=16))
@cases(150, 1000)
def test_a_calculator_with_a_past_says_what_a_new_one_does(
    potential: Potential, calls: list[Call]
) -> None:
    pair = Pair(potential)
    for call in calls:
        pair.do(call)
