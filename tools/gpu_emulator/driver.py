"""A Triton driver whose device is this module's machine.

With it an ordinary ``kernel[grid](cpu_tensors)`` is specialised and compiled for a real GPU, as it
would be there, and the resulting PTX is executed on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from cace_fast.errors import InputError
from gpu_emulator.machine import Launch, Machine
from gpu_emulator.resources import Specialised

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
SHARED_LIMIT = 227 * 1024
APPROXIMATE_ULP = 2.0


def _number(architecture: str) -> int:
    if architecture not in ARCHITECTURES:
        raise InputError("architecture", f"one of {', '.join(ARCHITECTURES)}", repr(architecture))
    return int(architecture.removeprefix("sm_"))


class EmulatedDriver:
    """What Triton asks of a driver.

    Attributes
    ----------
    launches
        Every launch since the driver was made, or since the list was cleared.
    launched
        The kernel of each of them, with its constants.
    count_traffic
        Whether launches count the bytes that they move.
    """

    def __init__(self, architecture: str, approximate_ulp: float, count_traffic: bool) -> None:
        self.number = _number(architecture)
        self.noise = approximate_ulp
        self.count_traffic = count_traffic
        self.launches: list[Launch] = []
        self.launched: list[Specialised] = []
        self.utils = SimpleNamespace(
            load_binary=self._load_binary,
            get_device_properties=lambda device: {
                "max_shared_mem": SHARED_LIMIT, "max_num_regs": 65536,
                "multiprocessor_count": 132, "warpSize": 32,
            },
        )  # fmt: skip
        self._text = ""

    def forget(self) -> None:
        """Empty both lists."""
        self.launches.clear()
        self.launched.clear()

    def note_binary(
        self, module: Any, function: Any, name: str, files: dict[str, str], digest: str
    ) -> None:
        """Remember the text of the kernel that is loaded next (a hook of Triton's)."""
        path = next(path for name, path in files.items() if name.endswith(".ptx"))
        self._text = Path(path).read_text()

    def _load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[object, Machine, int, int, int]:
        return object(), Machine(self._text, name, self.noise), 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """Return a function that launches a compiled kernel with Triton's arguments."""
        constant = [kind == "constexpr" for kind in source.signature.values()]
        kernel = Specialised(source.name, source, metadata.num_warps)

        def launch(x: int, y: int, z: int, stream: int, machine: Machine, *rest: Any) -> None:
            arguments = rest[4:]  # two of metadata and two hooks come before them
            live = [a for a, c in zip(arguments, constant, strict=True) if not c]
            if x * y * z:
                # Triton keeps compiled kernels longer than a driver lives.
                (active() or self).run(kernel, machine, (x, y, z), live, metadata.shared)

        return launch

    def run(
        self, kernel: Specialised, machine: Machine, grid: tuple[int, int, int],
        arguments: list[Any], shared: int,
    ) -> None:  # fmt: skip
        """Launch a kernel, and note it."""
        machine.noise = self.noise
        done = machine.run(grid, *_flat(arguments), shared=shared, count=self.count_traffic)
        self.launches.append(done)
        self.launched.append(kernel)

    def get_current_target(self) -> Any:
        """Return the architecture that kernels are compiled for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.number, 32)

    def get_current_device(self) -> int:
        """Return a number of the device: the architecture's, since Triton caches by it."""
        return self.number

    def get_current_stream(self, device: int = 0) -> int:
        """Return the only stream."""
        return 0

    def get_active_torch_device(self) -> torch.device:
        """Return where the tensors live."""
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        """Return torch's module for the device."""
        return torch.cpu

    def map_python_to_cpp_type(self, kind: str) -> str:
        """Return the name of an argument's type."""
        return kind


def _flat(values: list[Any]) -> Iterator[Any]:
    """Yield the values of nested tuples one after the other, as Triton passes them."""
    for value in values:
        if isinstance(value, tuple):
            yield from _flat(list(value))
        else:
            yield value


_active: list[EmulatedDriver] = []


def active() -> EmulatedDriver | None:
    """Return the emulated driver in use, if there is one."""
    return _active[-1] if _active else None


def activate(
    architecture: str = "sm_90",
    approximate_ulp: float = APPROXIMATE_ULP,
    count_traffic: bool = False,
) -> EmulatedDriver:
    """Use an emulated GPU from now on.

    Parameters
    ----------
    architecture
        Which one, such as ``"sm_90"``.
    approximate_ulp
        Random relative error of approximate instructions, in units of 2^-24.
    count_traffic
        Whether every launch counts the bytes that it moves.

    Returns
    -------
    EmulatedDriver
        Its ``launches`` tell what ran.

    Raises
    ------
    InputError
        An architecture that is not known.
    """
    import triton
    from triton import knobs

    driver = EmulatedDriver(architecture, approximate_ulp, count_traffic)
    _active.append(driver)
    triton.runtime.driver.set_active(driver)
    knobs.runtime.kernel_load_start_hook.add(driver.note_binary)
    return driver


def _deactivate(driver: EmulatedDriver, before: Any) -> None:
    import triton
    from triton import knobs

    _active.remove(driver)
    triton.runtime.driver._active = before
    knobs.runtime.kernel_load_start_hook.remove(driver.note_binary)


@contextmanager
def emulate(
    architecture: str = "sm_90",
    approximate_ulp: float = APPROXIMATE_ULP,
    count_traffic: bool = False,
) -> Iterator[EmulatedDriver]:
    """Use an emulated GPU inside a ``with`` block; see `activate`."""
    import triton

    before = triton.runtime.driver._active
    driver = activate(architecture, approximate_ulp, count_traffic)
    try:
        yield driver
    finally:
        _deactivate(driver, before)
