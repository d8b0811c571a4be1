"""Heads: a read-out, or a sum of values of atoms, with all that it takes of other modules.

The C library makes the same from the specification (``kernels/cpu/csrc/heads.cpp``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cace_fast.errors import SpecError, UnsupportedModelError

from .checks import require, require_int, require_texts
from .keys import Taken, chain, taken_by
from .model import SubModel
from .outputs import Add, FixedCharge, Readout


class Block(NamedTuple):
    """Columns of what a module takes of each atom (``docs/theory.md``, section 7).

    They are ``width`` columns of the features or of the extra inputs, from ``first`` on, or the
    outputs of the module at ``first``.
    """

    kind: Literal["features", "extra", "outputs"]
    first: int
    width: int


@dataclass(frozen=True)
class Extra:
    """Extra inputs that stand together: ``width`` numbers per atom (``docs/theory.md``, section 7).

    They come from ``keys`` of the structure, or from ``fixed``, a module of fixed charges.

    Raises
    ------
    SpecError
        If a field is wrong.
    """

    keys: tuple[str, ...]
    fixed: FixedCharge | None
    width: int

    def __post_init__(self) -> None:
        require_texts(self, "keys")
        good = isinstance(self.fixed, FixedCharge) if not self.keys else self.fixed is None
        require(good, self, "fixed", "a FixedCharge where there are no keys, else nothing")
        require_int(self, "width", 1)


class Head:
    """A network of a sub-model: where it stands, its inputs and its outputs (section 7).

    Parameters
    ----------
    sub
        The sub-model.
    submodel, index
        Its number, and the place of the module whose value it is.
    n_features
        Length of the feature vector of an atom.

    Attributes
    ----------
    order
        Places of the read-outs and sums to compute, in order; the last is that of the value.
    inputs
        What each of them takes.
    extras
        Further inputs, in the order of their columns.

    Raises
    ------
    UnsupportedModelError
        If a module takes what no network of the features gives.
    SpecError
        If a read-out is not as wide as what it takes, or the summands of a sum differ in width.
    """

    def __init__(self, sub: SubModel, submodel: int, index: int, n_features: int) -> None:
        self.sub, self.submodel, self.index, self.n_features = sub, submodel, index, n_features
        self.order: list[int] = []
        self.inputs: dict[int, tuple[Block, ...]] = {}
        self.extras: list[Extra] = []
        self._outputs: dict[int, Block] = {}
        for place in chain(sub, [index]):
            module = sub.modules[place]
            if isinstance(module, FixedCharge):
                self._outputs[place] = self._extra((), 1, module)
                continue
            if isinstance(module, Readout):
                self.inputs[place] = self._of_readout(place, module)
                width = module.n_out
            elif isinstance(module, Add):
                self.inputs[place] = self._of_sum(place)
                width = self.inputs[place][0].width
            else:
                name = type(module).__name__
                raise UnsupportedModelError(f"a read-out that takes what a module {name} gives")
            self.order.append(place)
            self._outputs[place] = Block("outputs", place, width)

    @property
    def n_extra(self) -> int:
        """Number of columns of all extra inputs (``docs/theory.md``, section 7)."""
        return sum(extra.width for extra in self.extras)

    @property
    def n_out(self) -> int:
        """Number of outputs for each atom (``docs/theory.md``, section 7)."""
        return self._outputs[self.index].width

    def prefix(self, place: int) -> str:
        """Return the prefix of the tensors of a read-out.

        See ``docs/conventions.md``, "Tensors of a model".
        """
        return f"outputs.{self.submodel}.{place}"

    def _extra(self, keys: Sequence[str], width: int, fixed: FixedCharge | None = None) -> Block:
        block = Block("extra", self.n_extra, width)
        self.extras.append(Extra(tuple(keys), fixed, width))
        return block

    def _taken(self, taken: Taken) -> tuple[Block, ...]:
        """Return the columns that a module takes; none for an input of the structure."""
        if taken.kind == "features":
            return (Block("features", 0, self.n_features),)
        if taken.place is None:
            return ()
        return self.inputs[taken.place] if taken.kind == "x" else (self._outputs[taken.place],)

    def _of_readout(self, place: int, module: Readout) -> tuple[Block, ...]:
        taken = taken_by(self.sub, place)
        parts = [self._taken(t) for t in taken]
        rest = module.mlp.widths[0] - sum(block.width for part in parts for block in part)
        numbers = [k for k, part in enumerate(parts) if not part]
        if rest < len(numbers) or (rest and not numbers):
            got = f"{rest} for {len(numbers)} inputs beside what other modules give"
            raise SpecError("Readout.mlp.widths", "the width of what it takes", got)
        apart = bool(numbers) and numbers[-1] - numbers[0] >= len(numbers)
        if apart and rest != len(numbers):
            raise UnsupportedModelError(
                "a read-out with inputs of several numbers that do not stand together"
            )
        blocks: list[Block] = []
        for k, part in enumerate(parts):
            blocks += part
            if not part and apart:
                blocks.append(self._extra([taken[k].key], 1))
            elif not part and k == numbers[0]:  # inputs that stand together are one
                blocks.append(self._extra([taken[j].key for j in numbers], rest))
        return tuple(blocks)

    def _of_sum(self, place: int) -> tuple[Block, ...]:
        taken = taken_by(self.sub, place)
        parts = [self._taken(t) for t in taken]
        if any(len(part) > 1 or (part and part[0].kind == "features") for part in parts):
            raise UnsupportedModelError("a sum of features")
        widths = {part[0].width for part in parts if part}
        if len(widths) > 1:
            raise SpecError("Add.features", "values of one width", sorted(widths))
        width = widths.pop() if widths else 1
        return tuple(
            part[0] if part else self._extra([t.key], width)
            for t, part in zip(taken, parts, strict=True)
        )
