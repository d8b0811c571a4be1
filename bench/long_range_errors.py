"""Errors of the mesh against the direct sum: requested and obtained, and what each window gives.

    python bench/long_range_errors.py --plot docs/developer/long_range_accuracy.png
    python bench/long_range_errors.py --windows

Random charges, molecules of water, rattled crystals (displacements down to 0.002 A, so that forces
are small differences), few atoms in a large box; cubic, flat, triclinic, left-handed and 1:20
boxes; widths and resolutions of models. Errors are those of forces, relative to max(max |F|, F0)
with F0 = q_rms^2/(2 pi sigma^2) (docs/theory.md, "The mesh"). `--windows` prints the largest error
of each window in float64, divided by what the box makes it grow to; kernels/window.py has at least
twice that. The tests take other systems.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from math import pi
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from cace_fast.kernels import ewald_method
from cace_fast.kernels.cpu.interface import EwaldSpec
from cace_fast.kernels.cpu.long_range import EwaldSum
from cace_fast.kernels.ewald_method import Growth, Sphere, growth, mesh_plan
from cace_fast.kernels.mesh import MeshSum
from cace_fast.kernels.plain_mesh import PlainMesh
from cace_fast.kernels.window import WINDOWS

TOLERANCES = [10.0**-k for k in range(1, 12)]
MODULES = ((2.0, 1.0, 1), (3.0, 1.0, 1), (1.0, 1.0, 1), (2.0, 0.6, 1), (2.2, 0.9, 6))
SHAPES = {
    "cubic": np.eye(3),
    "1:20": np.diag([1.0, 1.0, 20.0]),
    "triclinic": np.array([[1.0, 0.0, 0.0], [0.45, 0.9, 0.0], [-0.35, 0.25, 1.05]]),
    "left-handed": np.array([[0.45, 0.9, 0.0], [1.0, 0.0, 0.0], [-0.35, 0.25, 1.05]]),
    "flat": np.diag([4.0, 5.0, 1.0]),
}
CORNERS = ((0.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.5, 0.0, 0.5), (0.0, 0.5, 0.5))
ROCKSALT = CORNERS + tuple((0.5 - x, y, z) for x, y, z in CORNERS)

System = tuple[str, np.ndarray, np.ndarray, np.ndarray]


def systems(rng: np.random.Generator, most: int) -> Iterator[System]:
    """Yield kind, charges [n, n_q], positions and cell of systems of up to ``most`` atoms."""
    for shape, form in SHAPES.items():
        for n, n_q, density in ((3, 1, 0.05), (100, 4, 0.1), (1000, 1, 0.1), (12_000, 1, 0.1)):
            if n <= most:
                cell = form * (n / density / abs(np.linalg.det(form))) ** (1 / 3)
                q = rng.normal(size=(n, n_q))
                yield f"random, {shape}", q - q.mean(0), rng.uniform(size=(n, 3)) @ cell, cell
    for times in (3, 8):
        grid = np.stack(np.meshgrid(*[np.arange(times)] * 3, indexing="ij"), -1).reshape(-1, 3)
        r = 5.6 * (grid[:, None] + np.array(ROCKSALT)).reshape(-1, 3)
        q = np.tile([1.0] * 4 + [-1.0] * 4, len(grid))[:, None]
        for rattle in (0.2, 0.02, 0.002):
            yield (
                f"crystal, {rattle:g} A",
                q,
                r + rattle * rng.normal(size=r.shape),
                5.6 * times * np.eye(3),
            )
    centres = 3.1 * np.indices((9, 9, 9)).reshape(3, -1).T
    bonds = rng.normal(size=(len(centres), 2, 3))
    bonds /= np.linalg.norm(bonds, axis=2, keepdims=True)
    r = np.concatenate([centres[:, None], centres[:, None] + bonds], 1).reshape(-1, 3)
    yield "water", np.tile([-0.8, 0.4, 0.4], len(centres))[:, None], r, 27.9 * np.eye(3)
    q = rng.normal(size=(20, 1))
    yield "20 atoms, 40 A", q - q.mean(), 15.0 + 9.0 * rng.uniform(size=(20, 3)), 40.0 * np.eye(3)


def ewald(module: tuple[float, float, int], method: str, tolerance: float) -> EwaldSum:
    """Return a sum of charges in internal units, without norm."""
    dl, sigma, exponent = module
    spec = EwaldSpec(dl, sigma, 1.0, 0.0, 0.0, exponent, 0, 0)
    return EwaldSum(spec, method=method, tolerance=tolerance)


def error(forces: np.ndarray, want: np.ndarray, q: np.ndarray, sigma: float) -> float:
    """Return the largest error of forces [n, 3], relative to max(max |F|, F0)."""
    f0 = (q * q).sum(1).mean() / (2.0 * pi * sigma**2)
    return float(np.abs(forces - want).max() / max(np.abs(want).max(), f0))


def requested_and_obtained(most: int, plot: Path | None) -> None:
    """Print, and draw, the largest error of each kind of system for each tolerance."""
    module = MODULES[0]
    found: dict[str, list[float]] = {}
    for kind, q, r, cell in systems(np.random.default_rng(0), most):
        want = ewald(module, "direct", 1e-10).evaluate(q, r, cell, periodic=1, n_threads=1)[2]
        finest = WINDOWS[-1].error * growth(len(q), cell, Sphere(*module[:2])).window
        errors = [
            error(
                ewald(module, "mesh", t).evaluate(q, r, cell, periodic=1, n_threads=1)[2],
                want,
                q,
                module[1],
            )
            if t >= finest
            else 0.0
            for t in TOLERANCES
        ]
        before = found.get(kind, [0.0] * len(TOLERANCES))
        found[kind] = [max(a, b) for a, b in zip(before, errors, strict=True)]
    print("requested           ", *(f"{t:7.0e}" for t in TOLERANCES))
    for kind, errors in found.items():
        print(f"{kind:<20}", *(f"{e:7.1e}" for e in errors))
    if plot is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.6))
    for kind, errors in found.items():
        axes.loglog(TOLERANCES, errors, "o-", ms=3, lw=1, label=kind)
    axes.loglog(TOLERANCES, TOLERANCES, "k:", lw=1.5, label="requested")
    axes.set_xlabel("requested: long_range_tolerance")
    axes.set_ylabel("obtained: max |dF| / max(max |F|, F0)")
    axes.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.tight_layout()
    figure.savefig(plot, dpi=110)


def of_windows(most: int) -> None:
    """Print the largest error of each window over all systems and modules, and where it is."""
    worst = [(0.0, "")] * len(WINDOWS)
    for module in MODULES:
        dl, sigma, _ = module
        for kind, q, r, cell in systems(np.random.default_rng(0), most):
            want = ewald(module, "direct", 1e-10).evaluate(q, r, cell, periodic=1, n_threads=1)[2]
            grown = growth(len(q), cell, Sphere(dl, sigma)).window
            given = [torch.from_numpy(x) for x in (q, r, cell, cell)]
            for k, window in enumerate(WINDOWS):
                with mock.patch.object(ewald_method, "growth", return_value=Growth(1.0, 1.0)):
                    plan = mesh_plan(len(q), cell, cell, Sphere(dl, sigma), window.error)
                plan = plan._replace(dtype=torch.float64)
                got = MeshSum(*module, PlainMesh()).evaluate(plan, *given).forces.numpy()
                here = error(got, want, q, sigma) / grown
                worst[k] = max(worst[k], (here, f"{kind}, {module}"))
    print("width, oversampling, error of kernels/window.py, largest error, where")
    for window, (largest, where) in zip(WINDOWS, worst, strict=True):
        numbers = f"{window.width:3d} {window.oversampling:4.2f} {window.error:8.1e}"
        print(f"{numbers} {largest:8.1e} {where}")


def main() -> None:
    """Run one of the two studies."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--windows", action="store_true")
    parser.add_argument("--most", type=int, default=12_000, help="atoms of the largest system")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.windows:
        of_windows(min(options.most, 1000))
    else:
        requested_and_obtained(options.most, options.plot)


if __name__ == "__main__":
    main()
