"""Runs of the command line in this process and in separate processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

from cace_fast.cli.app import app
from support.paths import REPOSITORY

CALL = "from cace_fast.cli import main; main()"


def cace_fast(*arguments: object, **options: Any) -> Any:
    """Run a command in this process; the result has exit_code, stdout and stderr."""
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="cace-fast", **options)


def succeed(*arguments: object) -> Any:
    """Run a command in this process that has to succeed."""
    result = cace_fast(*arguments)
    assert result.exit_code == 0, f"{result.exit_code}: {result.stderr}"
    return result


def command(arguments: Sequence[object]) -> list[str]:
    """Return the words that run the command line in a separate process."""
    return [sys.executable, "-c", CALL, *(str(a) for a in arguments)]


def environment() -> dict[str, str]:
    """Return the environment of such a process: as many threads as this one has."""
    paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
    }


def start(*arguments: object) -> subprocess.Popen[str]:
    """Start a command in a process of its own."""
    return subprocess.Popen(
        command(arguments), env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own to its end."""
    return subprocess.run(
        command(arguments), env=environment(), text=True, capture_output=True, cwd=cwd
    )
