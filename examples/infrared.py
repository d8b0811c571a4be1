"""Infrared spectrum of a crystal from molecular dynamics with latent charges.

No shipped potential has charges, so the example makes one: atoms of two elements repel each other
at short distance, and where they are surrounded they carry opposite charges, which hold a crystal
of the rock-salt structure together. The rest is what one does with a trained potential: constant
energy, Born charges Z* along the way, and the spectrum of the current J = sum Z* v, which is dP/dt.
Beside it is the spectrum of differences of the polarisation itself.

    python examples/infrared.py --out infrared.png
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from ase import Atoms, units
from ase.build import bulk
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console

import cace_fast
from cace_fast.spec import (
    MLP,
    Add,
    CutoffFunction,
    Ewald,
    Forces,
    ModelSpec,
    Provenance,
    RadialBasis,
    Readout,
    Representation,
    SubModel,
)
from cace_fast.weights import Weights, expected_shapes

ELEMENTS = (12, 8)
LATTICE_CONSTANT = 4.2  # A
REPULSION = 10.5  # eV for each directed pair at no distance, falling with a width of 0.6 A
CHARGE = 0.8 * 90.0474**0.5  # internal units, of 0.8 e, of an atom that is surrounded
NEARLY = 5.0  # a sum over neighbours far beyond it counts as surrounded, far below minus it as well
TEMPERATURE = 300.0
PER_CM = 1e15 / units._c / 100.0  # 1/fs in 1/cm

Floats = NDArray[np.float64]


def make_potential(dl: float = 1.5) -> cace_fast.Potential:
    """Return a potential of two radial functions whose weights are written down, not trained."""
    basis = RadialBasis("gaussian", 2, 1.0)
    cutoff = CutoffFunction("polynomial", 4.0, p=5.0)
    rep = Representation(ELEMENTS, 2, False, 4.0, basis, cutoff, 2, 1, 2)
    modules = (
        Readout("E_sr", MLP((rep.n_features, 2, 1))),
        Readout("tot_q", MLP((rep.n_features, 2, 1)), per_atom_key="q"),
        Ewald("q", "E_lr", dl=dl, sigma=1.0, remove_self_interaction=True),
        Add(("E_sr", "E_lr"), "energy"),
        Forces("energy", "forces"),
    )
    note = "made by examples/infrared.py"
    spec = ModelSpec(rep, (SubModel(modules),), provenance=Provenance(licence="MIT", note=note))
    weights = {
        name: torch.zeros(shape, dtype=torch.float64)
        for name, shape in expected_shapes(spec).items()
    }
    weights["embedding.sender"][:, 0] = 1.0
    weights["embedding.receiver"][:, 0] = 1.0  # channel 0 sees every pair alike
    weights["embedding.receiver"][:, 1] = torch.tensor([1.0, -1.0])  # channel 1 the own element
    weights["radial.offsets"] = torch.tensor([0.0, 0.0], dtype=torch.float64)
    weights["radial.widths"] = torch.tensor([0.6, 3.0], dtype=torch.float64)
    for number in range(2):
        weights["mixing.0"][number, number] = 1.0
    stride = rep.n_invariants * rep.n_channels  # features are flattened as (radial, B, channel)
    weights["outputs.0.0.linear.weight"][0, 0] = REPULSION
    # q = CHARGE (silu(s + NEARLY) - silu(s - NEARLY) - NEARLY)/NEARLY, from -CHARGE to CHARGE
    signs = torch.tensor([1.0, -1.0])
    weights["outputs.0.1.layers.0.weight"][:, stride + 1] = 2.5
    weights["outputs.0.1.layers.0.bias"][:] = NEARLY * signs
    weights["outputs.0.1.layers.1.weight"][0] = CHARGE / NEARLY * signs
    weights["outputs.0.1.layers.1.bias"][0] = -CHARGE
    return cace_fast.Potential(spec, Weights(spec, weights), dtype="float64")


def trajectory(atoms: Atoms, steps: int, every: int, timestep: float) -> tuple[Floats, Floats]:
    """Return current [n, 3] in e A/fs and polarisation [n, 3] in e A, ``every`` so many steps."""
    potential = atoms.calc.potential
    currents, polarisations = [], []
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    for _ in range(steps // every):
        born = potential.compute(atoms, ("bec",))["bec"]
        velocities = atoms.get_velocities() * units.fs
        currents.append(np.einsum("ia,iab->b", velocities, born))
        polarisations.append(polarisation(atoms))
        dynamics.run(every)
    return np.array(currents), np.array(polarisations)


def polarisation(atoms: Atoms) -> Floats:
    """Return sum_i Q_i r_i [3] in e A, each atom's position taken from its unwrapped path."""
    charges = atoms.calc.potential.compute(atoms, ("charges",))["charges"]
    return (charges - charges.mean()) @ atoms.positions


def spectrum(current: Floats, interval: float) -> tuple[Floats, Floats]:
    """Return wave numbers in 1/cm and the power of the current there, Hann-windowed."""
    window = np.hanning(len(current))[:, None]
    power = (np.abs(np.fft.rfft(window * (current - current.mean(0)), axis=0)) ** 2).sum(1)
    return np.fft.rfftfreq(len(current), interval) * PER_CM, power / power.max()


def harmonic(atoms: Atoms, potential: cace_fast.Potential) -> float:
    """Return the wave number in 1/cm of the vibration at rest that light drives most."""
    masses = np.repeat(atoms.get_masses(), 3)
    hessian = potential.hessian(atoms).reshape(len(masses), len(masses))
    squares, modes = np.linalg.eigh(hessian / np.sqrt(np.outer(masses, masses)))
    born = potential.compute(atoms, ("bec",))["bec"].reshape(-1, 3)
    driven = (((modes / np.sqrt(masses)[:, None]).T @ born) ** 2).sum(1)
    omega = np.sqrt(max(squares[driven.argmax()], 0.0)) * units.fs
    return float(omega / (2.0 * np.pi) * PER_CM)


def main(
    out: Annotated[Path, typer.Option(help="The picture.")] = Path("infrared.png"),
    quick: Annotated[bool, typer.Option("--quick", help="A short run, for tests.")] = False,
    seed: Annotated[int, typer.Option(help="Of the momenta.")] = 0,
) -> None:
    """Run, print and draw."""
    console = Console()
    atoms = bulk("MgO", "rocksalt", a=LATTICE_CONSTANT, cubic=True)
    potential = make_potential()
    atoms.calc = cace_fast.CACECalculator(potential)
    at_rest = harmonic(atoms, potential)
    rng = np.random.default_rng(seed)
    atoms.rattle(0.02, rng=rng)
    heat = {"temperature_K": TEMPERATURE, "friction": 0.02 / units.fs, "rng": rng, "fixcm": False}
    Langevin(atoms, units.fs, **heat).run(100 if quick else 1000)
    steps, every, timestep = (800, 4, 1.0) if quick else (8_000, 4, 1.0)
    before = atoms.get_total_energy()
    current, moment = trajectory(atoms, steps, every, timestep)
    drift = (atoms.get_total_energy() - before) / len(atoms)
    interval = every * timestep
    # Born charges of a crystal are those of its phases; atoms' own paths differ by how Q changes
    numbers, power = spectrum(current, interval)
    own = spectrum(np.gradient(moment, interval, axis=0), interval)[1]
    peak = numbers[power.argmax()]
    charge = potential.compute(atoms, ("bec",))["bec"][0].trace() / 3.0
    console.print(f"Born charge of Mg          {charge:+.3f} e")
    console.print(f"energy drift               {1e3 * drift:+.3f} meV/atom")
    console.print(f"strongest line             {peak:.0f} 1/cm")
    console.print(f"harmonic, at rest          {at_rest:.0f} 1/cm")
    console.print(f"that of dP/dt itself       {numbers[own.argmax()]:.0f} 1/cm")
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.subplots()
    shown = numbers < 4.0 * peak + 100.0
    axes.plot(numbers[shown], power[shown], label="sum of Born charges times velocities")
    axes.plot(numbers[shown], own[shown], ":", label="dP/dt by differences")
    axes.axvline(at_rest, color="0.6", lw=0.8, label=f"harmonic, at rest: {at_rest:.0f} 1/cm")
    axes.set_title(f"infrared spectrum of the crystal: one line, at {peak:.0f} 1/cm", fontsize=10)
    axes.set_xlabel("wave number, 1/cm")
    axes.set_ylabel("power of the current (largest = 1)")
    axes.legend(frameon=False)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    console.print(f"picture                    {out}")


if __name__ == "__main__":
    typer.run(main)
