"""What the energy of a model is made of: read-outs and Ewald sums with weights, as data.

An :class:`EnergyProgram` is made by rule (``rule.py``) from a specification, the key of an energy
and, of several energies, the number of one. Every engine evaluates it, and files hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Literal

from cace_fast.errors import InputError, PropertyNotImplementedError, UnsupportedModelError

from .checks import (
    require,
    require_bools,
    require_choice,
    require_float,
    require_int,
    require_names,
    require_pairs,
    require_tuple,
)
from .heads import Extra, Head
from .model import MOST_MODULES, MOST_SUBMODELS, ModelSpec, lines_of
from .outputs import Ewald, FixedCharge
from .units import E2_PER_INTERNAL

Gives = Literal["energy", "charges"]
Source = Literal["head", "fixed", "input", "features", "x", "potential"]


@dataclass(frozen=True)
class EnergyHead:
    """A network of the energy: one of its outputs is an energy, or all are charges (section 7).

    Attributes
    ----------
    submodel, index
        Place of the module whose outputs they are.
    gives
        What they are.
    n_out
        How many; None where only the inputs of a structure tell.
    column, weight, average
        For an energy: which output it is (None: ``output_index`` has to choose), its weight, and
        whether it is divided by the number of atoms.
    extras
        What the network takes of the structure beside the features, in the order of its columns;
        None where it takes what no network of the features gives, so that the reference alone
        evaluates it.

    Raises
    ------
    SpecError
        If a field is wrong.
    """

    submodel: int
    index: int
    gives: Gives
    n_out: int | None = 1
    column: int | None = None
    weight: float = 0.0
    average: bool = False
    extras: tuple[Extra, ...] | None = ()

    def __post_init__(self) -> None:
        require_int(self, "submodel", 0, MOST_SUBMODELS - 1)
        require_int(self, "index", 0, MOST_MODULES - 1)
        require_choice(self, "gives", Gives)
        if self.n_out is not None or self.gives == "energy":
            require_int(self, "n_out", 1)
        if self.column is not None:
            require(self.gives == "energy", self, "column", "nothing for charges")
            require_int(self, "column", 0, (self.n_out or 1) - 1)
        require_float(self, "weight")
        require_bools(self, "average")
        if self.extras is not None:
            require_tuple(self, "extras", Extra)


@dataclass(frozen=True)
class EwaldTerm:
    """One Ewald sum of the energy, with its weight and the source of its charges (section 9).

    ``charges`` says what they are: all outputs of the head ``head`` of the program, the ``fixed``
    charges of elements, or what the reference alone sums: an input of the structure, the features,
    or the inputs x or the potential of another module.

    Raises
    ------
    SpecError
        If a field is wrong.
    """

    submodel: int
    index: int
    weight: float
    ewald: Ewald
    charges: Source
    head: int | None = None
    fixed: FixedCharge | None = None

    def __post_init__(self) -> None:
        require_int(self, "submodel", 0, MOST_SUBMODELS - 1)
        require_int(self, "index", 0, MOST_MODULES - 1)
        require_float(self, "weight")
        require(isinstance(self.ewald, Ewald), self, "ewald", "an Ewald")
        require_choice(self, "charges", Source)
        if self.charges == "head":
            require_int(self, "head", 0, MOST_MODULES)
        else:
            require(self.head is None, self, "head", "nothing, as no head gives the charges")
        good = isinstance(self.fixed, FixedCharge) == (self.charges == "fixed")
        good = good and (self.fixed is None or self.charges == "fixed")
        require(good, self, "fixed", "a FixedCharge where charges are fixed, else nothing")


@dataclass(frozen=True)
class EnergyProgram:
    """The read-outs and Ewald sums that an energy is made of (``docs/theory.md``, section 7).

    Attributes
    ----------
    energy_key
        Its name; empty for a bare descriptor, which has no energy.
    output_index
        Which of several energies of a read-out; None: it has one, or the choice is open.
    heads
        First those that give energies, then those that give charges; each module once of each.
    terms
        Ewald sums.
    isolated
        Pairs of atomic number and energy (in ``energy_unit``) of the isolated atom, which
        are added.
    charge_unit
        e per internal unit of charge, sqrt(w norm/90.0474) (equation 30); None unless there is
        exactly one Ewald sum and the root is real.
    energy_unit, length_unit
        As in the specification.

    Raises
    ------
    SpecError
        If a field is wrong or fields contradict each other.
    """

    energy_key: str
    output_index: int | None = None
    heads: tuple[EnergyHead, ...] = ()
    terms: tuple[EwaldTerm, ...] = ()
    isolated: tuple[tuple[int, float], ...] = ()
    charge_unit: float | None = None
    energy_unit: str = "eV"
    length_unit: str = "A"

    def __post_init__(self) -> None:
        require(isinstance(self.energy_key, str), self, "energy_key", "text")
        require_tuple(self, "heads", EnergyHead)
        require_tuple(self, "terms", EwaldTerm)
        good = self.output_index is None or type(self.output_index) is int
        require(good, self, "output_index", "an integer or nothing")
        places = [(h.gives == "charges", h.submodel, h.index) for h in self.heads]
        require(len(set(places)) == len(places), self, "heads", "each module once")
        ordered = sorted(places, key=lambda place: place[0]) == places
        require(ordered, self, "heads", "energies before charges")
        for head in self.heads:
            column = None if head.gives == "charges" else column_of(head.n_out, self.output_index)
            require(head.column == column, head, "column", f"{column}, as output_index says")
        sums = [(term.submodel, term.index) for term in self.terms]
        require(len(set(sums)) == len(sums), self, "terms", "each module once")
        for term in self.terms:
            number = -1 if term.head is None else term.head
            good = number < len(self.heads)
            good = good and (number < 0 or self.heads[number].gives == "charges")
            require(good, term, "head", "the number of a head that gives charges")
        require_pairs(self, "isolated")
        unit = charge_unit_of(self.terms)
        require(self.charge_unit == unit, self, "charge_unit", f"{unit}, as the terms say")
        require_names(self, "energy_unit", "length_unit")

    def __str__(self) -> str:
        """Return the program as indented text."""
        return "\n".join(lines_of(self, 0))

    def check(self) -> None:
        """Raise InputError where ``output_index`` has to choose an energy first.

        See ``docs/theory.md``, section 7.
        """
        for head in self.heads:
            if head.gives == "energy":
                assert head.n_out is not None
                energy_column(head.n_out, self.output_index)

    @property
    def charge_term(self) -> EwaldTerm:
        """The Ewald sum that the latent charges belong to (``docs/theory.md``, section 10).

        Raises
        ------
        PropertyNotImplementedError
            Unless the energy has exactly one Ewald sum.
        """
        if not self.terms:
            raise PropertyNotImplementedError("charges: this model has no charges")
        if len(self.terms) != 1:
            raise PropertyNotImplementedError(
                f"charges: this model's energy has {len(self.terms)} Ewald terms, and only with "
                "exactly one do latent charges have a meaning"
            )
        return self.terms[0]

    def parts(self) -> list[str]:
        """Return a line for each read-out and Ewald sum of the energy; ``info`` prints them.

        See ``docs/theory.md``, section 7.
        """
        lines = []
        for head in self.heads:
            if head.gives == "energy":
                which = "" if head.n_out == 1 else f", number {head.column}"
                which = ", number output_index" if head.column is None else which
                mean = ", divided by the number of atoms" if head.average else ""
                name = f"read-out {head.submodel}.{head.index}{which}{mean}"
                lines.append(f"{head.weight:g} x {name}")
        for term in self.terms:
            known = {"fixed": "fixed charges", "input": "charges of the structure"}
            source = known.get(term.charges, f"{term.charges} as charges")
            if term.head is not None:
                head = self.heads[term.head]
                source = f"charges of module {head.submodel}.{head.index}"
            lines.append(f"{term.weight:g} x Ewald sum {term.submodel}.{term.index} of {source}")
        return lines

    def first_charge(self, head: int) -> int:
        """Return the column where the charges of a head begin among those of all heads.

        See ``docs/theory.md``, section 7.
        """
        return sum(h.n_out or 1 for h in self.heads[:head] if h.gives == "charges")

    def networks(self, spec: ModelSpec) -> list[Head]:
        """Return the network of every head, for engines that evaluate features and networks alone.

        See ``docs/theory.md``, section 7.

        Raises
        ------
        UnsupportedModelError
            If a head takes what no network of the features gives, or charges come from no head.
        """
        n_features = spec.representation.n_features
        found = [
            Head(spec.submodels[h.submodel], h.submodel, h.index, n_features) for h in self.heads
        ]
        for term in self.terms:
            if term.charges == "input":
                raise UnsupportedModelError("charges that are an input of the structure")
            if term.charges not in ("head", "fixed"):
                raise UnsupportedModelError(
                    f"charges that are the {term.charges} of another module"
                )
        return found


def energy_column(n_out: int, output_index: int | None) -> int:
    """Return the column of the energy among ``n_out`` outputs (``docs/user/errors.md``).

    Raises
    ------
    InputError
        If there are several and none is chosen, or the chosen one does not exist.
    """
    if output_index is None and n_out != 1:
        expected = f"0 to {n_out - 1}: this model has several energies"
        raise InputError("output_index", expected, output_index)
    column = 0 if n_out == 1 or output_index is None else output_index
    if not -n_out <= column < n_out:
        raise InputError("output_index", f"less than {n_out}", output_index)
    return column % n_out


def column_of(n_out: int | None, output_index: int | None) -> int | None:
    """Return the column of an energy; None if ``output_index`` has to choose it.

    See ``docs/theory.md``, section 7.
    """
    assert n_out is not None
    try:
        return energy_column(n_out, output_index)
    except InputError:
        return None


def charge_unit_of(terms: Sequence[EwaldTerm]) -> float | None:
    """Return e per internal unit of charge (equation 30).

    None unless there is exactly one Ewald sum and the root is real.
    """
    if len(terms) != 1:
        return None
    square = terms[0].weight * terms[0].ewald.norm_factor / E2_PER_INTERNAL
    return sqrt(square) if square >= 0.0 and isfinite(square) else None
