"""The C interface called as it should not be: a code and a text each time (``misuse.cpp``)."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.misuse import models
from support.paths import REPOSITORY

from cace_fast.kernels.cpu.build import HERE, LIBRARY, compiler


def test_misuse_gets_a_code_and_a_text(tmp_path):
    if sys.platform != "linux":
        pytest.skip("how a program finds a library beside it differs from system to system")
    program = tmp_path / "misuse"
    source = REPOSITORY / "tests" / "cpu" / "misuse.cpp"
    line = [*compiler(), "-std=c++17", "-O0", str(source), f"-I{HERE / 'csrc'}"]
    line += [str(HERE / LIBRARY), f"-Wl,-rpath,{HERE}", "-o", str(program)]
    subprocess.run(line, check=True)
    done = subprocess.run([program, *models(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "misuse cases, 0 wrong" in done.stdout
