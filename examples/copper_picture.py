"""The picture of the copper demo: structure, energy, temperature and forces of one run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

if TYPE_CHECKING:
    from demo_copper import Record

OURS, EMT, COLD, HOT, GREY = "#c2571a", "#1f3a5f", "#3b78b5", "#c8342c", "#8a8a8a"


def draw(record: Record, bins: NDArray[np.float64], path: Path, lattice_constant: float) -> None:
    """Save four panels: g(r), potential energy, temperature, and forces against EMT's."""
    figure = Figure(figsize=(11.0, 8.0), dpi=130, layout="constrained")
    figure.suptitle(
        f"Heating {len(record.forces[0])} copper atoms with the CACE potential copper-emt",
        fontsize=14,
    )
    (structure, energy), (temperature, forces) = figure.subplots(2, 2)
    _structure(structure, record, bins, lattice_constant)
    _energy(energy, record)
    _temperature(temperature, record)
    _forces(forces, record)
    for axes in (structure, energy, temperature, forces):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _structure(axes: Any, record: Record, bins: NDArray[np.float64], a: float) -> None:
    middle = 0.5 * (bins[1:] + bins[:-1])
    for shell in a * np.sqrt(np.arange(1, 7) / 2.0):
        axes.axvline(shell, color=GREY, lw=0.8, ls=":", zorder=0)
    axes.plot([], [], color=GREY, lw=0.8, ls=":", label="shells of the perfect crystal")
    for name, colour in (("cold", COLD), ("hot", HOT)):
        found = record.histogram[name]
        g = np.mean(found[len(found) // 2 :], axis=0)
        own = record.temperature[record.phase(name)]
        mean = np.mean(own[len(own) // 2 :])
        axes.plot(middle, g, color=colour, lw=1.6, label=f"{name}, {mean:.0f} K")
        axes.fill_between(middle, g, color=colour, alpha=0.12, lw=0)
    axes.set(
        title="How far away neighbours are: heat blurs the shells", xlabel="distance r (Å)",
        ylabel="radial distribution g(r)", xlim=(bins[0], bins[-1]), ylim=(0, None),
    )  # fmt: skip
    axes.legend(framealpha=1.0, edgecolor="none")


def _shade(axes: Any, record: Record, height: float) -> None:
    """Mark the phases of the run behind a panel, their names at a height between 0 and 1."""
    labels = ("thermostat, 300 K", "thermostat, heating", "constant energy")
    ends = [*[record.time[start] for start in list(record.begins.values())[1:]], record.time[-1]]
    left = 0.0
    for label, right, colour in zip(labels, ends, (COLD, GREY, HOT), strict=True):
        axes.axvspan(left, right, color=colour, alpha=0.07, lw=0)
        axes.text(
            0.5 * (left + right), height, label, transform=axes.get_xaxis_transform(),
            ha="center", va="top", fontsize=9, color="#444444",
        )  # fmt: skip
        left = right
    axes.set(xlabel="time (ps)", xlim=(0.0, record.time[-1]))


def _energy(axes: Any, record: Record) -> None:
    step = max(1, len(record.time) // 40)
    off = 1e3 * np.sqrt(np.mean((np.array(record.energy) - np.array(record.emt)) ** 2))
    axes.plot(
        record.time, record.energy, color=OURS, lw=1.6, label="CACE potential, ran the dynamics"
    )
    axes.plot(
        record.time[::step], record.emt[::step], "o", ms=4.5, mfc="none", mec=EMT,
        label="EMT, on the same structures",
    )  # fmt: skip
    low, high = min(record.energy), max(record.energy)
    axes.set(
        title=f"Potential energy: {off:.2f} meV/atom RMS from EMT",
        ylabel="potential energy (eV/atom)",
        ylim=(low - 0.12 * (high - low), high + 0.28 * (high - low)),  # room for what is written
    )
    _shade(axes, record, 0.06)
    axes.legend(frameon=False, loc="upper left")


def _temperature(axes: Any, record: Record) -> None:
    axes.plot(record.time, record.temperature, color=HOT, lw=1.4)
    axes.set(
        title=f"Temperature; total energy drifts by {record.drift():+.3f} meV/atom/ps",
        ylabel="temperature (K)",
        ylim=(0, None),
    )
    _shade(axes, record, 0.08)


def _forces(axes: Any, record: Record) -> None:
    ours, emt = np.array(record.forces[-1]).ravel(), np.array(record.emt_forces[-1]).ravel()
    rms = 1e3 * np.sqrt(np.mean((ours - emt) ** 2))
    edge = 1.05 * float(np.abs(emt).max())
    axes.plot([-edge, edge], [-edge, edge], color=GREY, lw=0.8, zorder=0)
    axes.plot(emt, ours, ".", ms=4, color=OURS, alpha=0.6)
    axes.set(
        title=f"Forces in the last frame: {rms:.1f} meV/Å RMS from EMT",
        xlabel="force component, EMT (eV/Å)", ylabel="force component, CACE (eV/Å)",
        xlim=(-edge, edge), ylim=(-edge, edge), aspect="equal",
    )  # fmt: skip
