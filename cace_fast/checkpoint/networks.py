"""Networks of linear layers: the MLP of read-outs and messages, with batch norm and residuals.

Source: specification of outputs, section 4; of checkpoints, section 6.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import cast, get_args

import torch
from torch import Tensor

from cace_fast.checkpoint.fields import attribute, flag, number
from cace_fast.checkpoint.limits import short
from cace_fast.checkpoint.records import Attribute, Global
from cace_fast.checkpoint.views import MISSING, ModuleView
from cace_fast.errors import CheckpointError, UnsupportedModelError
from cace_fast.spec import MLP, Activation

LINEAR = "torch.nn.modules.linear.Linear"
IDENTITY = "torch.nn.modules.linear.Identity"
SEQUENTIAL = "torch.nn.modules.container.Sequential"
BATCH_NORM = "torch.nn.modules.batchnorm.BatchNorm1d"
_DENSE = "cace.modules.blocks.Dense"
_BLOCKS = "cace.modules.blocks."
_MODULES = "torch.nn.modules.activation."

_FUNCTIONS = frozenset(get_args(Activation)) - {"identity"}
# Classes of torch.nn, and the settings with which they are the plain function
_CLASSES: dict[str, tuple[Activation, dict[str, object]]] = {
    "SiLU": ("silu", {}),
    "ReLU": ("relu", {}),
    "Tanh": ("tanh", {}),
    "Sigmoid": ("sigmoid", {}),
    "Mish": ("mish", {}),
    "ELU": ("elu", {"alpha": 1.0}),
    "GELU": ("gelu", {"approximate": "none"}),
    "Softplus": ("softplus", {"beta": 1.0, "threshold": 20.0}),
}
# Functions without settings: their names in the source text say everything
_IN_CODE = re.compile(r"\btorch\.(?:nn\.functional\.)?(silu|relu|tanh|sigmoid|mish)\(")


@dataclass(frozen=True, slots=True)
class Layer:
    """One linear layer with its tensors, and the activation that follows.

    See ``docs/theory.md``, eq. 22.

    ``tensors`` are ``weight`` [n_out, n_in], ``bias`` [n_out] and ``norm.*`` [n_out], the last two
    where the layer has them.
    """

    tensors: dict[str, Tensor]
    activation: Activation = "identity"

    @property
    def n_in(self) -> int:
        """Width of the input (equation 22)."""
        return int(self.tensors["weight"].shape[1])

    @property
    def n_out(self) -> int:
        """Width of the output (equation 22)."""
        return int(self.tensors["weight"].shape[0])

    @property
    def normed(self) -> bool:
        """Whether a batch norm follows (equation 23)."""
        return "norm.mean" in self.tensors


@dataclass(slots=True)
class Network:
    """Layers of an MLP; ``skips`` has an entry for every residual block.

    See ``docs/theory.md``, eq. 23.
    """

    layers: list[Layer] = field(default_factory=list)
    skips: list[Layer | None] = field(default_factory=list)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return all tensors under their names in `weights` (``docs/conventions.md``)."""
        parts = [(f"layers.{k}", layer) for k, layer in enumerate(self.layers)]
        parts += [(f"skips.{k}", skip) for k, skip in enumerate(self.skips) if skip is not None]
        return {
            f"{prefix}.{part}.{name}": tensor
            for part, layer in parts
            for name, tensor in layer.tensors.items()
        }

    def spec(self, where: object) -> MLP:
        """Return the network as data (``docs/theory.md``, section 7); ``where`` names it in errors.

        Raises
        ------
        UnsupportedModelError
            If its layers differ in activation, batch norm or bias, or something follows
            the last one.
        """
        *hidden, last = self.layers
        activations = {layer.activation for layer in hidden}
        if last.activation != "identity" or last.normed:
            raise UnsupportedModelError(f"{where}: the last layer is followed by something")
        if len(activations) > 1:
            raise UnsupportedModelError(
                f"{where}: several activations in one network ({', '.join(sorted(activations))})"
            )
        inner = hidden + [skip for skip in self.skips if skip is not None]
        if len({layer.normed for layer in inner}) > 1:
            raise UnsupportedModelError(f"{where}: batch norm in some layers only")
        # residual blocks always have biases; the setting removes that of the last layer
        plain = [last] if self.skips else [*hidden, last]
        blocks = inner if self.skips else []
        if len({"bias" in layer.tensors for layer in plain}) > 1 or not all(
            "bias" in layer.tensors for layer in blocks
        ):
            raise UnsupportedModelError(f"{where}: bias in some layers only")
        widths = (self.layers[0].n_in, *(layer.n_out for layer in self.layers))
        return MLP(
            widths,
            bias="bias" in last.tensors,
            activation=activations.pop() if activations else "silu",  # unused by a single layer
            residual=bool(self.skips),
            batch_norm=any(layer.normed for layer in hidden),
        )


def read_network(view: ModuleView) -> Network:
    """Read a stack of dense layers, or of residual blocks and a last layer (``docs/theory.md``, 7).

    Raises
    ------
    CheckpointError
        If a part is missing or malformed.
    UnsupportedModelError
        If a layer, an activation or a setting is not provided.
    """
    if view.path != SEQUENTIAL:
        raise UnsupportedModelError(f"{view}: is not a stack of layers")
    parts = _members(view)
    if not parts:
        raise CheckpointError(f"{view}: has no layers")
    network = Network()
    for part in parts:
        if part.path in (_DENSE, LINEAR):
            network.layers.append(read_dense(part))
        else:
            first, second, skip = _read_block(part)
            network.layers += [first, second]
            network.skips.append(skip)
    if network.skips and len(network.layers) != 2 * len(network.skips) + 1:
        raise UnsupportedModelError(f"{view}: residual blocks and plain layers are mixed")
    return network


def read_dense(view: ModuleView) -> Layer:
    """Read one dense layer (``docs/theory.md``, equation 22).

    Raises
    ------
    CheckpointError
        If a part is missing or malformed.
    UnsupportedModelError
        If the layer or its activation is not provided.
    """
    if view.path == LINEAR:
        return Layer(_linear(view))
    if view.path != _DENSE:
        raise UnsupportedModelError(f"{view}: is not a dense layer")
    linear = view.need("linear")
    if linear.path != LINEAR:
        raise UnsupportedModelError(f"{linear}: is not a linear layer")
    norms = [part for part in _members(view) if part.path == BATCH_NORM]
    tensors = _linear(linear) | (_norm(norms[0]) if norms else {})
    return Layer(tensors, _activation(view))


def _members(view: ModuleView) -> list[ModuleView]:
    return [part for part in view.children() if part is not None]


def _linear(view: ModuleView) -> dict[str, Tensor]:
    weight = view.tensor("weight")
    if weight.ndim != 2:
        raise CheckpointError(f"{view}: weight has {weight.ndim} dimensions instead of 2")
    bias = {"bias": view.tensor("bias")} if view.has_tensor("bias") else {}
    return {"weight": weight, **bias}


def _norm(view: ModuleView) -> dict[str, Tensor]:
    if flag(view, "training", False):
        raise UnsupportedModelError(
            f"{view}: the model was saved in training mode, where its batch norm takes the "
            "statistics of the atoms that are evaluated together, so that an energy depends on "
            "them; call model.eval() and save it again"
        )
    if number(view, "eps") != 1e-5:
        raise UnsupportedModelError(f"{view}: batch norm with eps other than 1e-5")
    tensors = {"mean": view.tensor("running_mean"), "variance": view.tensor("running_var")}
    if view.has_tensor("weight"):
        tensors |= {"weight": view.tensor("weight"), "bias": view.tensor("bias")}
    else:  # affine=False
        mean = tensors["mean"]
        tensors |= {"weight": torch.ones_like(mean), "bias": torch.zeros_like(mean)}
    return {f"norm.{name}": tensor for name, tensor in tensors.items()}


def _activation(view: ModuleView) -> Activation:
    child = view.child("activation")
    if child is not None:
        return _activation_of_class(child)
    value = view.raw("activation")
    code = view.code()
    if value is MISSING and code is not None:
        found = set(_IN_CODE.findall(code))
        if len(found) == 1:
            return cast(Activation, found.pop())
        raise UnsupportedModelError(
            f"{view}: its source text does not name one activation but {sorted(found) or 'none'}"
        )
    match attribute(view, "activation"):
        case None:
            return "identity"
        case Global("torch.nn.functional" | "torch._C._nn", name) if name in _FUNCTIONS:
            return cast(Activation, name)
        case Attribute(Global("torch._C", "_VariableFunctionsClass"), name) if name in _FUNCTIONS:
            return cast(Activation, name)
        case Global() as other:
            found_name = other.path
        case Attribute() as other:
            found_name = other.name
        case other:
            found_name = short(other)
    raise UnsupportedModelError(
        f"{view}: activation {found_name} is not provided; "
        f"known are {', '.join(sorted(_FUNCTIONS))}"
    )


def _activation_of_class(view: ModuleView) -> Activation:
    if view.path == IDENTITY:
        return "identity"
    known = _CLASSES.get(view.name) if view.path == _MODULES + view.name else None
    if known is None:
        raise UnsupportedModelError(
            f"{view}: is not an activation that is provided; known are {', '.join(_CLASSES)}"
        )
    name, settings = known
    for setting, expected in settings.items():
        if attribute(view, setting) != expected:
            raise UnsupportedModelError(f"{view}: {setting} is not {expected}")
    return name


def _read_block(view: ModuleView) -> tuple[Layer, Layer, Layer | None]:
    """Read one residual block by its structure; no published file shows its attribute names.

    Two dense layers with activations are the block, in order, each followed by a batch norm if
    there is one; a linear layer without activation is what the input takes to the output.
    """
    if not view.path.startswith(_BLOCKS):
        raise UnsupportedModelError(f"{view}: is not a layer that is provided")
    main: list[Layer] = []
    skips: list[Layer] = []
    parts = _flattened(view)
    for part, follower in zip(parts, [*parts[1:], None], strict=True):
        if part.path not in (_DENSE, LINEAR):
            if part.path not in (IDENTITY, BATCH_NORM):
                raise UnsupportedModelError(f"{part}: is not a layer that is provided")
            continue
        layer = read_dense(part)
        if follower is not None and follower.path == BATCH_NORM:
            layer = Layer(layer.tensors | _norm(follower), layer.activation)
        (skips if layer.activation == "identity" else main).append(layer)
    if len(main) != 2 or len(skips) > 1:
        raise UnsupportedModelError(
            f"{view}: {len(main)} layers and {len(skips)} skips instead of 2 and at most 1"
        )
    if not skips and main[0].n_in != main[1].n_out:
        raise UnsupportedModelError(f"{view}: changes the width but has no layer to skip with")
    return main[0], main[1], skips[0] if skips else None


def _flattened(view: ModuleView) -> list[ModuleView]:
    found: list[ModuleView] = []
    for part in _members(view):
        if part.path in (SEQUENTIAL, "torch.nn.modules.container.ModuleList"):
            found += _members(part)
        else:
            found.append(part)
    return found
