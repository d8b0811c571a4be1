"""A folder with a tiny model and structure, for runs of `cace-fast md`."""

from __future__ import annotations

import pytest
from support.md_runs import OPTIONS
from support.tiny_models import tiny_potential, tiny_spec, tiny_structure


@pytest.fixture
def md_files(tmp_path, monkeypatch):
    tiny_potential(**OPTIONS).save(tmp_path / "m.safetensors")
    tiny_structure(tiny_spec(**OPTIONS), 2).write(tmp_path / "in.xyz")
    monkeypatch.chdir(tmp_path)
    return tmp_path
