"""The rule by which a specification gives the programs of its energies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import index

from cace_fast.errors import InputError, SpecError, UnsupportedModelError

from .energy import EnergyTerm, energy_keys, energy_terms, total_energy_key
from .heads import Extra, Head
from .keys import Taken, taken_by, width_of
from .model import ModelSpec
from .outputs import Ewald, FixedCharge, Readout
from .program import EnergyHead, EnergyProgram, EwaldTerm, charge_unit_of, column_of

MOST_PROGRAMS, MOST_PARTS = 1_000, 100_000  # of a file; real models: 6, 30


def energy_program(
    spec: ModelSpec, key: str | None = None, output_index: int | None = None
) -> EnergyProgram:
    """Return what the energy called ``key``, or the total energy, is made of.

    The rule is that of ``docs/theory.md``, section 7, and of decision 0016.

    Parameters
    ----------
    spec
        The model. A bare descriptor has a program without heads, whatever the key.
    key
        One of :func:`energy_keys`; None for the total energy.
    output_index
        Which energy of a read-out that gives several.

    Raises
    ------
    InputError
        If ``key`` is unknown or ``output_index`` is not an integer.
    UnsupportedModelError
        As for :func:`energy_terms`.
    """
    if output_index is not None:
        try:
            output_index = index(output_index)
        except TypeError:
            raise InputError("output_index", "an integer or None", repr(output_index)) from None
    if not spec.submodels:
        return program_of(spec, (), output_index)
    terms = energy_terms(spec, key)
    return program_of(spec, terms, output_index, total_energy_key(spec) if key is None else key)


def energy_programs(spec: ModelSpec) -> Iterator[EnergyProgram]:
    """Yield the program of every key that names an energy which can be evaluated (decision 0016).

    Which of several energies of a read-out is left open.

    Raises
    ------
    UnsupportedModelError
        If there are more energies, or more parts of them, than a file may hold.
    """
    keys, n_parts = energy_keys(spec), 0
    if len(keys) > MOST_PROGRAMS:
        raise UnsupportedModelError(f"a file of {len(keys)} energies, more than {MOST_PROGRAMS}")
    known: dict[tuple[int, int], tuple[int | None, tuple[Extra, ...] | None]] = {}
    for key in keys:
        try:
            program = _Maker(spec, None, known).program(energy_terms(spec, key), key)
        except UnsupportedModelError:
            continue
        n_parts += len(program.heads) + len(program.terms)
        if n_parts > MOST_PARTS:
            raise UnsupportedModelError(f"a file of energies with more than {MOST_PARTS} parts")
        yield program


def program_of(
    spec: ModelSpec, terms: Sequence[EnergyTerm], output_index: int | None = None, key: str = ""
) -> EnergyProgram:
    """Return what the sum of ``terms`` is made of (decision 0016).

    Raises
    ------
    UnsupportedModelError
        As for :func:`taken_by`.
    """
    return _Maker(spec, output_index, {}).program(terms, key)


class _Maker:
    """Makes a program; ``known`` keeps what is known of heads for others of the same model."""

    def __init__(
        self,
        spec: ModelSpec,
        output_index: int | None,
        known: dict[tuple[int, int], tuple[int | None, tuple[Extra, ...] | None]],
    ) -> None:
        self._spec, self._output_index, self._known = spec, output_index, known
        self._heads: list[EnergyHead] = []
        self._charges: dict[tuple[int, int], int] = {}

    def program(self, terms: Sequence[EnergyTerm], key: str) -> EnergyProgram:
        spec = self._spec
        for term in terms:
            if isinstance(term.module, Readout):
                self._heads.append(self._energy(term, term.module))
        sums = tuple(self._sum(t, t.module) for t in terms if isinstance(t.module, Ewald))
        return EnergyProgram(
            energy_key=key,
            output_index=self._output_index,
            heads=tuple(self._heads),
            terms=sums,
            isolated=spec.atomic_energies,
            charge_unit=charge_unit_of(sums),
            energy_unit=spec.energy_unit,
            length_unit=spec.length_unit,
        )

    def _energy(self, term: EnergyTerm, module: Readout) -> EnergyHead:
        column = column_of(module.n_out, self._output_index)
        _, extras = self._inputs(term.submodel, term.index)
        average = module.aggregation == "avg"
        return EnergyHead(
            submodel=term.submodel,
            index=term.index,
            gives="energy",
            n_out=module.n_out,
            column=column,
            weight=float(term.weight),
            average=average,
            extras=extras,
        )

    def _sum(self, term: EnergyTerm, module: Ewald) -> EwaldTerm:
        sub = self._spec.submodels[term.submodel]
        (taken,) = taken_by(sub, term.index)
        producer = None if taken.place is None else sub.modules[taken.place]
        weight, place = float(term.weight), (term.submodel, term.index)
        if taken.kind == "y" and isinstance(producer, FixedCharge):
            return EwaldTerm(*place, weight, module, "fixed", fixed=producer)
        if taken.kind == "y":
            return EwaldTerm(*place, weight, module, "head", self._charge_head(term, taken))
        return EwaldTerm(*place, weight, module, taken.kind)

    def _charge_head(self, term: EnergyTerm, taken: Taken) -> int:
        """Return the number of the head that gives charges, a new one if need be."""
        assert taken.place is not None
        key = (term.submodel, taken.place)
        if key not in self._charges:
            n_out, extras = self._inputs(*key)
            self._charges[key] = len(self._heads)
            self._heads.append(EnergyHead(*key, "charges", n_out, extras=extras))
        return self._charges[key]

    def _inputs(self, submodel: int, index: int) -> tuple[int | None, tuple[Extra, ...] | None]:
        """Return how many numbers a head gives, and its extra inputs."""
        found = self._known.get((submodel, index))
        if found is None:
            sub = self._spec.submodels[submodel]
            try:
                head = Head(sub, submodel, index, self._spec.representation.n_features)
                found = head.n_out, tuple(head.extras)
            except (UnsupportedModelError, SpecError):
                found = width_of(sub, Taken("", index, "y")), None
            self._known[submodel, index] = found
        return found
