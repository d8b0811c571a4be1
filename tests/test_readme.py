"""Every command of the README works, in order, in a copy of the checkout.

A block fenced as ```bash is run; ```bash no-run is shown only (installation, `make`, long runs).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.markdown import Block, commands
from support.paths import REPOSITORY

README = REPOSITORY / "README.md"
COMMANDS = commands(README.read_text()) if README.exists() else []
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "build", "dist", "*.egg-info", ".*_cache", ".ci")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """Return a copy of the checkout that the commands may write into."""
    copy = tmp_path_factory.mktemp("readme") / "cace-fast"
    shutil.copytree(REPOSITORY, copy, symlinks=True, ignore=LEFT_OUT)
    return copy


def test_the_readme_has_commands_to_run():
    assert COMMANDS, "README.md has no block fenced as ```bash that is run"


@pytest.mark.slow
@pytest.mark.parametrize("block", COMMANDS, ids=lambda b: f"line {b.line}")
def test_readme_command(block: Block, checkout: Path):
    """Commands see the interpreter of the tests first, and may use what earlier ones wrote."""
    folder = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code],
        cwd=checkout,
        env=environment | {"MPLBACKEND": "Agg"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    printed = f"{block.code}\nprinted\n{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, f"README.md, line {block.line}:\n{printed}"
