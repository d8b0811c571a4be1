"""Tests of the GPU kernels, collected only where named: ``make gpu-checks`` runs them.

Triton interprets its kernels or compiles them for a whole process: the tests in ``interpreter``
need ``TRITON_INTERPRET=1`` in the environment, the others need its absence.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what was not asked for, or needs another kind of process."""
    named = [(config.invocation_params.dir / str(a).split("::")[0]).resolve() for a in config.args]
    if not any(path == HERE or HERE in path.parents for path in named):
        return True
    if collection_path.is_dir() or collection_path.parent == HERE:
        return None
    return (collection_path.parent.name == "interpreter") != INTERPRETED or None
