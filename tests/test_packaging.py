"""The installed files are those of the tree: packages, data, links, version, dependencies."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from support.paths import REPOSITORY

import cace_fast
from cace_fast.kernels.cpu.build import LIBRARY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
MAPPED = {"cace_fast.kernels": "kernels", "cace_fast.reference": "reference"}
BUILT = {".so", ".pyc", ".pyd", ".dll", ".dylib"}


def package_files() -> dict[str, Path]:
    """Return {path inside the wheel: file} of all files in the package folders, links left out."""
    found = {}
    for package, folder in {"cace_fast": "cace_fast", **MAPPED}.items():
        root = REPOSITORY / folder
        for parent, folders, names in os.walk(root):  # does not follow links
            folders[:] = [f for f in folders if f != "__pycache__"]
            for name in names:
                path = Path(parent, name)
                if path.suffix not in BUILT and not path.is_symlink():
                    inside = Path(package.replace(".", "/"), path.relative_to(root))
                    found[inside.as_posix()] = path
    return found


def test_every_package_folder_is_listed():
    folders = {
        Path(inside).parent.as_posix().replace("/", ".")
        for inside in package_files()
        if inside.endswith("/__init__.py")
    }
    assert sorted(SETUPTOOLS["packages"]) == sorted(folders)


def test_every_folder_with_modules_is_a_package():
    files = package_files()
    for inside in files:
        if inside.endswith(".py"):
            assert f"{Path(inside).parent.as_posix()}/__init__.py" in files


@pytest.mark.parametrize("package", sorted(MAPPED))
def test_links_serve_the_tools_that_do_not_know_the_mapping(package):
    folder = MAPPED[package]
    assert SETUPTOOLS["package-dir"][package] == folder
    link = REPOSITORY / "cace_fast" / folder
    assert os.readlink(link) == f"../{folder}"
    assert link.resolve() == REPOSITORY / folder


def test_version_is_the_package_s_own():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "cace_fast.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", cace_fast.__version__)


def test_wheel_holds_the_tree_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    leave_out = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so")
    shutil.copytree(REPOSITORY, source, symlinks=True, ignore=leave_out)
    for objects in (REPOSITORY / "build").glob("cpu-*"):  # named by content: no second compilation
        shutil.copytree(objects, source / "build" / objects.name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("cace_fast-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if ".dist-info/" not in n]
        (entry_points,) = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        scripts = archive.read(entry_points).decode()
    held = {n for n in names if Path(n).suffix not in BUILT}
    assert held == set(package_files())
    built = set(names) - held
    assert built == {f"cace_fast/kernels/cpu/{LIBRARY}"}
    assert "-py3-none-" in wheel.name  # one for each platform, for every Python
    assert not wheel.name.endswith("-any.whl")
    assert len(names) == len(set(names))
    assert "cace-fast = cace_fast.cli:main" in scripts


def test_every_import_is_a_declared_dependency():
    extras = PROJECT["project"]["optional-dependencies"]
    declared = [*PROJECT["project"]["dependencies"], *extras["gpu"], *extras["plot"]]
    known = {re.match(r"[A-Za-z0-9_.-]+", line).group().replace("-", "_") for line in declared}
    known |= {"cace_fast"} | set(sys.stdlib_module_names)
    unknown = {}
    for inside, path in package_files().items():
        for name in imported(path) if path.suffix == ".py" else ():
            if name not in known:
                unknown.setdefault(name, []).append(inside)
    assert unknown == {}


def imported(path: Path) -> set[str]:
    """Return the top-level names of what the file imports absolutely when it runs."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
    return names
