"""A whole model as data: sub-models on one representation, their combination, provenance."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, fields
from typing import Any, get_args

from cace_fast.errors import SpecError

from .checks import (
    is_number,
    is_pair,
    require,
    require_bools,
    require_names,
    require_pairs,
    require_texts,
    require_tuple,
)
from .outputs import Add, OutputModule, Readout, written_keys
from .representation import Representation

MOST_SUBMODELS, MOST_MODULES, MOST_KEYS = 100, 10_000, 100_000  # real ones: 3, 9, 20
RESERVED = frozenset({"node_feats", "positions", "cell", "atomic_numbers", "edge_index", "batch"})


@dataclass(frozen=True)
class SubModel:
    """One potential on the representation: its output modules in order.

    See ``docs/theory.md``, section 7.

    ``strain`` says that the file's sub-model can give stress; ``outputs`` are its declared keys.

    Raises
    ------
    SpecError
        If a field is wrong, there are too many modules, or one writes a reserved key.
    """

    modules: tuple[OutputModule, ...]
    strain: bool = False
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_tuple(self, "modules", get_args(OutputModule))
        require_bools(self, "strain")
        require_texts(self, "outputs")
        taken = sum(len(m.features) for m in self.modules if isinstance(m, Readout | Add))
        if len(self.modules) > MOST_MODULES or taken > MOST_KEYS:
            expected = f"at most {MOST_MODULES} output modules that take {MOST_KEYS} keys"
            raise SpecError("SubModel.modules", expected, f"{len(self.modules)} and {taken}")
        writers: dict[str, list[int]] = {}
        for index, module in enumerate(self.modules):
            for key in written_keys(module):
                if key in RESERVED:
                    expected = "names that are not those of inputs"
                    raise SpecError(f"{type(module).__name__}.output_key", expected, repr(key))
                writers.setdefault(key, []).append(index)
        object.__setattr__(self, "_writers", writers)

    def producer(self, key: str, before: int | None = None) -> int | None:
        """Return the last module before ``before`` that writes ``key``.

        See ``docs/theory.md``, section 7.

        Modules run in order on one dictionary, so that each use of a key means its latest value.
        A place identifies a module: two modules of equal settings have different weights.

        Parameters
        ----------
        key
            Name of a value.
        before
            Place of the module that takes it; None: the value after all modules.

        Returns
        -------
        int or None
            None where no module before that one writes the key: then it is an input.
        """
        places: list[int] = self._writers.get(key, [])  # type: ignore[attr-defined]
        n = len(places) if before is None else bisect_left(places, before)
        return places[n - 1] if n else None


@dataclass(frozen=True)
class Combination:
    """Weighted sum of sub-models (``docs/theory.md``, section 7).

    Attributes
    ----------
    names
        Keys of the combined results.
    keys
        For each sub-model the pairs (common name, key in the sub-model).
    weights
        The weight of each sub-model.

    Raises
    ------
    SpecError
        If a field is wrong or a sub-model has no key for a name.
    """

    names: tuple[str, ...]
    keys: tuple[tuple[tuple[str, str], ...], ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        require_texts(self, "names")
        require_tuple(self, "keys", tuple, 1)
        require_tuple(self, "weights", (int, float), 1)
        require(all(map(is_number, self.weights)), self, "weights", "finite weights")
        for keys in self.keys:
            good = type(keys) is tuple and all(is_pair(pair, str, str) for pair in keys)
            require(good, self, "keys", "pairs of names for every sub-model")
        require(len(self.weights) == len(self.keys), self, "weights", f"{len(self.keys)} weights")
        for keys in self.keys:
            missing = set(self.names) - {name for name, _ in keys}
            require(not missing, self, "keys", f"a key for each of {self.names} in every sub-model")


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from and under which terms it may be used.

    ``source`` is the name of the file, ``sha256`` its digest; ``licence`` and ``note`` are free
    text (``docs/user/evaluate_and_convert.md``, "Convert").

    Raises
    ------
    SpecError
        If a field is no text.
    """

    source: str = ""
    sha256: str = ""
    licence: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for field in ("source", "sha256", "licence", "note"):
            require(isinstance(getattr(self, field), str), self, field, "text")


@dataclass(frozen=True)
class ModelSpec:
    """A model without its tensors (``docs/conventions.md``, "Tensors of a model").

    A bare descriptor has no sub-models. ``combination`` is None for a single potential.
    ``atomic_energies`` (pairs of atomic number and energy in ``energy_unit``) are added to the
    energy; upstream files have none.

    Raises
    ------
    SpecError
        If a field is wrong, or a read-out is not as wide as the features that it takes.
    """

    representation: Representation
    submodels: tuple[SubModel, ...] = ()
    combination: Combination | None = None
    atomic_energies: tuple[tuple[int, float], ...] = ()
    energy_unit: str = "eV"
    length_unit: str = "A"
    provenance: Provenance = Provenance()

    def __post_init__(self) -> None:
        good = isinstance(self.representation, Representation)
        require(good, self, "representation", "a Representation")
        require_tuple(self, "submodels", SubModel)
        kinds = (Combination, type(None))
        require(isinstance(self.combination, kinds), self, "combination", "Combination or nothing")
        require_pairs(self, "atomic_energies")
        require_names(self, "energy_unit", "length_unit")
        require(isinstance(self.provenance, Provenance), self, "provenance", "a Provenance")
        n_expected = (
            len(self.combination.keys)
            if self.combination is not None
            else min(len(self.submodels), 1)
        )
        if len(self.submodels) > MOST_SUBMODELS:
            got = len(self.submodels)
            raise SpecError("ModelSpec.submodels", f"at most {MOST_SUBMODELS} sub-models", got)
        require(len(self.submodels) == n_expected, self, "submodels", f"{n_expected} sub-models")
        for sub in self.submodels:
            for module in sub.modules:
                if isinstance(module, Readout):
                    _check_width(module, self.representation.n_features)

    def __str__(self) -> str:
        """Return the specification as indented text."""
        return "\n".join(lines_of(self, 0))


def _check_width(module: Readout, n_features: int) -> None:
    """Raise SpecError unless a read-out has room for the features; alone they fill it."""
    n_in, n_taken = module.mlp.widths[0], len(module.features)
    n_whole = module.features.count("node_feats")
    least = n_whole * n_features + n_taken - n_whole
    if n_in < least or (n_whole == n_taken and n_in != least):
        expected = f"{least} inputs" + " or more" * (n_whole != n_taken)
        raise SpecError("Readout.mlp.widths", expected, n_in)


def lines_of(value: Any, depth: int) -> list[str]:
    """Return a dataclass as indented text: a line of plain fields, a block for each nested one."""
    pad = "  " * depth
    plain, nested = [], []
    for field in fields(value):
        item = getattr(value, field.name)
        items = (
            item
            if isinstance(item, tuple) and item and hasattr(item[0], "__dataclass_fields__")
            else None
        )
        if hasattr(item, "__dataclass_fields__"):
            nested += [f"{pad}  {field.name}:", *lines_of(item, depth + 2)]
        elif items is not None:
            nested += [
                f"{pad}  {field.name}:",
                *(line for one in items for line in lines_of(one, depth + 2)),
            ]
        elif item not in (None, "", ()):
            plain.append(f"{field.name}={item!r}")
    return [f"{pad}{type(value).__name__}({', '.join(plain)})", *nested]
