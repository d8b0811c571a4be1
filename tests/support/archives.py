"""Hand-made model archives and pickles for tests of the restricted reader."""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

PROTO = b"\x80\x02"


def write_archive(path: Path, data: bytes, storages: Mapping[str, bytes] | None = None) -> Path:
    """Write an archive as torch does, around a pickle."""
    entries = {"data.pkl": data, "byteorder": b"little", "version": b"3\n"}
    entries |= {f"data/{key}": raw for key, raw in (storages or {}).items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"model/{name}", content)
    return path


def text(value: str) -> bytes:
    """Return the opcode that pushes a text."""
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value: int) -> bytes:
    """Return the opcode that pushes a whole number of any size."""
    if 0 <= value < 256:
        return b"K" + bytes([value])
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def named(path: str) -> bytes:
    """Return the opcode that pushes a global."""
    module, name = path.rsplit(".", 1)
    return f"c{module}\n{name}\n".encode()


def numbers(*values: int) -> bytes:
    """Return the opcodes that push a tuple of whole numbers."""
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str = "0", kind: str = "FloatStorage", n_elements: int = 6) -> bytes:
    """Return the opcodes that push a storage."""
    return (
        b"(" + text("storage") + named(f"torch.{kind}") + text(key) + text("cpu")
        + number(n_elements) + b"tQ"
    )  # fmt: skip


def tensor(
    raw_storage: bytes | None = None,
    offset: int = 0,
    size: tuple[int, ...] = (2, 3),
    stride: tuple[int, ...] = (3, 1),
) -> bytes:
    """Return the opcodes that push a tensor."""
    return (
        named("torch._utils._rebuild_tensor_v2") + b"("
        + (storage() if raw_storage is None else raw_storage)
        + number(offset) + numbers(*size) + numbers(*stride)
        + b"\x89" + named("collections.OrderedDict") + b")RtR"
    )  # fmt: skip


def record(path: str, state: bytes = b"") -> bytes:
    """Return the opcodes that push an object, with its attributes as pushed pairs in ``state``."""
    return named(path) + b")\x81}(" + state + b"ub"


def whole(body: bytes) -> bytes:
    """Return a complete pickle."""
    return PROTO + body + pickle.STOP
