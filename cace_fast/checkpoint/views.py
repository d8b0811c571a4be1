"""One way to look at a module, whether it lies in a file or lives in memory.

`file_views` and `live_views` have the views of both kinds.

Source: specification of checkpoints, sections 4 and 10.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from cace_fast.checkpoint.records import Attribute, Global
from cace_fast.errors import CheckpointError

MISSING: Any = object()  # an attribute that a module does not have
_MANGLED = re.compile(r"\.___torch_mangle_\d+")
_SCRIPT_PREFIX = "__torch__."
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# attributes that are functions in upstream's own modules; readers of modules look at them
_FUNCTIONS = frozenset({"activation", "operation", "post_process", "_compiled_call_impl"})


class ModuleView:
    """Class, tensors, sub-modules and attributes of a module (``docs/developer/file_reader.md``).

    Parameters
    ----------
    path
        Dotted name of its class.
    where
        Its place in the model, for messages.

    Attributes
    ----------
    key
        Equal for two views of one module.
    """

    def __init__(self, path: str, where: str, key: Hashable) -> None:
        self.path, self.where, self.key = path, where, key
        self.name = path.rsplit(".", 1)[-1]

    def __str__(self) -> str:
        """Return place and class, for messages."""
        return f"{self.where} ({self.path})" if self.where else f"the model ({self.path})"

    def tensor_names(self) -> list[str]:
        """Return the names of the parameters and buffers of this module, sub-modules left out.

        See ``docs/developer/file_reader.md``.
        """
        raise NotImplementedError

    def child_names(self) -> list[str]:
        """Return the names of its sub-modules in order, empty places included.

        See ``docs/developer/file_reader.md``.
        """
        raise NotImplementedError

    def raw(self, name: str) -> Any:
        """Return a plain attribute, or `MISSING` (``docs/developer/file_reader.md``)."""
        raise NotImplementedError

    def code(self) -> str | None:
        """Return the source text of a scripted module (may be empty); None for other modules.

        See ``docs/developer/file_reader.md``.
        """
        return None

    def changes(self) -> list[str]:
        """Return the names of hooks, and of functions that replace methods.

        See ``docs/user/security.md``.
        """
        return []

    def charge(self, n_bytes: int) -> None:
        """Account for ``n_bytes`` of memory that reading a file is about to take.

        Raises
        ------
        Refused
            As for :meth:`limits.Budget.charge`.
        """

    def _tensor(self, name: str) -> Any:
        raise NotImplementedError

    def _child(self, name: str) -> ModuleView | None:
        raise NotImplementedError

    def place(self, name: str) -> str:
        """Return the full name of a member of this module (``docs/developer/file_reader.md``)."""
        return f"{self.where}.{name}" if self.where else name

    def has_tensor(self, name: str) -> bool:
        """Tell whether there is a parameter or buffer of that name that is not None.

        See ``docs/developer/file_reader.md``.
        """
        return name in self.tensor_names() and self._tensor(name) is not None

    def tensor(self, name: str) -> Tensor:
        """Return a parameter or buffer (``docs/developer/file_reader.md``).

        Raises
        ------
        CheckpointError
            If there is none of that name.
        """
        found = self._tensor(name) if name in self.tensor_names() else None
        if not isinstance(found, Tensor):
            raise CheckpointError(f"{self}: has no tensor {name!r}")
        return found

    def child(self, name: str) -> ModuleView | None:
        """Return a sub-module, or None where there is none (``docs/developer/file_reader.md``)."""
        return self._child(name) if name in self.child_names() else None

    def need(self, name: str) -> ModuleView:
        """Return a sub-module that has to be there (``docs/developer/file_reader.md``).

        Raises
        ------
        CheckpointError
            If there is none of that name.
        """
        found = self.child(name)
        if found is None:
            raise CheckpointError(f"{self}: has no sub-module {name!r}")
        return found

    def children(self) -> list[ModuleView | None]:
        """Return all sub-modules in order (``docs/developer/file_reader.md``)."""
        return [self.child(name) for name in self.child_names()]

    def tensors_of(self, name: str) -> list[Tensor]:
        """Return the tensors of a parameter list (``docs/developer/file_reader.md``).

        Raises
        ------
        CheckpointError
            If there is no such list, or one of its tensors is missing.
        """
        members = self.need(name)
        return [members.tensor(str(k)) for k in range(len(members.tensor_names()))]


def changes_among(attributes: Mapping[str, Any]) -> list[str]:
    """Return the names of hooks and functions among the attributes of a module.

    They would change what upstream computes (``docs/user/security.md``).
    """
    found = {name: attributes.get(name) for name in _HOOKS}
    hooks = [name for name, value in found.items() if value is not None and not _is_empty(value)]
    functions = [
        name
        for name, value in attributes.items()
        if name not in _FUNCTIONS and _is_function(plain(value))
    ]
    return [*hooks, *functions]


def _is_empty(value: Any) -> bool:
    return isinstance(value, dict) and not value


def _is_function(value: Any) -> bool:
    """Tell a function or bound method; types of numbers are named by torch too."""
    return isinstance(value, Attribute) or (isinstance(value, Global) and value.module != "torch")


def unmangled(path: str) -> str:
    """Return the dotted name of a class without what TorchScript adds to it.

    See ``docs/developer/file_reader.md``.
    """
    return _MANGLED.sub("", path).removeprefix(_SCRIPT_PREFIX)


def plain(value: Any) -> Any:
    """Return a value that only lives in memory as a file would hold it; others as they are.

    See ``docs/developer/file_reader.md``.
    """
    if isinstance(value, Tensor) and value.ndim == 0:
        return value.item()
    if isinstance(value, MethodType):
        owner = type(value.__self__)
        return Attribute(Global(owner.__module__, owner.__qualname__), value.__name__)
    if isinstance(value, FunctionType | BuiltinFunctionType):
        if value.__qualname__.startswith("_VariableFunctionsClass."):
            return Attribute(Global("torch._C", "_VariableFunctionsClass"), value.__name__)
        return Global(str(value.__module__), value.__name__)
    if isinstance(value, partial) or (
        isinstance(value, Callable)  # type: ignore[arg-type]  # a class with __call__
        and not isinstance(value, torch.nn.Module | type)
    ):
        return Global(type(value).__module__, type(value).__qualname__)
    if (
        type(value).__module__ == "numpy"
        and hasattr(value, "item")
        and getattr(value, "ndim", 1) == 0
    ):
        return value.item()
    return value
