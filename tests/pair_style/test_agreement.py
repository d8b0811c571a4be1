"""What LAMMPS gets on 1, 2 and 4 ranks is what the ASE calculator gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from ase.optimize import FIRE
from support.lammps import BAR, MVV, in_lammps_frame, script, write_data
from support.lammps_cases import KINDS, tiny
from support.paths import NO_SHARED, shared_folder

from cace_fast import CACECalculator, load

RANKS = (1, 2, 4)
PUBLISHED = ("water-mp0-sr", "cacefit-water", "licl-gaf3-lr0", "water-benchmark", "water-mp1-lr")
OUTPUT = """
compute pe all pe/atom
compute stress all stress/atom NULL virial
compute sums all reduce sum c_pe c_stress[*]
thermo_style custom step pe etotal press pxx pyy pzz pxy pxz pyz vol temp c_sums[*]
thermo_modify format float %.16g
dump 1 all custom 1 out.dump id x y z fx fy fz c_pe
dump_modify 1 sort id format float %.17g
"""
VOIGT = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
# eV, and relative to the largest force and pressure: sums in another order, or float32
LIMITS = {"double": (1e-9, 1e-11, 1e-11), "single": (2e-4, 2e-5, 2e-5)}


def compare(done, potential, atoms, precision):
    """Energy (eV), forces (eV/A), pressure (eV/A^3), energies and virials of atoms at rest."""
    assert done.code == 0, done.text
    row, table = done.rows[0], done.dump("out.dump")
    expected = potential.compute(atoms, ("energy", "forces", "stress", "energies"))
    energy, forces, pressure = LIMITS[precision]
    scale = max(1.0, float(np.abs(expected["forces"]).max()))
    pressures = -np.array([expected["stress"][i] for i in VOIGT])
    scale_of_pressure = max(0.01, float(np.abs(pressures).max()))
    assert row[1] == pytest.approx(expected["energy"], abs=energy)
    np.testing.assert_allclose(table[:, 3:6], expected["forces"], rtol=0, atol=forces * scale)
    got = row[4:10] * BAR
    np.testing.assert_allclose(got, pressures, rtol=0, atol=pressure * scale_of_pressure)
    np.testing.assert_allclose(table[:, 6], expected["energies"], rtol=0, atol=energy)
    assert row[12] == pytest.approx(row[1], abs=energy)
    of_atoms = -row[13:19] * BAR / atoms.get_volume()
    np.testing.assert_allclose(of_atoms, got, rtol=0, atol=pressure * scale_of_pressure)


def at_rest(lammps, potential, atoms, precision, style="", *, ranks=RANKS):
    """Run one step on several ranks and compare each."""
    elements = [z for z in potential.spec.representation.elements if z in set(atoms.numbers)]
    potential.save(lammps.folder / "model.safetensors")
    write_data(lammps.folder / "in.data", atoms, elements)
    text = script(
        lammps.folder / "model.safetensors",
        elements,
        style=f"cace precision {precision} {style}",
        after=OUTPUT,
    )
    for n in ranks:
        compare(lammps.run(text + "run 0\n", n), potential, atoms, precision)


@pytest.mark.parametrize("precision", ["double", "single"])
@pytest.mark.parametrize("kind", KINDS)
def test_small_models(lammps, kind, precision):
    potential, atoms = tiny(kind)
    at_rest(lammps, potential, atoms, precision)


@pytest.mark.parametrize("kind", ["short range", "everything"])
def test_triclinic_cells(lammps, kind):
    potential, atoms = tiny(kind)
    shear = np.array([[1, 0, 0], [0.3, 1, 0], [-0.2, 0.35, 1.1]])
    atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
    at_rest(lammps, potential, in_lammps_frame(atoms), "double")


def published(name):
    """Return a recorded model and its first structure; skip where there is none."""
    shared = shared_folder()
    if shared is None:
        pytest.skip(NO_SHARED)
    folder = Path(shared) / "data" / "upstream" / name
    atoms = in_lammps_frame(read(folder / "structures.xyz", index=0))
    return load(str(folder / "model.pth"), dtype="float64"), atoms


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(lammps, name):
    potential, atoms = published(name)
    at_rest(lammps, potential, atoms, "double")
    at_rest(lammps, potential, atoms, "single", ranks=(2,))


def verlet(atoms, potential, velocities, dt, steps):
    """Integrate as LAMMPS does, with its constants; A, A/ps and ps."""
    mass, r, v = atoms.get_masses()[:, None], atoms.positions.copy(), velocities.copy()
    moving = atoms.copy()

    def forces():
        moving.positions = r
        return potential.compute(moving, ("energy", "forces"))

    now = forces()
    for _ in range(steps):
        v += 0.5 * dt * now["forces"] / mass / MVV
        r += dt * v
        now = forces()
        v += 0.5 * dt * now["forces"] / mass / MVV
    return r, now["energy"] + 0.5 * MVV * float((mass * v * v).sum())


def same_trajectory(lammps, potential, atoms, steps, *, min_dist=""):
    """Run without a thermostat in both: positions and energy agree on any number of ranks."""
    elements = [z for z in potential.spec.representation.elements if z in set(atoms.numbers)]
    rng = np.random.default_rng(3)
    mass = atoms.get_masses()[:, None]
    velocities = rng.normal(size=(len(atoms), 3)) * np.sqrt(8.617343e-5 * 50.0 / (mass * MVV))
    velocities -= (mass * velocities).sum(0) / mass.sum()
    potential.save(lammps.folder / "model.safetensors")
    write_data(lammps.folder / "in.data", atoms, elements, velocities)
    style = f"cace precision double {min_dist}"
    text = script(lammps.folder / "model.safetensors", elements, style=style)
    text += f"fix 1 all nve\nthermo {steps}\nrun {steps}\n"
    text += "write_dump all custom end.dump id xu yu zu modify sort id format float %.17g\n"
    r, total = verlet(atoms, potential, velocities, 0.0005, steps)
    for n in RANKS:
        done = lammps.run(text, n)
        assert done.code == 0, done.text
        moved = done.dump("end.dump") - r
        h = atoms.cell.array
        moved -= np.round(moved @ np.linalg.inv(h)) @ h
        assert np.abs(moved).max() < 1e-9
        assert done.rows[-1][2] == pytest.approx(total, abs=1e-8)


@pytest.mark.parametrize("kind", ["short range", "messages", "everything"])
def test_trajectories(lammps, kind):
    same_trajectory(lammps, *tiny(kind), 200, min_dist="min_dist -1")


@pytest.mark.parametrize("name", PUBLISHED)
def test_trajectories_of_published_models(lammps, name):
    """From a start that is relaxed a little, so that no atoms collide."""
    potential, atoms = published(name)
    atoms.calc = CACECalculator(potential)
    FIRE(atoms, logfile=None).run(fmax=0.5, steps=60)
    relaxed = atoms.copy()
    relaxed.wrap()
    same_trajectory(lammps, potential, relaxed, 200)
