"""The packages for pkg-config and CMake work where they are moved, with the header's version."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.command import succeed
from support.paths import REPOSITORY
from support.tiny_models import tiny_potential, tiny_spec, tiny_structure

from cace_fast.kernels.cpu.build import HERE, LIBRARY, compiler

SOURCE = REPOSITORY / "examples" / "two_domains.cpp"
CMAKE = """
cmake_minimum_required(VERSION 3.16)
project(domains CXX)
find_package(cace_fast {version} CONFIG REQUIRED)
add_executable(domains {source})
target_compile_features(domains PRIVATE cxx_std_17)
target_link_libraries(domains PRIVATE cace_fast::cace_fast)
"""


def asked(*options):
    """Return the lines that these options print."""
    return succeed("config", *options).stdout.splitlines()


def version():
    """Return the version of the C interface in the header: "MAJOR.MINOR"."""
    text = (HERE / "csrc" / "cace_fast.h").read_text()
    return ".".join(re.search(rf"CF_VERSION_{part} (\d+)", text)[1] for part in ("MAJOR", "MINOR"))


def finish(*words, cwd):
    """Run a tool that has to succeed."""
    done = subprocess.run([str(w) for w in words], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(map(str, words))}\n{done.stdout}{done.stderr}"
    return done.stdout


def gives_the_energy(program, folder):
    """Run the example on a small model: it finds the library, and both know the same energy."""
    potential = tiny_potential(dtype="float64")
    potential.save(folder / "model.safetensors")
    atoms = tiny_structure(tiny_spec(), 3, spacing=2.2)
    lines = [" ".join(map(repr, atoms.cell.array.ravel().tolist())), str(len(atoms))]
    for z, r in zip(atoms.numbers, atoms.positions.tolist(), strict=True):
        lines.append(f"{z} " + " ".join(map(repr, r)))
    (folder / "box.txt").write_text("\n".join(lines))
    printed = finish(program, "model.safetensors", "box.txt", 2, cwd=folder)
    expected = potential.compute(atoms, ("energy",))["energy"]
    assert float(printed.split()[0]) == pytest.approx(expected, rel=1e-11)


@pytest.fixture
def linux():
    if sys.platform != "linux":
        pytest.skip("how a program finds a library beside it differs from system to system")


@pytest.fixture
def moved(tmp_path):
    """The printed packages, with headers and library, in another place: they name none."""
    (package,) = {Path(line) for line in asked("--pkgconfig", "--cmake")}
    for name in (package.name, "csrc"):
        shutil.copytree(package.parent / name, tmp_path / "moved" / name)
    shutil.copy(package.parent / LIBRARY, tmp_path / "moved")
    return tmp_path / "moved" / package.name


@pytest.mark.usefixtures("linux")
def test_pkg_config_compiles_and_runs_a_program(tmp_path, moved):
    if shutil.which("pkg-config") is None:
        pytest.skip("needs pkg-config")
    tool = ["env", f"PKG_CONFIG_PATH={moved}", "pkg-config"]
    assert finish(*tool, "--modversion", "cace_fast", cwd=tmp_path).strip() == version()
    flags = shlex.split(finish(*tool, "--cflags", "--libs", "cace_fast", cwd=tmp_path))
    finish(*compiler(), "-std=c++17", SOURCE, *flags, "-o", "domains", cwd=tmp_path)
    gives_the_energy(tmp_path / "domains", tmp_path)


def cmake(folder, package, wanted):
    """Write a project that wants a version of the package; return the words to configure it."""
    if shutil.which("cmake") is None:
        pytest.skip("needs cmake")
    (folder / "CMakeLists.txt").write_text(CMAKE.format(version=wanted, source=SOURCE))
    return ["cmake", "-S", ".", "-B", "build", f"-Dcace_fast_DIR={package}",
            f"-DCMAKE_CXX_COMPILER={compiler()[0]}"]  # fmt: skip


@pytest.mark.usefixtures("linux")
def test_cmake_finds_compiles_and_runs_a_program(tmp_path, moved):
    finish(*cmake(tmp_path, moved, version()), cwd=tmp_path)
    finish("cmake", "--build", "build", cwd=tmp_path)
    gives_the_energy(tmp_path / "build" / "domains", tmp_path)


@pytest.mark.parametrize("change", [(1, 0), (-1, 0), (0, 1)], ids=["major", "older", "minor"])
def test_cmake_refuses_versions_that_do_not_fit(tmp_path, moved, change):
    wanted = ".".join(str(int(n) + c) for n, c in zip(version().split("."), change, strict=True))
    words = cmake(tmp_path, moved, wanted)
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"version: {version()}" in done.stderr
