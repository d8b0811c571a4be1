"""What modules take of each other for each atom: which key means which module's value."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from cace_fast.errors import UnsupportedModelError

from .model import SubModel
from .outputs import Add, Ewald, FixedCharge, OutputModule, Polarization, Readout

FEATURES = "node_feats"


class Taken(NamedTuple):
    """A per-atom value that a module takes (``docs/theory.md``, section 7).

    ``place`` is that of the module that gives it, None for features and inputs. ``kind`` says what
    it is: the features, an input of the structure, or a value of another module: its result
    (``y``: outputs of a read-out, a sum, fixed charges), the inputs x of a read-out, or the
    potential of an Ewald sum.
    """

    key: str
    place: int | None
    kind: Literal["features", "input", "y", "x", "potential"]


def taken_by(sub: SubModel, index: int) -> tuple[Taken, ...]:
    """Return what a module takes for each atom, in the order of its keys (section 7).

    Raises
    ------
    UnsupportedModelError
        If a key was written by a module whose value is not one for each atom.
    """
    module = sub.modules[index]
    return tuple(_taken(sub, index, key) for key in _keys(module))


def chain(sub: SubModel, indices: Iterable[int]) -> tuple[int, ...]:
    """Return the given modules and all that they depend on, in the order to run them (section 7).

    Raises
    ------
    UnsupportedModelError
        As for :func:`taken_by`.
    """
    wanted = set(indices)
    for index in range(max(wanted, default=-1), -1, -1):  # values come from earlier modules only
        if index in wanted:
            wanted |= {t.place for t in taken_by(sub, index) if t.place is not None}
    return tuple(sorted(wanted))


def n_charges(sub: SubModel, index: int) -> int | None:
    """Return n_q, the charges per atom of an Ewald module; None if an input decides (section 9).

    Raises
    ------
    UnsupportedModelError
        As for :func:`taken_by`.
    """
    return width_of(sub, taken_by(sub, index)[0])


def width_of(sub: SubModel, taken: Taken, n_features: int | None = None) -> int | None:
    """Return the width of a per-atom value; None if an input decides (section 7).

    Raises
    ------
    UnsupportedModelError
        As for :func:`taken_by`.
    """
    if taken.kind == "features":
        return n_features
    while taken.place is not None:
        module = sub.modules[taken.place]
        if isinstance(module, Readout):
            return module.n_out if taken.kind == "y" else module.mlp.widths[0]
        if isinstance(module, FixedCharge):
            return 1
        parts = taken_by(sub, taken.place)  # all summands have one width
        taken = next((part for part in parts if part.place is not None), parts[0])
    return None


def _keys(module: OutputModule) -> tuple[str, ...]:
    if isinstance(module, Readout | Add):
        return module.features
    if isinstance(module, Ewald):
        return (module.feature_key,)
    return (module.charge_key,) if isinstance(module, Polarization) else ()


def _taken(sub: SubModel, index: int, key: str) -> Taken:
    if key == FEATURES:
        return Taken(key, None, "features")
    place = sub.producer(key, index)
    if place is None:
        return Taken(key, None, "input")
    module = sub.modules[place]
    if isinstance(module, Readout):
        if key == module.descriptor_key:
            return Taken(key, place, "x")
        if key == module.per_atom_key or module.aggregation is None:
            return Taken(key, place, "y")
    elif isinstance(module, Ewald) and key != module.output_key:
        return Taken(key, place, "potential")
    elif isinstance(module, FixedCharge | Add):
        return Taken(key, place, "y")
    raise UnsupportedModelError(
        f"output module {index} takes {key!r} for each atom, which output module {place} "
        f"({type(module).__name__}) gives for each structure"
    )
