"""Python code that is made at run time, so that tracebacks and Triton find its text."""

from __future__ import annotations

import linecache
from typing import Any


def compiled(text: str, name: str, **names: Any) -> dict[str, Any]:
    """Return the globals of a module with this text; ``names`` are defined before it runs.

    Programs come from :mod:`cace_fast.kernels.polynomials` (decision 0017).
    """
    path = f"<{name}>"
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    found: dict[str, Any] = {"__name__": name, **names}
    exec(compile(text, path, "exec"), found)
    return found
