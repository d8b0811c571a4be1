"""Views of modules in memory; tensors are the modules' own objects, so weights can be shared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cace_fast.checkpoint.views import MISSING, ModuleView, changes_among, plain, unmangled


def view_of_module(module: torch.nn.Module) -> ModuleView:
    """Return the view of a module in memory (``docs/developer/file_reader.md``)."""
    if isinstance(module, torch.jit.ScriptModule):
        return _ScriptView(module._c, "")
    return _LiveView(module, "")


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
        return plain(vars(self._module).get(name, MISSING))

    def changes(self) -> list[str]:
        return changes_among(vars(self._module))

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
        path = unmangled(handle.qualified_name)
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
        return plain(self._handle.getattr(name)) if self._handle.hasattr(name) else MISSING

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
