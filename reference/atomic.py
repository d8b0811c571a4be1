"""What the modules of a sub-model give for each atom, each in its turn and once.

A read-out or an Ewald sum may take what an earlier module gave: outputs or inputs of a read-out,
fixed charges, sums of these, potentials of an Ewald sum (docs/theory.md, section 7).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cace_fast.errors import InputError
from cace_fast.graph import AtomicGraph
from cace_fast.reference.ewald import OWN_SPHERE, EwaldResult, Summation
from cace_fast.reference.long_range import ewald_of
from cace_fast.reference.readout import readout
from cace_fast.spec import (
    Add,
    Ewald,
    FixedCharge,
    ModelSpec,
    Readout,
    Representation,
    Taken,
    chain,
    taken_by,
)


class Values:
    """Values for each atom of the modules of one sub-model (``docs/theory.md``, section 7).

    Each module runs once, when its value is first asked for.

    Parameters
    ----------
    graph, feats, weights, spec
        The structures, their features [n, n_radial, n_B, C, T], and the model.
    submodel
        Its number.
    how
        How periodic systems are summed.
    """

    def __init__(
        self,
        graph: AtomicGraph,
        feats: Tensor,
        weights: Mapping[str, Tensor],
        spec: ModelSpec,
        submodel: int,
        how: Summation = OWN_SPHERE,
    ) -> None:
        self._graph, self._feats, self._weights, self._spec = graph, feats, weights, spec
        self._number, self._sub, self._how = submodel, spec.submodels[submodel], how
        self._outputs: dict[int, Tensor] = {}
        self._inputs: dict[int, Tensor] = {}
        self._sums: dict[int, EwaldResult] = {}

    def outputs(self, index: int) -> Tensor:
        """Return y [n, width] of a read-out, fixed charges, or a sum of such values (equation 24).

        Raises
        ------
        InputError
            If an input that the module takes is missing or has the wrong width, or an element has
            no fixed charge.
        """
        self._run(index)
        return self._outputs[index]

    def charges(self, index: int) -> Tensor:
        """Return the charges q [n, n_q] that an Ewald module takes, in internal units (section 9).

        Raises
        ------
        InputError
            As for :meth:`outputs`.
        """
        (taken,) = taken_by(self._sub, index)
        if taken.place is not None:
            self._run(taken.place)
        return columns_of(self._value(taken))

    def ewald(self, index: int) -> EwaldResult:
        """Return energies in eV and potentials [n, n_q] of an Ewald module, in float64 (section 9).

        Raises
        ------
        InputError
            As for :meth:`outputs` and :func:`cace_fast.reference.ewald.ewald`.
        """
        self._run(index)
        return self._sums[index]

    def _run(self, index: int) -> None:
        for number in chain(self._sub, [index]):
            if number not in self._outputs and number not in self._sums:
                self._apply(number)

    def _apply(self, index: int) -> None:
        module = self._sub.modules[index]
        if isinstance(module, FixedCharge):
            q = fixed_charges(module, self._spec.representation, self._graph.species)
            self._outputs[index] = q.to(self._feats)
        elif isinstance(module, Ewald):
            self._sums[index] = ewald_of(module, self.charges(index), self._graph, self._how)
        else:
            parts = [self._value(taken) for taken in taken_by(self._sub, index)]
            if isinstance(module, Readout):
                x = readout_input(module, parts)
                self._inputs[index] = x
                prefix = f"outputs.{self._number}.{index}"
                self._outputs[index] = readout(x, self._weights, module, prefix)
            else:
                assert isinstance(module, Add)
                self._outputs[index] = sum_of([columns_of(part) for part in parts])

    def _value(self, taken: Taken) -> Tensor:
        if taken.kind == "features":
            return self._feats
        if taken.kind == "input":
            return given_input(taken.key, self._graph.inputs).to(self._feats)
        assert taken.place is not None
        if taken.kind == "potential":
            return self._sums[taken.place].potential.to(self._feats)
        return (self._inputs if taken.kind == "x" else self._outputs)[taken.place]


def given_input(key: str, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the input [n, ...] called ``key`` of the structures.

    See ``docs/conventions.md``, "Graph".

    Raises
    ------
    InputError
        If the structures do not have it.
    """
    if key not in inputs:
        raise InputError(
            key,
            "a per-atom input that this model takes",
            "nothing",
            f"Set atoms.arrays[{key!r}] or atoms.info[{key!r}].",
        )
    return inputs[key]


def readout_input(module: Readout, parts: Sequence[Tensor]) -> Tensor:
    """Return the inputs x [n, n_in] of a read-out from the values [n, ...] that it takes.

    See ``docs/theory.md``, section 7.

    Raises
    ------
    InputError
        If they are more or fewer numbers than the read-out takes.
    """
    columns = [columns_of(part) for part in parts]
    x = torch.cat(columns, 1) if len(columns) > 1 else columns[0]
    check_width(module, x.shape[1])
    return x


def check_width(module: Readout, n_in: int) -> None:
    """Raise InputError unless a read-out takes ``n_in`` numbers per atom (section 7)."""
    if n_in != module.mlp.widths[0]:
        expected = f"{module.mlp.widths[0]} numbers per atom in {', '.join(module.features)}"
        raise InputError("inputs", expected, n_in)


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape, an ``Add`` module (section 7).

    Raises
    ------
    InputError
        If the shapes differ.
    """
    shapes = {tuple(p.shape) for p in parts}
    if len(shapes) > 1:
        raise InputError("outputs to add", "equal shapes", sorted(shapes))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def fixed_charges(module: FixedCharge, spec: Representation, species: Tensor) -> Tensor:
    """Return the charge of each atom's element [n, 1] float64, in internal units (section 7).

    Raises
    ------
    InputError
        If an atom's element has no fixed charge.
    """
    missing = set(spec.elements) - {z for z, _ in module.charges}
    values = torch.tensor(module.of_elements(spec.elements), dtype=torch.float64)
    used = {spec.elements[k] for k in species.unique().tolist()}
    if used & missing:
        raise InputError("numbers", "elements with a fixed charge", sorted(used & missing))
    return values.to(species.device)[species][:, None]


def columns_of(values: Tensor) -> Tensor:
    """Return values [n, ...] of atoms as [n, m], also where there are no atoms (section 7)."""
    return values.flatten(1) if values.dim() > 1 else values[:, None]
