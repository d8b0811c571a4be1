"""Whole upstream models as specification and tensors.

Source: specification of checkpoints, sections 4 to 8 and 12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cace_fast.checkpoint import descriptor
from cace_fast.checkpoint.fields import attribute, flag, texts, wrong
from cace_fast.checkpoint.limits import short
from cace_fast.checkpoint.outputs import read_output
from cace_fast.checkpoint.records import Attribute, Global
from cace_fast.checkpoint.views import ModuleView
from cace_fast.errors import CheckpointError, InputError, SpecError, UnsupportedModelError
from cace_fast.spec import Combination, ModelSpec, OutputModule, Representation, SubModel
from cace_fast.weights import Weights

POTENTIAL = "cace.models.atomistic.NeuralNetworkPotential"
COMBINATION = "cace.models.combined.CombinePotential"
_DEFAULT_OPERATION = "default_operation"
_MOST_MODELS = 100


def read_model(view: ModuleView) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Read a potential, a combination of potentials, or a bare representation.

    ``docs/developer/file_reader.md`` describes the reader.

    Parameters
    ----------
    view
        The top module.

    Returns
    -------
    ModelSpec, dict
        The specification, and the tensors by the names of `weights.expected_shapes`.

    Raises
    ------
    CheckpointError
        A part is missing, out of range, or contradicts another.
    UnsupportedModelError
        The model is of a kind, or has a part, that cace-fast does not provide.
    """
    _refuse_changes(view)
    try:
        spec, tensors = _read_any(view)
        return spec, dict(Weights(spec, tensors))
    except (SpecError, InputError) as error:
        raise CheckpointError(f"{view}: {error}") from None


def _refuse_changes(view: ModuleView) -> None:
    """Refuse hooks and replaced methods anywhere: upstream would run them, cace-fast does not."""
    seen, todo = {view.key}, [view]
    while todo:
        module = todo.pop()
        if found := module.changes():
            raise UnsupportedModelError(
                f"{module}: {', '.join(found)[:200]} would change what upstream computes; remove "
                "hooks and replaced methods, and save the model again"
            )
        for part in module.children():
            # a shared module is visited once; scripted modules, which only tensors identify, always
            if part is not None and not (type(part.key) is int and part.key in seen):
                seen.add(part.key)
                todo.append(part)


def _read_any(view: ModuleView) -> tuple[ModelSpec, dict[str, Tensor]]:
    if view.path == descriptor.CLASS:
        representation, tensors = descriptor.read_representation(view)
        return ModelSpec(representation), tensors
    if view.path == POTENTIAL:
        representation, tensors, parts = _read_potentials([view])
        return ModelSpec(representation, parts), tensors
    if view.path == COMBINATION:
        models = view.need("models").children()
        if not 1 <= len(models) <= _MOST_MODELS or any(model is None for model in models):
            raise CheckpointError(f"{view}: has no sub-models, too many, or an empty place")
        present = [model for model in models if model is not None]
        combination = _combination(view, len(present))
        representation, tensors, parts = _read_potentials(present)
        return ModelSpec(representation, parts, combination), tensors
    raise UnsupportedModelError(
        f"{view}: is not a model that cace-fast reads; known are NeuralNetworkPotential, "
        "CombinePotential and Cace"
    )


@dataclass(frozen=True)
class _Shared:
    """The representation that was read first, which all sub-models have to share."""

    key: Any
    spec: Representation
    tensors: dict[str, Tensor]


def _read_potentials(
    views: list[ModuleView],
) -> tuple[Representation, dict[str, Tensor], tuple[SubModel, ...]]:
    shared: _Shared | None = None
    outputs: dict[str, Tensor] = {}
    parts: list[SubModel] = []
    for s, view in enumerate(views):
        if view.path != POTENTIAL:
            raise UnsupportedModelError(f"{view}: is not a NeuralNetworkPotential")
        shared = _same_representation(view.need("representation"), shared)
        part, tensors = _submodel(view, f"outputs.{s}")
        parts.append(part)
        outputs |= tensors
    if shared is None:
        raise AssertionError("the caller passes at least one potential")
    return shared.spec, shared.tensors | outputs, tuple(parts)


def _same_representation(view: ModuleView, first: _Shared | None) -> _Shared:
    """Return the representation, which in a combination has to be one and the same."""
    if first is not None and view.key == first.key:
        return first
    spec, tensors = descriptor.read_representation(view)
    if first is None:
        return _Shared(view.key, spec, tensors)
    equal = spec == first.spec and all(
        torch.equal(tensor, first.tensors[name]) for name, tensor in tensors.items()
    )
    if not equal:
        raise UnsupportedModelError(
            f"{view}: differs from the first sub-model's; combinations with several "
            "representations are not provided"
        )
    return first


def _submodel(view: ModuleView, prefix: str) -> tuple[SubModel, dict[str, Tensor]]:
    strain = False
    for module in view.need("input_modules").children():
        if module is None or module.path != "cace.modules.preprocess.Preprocess":
            raise UnsupportedModelError(f"{module or view}: this input module is not provided")
        strain = True
    if flag(view, "do_postprocessing", False):
        raise UnsupportedModelError(f"{view}: postprocessors are not provided")
    modules: list[OutputModule] = []
    tensors: dict[str, Tensor] = {}
    for m, module in enumerate(view.need("output_modules").children()):
        if module is None:
            raise CheckpointError(f"{view}: output module {m} is empty")
        spec, found = read_output(module, f"{prefix}.{m}")
        modules.append(spec)
        tensors |= found
    # upstream makes the list from a set: its order differs from file to file
    outputs = tuple(sorted(texts(view, "model_outputs", [])))
    return SubModel(tuple(modules), strain, outputs), tensors


def _combination(view: ModuleView, n_models: int) -> Combination:
    _require_sum(view)
    listed = attribute(view, "potential_keys")
    if not isinstance(listed, list | tuple) or len(listed) != n_models:
        raise wrong(view, "potential_keys", f"a list of {n_models} dictionaries", listed)
    keys, weights = [], []
    for entry in listed:
        if not isinstance(entry, dict) or len(entry) > _MOST_MODELS:
            raise wrong(view, "potential_keys", "a list of dictionaries of names", listed)
        pairs = [(name, own) for name, own in entry.items() if name != "weight"]
        if not all(type(name) is str and type(own) is str for name, own in pairs):
            raise wrong(view, "potential_keys", "a list of dictionaries of names", listed)
        keys.append(tuple(pairs))
        weights.append(_weight(view, entry.get("weight", 1)))
        if len({own for _, own in pairs}) < len(pairs) and weights[-1] != 1.0:
            raise UnsupportedModelError(
                f"{view}: two common names stand for one key of a sub-model with a weight, which "
                "upstream applies twice"
            )
    common = tuple(name for name, _ in keys[0] if all(name in dict(pairs) for pairs in keys))
    named = texts(view, "out_keys", list(common))
    if set(named) != set(common):
        raise CheckpointError(f"{view}: out_keys are not the names that all sub-models share")
    return Combination(common, tuple(keys), tuple(weights))


def _weight(view: ModuleView, value: Any) -> float:
    """Return a weight; one file of the survey and all TorchScript archives hold it as text."""
    if type(value) in (int, float) or (type(value) is str and len(value) < 100):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    raise wrong(view, "potential_keys", "a number as 'weight'", value)


def _require_sum(view: ModuleView) -> None:
    operation = attribute(view, "operation", None)
    match operation:
        case None:  # the default; TorchScript archives hold it as code
            return
        case Attribute(Global(module, name), called) if (
            f"{module}.{name}" == COMBINATION and called == _DEFAULT_OPERATION
        ):
            return
        case Global("cace.models.combined", name) if name == _DEFAULT_OPERATION:
            return
        case Global() as other:
            found = other.path
        case Attribute() as other:
            found = f"{other.owner.path}.{other.name}"
        case other:
            found = short(other)
    raise UnsupportedModelError(
        f"{view}: sub-models are combined by {found}; only their weighted sum is provided"
    )
