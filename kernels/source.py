"""Python that is made at run time, where tracebacks and Triton find its text."""

from __future__ import annotations

import linecache
from typing import Any


def compiled(text: str, name: str, **names: Any) -> dict[str, Any]:
    """Return what a module of this text defines; ``names`` are there when it is run."""
    path = f"<{name}>"
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    found: dict[str, Any] = {"__name__": name, **names}
    exec(compile(text, path, "exec"), found)
    return found
