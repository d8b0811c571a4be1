"""`cace-fast bench`: time and memory of a model on this machine, comparable with a stored run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cace_fast.cli.common import (
    DeviceOption,
    ForceOption,
    JsonOption,
    MinDistOption,
    ModelArgument,
    SlabOption,
    check_input,
    check_output,
    fingerprint,
    min_dist_of,
    note,
    progress,
)
from cace_fast.cli.doctor import NEEDED, installed_version, processor
from cace_fast.cli.frames import read_structure
from cace_fast.cli.measure import Way, memory, parts, spread, times
from cace_fast.errors import InputError
from cace_fast.files import write_whole

if TYPE_CHECKING:
    from ase import Atoms

    from cace_fast.potential import Potential

SECONDS_PER_DAY = 86400.0
TRIAL_ATOMS, TRIAL_REPEAT = 24, 2  # the default structure has 24 x 2^3 = 192 atoms


def bench(
    model: ModelArgument,
    structure: Annotated[
        Path | None,
        typer.Argument(help="A file that ASE reads; by default 192 atoms made from the elements."),
    ] = None,
    backend: Annotated[list[str] | None, typer.Option(help="May be given several times.")] = None,
    default_dtype: Annotated[
        list[str] | None,
        typer.Option("--default-dtype", help="float32 or float64; may be given several times."),
    ] = None,
    device: DeviceOption = "auto",
    slab_vacuum: SlabOption = None,
    min_dist: MinDistOption = "auto",
    repeat: Annotated[int, typer.Option(min=1, help="Copies of the structure each way.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="Timings of each way to run.")] = 7,
    timestep: Annotated[float, typer.Option(help="fs, for ns/day.")] = 1.0,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
    compare: Annotated[Path | None, typer.Option(help="JSON file of an earlier run.")] = None,
    as_json: JsonOption = False,
    force: ForceOption = False,
) -> None:
    """Measure time and memory of energy and forces; medians over alternating rounds.

    ns/day leaves out neighbour lists and ASE, which a run needs too. More:
    docs/user/performance.md; errors and exit codes: docs/user/errors.md.
    """
    if output is not None:
        check_output(output, force)
    earlier = None if compare is None else read_stored(compare)
    if not timestep > 0:
        raise InputError("--timestep", "a time above 0 fs", timestep)
    closest = min_dist_of(min_dist)
    ways = [
        Way(b, d, device, slab_vacuum, closest)
        for b in backend or ["auto"]
        for d in default_dtype or ["float32"]
    ]
    potentials = [way.load(model) for way in ways]
    atoms = _structure(structure, potentials[0], repeat)
    with progress("bench", rounds, "rounds") as advance:
        seconds = times(potentials, atoms, rounds, lambda: advance(1), closest)
    rows = []
    for way, potential, values in zip(ways, potentials, seconds, strict=True):
        row = _row(potential, len(atoms), values, timestep, memory(model, way, atoms))
        found = parts(potential, atoms, closest)
        row["parts"] = {k: 1e6 * s / len(atoms) for k, s in found.items()}
        rows.append(row)
    result = {**_circumstances(model, potentials[0], atoms), "timestep_fs": timestep}
    result |= {"rounds": rounds, "results": rows}
    if output is not None:
        write_whole(output, lambda file: file.write(json.dumps(result, indent=2).encode() + b"\n"))
        note(f"wrote {output}")
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)
    if earlier is not None:
        print_comparison(result, earlier)


def read_stored(path: Path) -> dict[str, Any]:
    """Return an earlier result of ``bench --output`` (``docs/user/performance.md``).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    InputError
        If the file is no result of ``bench``.
    """
    check_input(path, "--compare")
    try:
        stored: dict[str, Any] = json.loads(path.read_text())
        for row in stored["results"]:
            row["us_per_atom"], row["backend"], row["dtype"], row["device"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError("--compare", "a file that bench --output wrote", str(path)) from error
    return stored


def print_comparison(result: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Print the ratio of speeds of each way to run, and what else differs from the earlier run.

    See ``docs/user/performance.md``.
    """
    for name in ("model", "structure", "machine", "threads", "versions"):
        if result.get(name) != earlier.get(name):
            note(f"{name} differs from the earlier run: {earlier.get(name)} -> {result.get(name)}")
    before = {_key(row): row for row in earlier["results"]}
    for row in result["results"]:
        old = before.get(_key(row))
        name = " ".join(_key(row))
        if old is None:
            print(f"{name}: not in the earlier run")
            continue
        ratio = old["us_per_atom"] / row["us_per_atom"]
        print(
            f"{name}: {old['us_per_atom']:.4g} -> {row['us_per_atom']:.4g} us/atom, "
            f"{ratio:.2f} times as fast"
        )


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["backend"], row["dtype"], row["device"]


def _structure(path: Path | None, potential: Potential, repeat: int) -> Atoms:
    import numpy as np

    from cace_fast.verification import completed, trial_structure

    if path is None:
        atoms = trial_structure(potential.spec, TRIAL_ATOMS)
        return completed(atoms * (3 * (TRIAL_REPEAT * repeat,)), potential.spec)
    atoms = read_structure(path)
    if repeat > 1 and not np.any(atoms.pbc):
        raise InputError("--repeat", "1 for a structure that is not periodic", repeat)
    copies = [repeat if periodic else 1 for periodic in atoms.pbc]
    return completed(atoms * copies, potential.spec)


def _row(
    potential: Potential, n_atoms: int, seconds: list[float], timestep: float, size: int
) -> dict[str, Any]:
    low, middle, high = spread(seconds)
    return {
        "backend": potential.backend,
        "dtype": str(potential.dtype).removeprefix("torch."),
        "device": potential.device.type,
        "us_per_atom": 1e6 * middle / n_atoms,
        "us_per_atom_quartiles": [1e6 * low / n_atoms, 1e6 * high / n_atoms],
        "ns_per_day": SECONDS_PER_DAY / middle * timestep * 1e-6,
        "bytes_per_atom": size / n_atoms,
    }


def _circumstances(model: str, potential: Potential, atoms: Atoms) -> dict[str, Any]:
    import platform

    import torch

    from cace_fast import __version__
    from cace_fast.cli.counted import counted
    from cace_fast.neighbors import neighbor_list

    arrays = (atoms.positions, atoms.cell[:], atoms.pbc)
    edges = len(neighbor_list(*arrays, potential.cutoff).senders)
    versions = {name: installed_version(name) for name in NEEDED}
    return {
        "versions": {"cace-fast": __version__, "python": platform.python_version(), **versions},
        "machine": processor(),
        "threads": torch.get_num_threads(),
        "model": {"name": Path(model).name, "fingerprint": fingerprint(potential)},
        "structure": {
            "formula": atoms.get_chemical_formula(),
            "atoms": len(atoms),
            "edges_per_atom": edges / len(atoms),
        },
        "core": _core(),
        "mflop_needed": {
            part: 2e-6 * n for part, n in counted(potential.spec, edges / len(atoms)).items()
        },
    }


def _core() -> dict[str, Any]:
    """Return the peak performance of one core of this machine, measured now, or an empty dict."""
    from cace_fast.kernels.cpu import library

    try:
        return {
            "instructions": library.isa(),
            "float32": library.peak(32),
            "float64": library.peak(64),
            "copied": library.bandwidth(),
        }
    except library.NotLoadedError:
        return {}


def _print(result: dict[str, Any]) -> None:
    structure = result["structure"]
    print(
        f"{result['model']['name']} on {structure['formula']} ({structure['atoms']} atoms, "
        f"{structure['edges_per_atom']:.1f} edges per atom), {result['machine']}, "
        f"{result['threads']} threads, {result['rounds']} rounds"
    )
    core = result["core"]
    if core:
        print(
            f"one core ({core['instructions']}): {core['float32'] / 1e9:.0f} GFlop/s in float32, "
            f"{core['float64'] / 1e9:.0f} in float64, {core['copied'] / 1e9:.1f} GB/s copied"
        )
    head = ("backend", "dtype", "device", "us/atom", "quartiles", "ratio", "ns/day", "kB/atom")
    print("{:<10} {:<8} {:<7} {:>9} {:>17} {:>7} {:>9} {:>9}".format(*head))
    slowest = max(row["us_per_atom"] for row in result["results"])
    for row in result["results"]:
        low, high = row["us_per_atom_quartiles"]
        print(
            f"{row['backend']:<10} {row['dtype']:<8} {row['device']:<7} {row['us_per_atom']:9.4g} "
            f"{f'{low:.4g}-{high:.4g}':>17} {slowest / row['us_per_atom']:7.1f} "
            f"{row['ns_per_day']:9.4g} {row['bytes_per_atom'] / 1e3:9.4g}"
        )
    print(
        f"ratio to the slowest; ns/day at {result['timestep_fs']:g} fs of energy and forces alone: "
        "neighbour lists, the integrator and ASE, up to as much again, are not in it; memory above "
        "that after the imports"
    )
    for row in result["results"]:
        if row["parts"] and core:
            _print_parts(row, core[row["dtype"]], result["mflop_needed"])


def _print_parts(row: dict[str, Any], peak: float, needed: dict[str, float]) -> None:
    """Print the time of each part beside the operations that its formulas need."""
    print(f"{row['backend']} {row['dtype']}, parts of the engine, threads added up:")
    print(f"{'':<10} {'us/atom':>9} {'share':>7} {'Mflop/atom':>11} {'needed':>9} {'times':>7}")
    everything = sum(row["parts"].values())
    for part, us in [*row["parts"].items(), ("all", everything)]:
        need = sum(needed.values()) if part == "all" else needed[part]
        at_peak = 1e-12 * us * peak
        times = f"{at_peak / need:.1f}" if need else ""
        share = us / everything
        print(f"{part:<10} {us:9.3g} {share:7.0%} {at_peak:11.3g} {need:9.3g} {times:>7}")
    print(
        "Mflop: the time at the core's peak; needed: multiply-adds of the formulas, two flop each"
    )
