"""TorchScript archives of the stand-ins, by hand, as the specification of checkpoints (10) says.

One flat state for each object, names below ``__torch__`` with a mangled component now and then,
weights of combinations as text, activations only in the source text.
"""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from support import archives as a

BOOKKEEPING = ("training", "operation", "device", "required_derivatives", "post_process")


class Writer:
    """Collects storages while it writes the opcodes of a module."""

    def __init__(self, activation: str) -> None:
        self.storages: dict[str, bytes] = {}
        self.code: dict[str, str] = {}
        self._memo: dict[int, int] = {}
        self._activation = activation

    def value(self, value: Any) -> bytes:
        if isinstance(value, torch.nn.Module | torch.Tensor):
            if id(value) in self._memo:
                return b"j" + self._memo[id(value)].to_bytes(4, "little")
            is_module = isinstance(value, torch.nn.Module)
            written = self.module(value) if is_module else self.tensor(value)
            number = self._memo[id(value)] = len(self._memo)
            return written + b"r" + number.to_bytes(4, "little")
        if value is None:
            return b"N"
        if isinstance(value, bool):
            return b"\x88" if value else b"\x89"
        if isinstance(value, int):
            return a.number(value)
        if isinstance(value, float):
            return b"G" + struct.pack(">d", value)
        if isinstance(value, str):
            return a.text(value)
        if isinstance(value, list | tuple):
            items = b"](" + b"".join(self.value(item) for item in value) + b"e"
            if value and all(type(item) is int for item in value):
                return a.named("torch.jit._pickle.build_intlist") + items + b"\x85R"
            return items
        entries = b"".join(self.value(k) + self.value(v) for k, v in value.items())
        tagged = a.named("torch.jit._pickle.restore_type_tag")
        return tagged + b"}(" + entries + b"u" + a.text("Dict[str, str]") + b"\x86R"

    def tensor(self, value: torch.Tensor) -> bytes:
        key = str(len(self.storages))
        detached = value.detach().contiguous()
        self.storages[key] = detached.numpy().tobytes()
        kind = {torch.float32: "FloatStorage", torch.int64: "LongStorage"}[value.dtype]
        storage = a.storage(key, kind, value.numel())
        return a.tensor(storage, 0, tuple(detached.shape), tuple(detached.stride()))

    def module(self, module: torch.nn.Module) -> bytes:
        cls = type(module)
        place = f"__torch__.{cls.__module__}"
        if len(self._memo) % 3:
            place += f".___torch_mangle_{len(self._memo)}"
        state: dict[str, Any] = {**module._parameters, **module._buffers, **module._modules}
        for name, value in vars(module).items():
            plain = isinstance(value, bool | int | float | str | list | tuple | dict | None)
            if plain and not name.startswith("_") and name not in BOOKKEEPING:
                state[name] = value
        if "potential_keys" in state:
            state["potential_keys"] = [
                {name: str(text) for name, text in entry.items()}
                for entry in state["potential_keys"]
            ]
        if cls.__name__ == "Dense" and "activation" in vars(module):
            self._add_code(place, cls.__name__)
        content = b"".join(a.text(name) + self.value(value) for name, value in state.items())
        return a.record(f"{place}.{cls.__name__}", content)

    def _add_code(self, place: str, name: str) -> None:
        self.code[f"code/{place.replace('.', '/')}.py"] = (
            "class Other(Module):\n  def forward(self, x):\n    return torch.relu(x)\n"
            f"class {name}(Module):\n  __parameters__ = []\n  def forward(self, x):\n"
            f"    y = (self.linear).forward(x, )\n    return {self._activation}(y, )\n"
            "class Next(Module):\n  def forward(self, x):\n    return torch.tanh(x)\n"
        )


def save_script(
    module: torch.nn.Module, path: Path, activation: str = "__torch__.torch.nn.functional.silu"
) -> None:
    """Write a TorchScript-like archive of a stand-in."""
    writer = Writer(activation)
    data = a.whole(writer.value(module))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("scripted/data.pkl", data)
        for key, raw in writer.storages.items():
            archive.writestr(f"scripted/data/{key}", raw)
        for name, text in writer.code.items():
            archive.writestr(f"scripted/{name}", text, zipfile.ZIP_DEFLATED)
        archive.writestr("scripted/constants.pkl", a.whole(b")"))
        archive.writestr("scripted/version", b"4\n")
    path.write_bytes(buffer.getvalue())
