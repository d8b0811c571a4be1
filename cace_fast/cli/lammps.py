"""`cace-fast lammps`: compile the pair style for LAMMPS, and tell where it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="pair_style cace for LAMMPS: docs/user/lammps.md.", no_args_is_help=True)


@app.command()
def build(
    lammps_include: Annotated[
        Path | None, typer.Option(help="LAMMPS' headers: src of its sources, or include/lammps.")
    ] = None,
    mpi_include: Annotated[
        Path | None, typer.Option(help="The folder of mpi.h of LAMMPS' MPI.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The file to write; by default a place LAMMPS finds.")
    ] = None,
) -> None:
    """Compile pair_style cace against a LAMMPS, and print the line that loads it.

    More: docs/user/lammps.md.
    """
    from cace_fast.interfaces.lammps.build import build as compiled

    print(f"plugin load {compiled(lammps_include, mpi_include, output)}")


@app.command()
def path() -> None:
    """Print where the compiled pair style is.

    More: docs/user/lammps.md.
    """
    from cace_fast.interfaces.lammps import plugin_path

    print(plugin_path())


@app.command()
def sources() -> None:
    """Print the folder of the pair style's sources, for a LAMMPS that is built with them.

    More: docs/user/lammps.md.
    """
    from cace_fast.interfaces.lammps.plugin import SOURCES

    print(SOURCES)
