"""Restricted reader of upstream model files.

`read` takes a file and `from_module` a module in memory; both return the specification and the
tensors of the model. Upstream is never imported, and nothing that a file names is ever called
(docs/user/security.md).
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cace_fast.checkpoint.file_views import view_of_record
from cace_fast.checkpoint.limits import Refused, short
from cace_fast.checkpoint.live_views import view_of_module
from cace_fast.checkpoint.reader import read_contents
from cace_fast.checkpoint.records import Record
from cace_fast.checkpoint.statedict import StateDictOptions
from cace_fast.checkpoint.statedict_records import model_of_state_dict
from cace_fast.checkpoint.upstream import read_model
from cace_fast.errors import CheckpointError, InputError, UnsupportedModelError
from cace_fast.spec import ModelSpec, Provenance

__all__ = ["StateDictOptions", "from_module", "read"]


def read(
    path: str | PathLike[str], **state_dict_options: Any
) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Read an upstream file; its content tells its kind (``docs/developer/file_reader.md``).

    Parameters
    ----------
    path
        A whole model (``.pth``), a TorchScript archive, or a file of state dicts
        (``checkpoint.pt``, Lightning's ``.ckpt``).
    **state_dict_options
        What a file of state dicts does not hold: the fields of `StateDictOptions`.

    Returns
    -------
    ModelSpec, dict
        The specification, and the tensors (CPU, dtype of the file, not trainable) by the names of
        `weights.expected_shapes`.

    Raises
    ------
    CheckpointError
        The file is of another kind, damaged, hostile, or contradicts itself.
    UnsupportedModelError
        The file is sound but holds a model that cace-fast does not provide.
    InputError
        A file of state dicts needs options that were not given (all are named), or options were
        given for a file that needs none.
    """
    path = Path(path)
    options = StateDictOptions(**state_dict_options)
    contents = read_contents(path)
    try:
        root = contents.root
        if isinstance(root, dict):
            root = model_of_state_dict(root, options)
        elif options.given():
            raise InputError(options.given()[0], "nothing, because the file holds it", "a value")
        if not isinstance(root, Record):
            raise CheckpointError(f"holds {short(root)}, not a model")
        spec, tensors = read_model(view_of_record(root, contents.code, contents.budget))
    except (CheckpointError, UnsupportedModelError) as error:
        raise type(error)(f"{path}: {error}") from None
    except Refused as refusal:
        raise CheckpointError(f"{path}: {refusal}.") from None
    provenance = Provenance(source=path.name, sha256=_digest(path))
    return replace(spec, provenance=provenance), {k: t.detach() for k, t in tensors.items()}


def from_module(module: torch.nn.Module) -> tuple[ModelSpec, dict[str, Tensor]]:
    """Read an upstream model in memory, recognised by the names of its classes.

    ``docs/developer/file_reader.md`` describes what is read.

    Parameters
    ----------
    module
        A NeuralNetworkPotential, CombinePotential or Cace of upstream, or its TorchScript form.

    Returns
    -------
    ModelSpec, dict
        The specification, and the module's own tensor objects (device, dtype and
        ``requires_grad`` as they are) by the names of `weights.expected_shapes`.

    Raises
    ------
    CheckpointError
        A part is missing or contradicts another.
    UnsupportedModelError
        The module is not a model that cace-fast provides.
    """
    return read_model(view_of_module(module))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
