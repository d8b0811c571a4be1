"""Error of the long-range sum by Fourier transforms against what was asked for.

    python bench/accuracy.py --output docs/developer/long_range_accuracy.png

Forces against the direct sum, relative to the largest force: ten thousand random charges in a cubic
box and in one of 1:20, and a barely rattled crystal, whose forces are small differences. Single
precision is taken for all tolerances here, to show where it ends; the engine takes it from 3e-3 on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from cace_fast.kernels.cpu.library import EwaldSpec
from cace_fast.kernels.cpu.long_range import EwaldSum
from cace_fast.kernels.nufft import NufftSum, accuracy
from cace_fast.kernels.transforms import make_transforms

DL, SIGMA = 2.0, 1.0
REQUESTED = {"double": [10.0**-k for k in range(3, 13)], "single": [10.0**-k for k in range(3, 8)]}


def systems() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return charges, positions and cell of each system."""
    rng = np.random.default_rng(0)
    found = {}
    for name, shape in (("cubic", (46.0, 46.0, 46.0)), ("1:20", (17.0, 17.0, 340.0))):
        cell = np.diag(shape)
        q = rng.normal(size=(10_000, 1))
        found[name] = (q - q.mean(), rng.uniform(0.0, 1.0, (10_000, 3)) @ cell, cell)
    numbers = np.indices((16,) * 3).reshape(3, -1).T
    r = 2.8 * numbers + rng.normal(size=numbers.shape) * 0.02
    found["rattled crystal"] = (1.0 - 2.0 * (numbers.sum(1) % 2)[:, None], r, np.eye(3) * 44.8)
    return found


def main() -> None:
    """Measure, print and draw."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    figure, axes = pyplot.subplots(figsize=(6.0, 4.4))
    for name, (q, r, cell) in systems().items():
        total = EwaldSum(EwaldSpec(DL, SIGMA, 1.0, 0.0, 0.0, 1, 0, 0))
        want = total.evaluate(q, r, cell, periodic=True, n_threads=1)[2]
        given = [torch.from_numpy(x) for x in (q, r, cell, cell)]
        for precision, mark in (("double", "o-"), ("single", "s--")):
            dtype = torch.complex128 if precision == "double" else torch.complex64
            errors = []
            for tolerance in REQUESTED[precision]:
                transforms = make_transforms(given[0].device, accuracy(tolerance)[0], dtype)
                got = NufftSum(DL, SIGMA, 1, transforms, dtype).evaluate(*given).forces.numpy()
                errors.append(np.abs(got - want).max() / np.abs(want).max())
            axes.loglog(REQUESTED[precision], errors, mark, label=f"{name}, {precision}", ms=4)
            print(f"{name:<16} {precision}", *(f"{e:.1e}" for e in errors))
    axes.loglog([1e-12, 1e-3], [1e-12, 1e-3], "k:", lw=1, label="requested")
    axes.set_xlabel("requested: long_range_tolerance")
    axes.set_ylabel("obtained: max |dF| / max |F|")
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
