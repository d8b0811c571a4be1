"""Time of each part of an evaluation beside the operations that its formulas need.

    python bench/phases.py ../shared/data/upstream/water-mp0-sr --atoms 1536

Compiles the library once more, with timers inside, and evaluates energy and forces with the list
kept, on one thread. Operations are multiply-adds per atom (two flop each), counted from the shapes
of the model; a sine, a cosine pair or an exponential counts as 20.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.resources
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from steps import structure

from cace_fast import load
from cace_fast.kernels.cpu import build, generate, library
from cace_fast.neighbors import neighbor_list
from cace_fast.spec import ModelSpec, Readout

FUNCTION = 20  # multiply-adds of an elementary function
PARTS = ("pairs", "radial", "sums", "mix", "contract", "readout", "edges", "messages", "forces")


def products(lines) -> int:
    """Return the number of products in generated lines."""
    return sum(line.count("*") for line in lines)


def counted(spec: ModelSpec, neighbours: float) -> dict[str, float]:
    """Return the multiply-adds per atom of each part, energy and forces together.

    Parameters
    ----------
    spec
        The model.
    neighbours
        Mean number of neighbours within the cutoff.
    """
    rep = spec.representation
    n_a = (rep.l_max + 1) * (rep.l_max + 2) * (rep.l_max + 3) // 6
    n_b, lanes = rep.radial.n_rbf, rep.n_radial * rep.n_channels
    values = products(generate.value_lines(rep.l_max, rep.nu_max))
    gradients = products(generate.gradient_lines(rep.l_max, rep.nu_max))
    heads = [m for sub in spec.submodels for m in sub.modules if isinstance(m, Readout)]
    rows = sum(head.mlp.widths[1] + head.linear * head.n_out for head in heads)
    features = rep.n_features // rep.n_stages
    grouped = rep.n_elements <= rep.n_embedding + 1
    count = dict.fromkeys(PARTS, 0.0)
    count["pairs"] = 10 * neighbours
    for stage in range(rep.n_stages):
        step = rep.steps[stage - 1] if stage else None
        count["radial"] += neighbours * n_b * (FUNCTION + 4)
        columns = 1 if stage == 0 and grouped else rep.n_embedding
        if step is not None and step.bchi is not None and not step.bchi.shared_channels:
            columns = rep.n_channels
        if step is None or step.bchi is not None:
            size = n_b * n_a * columns
            count["sums"] += neighbours * size
            count["edges"] += neighbours * (2 * size + 6 * n_a)
            groups = rep.n_embedding * rep.n_elements * n_b * n_a if columns == 1 else 0
            count["mix"] += 2 * (lanes * n_b * n_a + groups)
        if step is not None and step.memory:
            count["messages"] += 2 * lanes * n_a
        if step is not None and step.ar:
            count["messages"] += neighbours * lanes * (3 * n_a + 2 * FUNCTION * (rep.l_max + 1))
        count["contract"] += lanes * (values + gradients)
        own = rows
        if stage < rep.n_stages - 1 and rep.steps[stage].bchi is not None:
            own += rep.steps[stage].bchi.mlp.widths[1]
        count["readout"] += 2 * own * features
    count["forces"] = 6 * neighbours
    return count


def neighbours_of(atoms, cutoff: float) -> float:
    """Return the mean number of neighbours within the cutoff."""
    pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    return len(pairs.senders) / len(atoms)


def profiled(folder: str) -> Path:
    """Compile the library with timers into ``folder``."""
    os.environ["CXX"] = " ".join([*build.compiler(), "-DCF_PROFILE"])
    return build.build(Path(folder), Path(folder, "objects"))


def measure(model: Path, atoms, repeats: int) -> dict[str, float]:
    """Return seconds of each part in one evaluation, the smallest of ``repeats`` runs of ten."""
    potential = load(model, device="cpu", dtype="float32", backend="cpu")
    pairs = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, potential.cutoff + 1.0)
    evaluator = potential._engine._evaluator
    rng, best = np.random.default_rng(0), dict.fromkeys(PARTS, np.inf)
    for _ in range(repeats):
        before = {part: seconds(evaluator, part) for part in PARTS}
        for _ in range(10):
            atoms.positions += 1e-3 * rng.normal(size=atoms.positions.shape)
            potential.evaluate([atoms], ("energy", "forces"), edges=lambda *_: pairs)
        for part in PARTS:
            best[part] = min(best[part], (seconds(evaluator, part) - before[part]) / 10)
    return best


def seconds(evaluator, part: str) -> float:
    """Return the processor time that a part has taken so far."""
    function = library.library().cf_state_seconds
    function.restype, function.argtypes = ctypes.c_double, (ctypes.c_void_p, ctypes.c_char_p)
    return function(evaluator._state, part.encode())


def main() -> None:
    """Print a table for each model named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+", type=Path, help="folders: model.pth, structures.xyz")
    parser.add_argument("--atoms", type=int, help="repeat periodic structures to this many")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = profiled(folder)
        importlib.resources.files = lambda _package: made.parent  # the library with timers
        library.library()
    importlib.resources.files = FILES
    peak = library.peak(32)
    print(f"{library.isa()}, one core: {peak / 1e9:.0f} GFlop/s in float32")
    for model in options.models:
        atoms = structure(model, options.atoms)
        spec = load(model / "model.pth", backend="reference").spec
        need = counted(spec, neighbours_of(atoms, spec.representation.cutoff))
        took = measure(model / "model.pth", atoms, options.repeats)
        print(f"{model.name}, {len(atoms)} atoms")
        print(
            f"  {'part':<10}{'us/atom':>9}{'share':>7}{'Mflop/atom':>12}{'counted':>9}{'times':>7}"
        )
        for part in (*PARTS, "all"):
            time = sum(took.values()) if part == "all" else took[part]
            flop = 2 * (sum(need.values()) if part == "all" else need[part])
            at_peak = time / len(atoms) * peak
            ratio = f"{at_peak / flop:7.1f}" if flop else f"{'':>7}"
            print(f"  {part:<10}{1e6 * time / len(atoms):9.2f}{time / sum(took.values()):7.0%}"
                  f"{at_peak / 1e6:12.3f}{flop / 1e6:9.3f}{ratio}")  # fmt: skip


FILES = importlib.resources.files

if __name__ == "__main__":
    main()
