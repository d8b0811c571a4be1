"""`cace-fast convert`: an upstream file becomes one that is safe, small and loads at once."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cace_fast.cli.common import ForceOption, ModelArgument, check_output, note
from cace_fast.errors import (
    InputError,
    PropertyNotImplementedError,
    UnsupportedModelError,
    VerificationError,
)

if TYPE_CHECKING:
    from ase import Atoms

    from cace_fast.potential import Potential
    from cace_fast.spec import ModelSpec
    from cace_fast.weights import Weights


def convert(
    model: ModelArgument,
    output: Annotated[Path, typer.Argument(help="The file to write, *.safetensors.")],
    licence: Annotated[
        str, typer.Option("--licence", "--license", help="Terms of use, kept in the file.")
    ] = "",
    remark: Annotated[
        str, typer.Option("--note", help="Where the model comes from, kept in the file.")
    ] = "",
    force: ForceOption = False,
) -> None:
    """Convert a model file to the project's own .safetensors format.

    The new file is read back and has to give equal results, bit for bit, before it gets its name.
    More: docs/user/evaluate_and_convert.md; errors and exit codes: docs/user/errors.md.
    """
    from dataclasses import replace

    from cace_fast import weights
    from cace_fast.model_files import read_model

    check_output(output, force, "OUTPUT", (".safetensors",))
    spec, tensors = read_model(model)
    old = spec.provenance
    provenance = replace(old, licence=licence or old.licence, note=remark or old.note)
    spec = replace(spec, provenance=provenance)
    unchecked = output.with_name(f"{output.stem}.unchecked.safetensors")
    try:
        weights.save(unchecked, spec, tensors)
        compared = compare((spec, tensors), read_model(unchecked))
        unchecked.replace(output)
    finally:
        unchecked.unlink(missing_ok=True)
    size = output.stat().st_size
    note(f"wrote {output} ({size:,} bytes); equal bit for bit: {', '.join(compared)}")
    if not provenance.licence:
        note("the file states no licence; --licence adds one")


def compare(old: tuple[ModelSpec, Weights], new: tuple[ModelSpec, Weights]) -> list[str]:
    """Return what two models share bit for bit: tensors, and the names of results.

    ``docs/user/evaluate_and_convert.md``, "Convert", promises it.

    Raises
    ------
    VerificationError
        If the specification, a tensor or a result differs.
    """
    import numpy as np

    from cace_fast.potential import Potential
    from cace_fast.verification import trial_structure

    if new[0] != old[0]:
        raise VerificationError("the specification of the converted model differs")
    equal = ["tensors"]
    for name, tensor in old[1].items():
        if tensor.dtype != new[1][name].dtype or not tensor.equal(new[1][name]):
            raise VerificationError(f"tensor {name} of the converted model differs")
    atoms, key = trial_structure(old[0], 12), _energy_key(old[0])
    for dtype in ("float64", "float32"):
        before, after = (
            _results(Potential(*pair, device="cpu", dtype=dtype, energy_key=key), atoms)
            for pair in (old, new)
        )
        for name, value in before.items():
            if name not in after or not np.array_equal(value, after[name]):
                raise VerificationError(f"{name} of the converted model differ in {dtype}")
            equal.append(name)
    return list(dict.fromkeys(equal))


def _energy_key(spec: ModelSpec) -> str | None:
    """Return None for the total energy, or the first energy of a model without a clear total."""
    from cace_fast.spec import energy_keys, total_energy_key

    try:
        total_energy_key(spec)
    except UnsupportedModelError:
        return next(iter(energy_keys(spec)), None)
    return None


def _results(potential: Potential, atoms: Atoms) -> dict[str, Any]:
    """Return every result of a potential for a structure.

    A model of several energies computes features alone as long as nobody chooses one.
    """
    found: dict[str, Any] = {"features": potential.features(atoms)}
    for name in ("energy", "energies", "forces", "virials", "latent_charges"):
        with suppress(PropertyNotImplementedError, InputError):
            found |= potential.compute(atoms, (name,))
    return found
