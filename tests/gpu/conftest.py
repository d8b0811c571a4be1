"""Tests of the GPU kernels, collected only where named: ``make gpu-checks`` runs them.

Triton interprets its kernels or compiles them for a whole process: the tests in ``interpreter``
need ``TRITON_INTERPRET=1`` in the environment, the others need its absence.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gpu_emulator import emulate

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out tests that were not asked for, or that need another kind of process."""
    named = [(config.invocation_params.dir / str(a).split("::")[0]).resolve() for a in config.args]
    if not any(path == HERE or HERE in path.parents for path in named):
        return True
    if collection_path.is_dir() or collection_path.parent == HERE:
        return None
    return (collection_path.parent.name == "interpreter") != INTERPRETED or None


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run choose between a real GPU and an emulated one."""
    parser.addoption("--device", default="sm_90", help="cuda, or the GPU to emulate (sm_90)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On a real GPU run the tests for it, and none that would emulate another."""
    if config.getoption("--device") != "cuda":
        return
    if not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch finds no GPU")
    kept = [item for item in items if "device" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Return where tensors belong: a GPU with ``--device cuda``, else the CPU under emulation."""
    chosen = request.config.getoption("--device")
    if chosen == "cuda":
        yield torch.device("cuda")
        return
    with emulate(chosen):
        yield torch.device("cpu")
