"""``compute centroid/stress/atom`` and ``heat/flux``: those of ``Potential.compute``."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from support.lammps import BAR, script, write_data
from support.lammps_cases import tiny

PS = 1e-12 * units.s
ORDER = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2), (1, 0), (2, 0), (2, 1))
COMPUTES = """
compute ke all ke/atom
compute pe all pe/atom
compute stress all centroid/stress/atom NULL virial
compute flux all heat/flux ke pe stress
thermo_style custom step pe c_flux[1] c_flux[2] c_flux[3]
thermo_modify format float %.16g
dump 1 all custom 1 s.dump id c_stress[*]
dump_modify 1 sort id format float %.17g
run 0
"""


@pytest.mark.parametrize("newton", ["on", "off"])
@pytest.mark.parametrize("kind", ["short range", "messages", "two steps"])
def test_many_body_heat_flux(lammps, kind, newton):
    """Over one hop and over several, on any number of ranks; volume times LAMMPS' flux density."""
    potential, atoms = tiny(kind)
    velocities = np.random.default_rng(7).normal(size=(len(atoms), 3))
    atoms.set_velocities(velocities / PS)
    elements = sorted(set(atoms.numbers))
    potential.save(lammps.folder / "model.safetensors")
    write_data(lammps.folder / "in.data", atoms, elements, velocities)
    text = script(
        lammps.folder / "model.safetensors",
        elements,
        style="cace precision double",
        newton=newton,
        after=COMPUTES,
    )
    expected = potential.compute(atoms, ("atom_virials", "heat_flux"))
    for ranks in (1, 2, 4):
        done = lammps.run(text, ranks)
        assert done.code == 0, done.text
        virials = -done.dump("s.dump") * BAR
        wanted = np.stack([expected["atom_virials"][:, a, b] for a, b in ORDER], 1)
        limit = 1e-9 * np.abs(wanted).max()
        np.testing.assert_allclose(virials, wanted, rtol=0, atol=limit)
        flux = expected["heat_flux"] * PS  # eV A/ps
        assert done.rows[0][2:5] == pytest.approx(
            flux, rel=1e-6
        )  # LAMMPS' mvv2e in the kinetic part


def test_it_is_refused_with_charges(lammps):
    """The decomposition of the pressure stays, as ``stress/atom``."""
    potential, atoms = tiny("charges")
    elements = sorted(set(atoms.numbers))
    potential.save(lammps.folder / "model.safetensors")
    write_data(lammps.folder / "in.data", atoms, elements)
    text = script(lammps.folder / "model.safetensors", elements, after=COMPUTES)
    done = lammps.run(text, 2)
    assert done.code != 0
    assert "does not support compute centroid/stress/atom" in done.text
