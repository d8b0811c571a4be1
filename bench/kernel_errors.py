"""The error of every GPU kernel in float32 against itself in float64, on the emulated device.

python bench/kernel_errors.py             # write the table into docs/developer/accuracy.md
python bench/kernel_errors.py --print     # print it only

Each launch of a step is done twice, on its float32 arrays and on the same numbers in float64, and
what the two leave behind is compared: the error of the kernel alone, not that of its inputs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpu_emulator import emulate
from gpu_models import SHAPES, SKIN, potential, specification, structure, training
from torch import Tensor
from triton.runtime.jit import JITFunction

from cace_fast.engine.triton import TritonEngine
from cace_fast.structures import graph_of

PAGE = Path(__file__).resolve().parents[1] / "docs" / "developer" / "accuracy.md"
BEGIN, END = "<!-- kernel errors: begin -->", "<!-- kernel errors: end -->"
MODELS = ("water-mp0-sr", "licl-gaf3-lr0")


@dataclass
class Error:
    """Of one kernel: the worst of its launches.

    ``largest`` is the largest error in units of the array's largest number, ``typical`` the root
    mean square of errors in units of that of the numbers.
    """

    launches: int = 0
    largest: float = 0.0
    typical: float = 0.0

    def add(self, found: Tensor, exact: Tensor) -> None:
        """Note one array of one launch."""
        wrong, scale = found.double() - exact, float(exact.abs().max())
        if scale > 0.0:
            self.largest = max(self.largest, float(wrong.abs().max()) / scale)
            self.typical = max(self.typical, float(wrong.norm() / exact.norm()))


@contextmanager
def twice(errors: dict[str, Error]) -> Iterator[None]:
    """Launch every kernel that has float32 arrays a second time, in float64, and compare."""
    original: Callable[..., Any] = JITFunction.run

    def run(self: Any, *args: Any, **options: Any) -> Any:
        wide: dict[int, Tensor] = {}
        before = {}
        for x in (*args, *options.values()):
            if isinstance(x, Tensor) and x.data_ptr() not in wide:
                wide[x.data_ptr()] = x.double() if x.dtype == torch.float32 else x.clone()
                before[x.data_ptr()] = x, x.clone()

        def widened(x: Any) -> Any:
            return wide[x.data_ptr()] if isinstance(x, Tensor) else x

        done = original(self, *args, **options)
        if any(x.dtype == torch.float32 for x, _ in before.values()):
            original(self, *map(widened, args), **{k: widened(x) for k, x in options.items()})
            error = errors.setdefault(self.fn.__name__, Error())
            error.launches += 1
            for place, (now, was) in before.items():
                changed = now.ne(was) & now.isfinite()
                if now.is_floating_point() and changed.any():
                    error.add(now[changed], wide[place][changed].double())
        return done

    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = original


def step(model: str, periodic: bool = True) -> None:
    """Run a step with a new list of a model with random weights."""
    shape = SHAPES[model]
    atoms = structure(shape, 3 if periodic else 2)
    atoms.pbc = periodic
    engine = potential(shape)._engine
    assert isinstance(engine, TritonEngine)
    system = engine.moving(graph_of(atoms, engine.spec.representation), SKIN)
    system.evaluate(("forces", "virials"), None)


def measure(architecture: str) -> dict[str, Error]:
    """Return the errors of all kernels of the models, by name."""
    errors: dict[str, Error] = {}
    with emulate(architecture), twice(errors):
        for model in MODELS:
            step(model)
        step(MODELS[-1], periodic=False)
        shape = SHAPES[MODELS[0]]
        graph = graph_of(structure(shape, 2), specification(shape).representation)
        training(shape, graph)
    return dict(sorted(errors.items()))


def table(errors: dict[str, Error]) -> str:
    """Return the errors as a table of Markdown."""
    lines = ["| kernel | launches | largest error / largest number | r.m.s. |", "|---|---|---|---|"]
    lines += [
        f"| `{name}` | {e.launches} | {e.largest:.1e} | {e.typical:.1e} |"
        for name, e in errors.items()
    ]
    return "\n".join(lines)


def held() -> dict[str, float]:
    """Return the largest error of every kernel in the table on the page."""
    _, _, rest = PAGE.read_text().partition(BEGIN)
    rows = [line.split("|") for line in rest.partition(END)[0].splitlines() if "`" in line]
    return {row[1].strip(" `"): float(row[3]) for row in rows}


def write(text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put a table between the marks on the page."""
    page = PAGE.read_text()
    head, _, rest = page.partition(begin)
    _, _, tail = rest.partition(end)
    PAGE.write_text(f"{head}{begin}\n{text}\n{end}{tail}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="leave the page as it is")
    parser.add_argument("--architecture", default="sm_90")
    options = parser.parse_args()
    text = table(measure(options.architecture))
    print(text)
    if not options.print:
        write(text)


if __name__ == "__main__":
    main()
