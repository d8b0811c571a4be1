"""Time and memory of potentials, for `cace-fast bench`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

from cace_fast.min_dist import AUTO, MinDist

if TYPE_CHECKING:
    from ase import Atoms

    from cace_fast.potential import Potential

SHORTEST = 0.05  # s of one timing: a faster call is repeated within it
PART_ROUNDS = 5
CHILD = "from cace_fast.cli.measure import child; child()"


@dataclass(frozen=True)
class Way:
    """A way to run a model: backend, precision, device (``docs/user/performance.md``).

    ``slab_vacuum`` and ``min_dist`` are in A.
    """

    backend: str
    dtype: str
    device: str
    slab_vacuum: float | None = None
    min_dist: MinDist = AUTO

    def load(self, model: str) -> Potential:
        """Return the potential of a file, run this way.

        Errors are those of :func:`cace_fast.load`.
        """
        from cace_fast.loading import load

        return load(
            model,
            device=self.device,
            dtype=self.dtype,
            backend=self.backend,
            slab_vacuum=self.slab_vacuum,
        )


def times(
    potentials: list[Potential],
    atoms: Atoms,
    repeats: int,
    on_round: Callable[[], None],
    min_dist: MinDist = AUTO,
) -> list[list[float]]:
    """Return the seconds of energy and forces for each potential, ``repeats`` of them.

    Rounds alternate between the potentials, so that a machine that slows down or is shared slows
    all of them. The neighbour list is reused, as in dynamics between two searches
    (``docs/user/performance.md``). ``min_dist`` is in A.

    Raises
    ------
    InputError
        For a structure that a potential refuses.
    """
    calls = [_call(potential, atoms, min_dist) for potential in potentials]
    loops = []
    for call in calls:
        call()  # the first call prepares what later ones reuse
        loops.append(max(1, math.ceil(SHORTEST / _seconds(call, 1))))
    found: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for row, call, loop in zip(found, calls, loops, strict=True):
            row.append(_seconds(call, loop))
        on_round()
    return found


def parts(potential: Potential, atoms: Atoms, min_dist: MinDist = AUTO) -> dict[str, float]:
    """Return the seconds of each part of an evaluation: the least of several runs.

    ``docs/user/performance.md`` explains the parts; ``min_dist`` is in A.

    Raises
    ------
    InputError
        For a structure that the potential refuses.
    """
    call = _call(potential, atoms, min_dist)
    call()
    loop = max(1, math.ceil(SHORTEST / _seconds(call, 1)))
    rounds = []
    for _ in range(PART_ROUNDS):
        before = potential.seconds
        _seconds(call, loop)
        rounds.append({part: (s - before[part]) / loop for part, s in potential.seconds.items()})
    return min(rounds, key=lambda round_: sum(round_.values()))


def spread(seconds: list[float]) -> tuple[float, float, float]:
    """Return first quartile, median and third quartile of ``seconds``.

    See ``docs/user/performance.md``.
    """
    if len(seconds) == 1:
        return seconds[0], seconds[0], seconds[0]
    low, _, high = quantiles(seconds, n=4, method="inclusive")
    return low, median(seconds), high


def memory(model: str, way: Way, atoms: Atoms) -> int:
    """Return the peak memory of an evaluation in bytes, measured in a separate process.

    On a GPU it is the device memory that torch allocates (``docs/user/performance.md``).

    Raises
    ------
    RuntimeError
        If that process fails.
    """
    from ase.io import write

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "structure.extxyz"
        write(path, atoms, format="extxyz")
        task = {"model": model, "structure": str(path), **vars(way)}
        done = subprocess.run(
            [sys.executable, "-c", CHILD], input=json.dumps(task), text=True, capture_output=True
        )
    if done.returncode:
        raise RuntimeError(f"measuring memory failed: {done.stderr.strip()}")
    return int(done.stdout)


def child() -> None:
    """Evaluate the task on stdin, and print the bytes it needed; :func:`memory` starts it."""
    task = json.load(sys.stdin)
    import torch

    from cace_fast.cli.frames import read_structure

    atoms = read_structure(Path(task["structure"]))
    model = task.pop("model")
    way = Way(**{name: value for name, value in task.items() if name != "structure"})
    before = peak_memory()
    potential = way.load(model)
    call = _call(potential, atoms, way.min_dist)
    call()
    call()
    if potential.device.type == "cuda":
        print(torch.cuda.max_memory_allocated(potential.device))
    else:
        print(peak_memory() - before)


def peak_memory() -> int:
    """Return the largest resident size of this process so far in bytes.

    See ``docs/user/performance.md``.

    On Linux it is read from /proc, not from getrusage: there a child begins with the peak of its
    parent.
    """
    try:
        with open("/proc/self/status") as file:
            lines = [line.split() for line in file if line.startswith("VmHWM:")]
        return int(lines[0][1]) * 1024
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )


def _call(potential: Potential, atoms: Atoms, min_dist: MinDist) -> Callable[[], None]:
    import torch

    from cace_fast.engine import VerletList

    edges = VerletList(potential.cutoff, 1.0)
    cuda = potential.device.type == "cuda"

    def call() -> None:
        potential.evaluate([atoms], ("energy", "forces"), edges=edges, min_dist=min_dist)
        if cuda:
            torch.cuda.synchronize(potential.device)

    return call


def _seconds(call: Callable[[], None], loops: int) -> float:
    start = time.perf_counter()
    for _ in range(loops):
        call()
    return (time.perf_counter() - start) / loops
