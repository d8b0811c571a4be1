"""Where things are: the checkout, and the folder of recorded checkpoints beside it."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED_VARIABLE = "CACE_FAST_SHARED"
NO_SHARED = (
    "needs the recorded upstream checkpoints, which are no part of the repository: "
    f"put them in ../shared/data/upstream or name the shared folder in {SHARED_VARIABLE}"
)


def shared_folder() -> Path | None:
    """Return the folder that holds ``data/upstream``, or None where there is none.

    A folder that the environment names but that is not there is an error: the tests that need it
    would otherwise be skipped by a spelling mistake.
    """
    named = os.environ.get(SHARED_VARIABLE)
    folder = Path(named) if named else REPOSITORY.parent / "shared"
    if (folder / "data" / "upstream").is_dir():
        return folder
    if named:
        raise FileNotFoundError(f"{SHARED_VARIABLE}={named}: there is no data/upstream in it")
    return None


def upstream_checkpoints() -> list[Path]:
    """Return the folders of the recorded checkpoints by name; empty where there are none."""
    shared = shared_folder()
    if shared is None:
        return []
    return sorted(p.parent for p in (shared / "data" / "upstream").glob("*/meta.json"))
