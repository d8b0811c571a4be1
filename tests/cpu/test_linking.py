"""Programs that link the engine: ``cace-fast config``, pkg-config, CMake's find_package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from support.command import cace_fast as run_cli
from support.paths import REPOSITORY

from cace_fast.kernels.cpu.build import compiler

SOURCE = REPOSITORY / "examples" / "two_domains.cpp"
CMAKE = f"""
cmake_minimum_required(VERSION 3.20)
project(host CXX)
find_package(cace_fast 5.0 CONFIG REQUIRED)
add_executable(host {SOURCE})
target_compile_features(host PRIVATE cxx_std_17)
target_link_libraries(host PRIVATE cace_fast::cace_fast)
"""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="how a program finds a library differs from system to system"
)


def config(*options: str) -> list[str]:
    done = run_cli("config", *options)
    assert done.exit_code == 0, done.stderr
    return done.stdout.split()


def runs(program) -> bool:
    """Tell whether a program finds the library: it asks for its arguments."""
    done = subprocess.run([program], capture_output=True, text=True)
    return "3 or 4 arguments are needed" in done.stderr


def test_by_the_flags_of_config(tmp_path):
    include, library = config("--include", "--library")
    assert config("--isa")[0] in ("base", "avx2", "avx512")
    line = [*compiler(), "-std=c++17", str(SOURCE), f"-I{include}", library]
    subprocess.run([*line, "-o", tmp_path / "host"], check=True)
    assert runs(tmp_path / "host")
    assert run_cli("config").exit_code == 3


def test_by_pkg_config(tmp_path):
    program = shutil.which("pkg-config") or shutil.which("pkgconf")
    if program is None:
        pytest.skip("no pkg-config")
    environment = os.environ | {"PKG_CONFIG_PATH": config("--pkgconfig")[0]}
    flags = subprocess.run([program, "--cflags", "--libs", "cace_fast"], env=environment,
                           check=True, capture_output=True, text=True).stdout.split()  # fmt: skip
    line = [*compiler(), "-std=c++17", str(SOURCE), *flags]
    subprocess.run([*line, "-o", tmp_path / "host"], check=True)
    assert runs(tmp_path / "host")


def test_by_cmake(tmp_path):
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    (tmp_path / "CMakeLists.txt").write_text(CMAKE)
    made = tmp_path / "made"
    options = [f"-Dcace_fast_DIR={config('--cmake')[0]}", f"-DCMAKE_CXX_COMPILER={compiler()[0]}"]
    for line in (["cmake", "-S", tmp_path, "-B", made, *options], ["cmake", "--build", made]):
        subprocess.run(line, check=True, capture_output=True)
    assert runs(made / "host")
