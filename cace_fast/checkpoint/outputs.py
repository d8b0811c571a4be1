"""The output modules of an upstream model as data and named tensors.

Source: specification of checkpoints, section 6; of outputs, sections 3 to 8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from cace_fast.checkpoint.fields import (
    attribute,
    flag,
    integer,
    number,
    optional_text,
    text,
    texts,
    wrong,
)
from cace_fast.checkpoint.networks import Layer, Network, read_dense, read_network
from cace_fast.checkpoint.views import ModuleView
from cace_fast.errors import CheckpointError, UnsupportedModelError
from cace_fast.spec import (
    Add,
    Dephase,
    Ewald,
    FixedCharge,
    Forces,
    Grad,
    OutputModule,
    Polarization,
    Readout,
)
from cace_fast.spec.units import FIXED_CHARGE_UNIT

Tensors = dict[str, Tensor]


def read_output(view: ModuleView, prefix: str) -> tuple[OutputModule, Tensors]:
    """Read one output module (``docs/theory.md``, sections 7 to 10).

    Parameters
    ----------
    view
        The module.
    prefix
        Start of the names of its tensors, e.g. ``outputs.0.1``.

    Returns
    -------
    OutputModule, dict
        Its specification, and its tensors by the names of `weights.expected_shapes`.

    Raises
    ------
    CheckpointError
        A part is missing or contradicts another.
    UnsupportedModelError
        The module, or a setting of it, is not provided.
    """
    if view.path == f"cace.modules.atomwise.{view.name}" and view.name == "Atomwise":
        return _atomwise(view, prefix)
    plain = _PLAIN.get(view.name) if view.path.startswith("cace.modules.") else None
    if plain is None:
        known = ", ".join(("Atomwise", *_PLAIN))
        raise UnsupportedModelError(
            f"{view}: this output module is not provided; known are {known}"
        )
    return plain(view), {}


def _atomwise(view: ModuleView, prefix: str) -> tuple[Readout, Tensors]:
    if attribute(view, "post_process", None) is not None:
        raise UnsupportedModelError(f"{view}: post_process is a user's function; not provided")
    aggregation = attribute(view, "aggregation_mode")
    if aggregation not in ("sum", "avg", None):
        raise wrong(view, "aggregation_mode", "'sum', 'avg' or None", aggregation)
    outnet = view.child("outnet")
    linear = view.child("linear_nn") if flag(view, "add_linear_nn") else None
    if outnet is None or (linear is None and flag(view, "add_linear_nn")):
        raise UnsupportedModelError(
            f"{view}: its networks were never built; run the model once and save it again"
        )
    network = read_network(outnet)
    mlp = network.spec(outnet)
    tensors = network.tensors(prefix)
    if linear is not None:
        layer = _linear_part(linear, network)
        if mlp.n_layers == 1 and layer.normed:  # then only the linear part shows it
            mlp = replace(mlp, batch_norm=True)
        tensors |= {f"{prefix}.linear.{name}": tensor for name, tensor in layer.tensors.items()}
    for name, found in (("residual", mlp.residual), ("use_batchnorm", mlp.batch_norm)):
        if flag(view, name, found) != found and mlp.n_layers > 1:
            raise CheckpointError(f"{view}: {name} contradicts the layers it has")
    readout = Readout(
        output_key=text(view, "output_key"),
        mlp=mlp,
        linear=linear is not None,
        features=texts(view, "feature_key", "node_feats"),
        per_atom_key=optional_text(view, "per_atom_output_key"),
        descriptor_key=optional_text(view, "descriptor_output_key"),
        aggregation=aggregation,
    )
    return readout, tensors


def _linear_part(view: ModuleView, network: Network) -> Layer:
    layer = read_dense(view)
    if layer.activation != "identity":
        raise UnsupportedModelError(f"{view}: the linear part has an activation")
    first, last = network.layers[0], network.layers[-1]
    if (layer.n_in, layer.n_out) != (first.n_in, last.n_out):
        raise CheckpointError(f"{view}: the linear part does not have the widths of the network")
    return layer


def _ewald(view: ModuleView) -> Ewald:
    exponent = integer(view, "exponent", 1)
    if exponent not in (1, 6):
        raise UnsupportedModelError(f"{view}: exponent {exponent}; provided are 1 and 6")
    penalty = attribute(view, "charge_neutral_lambda", None)
    return Ewald(
        feature_key=text(view, "feature_key"),
        output_key=text(view, "output_key"),
        dl=number(view, "dl"),
        sigma=number(view, "sigma"),
        exponent=exponent,
        remove_self_interaction=flag(view, "remove_self_interaction"),
        norm_factor=number(view, "norm_factor"),
        aggregation="sum" if attribute(view, "aggregation_mode") == "sum" else None,
        compute_field=flag(view, "compute_field", False),
        external_field=_number_or_key(view, "external_field"),
        external_field_direction=_direction(view),
        charge_neutral_lambda=None if penalty is None else number(view, "charge_neutral_lambda"),
    )


def _number_or_key(view: ModuleView, name: str) -> float | str | None:
    value = attribute(view, name, None)
    if value is None or (isinstance(value, str) and value):
        return value
    return number(view, name)


def _direction(view: ModuleView) -> int | str | None:
    name = "external_field_direction"
    value = attribute(view, name, None)
    if value is None or (isinstance(value, str) and value):
        return value
    direction = integer(view, name)
    if direction not in (0, 1, 2):
        raise wrong(view, name, "0, 1, 2 or a key", direction)
    return direction


def _add(view: ModuleView) -> Add:
    return Add(texts(view, "feature_keys"), text(view, "output_key"))


def _forces(view: ModuleView) -> Forces:
    return Forces(
        energy_key=text(view, "energy_key"),
        forces_key=text(view, "forces_key"),
        stress_key=text(view, "stress_key", "stress"),
        virial_key=text(view, "virial_key", "virials"),
        calc_forces=flag(view, "calc_forces", True),
        calc_stress=flag(view, "calc_stress", False),
    )


def _polarization(view: ModuleView) -> Polarization:
    index = attribute(view, "output_index", None)
    return Polarization(
        charge_key=text(view, "charge_key"),
        output_key=text(view, "output_key"),
        phase_key=optional_text(view, "phase_key"),
        remove_mean=flag(view, "remove_mean", True),
        pbc=flag(view, "pbc", False),
        normalization_factor=number(view, "normalization_factor", 1.0 / FIXED_CHARGE_UNIT),
        output_index=None if index is None else integer(view, "output_index"),
    )


def _grad(view: ModuleView) -> Grad:
    if text(view, "x_key") != "positions":
        raise UnsupportedModelError(f"{view}: gradients by {view.raw('x_key')!r} are not provided")
    return Grad(text(view, "y_key"), text(view, "x_key"), text(view, "output_key"))


def _dephase(view: ModuleView) -> Dephase:
    return Dephase(text(view, "input_key"), text(view, "phase_key"), text(view, "output_key"))


def _fixed_charge(view: ModuleView) -> FixedCharge:
    table: Any = attribute(view, "charge_dict")
    if (
        not isinstance(table, dict)
        or len(table) > 1000
        or not all(type(z) is int for z in table)
        or not all(type(q) in (int, float) and abs(q) < 1e300 for q in table.values())
    ):
        raise wrong(view, "charge_dict", "a charge for each atomic number", table)
    charges = tuple(sorted((z, float(q)) for z, q in table.items()))
    return FixedCharge(text(view, "output_key"), charges, flag(view, "normalize", True))


_PLAIN: dict[str, Callable[[ModuleView], OutputModule]] = {
    "EwaldPotential": _ewald,
    "FeatureAdd": _add,
    "Forces": _forces,
    "Polarization": _polarization,
    "Grad": _grad,
    "Dephase": _dephase,
    "FixedCharge": _fixed_charge,
}
