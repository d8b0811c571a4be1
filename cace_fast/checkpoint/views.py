"""One way to look at a module, whether it lies in a file or lives in memory.

`_RecordView` reads a module of a ``torch.save`` file, `_ScriptRecordView` one of a TorchScript
archive, `_LiveView` a ``torch.nn.Module`` and `_ScriptView` a scripted module. In the live cases
tensors are the module's own objects, so that weights can be shared.

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

from cace_fast.checkpoint.limits import Budget, short
from cace_fast.checkpoint.records import Attribute, Global, Record
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


class _RecordView(ModuleView):
    """A module of a ``torch.save`` file."""

    def __init__(self, record: Record, where: str, budget: Budget | None = None) -> None:
        super().__init__(record.path, where, id(record))
        self._budget = budget
        self._state: Mapping[str, Any] = record.state if isinstance(record.state, dict) else {}
        self._parameters = self._named("_parameters")
        self._buffers = self._named("_buffers")
        self._modules = self._named("_modules")

    def _named(self, kind: str) -> dict[str, Any]:
        found = self._state.get(kind, {})
        if not isinstance(found, dict) or not all(type(name) is str for name in found):
            raise CheckpointError(f"{self}: {kind} is not a dictionary of names")
        return found

    def tensor_names(self) -> list[str]:
        return [*self._parameters, *self._buffers]

    def child_names(self) -> list[str]:
        return list(self._modules)

    def raw(self, name: str) -> Any:
        return self._state.get(name, MISSING)

    def changes(self) -> list[str]:
        return _changes(self._state)

    def charge(self, n_bytes: int) -> None:
        if self._budget is not None:
            self._budget.charge(n_bytes)

    def _tensor(self, name: str) -> Any:
        return self._parameters[name] if name in self._parameters else self._buffers[name]

    def _child(self, name: str) -> ModuleView | None:
        found = self._modules[name]
        if found is None:
            return None
        if not isinstance(found, Record):
            raise CheckpointError(f"{self}: sub-module {name!r} is {short(found)}")
        return _RecordView(found, self.place(name), self._budget)


class _ScriptRecordView(ModuleView):
    """A module of a TorchScript archive: tensors, sub-modules and attributes side by side."""

    def __init__(
        self, record: Record, where: str, code: Mapping[str, str], budget: Budget | None = None
    ) -> None:
        super().__init__(_unmangled(record.path), where, id(record))
        self._budget = budget
        self._state: dict[str, Any] = record.state if isinstance(record.state, dict) else {}
        self._raw_module, self._code = record.module, code

    def tensor_names(self) -> list[str]:
        return [name for name, value in self._state.items() if isinstance(value, Tensor)]

    def child_names(self) -> list[str]:
        if self.name in ("ModuleList", "Sequential"):  # there an empty place is an attribute
            return [name for name in self._state if name.isdigit()]
        return [name for name, value in self._state.items() if isinstance(value, Record)]

    def raw(self, name: str) -> Any:
        return self._state.get(name, MISSING)

    def code(self) -> str:
        text = self._code.get(f"code/{self._raw_module.replace('.', '/')}.py", "")
        start = re.search(rf"^class {re.escape(self.name)}\(", text, re.MULTILINE)
        if start is None:
            return ""
        end = re.search(r"^(class|def) ", text[start.end() :], re.MULTILINE)
        return text[start.start() : start.end() + end.start()] if end else text[start.start() :]

    def changes(self) -> list[str]:
        code = self.code()
        return [name for name in ("__forward_hooks__", "__forward_pre_hooks__") if name in code]

    def charge(self, n_bytes: int) -> None:
        if self._budget is not None:
            self._budget.charge(n_bytes)

    def _tensor(self, name: str) -> Any:
        return self._state[name]

    def _child(self, name: str) -> ModuleView | None:
        found = self._state[name]
        if not isinstance(found, Record):
            return None
        return _ScriptRecordView(found, self.place(name), self._code, self._budget)


class _LiveView(ModuleView):
    """A ``torch.nn.Module`` in memory, recognised by the name of its class."""

    def __init__(self, module: torch.nn.Module, where: str) -> None:
        cls = type(module)
        super().__init__(f"{cls.__module__}.{cls.__qualname__}", where, id(module))
        self._module = module

    def tensor_names(self) -> list[str]:
        return [*self._module._parameters, *self._module._buffers]

    def child_names(self) -> list[str]:
        return list(self._module._modules)

    def raw(self, name: str) -> Any:
        return _plain(vars(self._module).get(name, MISSING))

    def changes(self) -> list[str]:
        return _changes(vars(self._module))

    def _tensor(self, name: str) -> Any:
        parameters = self._module._parameters
        return parameters[name] if name in parameters else self._module._buffers[name]

    def _child(self, name: str) -> ModuleView | None:
        found = self._module._modules[name]
        return None if found is None else _LiveView(found, self.place(name))


class _ScriptView(ModuleView):
    """A scripted module in memory.

    Parameters
    ----------
    handle
        torch's handle on it, ``script_module._c``; its Python wrappers are made anew at every
        access, so that only the tensors tell whether two of them are one module.
    """

    def __init__(self, handle: Any, where: str) -> None:
        self._handle = handle
        self._tensors: dict[str, Tensor] = {
            **_items(torch._C.ParameterDict(handle)),
            **_items(torch._C.BufferDict(handle)),
        }
        self._children: dict[str, Any] = _items(torch._C.ModuleDict(handle))
        path = _unmangled(handle.qualified_name)
        super().__init__(path, where, (path, *self._identities()))

    def _identities(self) -> list[int]:
        own = [id(tensor) for tensor in self._tensors.values()]
        nested = [_ScriptView(child, "")._identities() for child in self._children.values()]
        return own + [number for numbers in nested for number in numbers]

    def tensor_names(self) -> list[str]:
        return list(self._tensors)

    def child_names(self) -> list[str]:
        return list(self._children)

    def raw(self, name: str) -> Any:
        return _plain(self._handle.getattr(name)) if self._handle.hasattr(name) else MISSING

    def changes(self) -> list[str]:
        hooks = ("forward_hooks", "forward_pre_hooks")
        return [name for name in hooks if getattr(self._handle, f"_get_{name}")()]

    def code(self) -> str:
        has_code = self._handle._has_method("forward")
        return str(self._handle._get_method("forward").code) if has_code else ""

    def _tensor(self, name: str) -> Any:
        return self._tensors[name]

    def _child(self, name: str) -> ModuleView | None:
        return _ScriptView(self._children[name], self.place(name))


def _items(members: Any) -> dict[str, Any]:
    return dict(members.items())


def _changes(attributes: Mapping[str, Any]) -> list[str]:
    found = {name: attributes.get(name) for name in _HOOKS}
    hooks = [name for name, value in found.items() if value is not None and not _is_empty(value)]
    functions = [
        name
        for name, value in attributes.items()
        if name not in _FUNCTIONS and _is_function(_plain(value))
    ]
    return [*hooks, *functions]


def _is_empty(value: Any) -> bool:
    return isinstance(value, dict) and not value


def _is_function(value: Any) -> bool:
    """Tell a function or bound method; types of numbers are named by torch too."""
    return isinstance(value, Attribute) or (isinstance(value, Global) and value.module != "torch")


def view_of_record(
    record: Record, code: Mapping[str, str], budget: Budget | None = None
) -> ModuleView:
    """Return the view of a file's top object.

    Tensors that the reader makes of it are charged to ``budget``. ``code`` has the source texts
    of a
    TorchScript archive (``docs/developer/file_reader.md``).
    """
    if record.module.split(".", 1)[0] == "__torch__":
        return _ScriptRecordView(record, "", code, budget)
    return _RecordView(record, "", budget)


def view_of_module(module: torch.nn.Module) -> ModuleView:
    """Return the view of a module in memory (``docs/developer/file_reader.md``)."""
    if isinstance(module, torch.jit.ScriptModule):
        return _ScriptView(module._c, "")
    return _LiveView(module, "")


def _unmangled(path: str) -> str:
    return _MANGLED.sub("", path).removeprefix(_SCRIPT_PREFIX)


def _plain(value: Any) -> Any:
    """Turn what only lives in memory into what a file would hold."""
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
