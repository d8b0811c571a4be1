"""``cace-fast lammps`` and ``cace-fast config``: what is built, found, and refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import cace_fast as run_cli
from support.lammps import launcher, missing
from support.paths import REPOSITORY

from cace_fast.interfaces.lammps import NotBuiltError, plugin_folder, plugin_path
from cace_fast.interfaces.lammps import plugin as home
from cace_fast.interfaces.lammps.build import build


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module", autouse=True)
def with_lammps():
    reason = missing()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def built(cache):
    """The plugin, in an empty cache."""
    return build()


def test_build_and_path(cache):
    with pytest.raises(NotBuiltError, match="Run 'cace-fast lammps build'"):
        plugin_path()
    assert not (Path(plugin_folder()) / "caceplugin.so").exists()
    done = run_cli("lammps", "build")
    assert done.exit_code == 0, done.stderr
    line = done.stdout.strip()
    assert line == f"plugin load {plugin_path()}"
    assert run_cli("lammps", "path").stdout.strip() == str(plugin_path())
    assert Path(plugin_folder()) == plugin_path().parent


def test_a_plugin_that_is_out_of_date_is_refused(built, capsys):
    stamp = built.with_name("built.json")
    content = json.loads(stamp.read_text())
    for key, words in (("sources", "from other sources"), ("lammps", "is for LAMMPS of")):
        stamp.write_text(json.dumps(content | {key: "1 Jan 1970"}))
        with pytest.raises(NotBuiltError, match=words):
            plugin_path()
        assert plugin_folder().endswith("none")
        assert words in capsys.readouterr().err


def test_lammps_finds_it_without_plugin_load(built, tmp_path):
    """Its launcher and its Python module."""
    (tmp_path / "in.lmp").write_text("units metal\natom_style atomic\npair_style cace\n")
    command = [sys.executable, launcher(), "-in", "in.lmp"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    code = """
from mpi4py import MPI
import lammps
lmp = lammps.lammps(cmdargs=["-screen", "none", "-log", "none"])
assert lmp.has_style("pair", "cace")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_missing_is_named(cache, tmp_path, monkeypatch):
    with pytest.raises(NotBuiltError, match=r"does not hold LAMMPS' pair.h"):
        build(lammps_include=tmp_path)
    with pytest.raises(NotBuiltError, match=r"(?s)mpi.h is not in .*--mpi-include"):
        build(mpi_include=tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NotBuiltError, match=r"no C\+\+ compiler was found"):
        build()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("CXXFLAGS", "-DCACE_LAMMPS_VERSION=no_such_name")
    with pytest.raises(NotBuiltError, match="no_such_name"):
        build()
    monkeypatch.delenv("CXXFLAGS")
    monkeypatch.setattr(home.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotBuiltError, match="no LAMMPS was found"):
        build()


def test_headers_that_are_given(cache, tmp_path):
    """As for a LAMMPS of one's own: its version comes from version.h."""
    there = home.installed()
    include = tmp_path / "src"
    shutil.copytree(there.include, include)
    (include / "version.h").write_text('#define LAMMPS_VERSION "2 Aug 2023"\n')
    output = tmp_path / "deep" / "caceplugin.so"
    with pytest.raises(NotBuiltError, match="an MPI of its own"):
        build(lammps_include=include, output=output)
    plugin = build(include, Path(sys.prefix) / "include", output)
    assert b"2 Aug 2023" in plugin.read_bytes()
    assert not list(cache.rglob("*.so"))


def test_the_sources_lie_where_the_command_says():
    folder = Path(run_cli("lammps", "sources").stdout.strip())
    assert (folder / "pair_cace.cpp").is_file()
    assert (folder / "plugin.cpp").is_file()
    licence = (REPOSITORY / "LICENSE").read_text()
    assert "MIT" in licence


def test_the_cache_of_the_environment_is_its_own(cache, monkeypatch):
    here = home.folder()
    monkeypatch.setattr(sys, "prefix", str(cache))
    assert home.folder() != here
    assert str(here).startswith(os.environ["XDG_CACHE_HOME"])
