"""Records of a whole model, made from a state dict and the options of the caller.

The tensors tell sizes, sharing and which parts there are; the result is read and checked like any
other model.

Source: specification of checkpoints, section 9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cace_fast.checkpoint.records import Global, Record
from cace_fast.checkpoint.statedict import (
    Missing,
    Node,
    StateDictOptions,
    node_of,
    numbered,
    select,
    tree_of,
)
from cace_fast.errors import CheckpointError, InputError, UnsupportedModelError
from cace_fast.tables import MAX_ORDER, n_features

# Settings of an output module that no state dict holds; the others have defaults
_NEEDED = {
    "Atomwise": ("output_key",),
    "EwaldPotential": ("dl", "sigma", "remove_self_interaction", "feature_key", "output_key"),
    "FeatureAdd": ("feature_keys", "output_key"),
    "Forces": ("energy_key", "forces_key"),
    "Polarization": ("charge_key", "output_key"),
    "Grad": ("y_key", "x_key", "output_key"),
    "Dephase": ("input_key", "phase_key", "output_key"),
    "FixedCharge": ("charge_dict", "output_key"),
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "Atomwise": {"aggregation_mode": "sum"},
    "EwaldPotential": {"aggregation_mode": "sum", "norm_factor": 1.0},
}


def model_of_state_dict(root: Mapping[Any, Any], options: StateDictOptions) -> Record:
    """Return the record of the model that a file of state dicts describes.

    See ``docs/user/evaluate_and_convert.md``.

    Parameters
    ----------
    root
        The dictionary in the file.
    options
        What the file does not hold.

    Raises
    ------
    InputError
        Arguments are needed that were not given; all of them are named.
    CheckpointError
        The dictionary is no state dict of a CACE model.
    UnsupportedModelError
        The tensors belong to a part that is not provided.
    """
    missing = Missing()
    tree = tree_of(select(root, options, missing))
    if "models" in tree:
        members = [tree["models"][name] for name in numbered(tree["models"])]
        potentials = _potentials(members, options, missing)
        keys = missing.need("potential_keys", options.potential_keys, [])
        state = {
            "_modules": {"models": _list("ModuleList", potentials)},
            "potential_keys": [dict(entry) for entry in keys],
            "operation": None,
        }
        model = Record("cace.models.combined", "CombinePotential", (), state)
    elif "representation" in tree:
        (model,) = _potentials([tree], options, missing)
    elif "radial_transform" in tree:
        max_nu = missing.need("max_nu", options.max_nu, 1)
        model = _representation(tree, max_nu, (), options, missing)
    else:
        raise CheckpointError("holds state dicts, but not of a CACE model")
    missing.complain()
    return model


def _record(path: str, node: Node, modules: Node | None = None, **attributes: Any) -> Record:
    module, name = path.rsplit(".", 1)
    tensors = {key: value for key, value in node.items() if isinstance(value, Tensor)}
    state = {"_parameters": tensors, "_modules": modules or {}, **attributes}
    return Record(module, name, (), state)


def _list(kind: str, members: Sequence[Any]) -> Record:
    modules = {str(k): member for k, member in enumerate(members)}
    return _record(f"torch.nn.modules.container.{kind}", {}, modules)


def _parameters(node: Node) -> Record:
    numbered(node)
    return _record("torch.nn.modules.container.ParameterList", node)


def _potentials(nodes: Sequence[Node], options: StateDictOptions, missing: Missing) -> list[Record]:
    outputs = missing.need("outputs", options.outputs, [[] for _ in nodes])
    if options.outputs is None:  # their networks may need an activation
        for node in nodes:
            for module in node_of(node, "output_modules").values():
                if isinstance(module, dict) and "outnet" in module:
                    _sequential(node_of(module, "outnet"), options, missing)
    if len(outputs) != len(nodes):
        raise InputError("outputs", f"one list for each of {len(nodes)} sub-models", len(outputs))
    keys = list(dict.fromkeys(key for modules in outputs for key in _extra_features(modules)))
    potentials = []
    for s, (node, modules) in enumerate(zip(nodes, outputs, strict=True)):
        named = [
            _output(node, f"outputs[{s}][{m}]", m, entry, options, missing)
            for m, entry in enumerate(modules)
        ]
        extra = len(node_of(node, "output_modules").keys() - {str(m) for m in range(len(modules))})
        if extra and options.outputs is not None:
            raise InputError(f"outputs[{s}]", "all output modules that have weights", len(modules))
        representation = node_of(node, "representation")
        max_nu = _order(representation, node, modules)
        strain = any(entry.get("calc_stress") for entry in modules)
        preprocess = [_record("cace.modules.preprocess.Preprocess", {})] if strain else []
        parts = {
            "representation": _representation(representation, max_nu, keys, options, missing),
            "input_modules": _list("ModuleList", preprocess),
            "output_modules": _list("ModuleList", named),
        }
        written = [key for entry in modules for key in _written(entry)]
        potentials.append(
            _record(
                "cace.models.atomistic.NeuralNetworkPotential", {}, parts, model_outputs=written
            )
        )
    return potentials


def _representation(
    node: Node,
    max_nu: int,
    forward_features: Sequence[str],
    options: StateDictOptions,
    missing: Missing,
) -> Record:
    sender, receiver = (
        node_of(node, "node_embedding_sender"),
        node_of(node, "node_embedding_receiver"),
    )
    embedding = "cace.modules.type.NodeEmbedding"
    embeddings = [_record(embedding, sender), _record(embedding, receiver)]
    if _equal(sender.get("embedding_weights"), receiver.get("embedding_weights")):
        embeddings[1] = embeddings[0]
    steps_node = node_of(node, "message_passing_list")
    steps = [_step(steps_node[name], node, options, missing) for name in numbered(steps_node)]
    radial, cutoff = node_of(node, "radial_basis"), node_of(node, "cutoff_fn")
    mixing = node_of(node_of(node, "radial_transform"), "weights")
    parts = {
        "node_onehot": _record("cace.modules.type.NodeEncoder", node_of(node, "node_onehot")),
        "node_embedding_sender": embeddings[0],
        "node_embedding_receiver": embeddings[1],
        "radial_basis": _record(f"cace.modules.radial.{_radial_class(radial)}", radial),
        "cutoff_fn": _record(f"cace.modules.cutoff.{_cutoff_class(cutoff)}", cutoff),
        "radial_transform": _record(
            "cace.modules.radial_transform.SharedRadialLinearTransform",
            {},
            {"weights": _parameters(mixing)},
        ),
        "message_passing_list": _list("ModuleList", steps),
    }
    factor = missing.need("mp_norm_factor", options.mp_norm_factor, 1.0) if steps else 1.0
    return _record(
        "cace.representations.cace_representation.Cace",
        {},
        parts,
        cutoff=_length(cutoff),
        max_nu=max_nu,
        mp_norm_factor=factor,
        forward_features=list(forward_features),
    )


def _equal(one: Any, other: Any) -> bool:
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)


def _radial_class(node: Node) -> str:
    if "bessel_weights" in node:
        return "BesselRBF"
    if {"offsets", "widths"} <= node.keys():
        return "GaussianRBF"
    if "r0" in node:
        return "ExponentialDecayRBF"
    raise UnsupportedModelError(f"the radial basis has unknown tensors: {', '.join(node)}")


def _cutoff_class(node: Node) -> str:
    for name, kind in (
        ("p", "PolynomialCutoff"),
        ("eps", "MollifierCutoff"),
        ("switch_on", "SwitchFunction"),
        ("cutoff", "CosineCutoff"),
    ):
        if name in node:
            return kind
    raise UnsupportedModelError(f"the cutoff function has unknown tensors: {', '.join(node)}")


def _length(node: Node) -> float:
    """Return the cutoff radius: the shortest decimal of the stored float32, as it was typed."""
    stored = node.get("cutoff", node.get("switch_off"))
    if not isinstance(stored, Tensor) or stored.numel() != 1:
        raise CheckpointError("the cutoff function has no cutoff radius")
    return float(str(np.float32(stored.item())))


def _step(node: Node, representation: Node, options: StateDictOptions, missing: Missing) -> Record:
    slots: list[Record | None] = [None, None, None]
    memory, ar, bchi = (node_of(node, slot) for slot in "012")
    if memory:
        lists = {"memory_coef": _parameters(node_of(memory, "memory_coef"))}
        slots[0] = _record("cace.modules.interaction.NodeMemory", {}, lists)
    if ar:
        lists = {name: _parameters(node_of(ar, name)) for name in ("prefactor", "invr0")}
        slots[1] = _record("cace.modules.interaction.MessageAr", {}, lists)
    if bchi:
        hnet = node_of(bchi, "hnet")
        shared_l = "l_matrix" not in bchi
        nl = 1 if shared_l else len(node_of(node_of(representation, "radial_transform"), "weights"))
        nc = _width_out(hnet) // nl
        slots[2] = _record(
            "cace.modules.interaction.MessageBchi",
            bchi,
            {"hnet": _sequential(hnet, options, missing)},
            shared_l=shared_l,
            shared_channels=nc == 1,  # with a single channel the two are the same
            nl=nl,
            nc=nc,
        )
    return _list("ModuleList", slots)


def _layers(node: Node) -> list[Node]:
    layers = [node_of(node, name) for name in numbered(node)]
    if not layers or any("linear" not in layer for layer in layers):
        raise UnsupportedModelError(
            "a network is not a stack of dense layers; residual networks are read from whole-model "
            "files (.pth) only"
        )
    return layers


def _weight(layer: Node) -> Tensor:
    weight = node_of(layer, "linear").get("weight")
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise CheckpointError("a dense layer has no weight matrix")
    return weight


def _width_out(node: Node) -> int:
    return int(_weight(_layers(node)[-1]).shape[0])


def _width_in(node: Node) -> int:
    return int(_weight(_layers(node)[0]).shape[1])


def _sequential(node: Node, options: StateDictOptions, missing: Missing) -> Record:
    *hidden, last = _layers(node)
    members = [_dense(layer, options, missing) for layer in hidden] + [_dense(last, None, missing)]
    return _list("Sequential", members)


def _dense(node: Node, options: StateDictOptions | None, missing: Missing) -> Record:
    """Return a dense layer; without ``options`` one without activation."""
    parts = {"linear": _record("torch.nn.modules.linear.Linear", node_of(node, "linear"))}
    if "batchnorm" in node:
        norm = node_of(node, "batchnorm")
        parts["batchnorm"] = _record("torch.nn.modules.batchnorm.BatchNorm1d", norm, eps=1e-5)
    activation = None
    if options is not None:
        name = missing.need("activation", options.activation, "silu")
        home = "torch._C._nn" if name in ("gelu", "softplus") else "torch.nn.functional"
        activation = None if name == "identity" else Global(home, name)
    return _record("cace.modules.blocks.Dense", {}, parts, activation=activation)


def _output(
    node: Node,
    place: str,
    index: int,
    entry: Mapping[str, Any],
    options: StateDictOptions,
    missing: Missing,
) -> Record:
    kind = entry.get("type")
    if kind not in _NEEDED:
        raise InputError(f"{place}['type']", f"one of {', '.join(_NEEDED)}", repr(kind))
    for name in _NEEDED[kind]:
        missing.need(f"{place}[{name!r}]", entry.get(name), None)
    attributes = _DEFAULTS.get(kind, {}) | {k: v for k, v in entry.items() if k != "type"}
    own = node_of(node_of(node, "output_modules"), str(index))
    if kind != "Atomwise":
        if own:
            raise InputError(f"{place}['type']", "'Atomwise', because it has weights", repr(kind))
        return _record(f"cace.modules.{kind.lower()}.{kind}", {}, **attributes)
    if "outnet" not in own:
        raise InputError(f"{place}['type']", "a module without weights", repr(kind))
    parts = {"outnet": _sequential(node_of(own, "outnet"), options, missing)}
    if "linear_nn" in own:
        parts["linear_nn"] = _dense(node_of(own, "linear_nn"), None, missing)
    attributes["add_linear_nn"] = "linear_nn" in own
    return _record("cace.modules.atomwise.Atomwise", {}, parts, **attributes)


def _written(entry: Mapping[str, Any]) -> list[str]:
    """Return the keys that upstream would declare as outputs of a module."""
    names = ["output_key", "per_atom_output_key", "descriptor_output_key"]
    if entry.get("type") == "Forces":
        names = ["forces_key"] if entry.get("calc_forces", True) else []
        names += ["stress_key"] if entry.get("calc_stress") else []
        entry = {"stress_key": "stress", **entry}
    keys = [entry[name] for name in names if entry.get(name) is not None]
    return keys + [f"{entry.get('feature_key')}_field"] * bool(entry.get("compute_field"))


def _extra_features(modules: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys that read-outs take from the input, besides the features themselves."""
    known, extra = {"node_feats"}, []
    for entry in modules:
        keys = entry.get("feature_key") if entry.get("type") == "Atomwise" else None
        for key in [keys] if isinstance(keys, str) else keys or []:
            if key not in known and key not in extra:
                extra.append(key)
        known |= set(_written(entry))
    return extra


def _order(representation: Node, potential: Node, modules: Sequence[Mapping[str, Any]]) -> int:
    """Return the lowest correlation order whose number of invariants fits a network's width."""
    mixing = node_of(node_of(representation, "radial_transform"), "weights")
    first = mixing.get("0")
    if not isinstance(first, Tensor) or first.ndim != 3:
        raise CheckpointError("the representation has no radial weights")
    l_max, per_invariant = len(numbered(mixing)) - 1, first.shape[1] * first.shape[2]
    steps = node_of(representation, "message_passing_list")
    for step in (node_of(steps, name) for name in numbered(steps)):
        if node_of(step, "2"):
            n_in = _width_in(node_of(node_of(step, "2"), "hnet"))
            return _lowest_order(l_max, n_in / per_invariant, 0)
    outputs = node_of(potential, "output_modules")
    for name in outputs:
        output = node_of(outputs, name)
        if "outnet" in output:
            n_in = _width_in(node_of(output, "outnet"))
            per_feature = per_invariant * (len(steps) + 1)
            # only the name of an extra feature is known: it may be as wide as one invariant
            spare = per_feature - 1 if _extra_features(modules) else 0
            return _lowest_order(l_max, n_in / per_feature, spare / per_feature)
    raise CheckpointError("no network tells the correlation order")


def _lowest_order(l_max: int, n_invariants: float, spare: float) -> int:
    for order in range(1, MAX_ORDER + 1):
        if n_invariants - spare <= n_features(l_max, order) <= n_invariants:
            return order
    raise UnsupportedModelError(
        f"{n_invariants:g} invariants for max_l = {l_max} belong to no correlation order up to "
        f"{MAX_ORDER}"
    )
