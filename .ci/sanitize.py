"""Run the misuse cases of the C interface under AddressSanitizer and UndefinedBehaviorSanitizer.

The engine, for one instruction set, and ``tests/cpu/misuse.cpp`` become one program in
``build/sanitize``: ``make sanitize``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cace_fast.kernels.cpu import build

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "sanitize"
CHECKS = (
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
)
sys.path.insert(0, str(ROOT / "tests"))


def compiled() -> Path:
    """Return the program."""
    build.isas = lambda machine: ("base",)  # one: the others are the same text
    FOLDER.mkdir(parents=True, exist_ok=True)

    def object_of(unit: build.Unit) -> str:
        made = FOLDER / f"{unit.name}.o"
        line = [word for word in unit.line() if word != "-O3"]
        subprocess.run([*line, *CHECKS, "-o", str(made)], check=True)
        return str(made)

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        objects = list(pool.map(object_of, build.units(FOLDER)))
    program, source = FOLDER / "misuse", ROOT / "tests" / "cpu" / "misuse.cpp"
    line = [*build.compiler(), "-std=c++17", "-fopenmp", *CHECKS, f"-I{build.HERE / 'csrc'}"]
    subprocess.run([*line, str(source), *objects, "-o", str(program)], check=True)
    return program


def main() -> int:
    """Compile, run, and say how many cases there were; 1 if a case is wrong or a fault is found."""
    from support.misuse import models

    program = compiled()
    done = subprocess.run(
        [str(program), *map(str, models(FOLDER))],
        capture_output=True,
        text=True,
        env=os.environ | {"UBSAN_OPTIONS": "print_stacktrace=1"},
        check=False,
    )
    if done.returncode != 0:
        print(done.stdout[-3000:], done.stderr[-6000:], sep="\n", file=sys.stderr)
        return 1
    print(done.stdout.strip().splitlines()[-1].replace(", 0 wrong", ", 0 reports"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
