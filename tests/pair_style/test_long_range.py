"""Charges on ranks: the mesh and the direct sum, slabs, what leaves as charges and dipoles."""

from __future__ import annotations

import numpy as np
import pytest
from support.lammps import in_lammps_frame, script, write_data
from support.lammps_cases import tiny

from cace_fast import Potential

DUMP = "dump 1 all custom 1 f.dump id fx fy fz\ndump_modify 1 sort id format float %.17g\n"
VACUUM = 15.0


def written(lammps, potential, atoms, *, charges=False, **options):
    """Write model and structure; return the script's beginning."""
    elements = [z for z in potential.spec.representation.elements if z in set(atoms.numbers)]
    potential.save(lammps.folder / "model.safetensors")
    write_data(lammps.folder / "in.data", atoms, elements, charges=charges)
    return script(lammps.folder / "model.safetensors", elements, **options)


@pytest.mark.parametrize("kind", ["charges", "everything"])
@pytest.mark.parametrize("precision", ["double", "single"])
def test_the_mesh_is_the_direct_sum(lammps, kind, precision):
    """On any number of ranks, for one channel and for two that share a transform."""
    potential, atoms = tiny(kind)
    atoms = atoms.repeat((2, 2, 1))
    found = {}
    for method in ("direct", "mesh"):
        style = f"cace precision {precision} kspace {method}"
        text = written(lammps, potential, atoms, style=style) + DUMP + "run 0\n"
        for ranks in (1, 3, 4):
            done = lammps.run(text, ranks)
            assert done.code == 0, done.text
            found[method, ranks] = done.rows[0], done.dump("f.dump")
    row, forces = found["direct", 1]
    limit = 1e-10 if precision == "double" else 3e-6
    for other, moved in found.values():
        assert other[1] == pytest.approx(row[1], rel=limit)
        np.testing.assert_allclose(moved, forces, rtol=0, atol=limit * np.abs(forces).max())
        np.testing.assert_allclose(other[4:10], row[4:10], rtol=0, atol=limit * abs(row[4]))


@pytest.mark.parametrize("axis", [0, 2])
@pytest.mark.parametrize("method", ["direct", "mesh"])
def test_slabs(lammps, axis, method):
    potential, atoms = tiny("charges")
    slab = Potential(potential.spec, potential.weights, dtype="float64", slab_vacuum=VACUUM)
    cell = atoms.cell.array.copy()
    cell[axis, axis] += 4.0
    atoms.set_cell(cell)
    atoms.positions[:, axis] += 2.0
    atoms.pbc = [a != axis for a in range(3)]
    boundary = " ".join("f" if a == axis else "p" for a in range(3))
    style = f"cace precision double slab_vacuum {VACUUM} kspace {method}"
    text = written(lammps, potential, atoms, style=style, boundary=boundary)
    expected = slab.compute(atoms, ("energy", "forces"))
    for ranks in (1, 2, 4):
        done = lammps.run(text + DUMP + "run 0\n", ranks)
        assert done.code == 0, done.text
        assert done.rows[0][1] == pytest.approx(expected["energy"], abs=1e-8)
        forces = expected["forces"]
        limit = 1e-8 * np.abs(forces).max()
        np.testing.assert_allclose(done.dump("f.dump"), forces, rtol=0, atol=limit)


def test_charges_in_e(lammps):
    """To atom->q, to a property of atoms, by fix pair; total and dipole by compute pair."""
    potential, atoms = tiny("charges")
    text = written(
        lammps,
        potential,
        atoms,
        charges=True,
        atom_style="charge",
        style="cace precision double charges atom",
        after="fix out all pair 1 cace charge 0 latent_charges 0\ncompute all all pair cace",
    )
    text += "variable q equal c_all[1]\nvariable d equal c_all[2]\n"
    text += "thermo_style custom step pe v_q v_d\nthermo_modify format float %.16g\n"
    text += "fix 1 all nve\nrun 1\n"  # fix pair has values after a step
    text += "dump 1 all custom 1 q.dump id q f_out[1] f_out[2] xu yu zu\n"
    text += "dump_modify 1 sort id format float %.17g\nrun 0\n"
    done = lammps.run(text, 2)
    assert done.code == 0, done.text
    q, by_fix, latent, x, y, z = done.dump("q.dump").T
    atoms.positions = np.stack([x, y, z], 1)
    expected = potential.compute(atoms, ("charges", "latent_charges"))
    np.testing.assert_allclose(q, expected["charges"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(q, by_fix, rtol=0, atol=1e-13)
    np.testing.assert_allclose(latent, expected["latent_charges"][:, 0], rtol=0, atol=1e-8)
    assert done.rows[-1][2] == pytest.approx(q.sum(), abs=1e-10)
    assert done.rows[-1][3] == pytest.approx(q @ x, abs=1e-9)

    text = text.replace("charges atom", "charges property").replace(
        "pair_style", "fix more all property/atom d_cace_charge\npair_style"
    )
    done = lammps.run(text.replace(" q f_out[1]", " d_cace_charge f_out[1]"), 2)
    assert done.code == 0, done.text
    np.testing.assert_allclose(done.dump("q.dump")[:, 0], q, rtol=0, atol=1e-10)


def test_turned_boxes(lammps):
    """A left-handed cell with its atoms turned into LAMMPS' frame: the same energy."""
    potential, atoms = tiny("charges")
    shear = np.array([[1, 0.2, 0], [0, -1, 0.1], [0.3, 0, 1.2]])
    atoms.set_cell(atoms.cell.array @ shear, scale_atoms=True)
    turned = in_lammps_frame(atoms)
    done = lammps.run(
        written(lammps, potential, turned, style="cace precision double") + "run 0\n", 2
    )
    assert done.code == 0, done.text
    energy = potential.compute(turned, ("energy",))["energy"]
    assert done.rows[0][1] == pytest.approx(energy, abs=1e-9)
