"""Which kernel backends this machine has."""

from __future__ import annotations

from dataclasses import dataclass

from cace_fast.kernels.cpu import library


@dataclass(frozen=True)
class BackendState:
    """Whether a backend can run here; if not, why not and how to get it.

    ``devices`` are the torch device types that it serves, ``detail`` says which variant runs.
    """

    name: str
    reason: str = ""
    remedy: str = ""
    devices: tuple[str, ...] = ()
    detail: str = ""

    @property
    def available(self) -> bool:
        """Whether it can run."""
        return not self.reason


def states() -> tuple[BackendState, ...]:
    """Return the state of every kernel backend, the preferred one first."""
    version = "this version has no such kernels"
    return (
        BackendState("triton", version, "Use backend='reference' with device='cuda'.", ("cuda",)),
        _cpu(),
    )


def _cpu() -> BackendState:
    try:
        return BackendState("cpu", devices=("cpu",), detail=library.isa())
    except library.NotLoadedError as error:
        return BackendState("cpu", str(error), error.remedy, ("cpu",))
