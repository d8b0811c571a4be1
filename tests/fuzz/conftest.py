"""The option of `make fuzz`."""

from __future__ import annotations

import pytest
from support import fuzzing


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--many``."""
    parser.addoption("--many", action="store_true", help="as many cases as `make fuzz` tries")


def pytest_configure(config: pytest.Config) -> None:
    """Tell the fuzzers, which are imported later."""
    fuzzing.many = bool(config.getoption("--many", default=False))
