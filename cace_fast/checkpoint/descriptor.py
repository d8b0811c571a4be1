"""The representation of an upstream model as data and named tensors.

Source: specification of checkpoints, sections 6 to 8; of the model, sections 2 to 7.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cace_fast.checkpoint.fields import flag, integer, number, optional_text, texts
from cace_fast.checkpoint.networks import read_network
from cace_fast.checkpoint.views import MISSING, ModuleView
from cace_fast.errors import CheckpointError, UnsupportedModelError
from cace_fast.spec import Bchi, CutoffFunction, MessageStep, RadialBasis, Representation
from cace_fast.tables import MAX_DEGREE, MAX_ORDER

CLASS = "cace.representations.cace_representation.Cace"

# kind, distinctive part of the class name, tensors that become weights (upstream's name: ours),
# tensors that become numbers
_RADIAL = (
    ("bessel", "Bessel", {"bessel_weights": "frequencies"}, ("prefactor",)),
    ("gaussian", "Gaussian", {"offsets": "offsets", "widths": "widths"}, ()),
    ("exponential", "Exponential", {"r0": "ranges"}, ("prefactor",)),
)
# kind, distinctive part of the class name, tensors (upstream's name: field of CutoffFunction)
_CUTOFF = (
    ("polynomial", "Polynomial", {"p": "p", "cutoff": "cutoff"}),
    ("cosine", "Cosine", {"cutoff": "cutoff"}),
    ("mollifier", "Mollifier", {"cutoff": "cutoff", "eps": "eps"}),
    ("switch", "Switch", {"switch_on": "switch_on", "switch_off": "cutoff"}),
)


def read_representation(view: ModuleView) -> tuple[Representation, dict[str, Tensor]]:
    """Read a representation.

    See ``docs/theory.md``, sections 1 to 6; ``docs/developer/file_reader.md``.

    Returns
    -------
    Representation, dict
        The specification and the tensors under the names of `weights.expected_shapes`.

    Raises
    ------
    CheckpointError
        A part is missing or contradicts another.
    UnsupportedModelError
        A part is of a kind that cace-fast does not provide.
    """
    _refuse_variants(view)
    elements = _elements(view)
    tensors, shared = _embeddings(view, len(elements))
    radial, radial_tensors = _radial(view.need("radial_basis"))
    mixing = _mixing(view, tensors["embedding.sender"].shape[1] ** 2, radial.n_rbf)
    l_max = len(mixing) - 1
    n_radial = mixing["mixing.0"].shape[1]
    nu_max = integer(view, "max_nu")
    _check_orders(view, l_max, nu_max)
    tensors |= radial_tensors | mixing
    steps = []
    for t, step_view in enumerate(_steps(view)):
        step, step_tensors = _step(step_view, f"messages.{t}")
        steps.append(step)
        tensors |= step_tensors
    spec = Representation(
        elements=elements,
        n_embedding=int(tensors["embedding.sender"].shape[1]),
        shared_embedding=shared,
        cutoff=number(view, "cutoff"),
        radial=radial,
        cutoff_function=_cutoff(view.need("cutoff_fn")),
        n_radial=int(n_radial),
        l_max=l_max,
        nu_max=nu_max,
        steps=tuple(steps),
        mp_norm_factor=number(view, "mp_norm_factor"),
        forward_features=texts(view, "forward_features", []),
    )
    return spec, tensors


def _refuse_variants(view: ModuleView) -> None:
    if view.path != CLASS:
        raise UnsupportedModelError(f"{view}: is not the representation that cace-fast provides")
    if optional_text(view, "charge_spin_key") is not None:
        raise UnsupportedModelError(f"{view}: charge_spin_key is not provided")
    expected = {
        "node_onehot": "cace.modules.type.NodeEncoder",
        "edge_coding": "cace.modules.type.EdgeEncoder",
        "angular_basis": "cace.modules.angular.AngularComponent",
        "radial_transform": "cace.modules.radial_transform.SharedRadialLinearTransform",
    }
    for name, path in expected.items():
        part = view.child(name)
        if part is not None and part.path != path:
            raise UnsupportedModelError(f"{part}: is not provided; only {path} is")
    edges = view.child("edge_coding")
    if edges is not None and not flag(edges, "directed", True):
        raise UnsupportedModelError(f"{edges}: undirected edges are not provided")


def _elements(view: ModuleView) -> tuple[int, ...]:
    encoder = view.need("node_onehot")
    index_map = encoder.tensor("index_map")
    if index_map.ndim != 1 or index_map.dtype != torch.int64 or len(index_map) > 10_000:
        raise CheckpointError(f"{encoder}: index_map is not a list of whole numbers")
    places = {k: z for z, k in enumerate(index_map.tolist()) if k != -1}
    n_known = sum(k != -1 for k in index_map.tolist())
    if sorted(places) != list(range(n_known)) or not places:
        raise CheckpointError(f"{encoder}: index_map does not number the elements from 0")
    elements = tuple(places[k] for k in range(n_known))
    listed = view.raw("zs")
    if listed is not MISSING and (
        not isinstance(listed, list | tuple | dict) or tuple(listed) != elements
    ):
        raise CheckpointError(f"{view}: index_map and zs name different elements")
    return elements


def _embeddings(view: ModuleView, n_elements: int) -> tuple[dict[str, Tensor], bool]:
    sender, receiver = view.need("node_embedding_sender"), view.need("node_embedding_receiver")
    tensors = {}
    for name, part in (("sender", sender), ("receiver", receiver)):
        if part.path != "cace.modules.type.NodeEmbedding":
            raise UnsupportedModelError(f"{part}: is not an embedding that is provided")
        weights = part.tensor("embedding_weights")
        if weights.ndim != 2 or weights.shape[0] != n_elements:
            raise CheckpointError(
                f"{part}: embedding_weights have shape {tuple(weights.shape)}, "
                f"expected one row for each of {n_elements} elements"
            )
        tensors[f"embedding.{name}"] = weights
    shared = sender.key == receiver.key
    if shared:
        del tensors["embedding.receiver"]
    return tensors, shared


def _radial(view: ModuleView) -> tuple[RadialBasis, dict[str, Tensor]]:
    for kind, name, renamed, numbers in _RADIAL:
        if name in view.name and view.path == f"cace.modules.radial.{view.name}":
            tensors = {f"radial.{ours}": view.tensor(theirs) for theirs, ours in renamed.items()}
            n_rbf = next(iter(tensors.values())).numel()
            values = {n: _scalar(view, n) for n in numbers}
            return RadialBasis(kind, n_rbf, **values), tensors  # type: ignore[arg-type]
    raise UnsupportedModelError(
        f"{view}: is not a radial basis that is provided; known are Bessel, Gaussian and "
        "exponential functions"
    )


def _cutoff(view: ModuleView) -> CutoffFunction:
    for kind, name, fields in _CUTOFF:
        if name in view.name and view.path == f"cace.modules.cutoff.{view.name}":
            values = {ours: _scalar(view, theirs) for theirs, ours in fields.items()}
            return CutoffFunction(kind, **values)  # type: ignore[arg-type]
    raise UnsupportedModelError(
        f"{view}: is not a cutoff function that is provided; known are polynomial, cosine, "
        "mollifier and switch"
    )


def _scalar(view: ModuleView, name: str) -> float:
    """Return a number that is stored as a tensor, or, in other versions, as a plain attribute."""
    if not view.has_tensor(name):
        return number(view, name)
    stored = view.tensor(name)
    if stored.numel() != 1:
        raise CheckpointError(f"{view}: {name!r} has {stored.numel()} elements instead of one")
    return float(stored.item())


def _mixing(view: ModuleView, n_channels: int, n_rbf: int) -> dict[str, Tensor]:
    transform = view.need("radial_transform")
    tensors = {}
    for degree, weights in enumerate(transform.tensors_of("weights")):
        if weights.ndim == 2:  # the same for all channels: it is copied for each
            view.charge(4 * weights.numel() * n_channels * weights.dtype.itemsize)
        full = weights.unsqueeze(-1).expand(-1, -1, n_channels) if weights.ndim == 2 else weights
        if full.ndim != 3 or (full.shape[0], full.shape[2]) != (n_rbf, n_channels):
            raise CheckpointError(
                f"{transform}: weights of degree {degree} have shape {tuple(weights.shape)}, "
                f"expected ({n_rbf}, radial channels, {n_channels})"
            )
        tensors[f"mixing.{degree}"] = full
    if not tensors:
        raise CheckpointError(f"{transform}: has no weights")
    return tensors


def _check_orders(view: ModuleView, l_max: int, nu_max: int) -> None:
    if l_max > MAX_DEGREE or not 1 <= nu_max <= MAX_ORDER:
        raise UnsupportedModelError(
            f"{view}: max_l = {l_max} and max_nu = {nu_max}; provided are max_l up to "
            f"{MAX_DEGREE} and max_nu from 1 to {MAX_ORDER}"
        )
    if integer(view, "max_l", l_max) != l_max:
        raise CheckpointError(f"{view}: max_l is not the number of radial weights minus one")
    symmetrizer = view.child("symmetrizer")
    if symmetrizer is not None and integer(symmetrizer, "max_nu", nu_max) != nu_max:
        raise CheckpointError(f"{symmetrizer}: max_nu differs from the representation's")


def _steps(view: ModuleView) -> list[ModuleView]:
    steps = view.child("message_passing_list")
    found = [] if steps is None else steps.children()
    if any(step is None for step in found):
        raise CheckpointError(f"{steps}: a message passing step is empty")
    n_named = integer(view, "num_message_passing", len(found))
    if n_named != len(found):
        raise CheckpointError(f"{view}: num_message_passing is not the number of steps")
    return [step for step in found if step is not None]


def _step(view: ModuleView, prefix: str) -> tuple[MessageStep, dict[str, Tensor]]:
    has = {"memory": False, "ar": False}
    bchi = None
    tensors: dict[str, Tensor] = {}
    for part in view.children():
        if part is None or part.path == "torch.nn.modules.linear.Identity":
            continue
        if part.path == "cace.modules.interaction.NodeMemory":
            has["memory"] = True
            lists = {"memory": "memory_coef"}
        elif part.path == "cace.modules.interaction.MessageAr":
            has["ar"] = True
            lists = {"ar.prefactor": "prefactor", "ar.inverse_range": "invr0"}
        elif part.path == "cace.modules.interaction.MessageBchi":
            bchi, found = _bchi(part, f"{prefix}.bchi")
            tensors |= found
            lists = {}
        else:
            raise UnsupportedModelError(f"{part}: is not a message that is provided")
        for ours, theirs in lists.items():
            for degree, weights in enumerate(part.tensors_of(theirs)):
                tensors[f"{prefix}.{ours}.{degree}"] = weights
    return MessageStep(has["memory"], has["ar"], bchi), tensors


def _bchi(view: ModuleView, prefix: str) -> tuple[Bchi, dict[str, Tensor]]:
    hnet = view.child("hnet")
    if hnet is None:
        raise UnsupportedModelError(
            f"{view}: hnet was never built; run the model once and save it again"
        )
    network = read_network(hnet)
    mlp = network.spec(hnet)
    shared_l, shared_channels = flag(view, "shared_l", True), flag(view, "shared_channels")
    n_out = integer(view, "nl", 1) * integer(view, "nc", 1)
    if n_out != mlp.widths[-1]:
        raise CheckpointError(f"{view}: hnet gives {mlp.widths[-1]} numbers instead of {n_out}")
    return Bchi(shared_l, shared_channels, mlp), network.tensors(prefix)
