r"""The recorded results of real checkpoints with each method of the long range forced.

    python bench/check_long_range.py ../shared/tools/check_upstream.py

    CACE_FAST_EMULATE=sm_90 python bench/check_long_range.py TOOL --backend triton --dtype float32 \
        --only water-mp0-lr --max-atoms 9

Runs that comparison once for each backend, precision and method, through `cace_fast.load` and
`CACECalculator`, and prints its last line of each and the largest deviation in units of what is
allowed, of checkpoints with a long range and of all. Exit status 1 if any fails.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import cace_fast
from cace_fast.spec import Ewald

LOAD, CALCULATOR = cace_fast.load, cace_fast.CACECalculator


def tool_at(path: Path) -> ModuleType:
    """Return the comparison as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def force(method: str, k_set: str, seen: dict[str, bool]) -> None:
    """Let both entrances that the comparison uses sum by one method; note which models have one."""
    load = partial(LOAD, long_range=method, k_set=k_set)

    def noted(path: Path, **options: Any) -> cace_fast.Potential:
        potential = load(path, **options)
        modules = [m for sub in potential.spec.submodels for m in sub.modules]
        seen[Path(path).parent.name] = any(isinstance(m, Ewald) for m in modules)
        return potential

    def calculator(
        model_path: Path, device: str, default_dtype: str, backend: str, output_index: int | None
    ) -> cace_fast.CACECalculator:
        potential = noted(model_path, device=device, dtype=default_dtype, backend=backend)
        return CALCULATOR(potential, output_index=output_index)

    cace_fast.load, cace_fast.CACECalculator = noted, calculator  # type: ignore[assignment,misc]


def worst(lines: list[str], seen: dict[str, bool]) -> tuple[float, float]:
    """Return the largest deviation of checkpoints with a long range, and of all."""
    found = {}
    for line in lines:
        if match := re.match(r"(?:ok|FAIL)\s+(\S+)\s+\d+ structures\s+(.*?)\s\s+\[", line):
            numbers = re.findall(r"[a-z_] (\d[\d.e+-]*)", match[2])
            found[match[1]] = max((float(n) for n in numbers), default=0.0)
    long = [value for name, value in found.items() if seen.get(name)]
    return max(long, default=0.0), max(found.values(), default=0.0)


def main() -> int:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("tool", type=Path)
    parser.add_argument("--backend", nargs="+", default=["cpu", "reference"])
    parser.add_argument("--dtype", nargs="+", default=["float64", "float32"])
    parser.add_argument("--method", nargs="+", default=["direct", "mesh"])
    parser.add_argument("--k-set", choices=["sphere", "frozen"], default="sphere")
    options, rest = parser.parse_known_args()
    tool, failed = tool_at(options.tool), 0
    for backend in options.backend:
        for dtype in options.dtype:
            for method in options.method:
                seen: dict[str, bool] = {}
                force(method, options.k_set, seen)
                sys.argv = [str(options.tool), "--backend", backend, "--dtype", dtype, *rest]
                said = io.StringIO()
                with contextlib.redirect_stdout(said):
                    bad = tool.main()
                lines = said.getvalue().splitlines()
                failed += bad
                long, of_all = worst(lines, seen)
                print(f"{method:<7} {lines[-1]}; largest {long:.2g} with a long range "
                      f"({sum(seen.values())}), {of_all:.2g} of all", flush=True)  # fmt: skip
                print(*(line for line in lines if line.startswith("FAIL")), sep="\n", end="")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
