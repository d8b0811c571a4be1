"""Which kernel backends this machine has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BackendState:
    """Whether a backend can run here; if not, why not and how to get it."""

    name: str
    reason: str = ""
    remedy: str = ""

    @property
    def available(self) -> bool:
        """Whether it can run."""
        return not self.reason


def states() -> tuple[BackendState, ...]:
    """Return the state of every kernel backend, the preferred one first."""
    version = "this version has no such kernels"
    return (
        BackendState("triton", version, "Use backend='reference' with device='cuda'."),
        BackendState("cpu", version, "Use backend='reference'."),
    )
