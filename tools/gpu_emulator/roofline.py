"""Predicts how long kernels take on a GPU from what they execute and move: no measurement.

A launch takes the longest of what it needs of each resource (instruction issue, arithmetic units,
the two caches, memory, and the time that a warp waits while too few others run), after the time
that any launch takes. docs/developer/roofline.md says what the prediction leaves out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gpu_emulator.machine import Launch
from gpu_emulator.memory import SECTOR
from gpu_emulator.resources import Resources

WARP = 32
REGISTERS = 65536  # of a multiprocessor
STALL = 2.0  # cycles between the instructions of one warp: latency 4, two in flight
UNROLLED = 1.6  # a loop that grew by more was unrolled by the assembler, not lengthened


@dataclass(frozen=True)
class Device:
    """A GPU as its maker describes it.

    Attributes
    ----------
    name, architecture
        What it is, and the architecture whose machine code is counted.
    units, clock
        Number of multiprocessors (each with four schedulers), and GHz under load.
    lanes
        Lanes of a warp that one scheduler serves in a cycle, by kind of instruction.
    warps
        Most warps of a multiprocessor.
    cache, cache_rate, memory_rate
        MB of the last cache; TB/s out of it and out of memory.
    launch
        us from one kernel to the next that depends on it, in a graph.
    wait
        Cycles of a load, out of the last cache and out of memory.
    """

    name: str
    architecture: str
    units: int
    clock: float
    lanes: dict[str, int]
    warps: int
    cache: float
    cache_rate: float
    memory_rate: float
    launch: float
    wait: tuple[float, float]


def _lanes(fp32: int, fp64: int) -> dict[str, int]:
    return {
        "fp32": fp32, "fp64": fp64, "integer": 16, "special": 4, "load": 8, "store": 8,
        "exchange": 8, "atomic": 8, "stack": 8, "control": 32, "barrier": 32, "matrix": 32,
    }  # fmt: skip


# The table of tests/gpu/matrix shows that sm_80 to sm_90 need the same registers and loops: the
# machine code of one stands for all of NVIDIA's here.
DEVICES = (
    Device("A100", "sm_90", 108, 1.41, _lanes(16, 8), 64, 40, 5.0, 2.04, 1.5, (250, 600)),
    Device("H100", "sm_90", 132, 1.755, _lanes(32, 16), 64, 50, 5.7, 3.35, 1.5, (270, 650)),
    Device("L40S", "sm_90", 142, 2.4, _lanes(32, 1), 48, 96, 4.5, 0.86, 1.5, (300, 700)),
    Device("RTX 4090", "sm_90", 128, 2.5, _lanes(32, 1), 48, 72, 5.0, 1.01, 1.5, (300, 700)),
    # A wavefront of 64 lanes takes four cycles: as a warp of 32 that takes two.
    Device("MI300X", "gfx942", 304, 2.1, _lanes(16, 16), 64, 256, 14.0, 5.3, 3.0, (500, 900)),
)


@dataclass(frozen=True)
class Cost:
    """Predicted time of one launch in us: every bound, and what any launch takes.

    Attributes
    ----------
    name
        The kernel.
    bounds
        us by resource.
    launch
        us that any launch takes.
    """

    name: str
    bounds: dict[str, float]
    launch: float

    @property
    def bound(self) -> str:
        """The resource that decides, ``launch`` where that is longer than all of them."""
        longest = max(self.bounds, key=lambda name: self.bounds[name])
        return longest if self.bounds[longest] > self.launch else "launch"

    @property
    def time(self) -> float:
        """Return the whole in us."""
        return self.launch + max(self.bounds.values())


def executed(launch: Launch, resources: Resources) -> Counter[str]:
    """Return how many instructions of each kind warps execute, as the machine code has them.

    The emulator counts those of PTX; machine code has more or fewer for the same work, which the
    two static counts tell, in loops and outside them.
    """
    (loop_size, loop_runs), (rest_size, rest_runs) = launch.loop, launch.rest
    total: Counter[str] = Counter()
    parts = [(loop_size, loop_runs, resources.loop), (rest_size, rest_runs, resources.rest)]
    if not loop_size or not resources.loop:
        whole = resources.loop + resources.rest
        parts = [(loop_size + rest_size, loop_runs + rest_runs, whole)]
    for size, runs, found in parts:
        count = sum(found.values())
        if not size or not count:
            continue
        often = runs / (count if count > UNROLLED * size else size)
        for kind, n in found.items():
            total[kind] += round(often * n)
    return total


def unrolled(launch: Launch, resources: Resources) -> float:
    """Return how many turns of a loop the assembler put into one: their loads wait together."""
    size, found = launch.loop[0], sum(resources.loop.values())
    return max(1.0, found / size) if size and found > UNROLLED * size else 1.0


def resident(resources: Resources, warps: int, device: Device) -> float:
    """Return how many warps a scheduler holds at once, by registers and the device's limit."""
    each = -(-max(resources.registers, 24) * WARP // 256) * 256
    by_registers = REGISTERS // 4 // each
    return float(max(1, min(by_registers, device.warps // 4)))


def predict(
    launch: Launch, resources: Resources, device: Device, growth: float, working_set: float
) -> Cost:
    """Predict one launch on a device.

    Parameters
    ----------
    launch
        What the emulator counted.
    resources
        Of the kernel, compiled for the device.
    device
        Where it would run.
    growth
        How many times larger the system is than the one that was emulated.
    working_set
        MB that a step touches: less than the cache holds never leaves it.

    Returns
    -------
    Cost
        Times in us.
    """
    schedulers, cycle = device.units * 4, 1e-3 / device.clock  # us
    counts = {kind: n * growth for kind, n in executed(launch, resources).items()}
    warps = launch.warps * growth
    held = resident(resources, launch.warps, device)
    issue = sum(counts.values()) / schedulers
    exchange = ("load", "store", "exchange", "atomic", "stack")
    units = {
        "fp32": counts.get("fp32", 0.0) * WARP / device.lanes["fp32"],
        "fp64": counts.get("fp64", 0.0) * WARP / device.lanes["fp64"],
        "integer": counts.get("integer", 0.0) * WARP / device.lanes["integer"],
        "special": counts.get("special", 0.0) * WARP / device.lanes["special"],
        "load/store": sum(counts.get(k, 0.0) for k in exchange) * WARP / device.lanes["load"],
    }
    traffic = launch.traffic
    moved = (traffic.load_sectors + traffic.store_sectors) * SECTOR * growth
    unique = (traffic.unique_loaded + traffic.unique_stored) * growth
    outside = working_set > device.cache
    alone = sum(counts.values()) / max(warps, 1) * STALL
    alone += launch.load_rounds / launch.warps * device.wait[outside] / unrolled(launch, resources)
    bounds = {"issue": issue * cycle}
    bounds |= {name: cycles / schedulers * cycle for name, cycles in units.items()}
    bounds["L1"] = moved / (64 * device.units) * cycle
    bounds["cache"] = unique / device.cache_rate * 1e-6
    bounds["memory"] = unique / device.memory_rate * 1e-6 * outside
    bounds["waiting"] = alone * max(1.0, warps / (schedulers * held)) * cycle
    return Cost(launch.name, bounds, device.launch)


def step(
    launches: Sequence[Launch],
    resources: Sequence[Resources],
    device: Device,
    growths: Sequence[float],
) -> Iterator[Cost]:
    """Predict every launch of a step; the arguments are those of `predict`, for each launch."""
    touched = sum(
        (x.traffic.unique_loaded + x.traffic.unique_stored) * growth
        for x, growth in zip(launches, growths, strict=True)
    )
    for launch, needs, growth in zip(launches, resources, growths, strict=True):
        # Arrays are read by several launches: half of what they touch together is distinct.
        yield predict(launch, needs, device, growth, touched / 2 * 1e-6)
