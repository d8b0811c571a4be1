"""Runs of `cace-fast md` with a tiny model, in a folder that holds m.safetensors and in.xyz."""

from __future__ import annotations

import csv
from contextlib import closing
from pathlib import Path

import numpy as np
from ase.io import read

from cace_fast.cli.integrators import Settings
from cace_fast.cli.restart import Restart
from cace_fast.cli.simulation import Simulation
from cace_fast.electric_field import OscillatingField
from cace_fast.interfaces.ase import CACECalculator
from cace_fast.loading import load

ENSEMBLES = ("nve", "nvt", "npt")
OPTIONS = {"ewald_channels": 1, "steps": ("M",)}
WAVE = OscillatingField((0.3, -0.2, 0.4), frequency=40.0, phase=30.0, pulse=(8.0, 6.0))
FIELD = {
    "field": "0.3,-0.2,0.4", "field-frequency": 40, "field-phase": 30, "field-pulse": "8,6",
}  # fmt: skip


def arguments(ensemble="nve", output="run", **options):
    options = {"log-every": 1, "traj-every": 4, "restart-every": 5, "steps": 12} | options
    base = ["md", "m.safetensors", "in.xyz", "--ensemble", ensemble, "--output", output]
    return base + [word for name, value in options.items() for word in (f"--{name}", value)]


def log(output="run"):
    with open(f"{output}.csv") as file:
        return list(csv.DictReader(file))


def assert_equal_runs(one, other):
    """Both runs left the same bytes and the same state."""
    for ending in ("extxyz", "csv"):
        first, second = (Path(f"{name}.{ending}").read_bytes() for name in (one, other))
        assert first == second, ending
    first, second = (Restart.load(Path(f"{name}.restart.npz")) for name in (one, other))
    assert first.arrays.keys() == second.arrays.keys()
    for name, array in first.arrays.items():
        assert np.array_equal(array, second.arrays[name]), name
    assert (first.step, first.random) == (second.step, second.random)


class Killed(BaseException):
    """Ends a run without any of the clean-up that a command does."""


def whole_run(ensemble, field):
    """Leave the files of a run of 12 steps that nothing disturbs, under the name "whole"."""
    whole = simulation(ensemble, "whole", field=field)
    with closing(whole.outputs):
        whole.begin(force=False)
        whole.run(12, 5, lambda: None)


def simulation(ensemble, output, seed=0, field=None):
    k_set = "frozen" if ensemble == "npt" else "sphere"
    potential = load("m.safetensors", device="cpu", k_set=k_set)
    stress = True if ensemble == "npt" else None
    calculator = CACECalculator(potential, compute_stress=stress, external_field=field)
    settings = Settings(ensemble, 300.0, 0.1, 1.0, 0.02, 4, 1, seed, "m", "p", "s", 1, k_set)
    return Simulation(read("in.xyz"), calculator, settings, output)


def kill_after(step, run):
    def on_step():
        if run.step == step:
            raise Killed

    return on_step
