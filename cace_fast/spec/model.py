"""A whole model as data: sub-models on one representation, their combination, provenance."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite
from typing import Any, get_args

from cace_fast.errors import SpecError

from .checks import require, require_bools, require_names, require_tuple
from .outputs import OutputModule, Readout, written_keys
from .representation import Representation


@dataclass(frozen=True)
class SubModel:
    """One potential on the representation: its output modules in order.

    ``strain`` says that the file's sub-model can give stress; ``outputs`` are its declared keys.
    """

    modules: tuple[OutputModule, ...]
    strain: bool = False
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_tuple(self, "modules", get_args(OutputModule))
        require_bools(self, "strain")
        require_tuple(self, "outputs", str)

    def producer(self, key: str) -> OutputModule | None:
        """Return the module that writes ``key``, the last one if there are several."""
        found = [m for m in self.modules if key in written_keys(m)]
        return found[-1] if found else None


@dataclass(frozen=True)
class Combination:
    """Weighted sum of sub-models: for each, its weight and (common name, own key) pairs."""

    names: tuple[str, ...]
    keys: tuple[tuple[tuple[str, str], ...], ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        require_tuple(self, "names", str)
        require_tuple(self, "keys", tuple, 1)
        require_tuple(self, "weights", (int, float), 1)
        require(all(isfinite(w) for w in self.weights), self, "weights", "finite weights")
        require(
            len(self.weights) == len(self.keys),
            self,
            "weights",
            f"{len(self.keys)} weights",
        )
        for keys in self.keys:
            missing = set(self.names) - {name for name, _ in keys}
            require(
                not missing,
                self,
                "keys",
                f"a key for each of {self.names} in every sub-model",
            )


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from and under which terms it may be used."""

    source: str = ""
    sha256: str = ""
    licence: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for field in ("source", "sha256", "licence", "note"):
            require(isinstance(getattr(self, field), str), self, field, "text")


@dataclass(frozen=True)
class ModelSpec:
    """Everything of a model except its tensors.

    A bare descriptor has no sub-models. ``combination`` is None for a single potential.
    ``atomic_energies`` (pairs of atomic number and energy in ``energy_unit``) are added to the
    energy; upstream files have none.
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
        require_tuple(self, "atomic_energies", tuple)
        require_names(self, "energy_unit", "length_unit")
        require(isinstance(self.provenance, Provenance), self, "provenance", "a Provenance")
        n_expected = (
            len(self.combination.keys)
            if self.combination is not None
            else min(len(self.submodels), 1)
        )
        require(
            len(self.submodels) == n_expected,
            self,
            "submodels",
            f"{n_expected} sub-models",
        )
        for sub in self.submodels:
            for module in sub.modules:
                if isinstance(module, Readout) and module.features == ("node_feats",):
                    n_in = module.mlp.widths[0]
                    if n_in != self.representation.n_features:
                        raise SpecError(
                            "Readout.mlp.widths",
                            f"{self.representation.n_features} inputs",
                            n_in,
                        )

    def __str__(self) -> str:
        """Return the specification as indented text."""
        return "\n".join(_lines(self, 0))


def _lines(value: Any, depth: int) -> list[str]:
    """Print one dataclass a line for its plain fields and a block for each nested one."""
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
            nested += [f"{pad}  {field.name}:", *_lines(item, depth + 2)]
        elif items is not None:
            nested += [
                f"{pad}  {field.name}:",
                *(line for one in items for line in _lines(one, depth + 2)),
            ]
        elif item not in (None, "", ()):
            plain.append(f"{field.name}={item!r}")
    return [f"{pad}{type(value).__name__}({', '.join(plain)})", *nested]
