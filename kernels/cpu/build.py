"""Compile the CPU engine into one shared library, with the standard library of Python alone.

``pip install`` calls :func:`build`; ``python -m cace_fast.kernels.cpu.build`` repeats it in place
and recompiles what changed; with ``--commands FILE`` it writes ``compile_commands.json`` for
editors instead. Files called ``*_isa.cpp`` are compiled once for each instruction set of the kind
of processor, ``isa_avx2.cpp`` for that set alone; the library chooses among them when it is loaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
LIBRARY = "libcace_fast.dylib" if sys.platform == "darwin" else "libcace_fast.so"
FLAGS = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fopenmp",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-Wall",
    "-Wextra",
)
LINK = ("-shared", "-fopenmp", *(("-Wl,--no-undefined",) if sys.platform == "linux" else ()))
ISA_FLAGS: dict[str, tuple[str, ...]] = {
    "base": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": (
        "-mavx512f",
        "-mavx512dq",
        "-mavx512vl",
        "-mavx512bw",
        "-mavx2",
        "-mfma",
        "-mprefer-vector-width=512",
    ),
}


class BuildError(RuntimeError):
    """The library cannot be compiled here; the text has the reason (``docs/user/install.md``)."""


class Unit(NamedTuple):
    """A source that is compiled for an instruction set; its objects' names begin with ``name``.

    See decision 0019.
    """

    name: str
    source: Path
    command: list[str]  # without files and folders
    folders: tuple[Path, Path]  # of the sources, and of those that are generated

    def line(self) -> list[str]:
        """Return the whole command without its outputs (decision 0019)."""
        include = [f"-I{folder}" for folder in self.folders]
        return [*self.command, *include, "-c", str(self.source)]


def isas(machine: str) -> tuple[str, ...]:
    """Return the instruction sets that are compiled for a kind of processor (decision 0019)."""
    return tuple(ISA_FLAGS) if machine.lower() in ("x86_64", "amd64") else ("base",)


def compiler() -> list[str]:
    """Return the command of the C++ compiler: CXX, or the first of g++, clang++, c++ that exists.

    ``docs/user/install.md`` names the compilers.

    Raises
    ------
    BuildError
        If there is none.
    """
    named = os.environ.get("CXX", "").split()
    names = [named] if named else [["g++"], ["clang++"], ["c++"]]
    for command in names:
        if shutil.which(command[0]):
            return command
    raise BuildError(f"no C++ compiler was found (looked for {', '.join(c[0] for c in names)})")


def build(
    target: Path, objects: Path, *, sources: Path = HERE / "csrc", jobs: int | None = None
) -> Path:
    """Compile the library and return its path, ``target / LIBRARY``.

    ``CONTRIBUTING.md``, "The C++", tells when to.

    Parameters
    ----------
    target
        Folder for the library.
    objects
        Folder for object files and generated sources; objects that are up to date are used again.
    sources
        Folder of the sources.
    jobs
        How many files to compile at once; by default as many as there are processors.

    Raises
    ------
    BuildError
        If there is no compiler, or it fails.
    """
    todo = list(units(objects, sources))
    # read before anything is compiled: later changes count at the next build
    files = [file for folder in (objects / "generated", sources) for file in folder.iterdir()]
    contents = {file.name: file.read_bytes() for file in files if file.is_file()}

    def object_of(unit: Unit) -> Path:
        return _found(unit, objects, contents) or _compiled(unit, objects, contents)

    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        made = list(pool.map(object_of, todo))
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as folder:
        part = Path(folder) / LIBRARY
        _run([*compiler(), *LINK, "-o", str(part), *map(str, made)])
        os.replace(part, target / LIBRARY)  # a process that has mapped the old library keeps it
    return target / LIBRARY


def units(objects: Path, sources: Path = HERE / "csrc") -> Iterator[Unit]:
    """Write the generated sources, and yield the units of the library (decision 0019).

    Raises
    ------
    BuildError
        If there is no compiler, or the generator fails.
    """
    folders = (sources, objects / "generated")
    _generate(folders[1])
    machine = platform.machine()
    known = tuple(f"-DCF_HAS_{isa.upper()}" for isa in isas(machine))
    for source in sorted(sources.glob("*.cpp")):
        for isa in _isas_of(source.stem, isas(machine)):
            named = (f"-DCF_ISA={isa}",) if source.stem.endswith("_isa") else ()
            command = [*compiler(), *FLAGS, *known, *named, *ISA_FLAGS[isa]]
            yield Unit(f"{source.stem}-{isa}", source, command, folders)


def commands(objects: Path, sources: Path = HERE / "csrc") -> str:
    """Return ``compile_commands.json``, which tells editors how each source is compiled.

    ``CONTRIBUTING.md``, "The C++", uses it.

    Raises
    ------
    BuildError
        As for :func:`units`.
    """
    return json.dumps(
        [
            {"directory": str(sources), "file": str(unit.source), "arguments": unit.line()}
            for unit in units(objects, sources)
        ],
        indent=1,
    )


def _found(unit: Unit, objects: Path, contents: Mapping[str, bytes]) -> Path | None:
    """Return an object of the unit that is up to date; None if there is none.

    Beside each object is a list of the files that the compiler read, and the name of the object
    holds a hash of the command and of these files. So an object is up to date if its name is the
    one that its list gives now.
    """
    for listed in objects.glob(f"{unit.name}-*.files"):
        made = listed.with_suffix(".o")
        names = listed.read_text().splitlines()
        if made.exists() and made.name == _object_name(unit, names, contents):
            return made
    return None


def _compiled(unit: Unit, objects: Path, contents: Mapping[str, bytes]) -> Path:
    """Compile the unit and return its object, which appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=objects) as folder:
        part, rule = Path(folder) / "part.o", Path(folder) / "part.d"
        _run([*unit.line(), "-MMD", "-MT", "object", "-MF", str(rule), "-o", str(part)])
        paths = _files_of(rule.read_text())
        names = [path.name if path.parent in unit.folders else str(path) for path in paths]
        made = objects / _object_name(unit, names, contents)
        rule.write_text("\n".join(names))
        os.replace(rule, made.with_suffix(".files"))
        os.replace(part, made)
    return made


def _object_name(unit: Unit, names: list[str], contents: Mapping[str, bytes]) -> str:
    """Return the name of the object that the unit's command makes of these files.

    A name in ``names`` is that of one of ``contents``, wherever these lie, or the path of a file
    from elsewhere.
    """
    digest = hashlib.sha256("\0".join(unit.command).encode())
    for name in names:
        text = contents.get(name)
        if text is None and os.path.isabs(name) and os.path.exists(name):
            text = Path(name).read_bytes()
        digest.update(f"\0{name}\0{'gone' if text is None else len(text)}\0".encode())
        digest.update(text or b"")
    return f"{unit.name}-{digest.hexdigest()[:16]}.o"


def _files_of(rule: str) -> list[Path]:
    """Return the files that a rule in the syntax of make depends on."""
    names = re.split(r"(?<!\\)\s+", rule.replace("\\\n", " ").partition(":")[2].strip())
    return [Path(re.sub(r"\\([ #])", r"\1", name).replace("$$", "$")) for name in names]


def _isas_of(stem: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the instruction sets that a source is compiled for."""
    if stem.endswith("_isa"):
        return known
    own = stem.removeprefix("isa_")
    return (own,) if own in known else () if own in ISA_FLAGS else ("base",)


def _run(line: list[str]) -> None:
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(line)} failed:\n{done.stderr.strip()}")


def _generate(folder: Path) -> None:
    """Write the generated sources into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, str(HERE / "generate.py"), str(folder)])


def default_objects() -> Path | None:
    """Return the folder of objects of a build from a checkout; None elsewhere (decision 0019)."""
    root = HERE.parents[1] if HERE.parent.name == "kernels" else HERE
    here = (root / "pyproject.toml").exists()
    return root / "build" / f"cpu-{sysconfig.get_platform()}" if here else None


def main(arguments: Sequence[str] = ()) -> int:
    """Compile in place, or write the compiler's commands; return the exit code, 0 or 1.

    See ``docs/user/install.md``.
    """
    parser = argparse.ArgumentParser(description="Compile the CPU engine in place.")
    parser.add_argument(
        "--commands", type=Path, metavar="FILE", help="write the compiler's commands instead"
    )
    where = parser.parse_args(arguments).commands
    kept = default_objects()
    try:
        if where is not None:
            if kept is None:
                raise BuildError("--commands is for a checkout")
            where.write_text(commands(kept))
            print(where)
        elif kept is not None:
            print(build(HERE, kept))
        else:
            with tempfile.TemporaryDirectory() as folder:
                print(build(HERE, Path(folder)))
    except BuildError as error:
        print(f"cace-fast: the CPU engine was not compiled: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
