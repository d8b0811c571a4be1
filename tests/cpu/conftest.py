"""Skips tests of the compiled engine where there is no compiler."""

from __future__ import annotations

import pytest

from cace_fast.kernels.cpu.build import BuildError, compiler
from cace_fast.kernels.cpu.library import NotLoadedError, library


@pytest.fixture(autouse=True, scope="session")
def _library():
    """Skip if there is no compiler; otherwise a missing library is a failure."""
    try:
        library()
    except NotLoadedError as error:
        try:
            compiler()
        except BuildError as none:
            pytest.skip(str(none))
        pytest.fail(f"the CPU engine cannot be loaded: {error}. {error.remedy}")
