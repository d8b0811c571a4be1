"""The kernel backends of this machine."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version

import torch

from cace_fast.errors import BackendUnavailableError
from cace_fast.kernels.cpu import library

EMULATE, EMULATOR = "CACE_FAST_EMULATE", "gpu_emulator"
OLDEST_GPU = (7, 5)  # compute capability; older ones lack what Triton emits


@dataclass(frozen=True)
class BackendState:
    """Whether a backend can run here, the reason if not, and a remedy (``docs/user/install.md``).

    ``devices`` are the torch device types that it serves, ``detail`` says which variant runs.
    """

    name: str
    reason: str = ""
    remedy: str = ""
    devices: tuple[str, ...] = ()
    detail: str = ""

    @property
    def available(self) -> bool:
        """Whether the backend can run here (``docs/user/install.md``)."""
        return not self.reason


def states() -> tuple[BackendState, ...]:
    """Return the state of every kernel backend, the preferred one first.

    See ``docs/user/install.md``.
    """
    stand_in = _without_gpu()
    return (_triton(), _cpu()) if stand_in is None else (_cpu(), stand_in)


def _without_gpu() -> BackendState | None:
    """Return the state of Triton if tests run its kernels on CPU tensors, else None."""
    if importlib.util.find_spec("triton") is None:
        return None
    if os.environ.get("TRITON_INTERPRET") == "1":
        return BackendState("triton", devices=("cpu",), detail="interpreted, for tests")
    target = emulated()
    if target is None:
        return None
    return BackendState("triton", devices=("cpu",), detail=f"emulated {target}, for tests")


def emulated() -> str | None:
    """Return the name of the GPU that the emulator of ``tools/`` emulates, None without it.

    It is imported if ``CACE_FAST_EMULATE`` names a GPU, and otherwise used only if a test has
    loaded it: users do not have it (``docs/developer/kernels.md``, "Proof without a GPU").

    Raises
    ------
    BackendUnavailableError
        The variable is set and there is no emulator.
    InputError
        The variable names an unknown GPU.
    """
    if os.environ.get(EMULATE):
        try:
            importlib.import_module(EMULATOR).from_environment()
        except ModuleNotFoundError as error:
            if error.name != EMULATOR:
                raise
            reason = f"{EMULATE} is set, and the emulator is not installed"
            remedy = "Unset it, or run 'pip install -e tools' in a checkout of cace-fast."
            raise BackendUnavailableError("triton", reason, ["reference"], remedy) from None
    module = sys.modules.get(EMULATOR)
    driver = None if module is None else module.active()
    return None if driver is None else f"sm_{driver.number}"


@cache
def _triton() -> BackendState:
    reason, remedy, detail = "", "", ""
    built = torch.version.cuda or torch.version.hip
    if sys.platform != "linux":
        reason = "Triton's kernels run on Linux alone"
        remedy = "Use backend='reference' with device='cuda'."
    elif importlib.util.find_spec("triton") is None:
        reason = "the package triton is not installed"
        remedy = "Run 'pip install triton', in the version that your torch names."
    elif not built:
        reason = "this torch is built for the CPU alone"
        remedy = "Install a torch for CUDA or ROCm: https://pytorch.org/get-started."
    elif not torch.cuda.is_available():
        reason = "torch finds no GPU"
        remedy = "See that 'nvidia-smi' or 'rocm-smi' lists one and CUDA_VISIBLE_DEVICES allows it."
    elif torch.version.cuda and torch.cuda.get_device_capability() < OLDEST_GPU:
        found = ".".join(map(str, torch.cuda.get_device_capability()))
        reason = f"the GPU has compute capability {found}, and 7.5 is the lowest that works"
        remedy = "Use backend='reference' with device='cuda'."
    else:
        detail = f"triton {version('triton')} on {torch.cuda.get_device_name()}"
    return BackendState("triton", reason, remedy, ("cuda",), detail)


def _cpu() -> BackendState:
    try:
        return BackendState("cpu", devices=("cpu",), detail=library.isa())
    except library.NotLoadedError as error:
        return BackendState("cpu", str(error), error.remedy, ("cpu",))
