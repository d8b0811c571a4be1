"""`cace-fast config`: what a program needs to compile and link against the CPU engine."""

from __future__ import annotations

from typing import Annotated

import typer

from cace_fast.errors import InputError


def config(
    include: Annotated[bool, typer.Option("--include", help="The folder of the headers.")] = False,
    library: Annotated[bool, typer.Option("--library", help="The shared library.")] = False,
    isa: Annotated[bool, typer.Option("--isa", help="The instruction set in use.")] = False,
    pkgconfig: Annotated[
        bool, typer.Option("--pkgconfig", help="The folder of cace_fast.pc.")
    ] = False,
    cmake: Annotated[
        bool, typer.Option("--cmake", help="The folder of the package for find_package.")
    ] = False,
) -> None:
    """Print what a program in C or C++ needs to use the CPU engine, one line for each option.

    More: docs/user/c_interface.md.
    """
    from cace_fast.kernels.cpu import library as compiled
    from cace_fast.kernels.cpu.build import HERE, LIBRARY

    if not (include or library or isa or pkgconfig or cmake):
        raise InputError("options", "at least one of --include, --library, --isa, ...", "none")
    if include:
        print(HERE / "csrc")
    if library:
        compiled.library()  # an error where it is missing or does not load
        print(HERE / LIBRARY)
    if isa:
        print(compiled.isa())
    if pkgconfig or cmake:
        print(HERE / "link")
