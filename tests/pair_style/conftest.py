"""LAMMPS with the pair style of this checkout."""

from __future__ import annotations

import pytest
from support.lammps import Lammps, missing


@pytest.fixture(scope="session")
def plugin(tmp_path_factory):
    """The pair style, compiled from the sources as they are."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    from cace_fast.interfaces.lammps.build import build

    return build(output=tmp_path_factory.mktemp("plugin") / "caceplugin.so")


@pytest.fixture
def lammps(plugin, tmp_path):
    """LAMMPS in an empty folder."""
    return Lammps(tmp_path, plugin)
