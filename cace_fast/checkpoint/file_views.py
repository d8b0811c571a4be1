"""Views of modules in files of ``torch.save`` and in TorchScript archives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cace_fast.checkpoint.limits import Budget, short
from cace_fast.checkpoint.records import Record
from cace_fast.checkpoint.views import MISSING, ModuleView, changes_among, unmangled
from cace_fast.errors import CheckpointError


def view_of_record(
    record: Record, code: Mapping[str, str], budget: Budget | None = None
) -> ModuleView:
    """Return the view of a file's top object.

    Tensors that the reader makes of it are charged to ``budget``. ``code`` has the source texts of
    a TorchScript archive (``docs/developer/file_reader.md``).
    """
    if record.module.split(".", 1)[0] == "__torch__":
        return _ScriptRecordView(record, "", code, budget)
    return _RecordView(record, "", budget)


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
        return changes_among(self._state)

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
        super().__init__(unmangled(record.path), where, id(record))
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
