"""Files of state dicts: training checkpoints (``checkpoint.pt``), Lightning's ``.ckpt``.

They hold tensors by name and no architecture. Names and shapes tell part of it, the caller tells
the rest. Both together make the records that a whole-model file would have held, which are then
read and checked like any other model.

Source: specification of checkpoints, section 9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from torch import Tensor

from cace_fast.errors import CheckpointError, InputError
from cace_fast.spec import Activation

Weights = Literal["model", "ema", "swa"]
Node = dict[str, Any]  # names to nodes or tensors

_PLACES = {
    "model": "model_state_dict",
    "ema": "model_ema_state_dict",
    "swa": "model_swa_state_dict",
}
_WRAPPERS = ("model.", "module.", "_orig_mod.")


@dataclass(frozen=True)
class StateDictOptions:
    """Arguments that a file of state dicts does not hold (``docs/user/evaluate_and_convert.md``).

    Attributes
    ----------
    weights
        Which weights to take where a file has several: "model" (as trained last), "ema" or "swa"
        (averaged).
    mp_norm_factor
        Factor of the messages, 1/sqrt(average number of neighbours); for models with message
        passing.
    activation
        Activation of hidden layers; for models with hidden layers.
    max_nu
        Highest correlation order; only for a bare representation, elsewhere widths tell it.
    outputs
        For each sub-model its output modules in order, each a dictionary with "type" (upstream's
        class name) and upstream's attributes, e.g. ``[[{"type": "Atomwise", "output_key":
        "CACE_energy"}, {"type": "Forces", "energy_key": "CACE_energy", "forces_key":
        "CACE_forces"}]]``.
    potential_keys
        For combinations, upstream's list of dictionaries of names with an optional "weight".

    Raises
    ------
    InputError
        If ``weights`` or ``activation`` is not one of its choices.
    """

    weights: Weights | None = None
    mp_norm_factor: float | None = None
    activation: Activation | None = None
    max_nu: int | None = None
    outputs: Sequence[Sequence[Mapping[str, Any]]] | None = None
    potential_keys: Sequence[Mapping[str, Any]] | None = None

    def __post_init__(self) -> None:
        """Check the choices."""
        for name, choices in (("weights", Weights), ("activation", Activation)):
            value = getattr(self, name)
            if value is not None and value not in get_args(choices):
                raise InputError(name, f"one of {', '.join(get_args(choices))}", repr(value))

    def given(self) -> list[str]:
        """Return the names of the options that were given.

        See ``docs/user/evaluate_and_convert.md``.
        """
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]


class Missing:
    """Collects the arguments that turn out to be needed, so that all are named at once.

    See ``docs/user/evaluate_and_convert.md``.
    """

    def __init__(self) -> None:
        self.names: list[str] = []

    def need(self, name: str, value: Any, stand_in: Any) -> Any:
        """Return ``value``, or note its absence and go on with ``stand_in``.

        See ``docs/user/evaluate_and_convert.md``.
        """
        if value is None:
            if name not in self.names:
                self.names.append(name)
            return stand_in
        return value

    def complain(self) -> None:
        """Raise `InputError` that names all that was missing, if anything was.

        See ``docs/user/evaluate_and_convert.md``.
        """
        if self.names:
            raise InputError(
                ", ".join(self.names),
                "a value, because a file of state dicts does not hold it",
                "nothing",
                "The script that trained the model has these settings; or read the whole-model "
                "file (.pth) that training also wrote.",
            )


def select(
    root: Mapping[Any, Any], options: StateDictOptions, missing: Missing
) -> dict[str, Tensor]:
    """Return the state dict that was asked for, without the prefixes of wrappers.

    See ``docs/user/evaluate_and_convert.md``.

    Parameters
    ----------
    root
        The dictionary in the file.
    options
        Which weights to take.
    missing
        Notes that ``options.weights`` has to choose.

    Raises
    ------
    InputError
        ``options.weights`` names weights that the file does not have.
    CheckpointError
        The dictionary holds no state dict.
    """
    found: dict[str, Mapping[Any, Any]] = {
        name: root[key]
        for name, key in _PLACES.items()
        if isinstance(root.get(key), dict) and root[key]
    }
    if isinstance(root.get("state_dict"), dict):  # Lightning; it can be wrapped as a whole too
        inner = {_unwrapped(n): t for n, t in root["state_dict"].items() if isinstance(n, str)}
        found = {"model": {n: t for n, t in inner.items() if n.startswith("model.")}}
    elif not found and root and all(isinstance(value, Tensor) for value in root.values()):
        found = {"model": root}
    if not found:
        raise CheckpointError(
            "holds a dictionary without model_state_dict or state_dict, so no model"
        )
    if options.weights is not None and options.weights not in found:
        raise InputError("weights", f"one of {', '.join(found)}", repr(options.weights))
    if len(found) > 1 and options.weights is None:
        missing.need(f"weights (one of {', '.join(found)})", None, None)
    state = found[next(iter(found)) if options.weights is None else options.weights]
    if not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items()):
        raise CheckpointError("holds a state dict that is not a dictionary of named tensors")
    state = {name: value for name, value in state.items() if name != "n_averaged"}
    return _without_wrappers(state)


def _unwrapped(name: str) -> str:
    """Return a name without what compilers and parallel training put before all of them."""
    while name.startswith(_WRAPPERS[1:]):
        name = name.split(".", 1)[1]
    return name


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return names without what wrappers put before them: compiled, data-parallel, averaged."""
    while state:
        found = [p for p in _WRAPPERS if all(name.startswith(p) for name in state)]
        if not found:
            break
        state = {name.removeprefix(found[0]): value for name, value in state.items()}
    inner = {name.replace("._orig_mod.", "."): value for name, value in state.items()}
    return inner if len(inner) == len(state) else state  # parts can be compiled separately


def tree_of(state: Mapping[str, Tensor]) -> Node:
    """Return a state dict as nested dictionaries, split at the dots of its names.

    See ``docs/user/evaluate_and_convert.md``.

    Raises
    ------
    CheckpointError
        If two names exclude each other.
    """
    tree: Node = {}
    for name, value in state.items():
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise CheckpointError(f"the name {name[:80]!r} goes through a tensor")
        if last in node:
            raise CheckpointError(f"the name {name[:80]!r} stands for two things")
        node[last] = value
    return tree


def node_of(parent: Node, name: str) -> Node:
    """Return the node of a name; an empty one if there is none.

    See ``docs/user/evaluate_and_convert.md``.

    Raises
    ------
    CheckpointError
        If the name is that of a tensor.
    """
    found = parent.get(name, {})
    if not isinstance(found, dict):
        raise CheckpointError(f"{name!r} is a tensor where modules are expected")
    return found


def numbered(node: Node) -> list[str]:
    """Return the names 0, 1, ... of the members of a list (``docs/user/evaluate_and_convert.md``).

    Raises
    ------
    CheckpointError
        If the numbers have a gap or other names stand among them.
    """
    names = sorted((name for name in node if name.isdigit()), key=int)
    if names != [str(k) for k in range(len(names))] or len(names) != len(node):
        raise CheckpointError("a list of modules or weights has a gap")
    return names
