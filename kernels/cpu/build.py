"""Compile the CPU engine into one shared library; the standard library alone.

``pip install`` calls :func:`build`; ``python -m cace_fast.kernels.cpu.build`` does it again in
place, recompiling what changed. Files called ``*_isa.cpp`` are compiled once for each instruction
set of the kind of processor, ``isa_avx2.cpp`` for that set alone; the library chooses among them
when it is loaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIBRARY = "libcace_fast.dylib" if sys.platform == "darwin" else "libcace_fast.so"
FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-fno-math-errno",
    "-fno-trapping-math", "-ffp-contract=fast", "-Wall", "-Wextra",
)  # fmt: skip
LINK = ("-shared", "-fopenmp", *(("-Wl,--no-undefined",) if sys.platform == "linux" else ()))
ISA_FLAGS: dict[str, tuple[str, ...]] = {
    "base": (),
    "avx2": ("-mavx2", "-mfma"),
    "avx512": (
        "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mavx2", "-mfma",
        "-mprefer-vector-width=512",
    ),
}  # fmt: skip


class BuildError(RuntimeError):
    """The library cannot be compiled here; the text says why."""


def isas(machine: str) -> tuple[str, ...]:
    """Return the instruction sets that are compiled for a kind of processor."""
    return tuple(ISA_FLAGS) if machine.lower() in ("x86_64", "amd64") else ("base",)


def compiler() -> list[str]:
    """Return the command of the C++ compiler: CXX, or the first of g++, clang++, c++ found.

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

    Parameters
    ----------
    target
        Folder for the library.
    objects
        Folder for object files and generated sources; what is up to date in it is used again.
    sources
        Folder of the sources.
    jobs
        How many files to compile at once; by default as many as there are processors.

    Raises
    ------
    BuildError
        If there is no compiler, or it fails.
    """
    command = compiler()
    objects.mkdir(parents=True, exist_ok=True)
    generated = objects / "generated"
    _generate(generated)
    headers = sorted([*sources.glob("*.h"), *sources.glob("*.inc"), *generated.glob("*")])
    common = b"".join(path.name.encode() + path.read_bytes() for path in headers)
    units = list(_units(command, sources, generated, objects, common))
    with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
        list(pool.map(_run, [line for line, made in units if not made.exists()]))
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as folder:
        part = Path(folder) / LIBRARY
        _run([*command, *LINK, "-o", str(part), *(str(made) for _, made in units)])
        os.replace(part, target / LIBRARY)  # a process that has the old one mapped keeps it
    return target / LIBRARY


def _units(
    command: list[str], sources: Path, generated: Path, objects: Path, common: bytes
) -> Iterator[tuple[list[str], Path]]:
    """Yield the compiler's command and the object of each source and instruction set.

    The object's name holds a hash of command, source and headers, so that whatever exists is right.
    """
    machine = platform.machine()
    known = tuple(f"-DCF_HAS_{isa.upper()}" for isa in isas(machine))
    for source in sorted(sources.glob("*.cpp")):
        for isa in _isas_of(source.stem, isas(machine)):
            named = (f"-DCF_ISA={isa}",) if source.stem.endswith("_isa") else ()
            named = (*named, *ISA_FLAGS[isa])
            line = [*command, *FLAGS, *known, *named]
            text = " ".join(line).encode() + source.read_bytes() + common
            digest = hashlib.sha256(text).hexdigest()[:16]
            made = objects / f"{source.stem}-{isa}-{digest}.o"
            folders = (f"-I{sources}", f"-I{generated}")
            yield [*line, *folders, "-c", str(source), "-o", str(made)], made


def _isas_of(stem: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the instruction sets that a source is compiled for."""
    if stem.endswith("_isa"):
        return known
    own = stem.removeprefix("isa_")
    return (own,) if own in known else () if own in ISA_FLAGS else ("base",)


def _run(line: list[str]) -> None:
    """Run a command that writes one file; the file appears whole or not at all."""
    output = line.index("-o") + 1
    part = f"{line[output]}.part"
    done = subprocess.run(
        [*line[:output], part, *line[output + 1 :]], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildError(f"{' '.join(line)} failed:\n{done.stderr.strip()}")
    os.replace(part, line[output])


def _generate(folder: Path) -> None:
    """Write the generated sources into ``folder``; unchanged ones keep their objects valid."""
    folder.mkdir(exist_ok=True)
    line = [sys.executable, str(HERE / "generate.py"), str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(line)} failed:\n{done.stderr.strip()}")


def default_objects() -> Path | None:
    """Return where a build from a checkout keeps its objects; None elsewhere."""
    root = HERE.parents[1] if HERE.parent.name == "kernels" else HERE
    here = (root / "pyproject.toml").exists()
    return root / "build" / f"cpu-{sysconfig.get_platform()}" if here else None


def main() -> int:
    """Compile in place and say what happened."""
    kept = default_objects()
    try:
        if kept is not None:
            print(build(HERE, kept))
        else:
            with tempfile.TemporaryDirectory() as folder:
                print(build(HERE, Path(folder)))
    except BuildError as error:
        print(f"cace-fast: the CPU engine was not compiled: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
