"""What each entry of the table of tiles would cost on each GPU: a prediction (bench/roofline.py).

    python bench/launch_table.py water-mp0-sr cacefit-hea25

Prints, for each size and device, the predicted time of a step with the entry that the table takes
relative to that with the best one, and the size from which each entry is the best.
"""

from __future__ import annotations

import argparse

import numpy as np
import roofline as bench
from gpu_emulator import roofline

from cace_fast.kernels.triton import configs

SIZES = (96, 192, 384, 768, 1_536, 3_072, 6_144, 12_288, 24_576, 98_304, 786_432)
N_TILES = len(configs.TILES)


def time(model: str, device: roofline.Device, n_atoms: int, number: int) -> float:
    """Return the predicted time of a step in us with one entry of the table."""
    return sum(cost.time for cost in bench.step(model, device, n_atoms, number))


def crossing(model: str, device: roofline.Device, number: int) -> str:
    """Return from how many atoms on an entry is better than the one before it."""
    for n in np.unique(np.geomspace(50, 1e6, 120).astype(int)):
        if time(model, device, int(n), number) < time(model, device, int(n), number - 1):
            return f"{n:,}".replace(",", " ")
    return "never"


def main() -> None:
    """Print both tables of every model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=["water-mp0-sr"], metavar="MODEL")
    options = parser.parse_args()
    names = [device.name for device in roofline.DEVICES]
    for model in options.models:
        print(f"\n{model}: time of a step / that with the best tile\n")
        print("| atoms |", " | ".join(names), "|")
        print("|---" * (len(names) + 1) + "|")
        for n in bench.sizes(model, SIZES):
            cells = []
            for device in roofline.DEVICES:
                taken = bench.tile_number(model, device, n)
                times = [time(model, device, n, k) for k in range(N_TILES)]
                best = int(np.argmin(times))
                more = "" if best == taken else f", best {_name(best)}"
                cells.append(f"{_name(taken)}: {times[taken] / times[best]:.2f}{more}")
            print(f"| {n} |", " | ".join(cells), "|")
        print(f"\n{model}: atoms from which a tile is better than the one before it\n")
        print("| tile |", " | ".join(names), "|")
        print("|---" * (len(names) + 1) + "|")
        for k in range(1, N_TILES):
            cells = [crossing(model, device, k) for device in roofline.DEVICES]
            print(f"| {_name(k)} |", " | ".join(cells), "|")


def _name(number: int) -> str:
    tile = configs.TILES[number][1]
    return f"{tile.rows} x {tile.lanes}"


if __name__ == "__main__":
    main()
