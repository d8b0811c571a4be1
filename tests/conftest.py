"""Fixtures of all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.paths import NO_SHARED, shared_folder
from support.poison import poisoned
from support.state import unchanged_settings


@pytest.fixture(autouse=True)
def _guards() -> Iterator[None]:
    """Poison unwritten memory, and fail a test that changes torch's global settings.

    The seed is for layers that torch initialises itself; numbers are drawn from a generator that
    the test makes.
    """
    torch.manual_seed(0)
    with poisoned(), unchanged_settings():
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder with the recorded checkpoints (``data/upstream``), or skip."""
    folder = shared_folder()
    if folder is None:
        pytest.skip(NO_SHARED)
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where torch sees no device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA or HIP device"))
