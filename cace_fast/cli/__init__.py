"""The command line: `cace-fast`.

Modules here import torch, ASE and the rest inside their functions, so that `cace-fast --help`
answers at once.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line on the arguments of this process.

    See ``docs/user/errors.md``, "Exit codes".
    """
    from cace_fast.cli.app import app

    app(prog_name="cace-fast")
