"""Named tensors of a model, and the safetensors file that holds them with their specification.

Names follow the operations: ``embedding.sender``, ``radial.frequencies``, ``mixing.0``,
``messages.0.bchi.layers.0.weight``, ``outputs.1.0.linear.bias`` (sub-model 1, module 0).
:func:`expected_shapes` is the complete list for a specification.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import CheckpointError, InputError, SpecError
from .files import write_whole
from .process import ordinary_tensor
from .spec import MLP, ModelSpec, Readout, file_from_json, file_to_json

METADATA_KEY = "cace_fast"
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Weights(Mapping[str, Tensor]):
    """The tensors of a model, checked against its specification; read-only.

    See ``docs/conventions.md``.

    Parameters
    ----------
    spec
        The specification they belong to.
    tensors
        Floating tensors with exactly the names and shapes of :func:`expected_shapes`.

    Raises
    ------
    InputError
        If a tensor is missing, unknown, of another shape, not floating or not finite.
    """

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, Tensor]) -> None:
        expected = expected_shapes(spec)
        for name in sorted(set(expected) ^ set(tensors)):
            state = "missing" if name in expected else "unknown to this specification"
            raise InputError(
                f"weights[{name!r}]", "the tensors that the specification names", state
            )
        for name, shape in expected.items():
            tensor = tensors[name]
            if tuple(tensor.shape) != shape or tensor.dtype not in FLOATS:
                got = f"{tensor.dtype} {tuple(tensor.shape)}"
                raise InputError(f"weights[{name!r}]", f"a floating tensor of shape {shape}", got)
            if not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
                raise InputError(f"weights[{name!r}]", "finite numbers", "NaN or infinity")
        self._tensors = {name: tensors[name] for name in expected}

    def __getitem__(self, name: str) -> Tensor:
        """Return the tensor called ``name``."""
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        """Iterate over names in the order of the specification."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self._tensors)

    def to(self, device: torch.device | str, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return all tensors on ``device`` in ``dtype``; those already there are shared.

        See ``docs/conventions.md``, "Tensors of a model".

        Tensors that inference mode made are copied: they could not be differentiated.
        """
        return {name: ordinary_tensor(t).to(device, dtype) for name, t in self._tensors.items()}


def same_values(held: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    """Tell whether tensors are equal in value, dtype and device, within microseconds.

    Version numbers of tensors would be quicker but miss changes through ``tensor.data`` and numpy,
    which averaging of weights makes (decision 0020).
    """
    return len(held) == len(given) and all(
        a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
        for a, b in zip(held, given, strict=True)
    )


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of a model.

    See ``docs/conventions.md``, "Tensors of a model".
    """
    rep = spec.representation
    shapes: dict[str, tuple[int, ...]] = {"embedding.sender": (rep.n_elements, rep.n_embedding)}
    if not rep.shared_embedding:
        shapes["embedding.receiver"] = (rep.n_elements, rep.n_embedding)
    for name in rep.radial.tensors:
        shapes[f"radial.{name}"] = (rep.radial.n_rbf,)
    degrees = range(rep.l_max + 1)
    mixed = (rep.n_radial, rep.n_channels)
    for degree in degrees:
        shapes[f"mixing.{degree}"] = (rep.radial.n_rbf, *mixed)
    for t, step in enumerate(rep.steps):
        parts = (["memory"] if step.memory else []) + (
            ["ar.prefactor", "ar.inverse_range"] if step.ar else []
        )
        for part in parts:
            for degree in degrees:
                shapes[f"messages.{t}.{part}.{degree}"] = mixed
        if step.bchi is not None:
            shapes |= mlp_shapes(step.bchi.mlp, f"messages.{t}.bchi")
    for s, sub in enumerate(spec.submodels):
        for m, module in enumerate(sub.modules):
            if isinstance(module, Readout):
                shapes |= readout_shapes(module, f"outputs.{s}.{m}")
    return shapes


def readout_shapes(readout: Readout, prefix: str) -> dict[str, tuple[int, ...]]:
    """Return name and shape of the tensors of one read-out (``docs/theory.md``, section 7)."""
    shapes, mlp = mlp_shapes(readout.mlp, prefix), readout.mlp
    if readout.linear:
        shapes |= _linear_shapes((readout.n_out, mlp.widths[0]), mlp, f"{prefix}.linear", True)
    return shapes


def mlp_shapes(mlp: MLP, prefix: str) -> dict[str, tuple[int, ...]]:
    """Return name and shape of the tensors of one network (``docs/theory.md``, section 7)."""
    shapes: dict[str, tuple[int, ...]] = {}
    # residual blocks always have biases
    inner = mlp if mlp.bias or not mlp.residual else replace(mlp, bias=True)
    for k, shape in enumerate(mlp.layer_shapes):
        last = k == mlp.n_layers - 1
        own = mlp if last else inner
        shapes |= _linear_shapes(shape, own, f"{prefix}.layers.{k}", not last)
    for k, (into, out) in enumerate(mlp.skip_shapes):
        if into != out:
            shapes |= _linear_shapes((out, into), inner, f"{prefix}.skips.{k}", True)
    return shapes


def _linear_shapes(
    shape: tuple[int, int], mlp: MLP, prefix: str, normed: bool
) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}.weight": shape}
    if mlp.bias:
        shapes[f"{prefix}.bias"] = shape[:1]
    if mlp.batch_norm and normed:
        for name in ("weight", "bias", "mean", "variance"):
            shapes[f"{prefix}.norm.{name}"] = shape[:1]
    return shapes


def save(path: str | os.PathLike[str], spec: ModelSpec, weights: Mapping[str, Tensor]) -> None:
    """Write one ``.safetensors`` file with the specification in its metadata.

    See ``docs/conventions.md``.

    The metadata also say what each energy is made of (``cace_fast.spec.EnergyProgram``), for
    readers that cannot derive it. The format has version 2; :func:`load` also reads 1. The file
    appears whole or not at all: it is written to another name and then renamed.

    Raises
    ------
    InputError
        If the tensors do not fit the specification.
    UnsupportedModelError
        For more than 1000 energies, or 100 000 parts of all of them.
    OSError
        If the file cannot be written.
    """
    checked = Weights(spec, weights)
    tensors = {name: t.detach().to("cpu").clone().contiguous() for name, t in checked.items()}
    data = safetensors.torch.save(tensors, {METADATA_KEY: file_to_json(spec)})
    writer = f".{os.getpid()}-{threading.get_ident()}"
    write_whole(Path(path), lambda file: file.write(data), writer=writer)


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise CheckpointError unless this is a regular file: reading a pipe would wait.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        For a folder, a pipe or a device (``docs/user/security.md``).
    """
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{_named(path)}: the file cannot be read ({reason})") from None
    if not stat.S_ISREG(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "a pipe or device"
        raise CheckpointError(f"{path}: {what}, expected a model file")


def _named(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path)
    return name if len(name) <= 200 else f"{name[:197]}..."


def load(path: str | os.PathLike[str]) -> tuple[ModelSpec, Weights]:
    """Read a file that :func:`save` wrote; the tensors are copies (``docs/conventions.md``).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If the file is not safetensors, has no specification, or its tensors or energy programs
        do not fit it.
    """
    require_regular(path)
    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if METADATA_KEY not in metadata:
                raise CheckpointError(
                    f"{path}: a safetensors file without a {METADATA_KEY!r} specification in its "
                    "metadata; write it with 'cace-fast convert'"
                )
            spec = file_from_json(metadata[METADATA_KEY])
            names = file.keys()
            return spec, Weights(spec, {name: file.get_tensor(name).clone() for name in names})
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None
    except (SpecError, InputError) as error:
        raise CheckpointError(f"{path}: {error}") from None
