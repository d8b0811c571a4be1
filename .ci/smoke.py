"""Smoke test of an installed wheel: run it outside the checkout.

It imports the package, evaluates every shipped potential on a crystal of its first element, and
asks the command line for its version.
"""

import subprocess
from importlib.resources import files
from pathlib import Path

import numpy as np
from ase.build import bulk
from ase.data import chemical_symbols

import cace_fast

home = Path(cace_fast.__file__).parent
assert "site-packages" in home.parts, f"this is not the installed wheel: {home}"

names = sorted(
    f.name.removesuffix(".safetensors")
    for f in files("cace_fast.models").iterdir()
    if f.name.endswith(".safetensors")
)
assert names, "the wheel ships no potential"
for name in names:
    potential = cace_fast.load(name, device="cpu")
    atoms = bulk(chemical_symbols[potential.spec.representation.elements[0]], cubic=True) * (
        2,
        2,
        2,
    )
    atoms.rattle(0.05, seed=1)
    result = potential.compute(atoms, properties=("energy", "forces"))
    assert np.isfinite(result["energy"])
    assert np.allclose(result["forces"].sum(axis=0), 0.0, atol=1e-4)
    assert potential.backend == "cpu", potential.backend_note  # the compiled library came along
    reference = cace_fast.load(name, device="cpu", dtype="float64", backend="reference")
    right = reference.compute(atoms, properties=("energy", "forces"))
    assert np.allclose(result["forces"], right["forces"], atol=1e-4)
    print(f"{name}: {len(atoms)} atoms, {result['energy']:.4f} eV, {potential.backend_note}")

shown = subprocess.run(
    ["cace-fast", "--version"], capture_output=True, text=True, check=True
).stdout
assert cace_fast.__version__ in shown, shown
print(f"cace-fast {cace_fast.__version__}: the wheel works from {home.parent.name}")
