"""The engine driven in phases by a host: domains with ghosts equal the whole box."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from support.paths import REPOSITORY
from support.tiny_models import repeated, tiny_program, tiny_spec, tiny_structure, tiny_weights

from cace_fast import Potential
from cace_fast.kernels.cpu.build import HERE, LIBRARY, compiler
from cace_fast.spec import Ewald

LIMIT = 1e-11
MODELS = {
    "short range": {},
    "messages": {"steps": ("M+Ar+Bchi",), "l_max": 3},
    "two steps": {"steps": ("Bchi", "M+Ar")},
    "charges": {"ewald_channels": 2},
    "everything": {"steps": ("M+Ar+Bchi",), "ewald_channels": 2},
}


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The example, compiled against the header and the library."""
    if sys.platform != "linux":
        pytest.skip("how a program finds a library beside it differs from system to system")
    folder = tmp_path_factory.mktemp("hosted")
    library = HERE / LIBRARY
    out = folder / "two_domains"
    source = REPOSITORY / "examples" / "two_domains.cpp"
    line = [*compiler(), "-std=c++17", "-O1", str(source), f"-I{HERE / 'csrc'}", str(library)]
    subprocess.run([*line, f"-Wl,-rpath,{HERE}", "-o", str(out)], check=True)
    return out


def run(program, folder, spec, weights, atoms, n_domains):
    """Return energy and forces that the program prints; atoms of number 0 take no part."""
    potential = Potential(spec, weights, dtype="float64", backend="reference")
    potential.save(folder / "model.safetensors")
    lines = [" ".join(repr(float(x)) for x in atoms.cell.array.ravel()), str(len(atoms))]
    for z, r in zip(atoms.numbers, atoms.positions, strict=True):
        lines.append(f"{z} " + " ".join(repr(float(x)) for x in r))
    (folder / "box.txt").write_text("\n".join(lines))
    command = [program, folder / "model.safetensors", folder / "box.txt", str(n_domains)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers = [[float(x) for x in line.split()] for line in done.stdout.splitlines()]
    return (
        numbers[0][0],
        np.array(numbers[1:]),
        potential.compute(atoms[atoms.numbers > 0], ("energy", "forces")),
    )


@pytest.mark.parametrize("name", MODELS)
def test_domains_equal_the_whole(program, tmp_path, name):
    spec = tiny_spec(**MODELS[name])
    weights = tiny_weights(spec)
    atoms = tiny_structure(spec, 3, spacing=2.2)
    for n_domains in (1, 2, 3):
        energy, forces, expected = run(program, tmp_path, spec, weights, atoms, n_domains)
        assert energy == pytest.approx(expected["energy"], rel=LIMIT)
        scale = np.abs(expected["forces"]).max()
        np.testing.assert_allclose(forces, expected["forces"], rtol=0, atol=LIMIT * scale)


@pytest.mark.parametrize("name", ["short range", "messages", "everything"])
def test_atoms_that_take_no_part(program, tmp_path, name):
    """They may lie among the others, on top of them even."""
    spec = tiny_spec(**MODELS[name])
    atoms = tiny_structure(spec, 3, spacing=2.2)
    n = len(atoms)
    atoms.extend(atoms[: n // 3])
    atoms.numbers[n:] = 0
    atoms = atoms[np.random.default_rng(3).permutation(len(atoms))]
    present = atoms.numbers > 0
    for n_domains in (1, 2):
        energy, forces, expected = run(
            program, tmp_path, spec, tiny_weights(spec), atoms, n_domains
        )
        assert energy == pytest.approx(expected["energy"], rel=LIMIT)
        scale = np.abs(expected["forces"]).max()
        np.testing.assert_allclose(forces[present], expected["forces"], rtol=0, atol=LIMIT * scale)
        assert not forces[~present].any()


def test_several_sums_with_fixed_charges_and_isolated_energies(program, tmp_path):
    """Terms that share charges, fixed charges and isolated energies all come from the file."""
    spec = repeated(tiny_program()[0])
    modules = [
        replace(m, external_field=None, charge_neutral_lambda=None) if isinstance(m, Ewald) else m
        for m in spec.submodels[0].modules
    ]
    submodels = (replace(spec.submodels[0], modules=tuple(modules)),)
    spec = replace(spec, submodels=submodels, atomic_energies=((8, -3.5), (1, -0.25)))
    atoms = tiny_structure(spec, 3, spacing=2.2)
    for n_domains in (1, 2):
        energy, forces, expected = run(
            program, tmp_path, spec, tiny_weights(spec), atoms, n_domains
        )
        assert energy == pytest.approx(expected["energy"], rel=LIMIT)
        scale = np.abs(expected["forces"]).max()
        np.testing.assert_allclose(forces, expected["forces"], rtol=0, atol=LIMIT * scale)


def test_a_file_that_is_no_model_is_refused(program, tmp_path):
    (tmp_path / "bad").write_bytes(b"\xff" * 20)
    done = subprocess.run([program, tmp_path / "bad", "x", "1"], capture_output=True)
    assert done.returncode == 1
    assert b"model file: expected safetensors, got" in done.stderr


def test_headers_are_c(tmp_path):
    """Hosts in C, or in languages that read C, include them."""
    command = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if command is None:
        pytest.skip("no C compiler")
    source = tmp_path / "use.c"
    source.write_text('#include "cace_fast.h"\n#include "cace_fast_step.h"\n')
    flags = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only"]
    subprocess.run([command, *flags, f"-I{HERE / 'csrc'}", str(source)], check=True)
