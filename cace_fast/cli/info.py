"""`cace-fast info`: what is in a model file."""

from __future__ import annotations

import importlib.util
import json
from math import pi
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cace_fast.cli.common import JsonOption, ModelArgument
from cace_fast.errors import BackendUnavailableError

DENSITY, SKIN = 0.1, 0.5  # atoms/A^3, A: assumptions of --memory
MOST_ELEMENTS = 5  # of them, near one atom

if TYPE_CHECKING:
    from cace_fast.spec import Ewald, ModelSpec, Representation, SubModel
    from cace_fast.weights import Weights


def info(
    model: ModelArgument,
    as_json: JsonOption = False,
    full: Annotated[
        bool, typer.Option("--full", help="Also the whole specification and every tensor.")
    ] = False,
    memory: Annotated[
        int, typer.Option("--memory", min=0, metavar="N", help="Also the GPU memory for N atoms.")
    ] = 0,
) -> None:
    """Show what is in a model file: elements, cutoff, architecture, energies, licence.

    More: docs/user/first_run.md; errors and exit codes: docs/user/errors.md.
    """
    from cace_fast.model_files import read_model
    from cace_fast.spec import energy_programs, program_to_json, to_json

    spec, weights = read_model(model)
    summary = summarise(model, spec, weights)
    if memory:
        summary["GPU memory"] = gpu_memory(spec, weights, memory)
    if as_json:
        summary["specification"] = json.loads(to_json(spec))
        programs = map(program_to_json, energy_programs(spec))
        summary["energy programs"] = [json.loads(text) for text in programs]
        print(json.dumps(summary, indent=2))
        return
    _print_summary(summary)
    if full:
        print()
        print(spec)
        for program in energy_programs(spec):
            print()
            print(program)
        print()
        for name, tensor in weights.items():
            print(f"{name:<48} {str(tensor.dtype).removeprefix('torch.'):<8} {list(tensor.shape)}")


def summarise(model: str, spec: ModelSpec, weights: Weights) -> dict[str, Any]:
    """Return the main facts about a model as plain data, lengths in A.

    See ``docs/user/first_run.md``.
    """
    from cace_fast.structures import extra_inputs, symbol

    path = Path(model)
    rep = spec.representation
    return {
        "model": model,
        "bytes": path.stat().st_size if path.is_file() else None,
        "elements": [symbol(z) for z in sorted(rep.elements)],
        "cutoff": rep.cutoff,
        "architecture": _architecture(rep),
        "features per atom": rep.n_features,
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "precision of the file": sorted(
            {str(t.dtype).removeprefix("torch.") for t in weights.values()}
        ),
        "further inputs": list(extra_inputs(spec)),
        "units": {
            "energy": spec.energy_unit,
            "length": spec.length_unit,
            "assumed": _is_upstream(spec),
        },
        **_energies(spec),
        "source": spec.provenance.source,
        "sha256 of the source": spec.provenance.sha256,
        "licence": spec.provenance.licence,
        "note": spec.provenance.note,
    }


def _is_upstream(spec: ModelSpec) -> bool:
    """Tell whether the model comes from a file of upstream, which has no units, not a program."""
    source = spec.provenance.source
    known = (spec.energy_unit, spec.length_unit) != ("eV", "A")
    return bool(source) and not source.endswith(".py") and not known


def gpu_memory(spec: ModelSpec, weights: Weights, n_atoms: int) -> str:
    """Return how much memory the GPU engine needs for condensed matter, as text in GiB.

    It is that of a system whose list is made on the device, with headroom for the next list
    (``docs/developer/kernels.md``).

    Raises
    ------
    BackendUnavailableError
        Without the package triton, whose kernels tell their needs.
    """
    if importlib.util.find_spec("triton") is None:
        raise BackendUnavailableError(
            "triton",
            "the package triton is not installed",
            ["reference"],
            "Run 'pip install triton', in the version that your torch names.",
        )
    import torch

    from cace_fast.engine import ReferenceEngine
    from cace_fast.engine.triton import TritonEngine
    from cace_fast.spec import energy_program

    tensors = weights.to("cpu", torch.float32)
    engine = TritonEngine(ReferenceEngine(spec, tensors, energy_program(spec)))
    neighbors = DENSITY * 4.0 / 3.0 * pi * (spec.representation.cutoff + SKIN) ** 3
    elements = min(spec.representation.n_elements, MOST_ELEMENTS)
    each = engine.bytes_per_atom(DENSITY, SKIN, elements)
    return (
        f"{each * n_atoms / 2**30:.3g} GiB for {n_atoms} atoms, {each / 1000:.1f} kB each with "
        f"{neighbors:.0f} neighbours of {elements} elements"
    )


def _architecture(rep: Representation) -> dict[str, Any]:
    return {
        "radial functions": f"{rep.radial.n_rbf} {rep.radial.kind}, mixed to {rep.n_radial}",
        "cutoff function": rep.cutoff_function.kind,
        "l_max": rep.l_max,
        "nu_max": rep.nu_max,
        "embedding": f"{rep.n_embedding} ({rep.n_channels} channels"
        + (", shared by both atoms)" if rep.shared_embedding else ")"),
        "message passing": [
            "+".join(
                part
                for part, there in (
                    ("memory", step.memory),
                    ("Ar", step.ar),
                    ("Bchi", step.bchi is not None),
                )
                if there
            )
            for step in rep.steps
        ],
    }


def _energies(spec: ModelSpec) -> dict[str, Any]:
    """Return keys, total energy and long range of the read-outs."""
    from cace_fast.errors import UnsupportedModelError
    from cace_fast.spec import Ewald, energy_keys, energy_program, written_keys

    if not spec.submodels:
        return {"energy": None, "kind": "bare descriptor: features only"}
    try:
        program = energy_program(spec)
        total: str | None = program.energy_key
        parts = program.parts()
    except UnsupportedModelError:
        total, parts = None, []
    ewalds = [m for sub in spec.submodels for m in sub.modules if isinstance(m, Ewald)]
    keys = [key for sub in spec.submodels for m in sub.modules for key in written_keys(m)]
    names = list(spec.combination.names) if spec.combination is not None else []
    return {
        "kind": f"combination of {len(spec.submodels)} potentials" if names else "potential",
        "energy": total,
        "energies": list(energy_keys(spec)),
        "made of": parts,
        "outputs": list(dict.fromkeys(names + keys)),
        "long range": [
            f"{m.output_key}: Ewald sum over {m.feature_key!r}, 1/r^{m.exponent}, "
            f"dl {m.dl:g} A, sigma {m.sigma:g} A"
            for m in ewalds
        ],
        "long range in a periodic box": [
            f"{m.output_key}: direct sum below about {_crossover(sub, k):,} atoms (of 0.1 per "
            f"A^3), a mesh above; on a GPU about {_crossover_on_gpu(m):,}, a prediction"
            for sub in spec.submodels
            for k, m in enumerate(sub.modules)
            if isinstance(m, Ewald)
        ],
        "long range of a slab": [
            f"{m.output_key}: where its vacuum is stated (slab_vacuum, docs/user/slabs.md)"
            if m.exponent == 1
            else f"{m.output_key}: none for 1/r^{m.exponent}"
            for m in ewalds
        ],
    }


def _crossover(sub: SubModel, index: int) -> int:
    """Return from how many atoms on the sum of an Ewald module is done by a mesh."""
    from cace_fast.kernels.ewald_method import Sphere, crossover
    from cace_fast.spec import Ewald, n_charges

    module = sub.modules[index]
    assert isinstance(module, Ewald)
    sphere = Sphere(module.dl, module.sigma)
    return int(crossover(n_charges(sub, index) or 1, sphere, 1e-6))


def _crossover_on_gpu(module: Ewald) -> int:
    """Return the same for the triton backend, to two digits."""
    from cace_fast.kernels.ewald_method import MOST_PAIRS_ON_GPU

    atoms = (MOST_PAIRS_ON_GPU * DENSITY * module.dl**3 * 1.5 / pi) ** 0.5  # sums.n_k_vectors
    return int(float(f"{atoms:.1e}"))


def _print_summary(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _flat(summary):
        if value not in (None, "", [], {}):
            table.add_row(name, _text(name, value))
    Console(soft_wrap=False).print(table)


def _flat(summary: dict[str, Any]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in summary.items():
        if name == "architecture":
            found += value.items()
        elif name == "units":
            assumed = " (assumed: upstream's files do not say)" if value["assumed"] else ""
            found.append((name, f"{value['energy']}, {value['length']}{assumed}"))
        else:
            found.append((name, value))
    return found


def _text(name: str, value: Any) -> str:
    from rich.markup import escape

    if isinstance(value, list):
        return escape((" " if name == "elements" else ", ").join(map(str, value)))
    if name == "cutoff":
        return f"{value:g} A"
    if isinstance(value, int):
        return f"{value:,}"
    return escape(str(value))
