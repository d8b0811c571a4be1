"""Errors of the long-range sum by transforms in units of the tolerance, the worst of many systems.

    python bench/long_range_errors.py --seeds 3

Random charges and rattled crystals (displacements down to 0.002 A, so that forces are small
differences) in cells of many shapes, with exponents 1 and 6 and the widths and resolutions of
models: the systems by which `SAFETY` in kernels/nufft.py and `COARSE` in kernels/transforms.py were
set. The tests take others. Potentials are dE/dq; each error is relative to the largest number.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch

from cace_fast.kernels.cpu.library import EwaldSpec
from cace_fast.kernels.cpu.long_range import EwaldSum
from cace_fast.kernels.nufft import NufftSum, accuracy
from cace_fast.kernels.transforms import make_transforms

TOLERANCES = (
    1e-2, 3e-3, 1e-3, 9e-4, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7, 1.1e-7, 9e-8, 3e-8, 1e-8,
    4e-9, 1e-9, 3e-10, 1e-10, 3e-11, 1e-11, 3e-12, 1e-12,
)  # fmt: skip
MODULES = ((2.0, 1.0, 1), (3.0, 1.0, 1), (1.5, 0.5, 1), (2.0, 1.0, 6))  # dl, sigma, exponent
SHAPES = {
    "cubic": np.eye(3),
    "1:20": np.diag([1.0, 1.0, 20.0]),
    "triclinic": np.array([[1.0, 0.0, 0.0], [0.45, 0.9, 0.0], [-0.35, 0.25, 1.05]]),
    "left-handed": np.array([[0.45, 0.9, 0.0], [1.0, 0.0, 0.0], [-0.35, 0.25, 1.05]]),
    "flat": np.diag([4.0, 5.0, 1.0]),
}
CORNERS = ((0.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.5, 0.0, 0.5), (0.0, 0.5, 0.5))
QUARTERS = tuple((a, b, c) for a in (0.25, 0.75) for b in (0.25, 0.75) for c in (0.25, 0.75))
CRYSTALS = {
    "rocksalt": (4.2, CORNERS + tuple((0.5 - x, y, z) for x, y, z in CORNERS), [1] * 4 + [-1] * 4),
    "cscl": (2.9, ((0.0, 0.0, 0.0), (0.5, 0.5, 0.5)), [1, -1]),
    "zincblende": (
        4.2, CORNERS + tuple((x + 0.25, y + 0.25, z + 0.25) for x, y, z in CORNERS),
        [1] * 4 + [-1] * 4,
    ),
    "fluorite": (4.2, CORNERS + QUARTERS, [2] * 4 + [-1] * 8),
    "perovskite": (4.2, (CORNERS[0], (0.5, 0.5, 0.5), *CORNERS[1:]), [2, 4, -2, -2, -2]),
}  # fmt: skip

System = tuple[str, np.ndarray, np.ndarray, np.ndarray]


def systems(rng: np.random.Generator, most: int) -> Iterator[System]:
    """Yield name, charges [n, 1], positions and cell of systems of up to ``most`` atoms."""
    for shape, form in SHAPES.items():
        for n in (2, 3, 10, 100, 1000, 10_000):
            if n <= most:
                cell = form * (max(n, 8) / 0.1 / abs(np.linalg.det(form))) ** (1 / 3)
                q = rng.normal(size=(n, 1))
                yield (
                    f"{n} in {shape}",
                    q - q.mean() * (n > 2),
                    rng.uniform(size=(n, 3)) @ cell,
                    cell,
                )
    for name, (a, basis, ions) in CRYSTALS.items():
        for times in ((1, 1, 1), (3, 3, 3), (6, 6, 6), (2, 2, 20), (9, 9, 9)):
            grid = np.stack(np.meshgrid(*map(np.arange, times), indexing="ij"), -1).reshape(-1, 3)
            places = a * (grid[:, None] + np.array(basis)).reshape(-1, 3)
            charges = np.tile(np.array(ions, dtype=float), len(grid))[:, None]
            if len(places) > most:
                continue
            for rattle in (0.2, 0.02, 0.002):
                q = charges * (1.0 + 0.02 * rng.normal(size=charges.shape))
                r = places + rattle * rng.normal(size=places.shape)
                yield f"{name} {times} {rattle}", q, r, a * np.diag(times).astype(float)


def errors(system: System, module: tuple[float, float, int], tolerance: float) -> list[float]:
    """Return the errors of potentials, forces and virial in units of the tolerance."""
    _, q, r, cell = system
    dl, sigma, exponent = module
    spec = EwaldSpec(dl, sigma, 1.0, 0.0, 0.0, exponent, 0, 0)
    want = EwaldSum(spec).evaluate(q, r, cell, periodic=1, n_threads=1)[1:]
    wanted, dtype = accuracy(tolerance)
    total = NufftSum(
        dl, sigma, exponent, make_transforms(torch.device("cpu"), wanted, dtype), dtype
    )
    got = total.evaluate(*map(torch.from_numpy, (q, r, cell, cell)))
    return [
        float(np.abs(a.numpy() - b).max() / (np.abs(b).max() or 1.0) / tolerance)
        for a, b in zip(got, want, strict=True)
    ]  # a cell may be too small for any vector k: all is zero then


def main() -> None:
    """Print the largest error of each quantity for each tolerance."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--most", type=int, default=1200, help="atoms of the largest system")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("tolerance, largest error in units of it, where: two or three atoms alone; all others")
    for tolerance in TOLERANCES:
        few, many = (0.0, ""), (0.0, "")
        for seed in range(options.seeds):
            for system in systems(np.random.default_rng(seed), options.most):
                for module in MODULES:
                    found = (max(errors(system, module, tolerance)), f"{system[0]}, {module}")
                    if len(system[1]) <= 3:
                        few = max(few, found)
                    else:
                        many = max(many, found)
        print(f"{tolerance:<8.1e} {few[0]:5.2f} {few[1]:<28} {many[0]:5.2f} {many[1]}", flush=True)


if __name__ == "__main__":
    main()
