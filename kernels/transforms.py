"""Who computes non-uniform Fourier transforms: FINUFFT, cuFINUFFT, or plain torch."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cace_fast.errors import BackendUnavailableError
from cace_fast.kernels.nufft import Transforms
from cace_fast.kernels.plain_nufft import PlainTransforms

Shape = tuple[int, int, int]
Key = tuple[int, Shape, int, int]  # of a plan: kind, modes, how many at once, stream of the device
# FINUFFT's grid 1.25 times as fine as the modes keeps what it is asked for within a factor of 8,
# its grid twice as fine is off by up to 350 (bench/long_range_errors.py). So the first is asked
# ten times less than the second; but it cannot do better than 1e-9.
COARSE, COARSE_FROM, COARSE_ASKS = 1.25, 3e-10, 10.0
KEPT_POINTS = 4_000_000  # of modes, for which plans are kept: their memory is bounded


class LibraryTransforms:
    """Transforms by ``finufft`` on the CPU or ``cufinufft`` on a GPU, which have one interface.

    Plans are kept from call to call.

    Parameters
    ----------
    module
        The imported package.
    accuracy
        Relative accuracy of a transform.
    dtype
        Their complex type.
    n_threads
        Number of threads on the CPU; None on a GPU.
    """

    def __init__(
        self, module: ModuleType, accuracy: float, dtype: torch.dtype, n_threads: int | None
    ) -> None:
        self._plan = module.Plan
        self._accuracy, self._dtype = accuracy, dtype
        self._options: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch.")}
        self._options["upsampfac"] = 2.0
        if n_threads is not None:
            self._options |= {"nthreads": n_threads, "showwarn": 0}
            if accuracy >= COARSE_FROM:
                self._options["upsampfac"] = COARSE
                self._accuracy = COARSE_ASKS * accuracy
        self._on_host = n_threads is not None
        self._plans: dict[Key, Any] = {}
        self._ready: set[Key] = set()  # plans that have the current points
        self._theta = torch.zeros((3, 0))
        self._n_modes: Shape = (1, 1, 1)

    @property
    def n_plans(self) -> int:
        """How many plans are kept."""
        return len(self._plans)

    def set_points(self, theta: Tensor, n_modes: Shape) -> None:
        """Take points; see :class:`cace_fast.kernels.nufft.Transforms`."""
        # in the same memory: cufinufft 2.4 never frees points that it was given
        if (self._theta.shape, self._theta.device) != (theta.shape, theta.device):
            self._theta = torch.empty_like(theta)
        self._theta.copy_(theta)
        self._n_modes = n_modes
        self._ready.clear()
        sizes = {key[1] for key in self._plans} | {n_modes}
        if sum(a * b * c for a, b, c in sizes) > KEPT_POINTS:
            self._plans = {key: plan for key, plan in self._plans.items() if key[1] == n_modes}

    def to_modes(self, strengths: Tensor, out: Tensor) -> None:
        """Transform of type 1."""
        self._run(1, strengths, out)

    def to_points(self, modes: Tensor) -> Tensor:
        """Transform of type 2."""
        shape = (len(modes), self._theta.shape[1])
        found = torch.empty(shape, dtype=modes.dtype, device=modes.device)
        self._run(2, modes, found)
        return found

    def _run(self, kind: int, values: Tensor, out: Tensor) -> None:
        if not self._theta.shape[1]:  # no atoms: the libraries refuse that
            out.zero_()
            return
        # the library knows nothing of torch's stream and device
        stream = torch.cuda.current_stream(values.device).cuda_stream if values.is_cuda else 0
        key = (kind, self._n_modes, len(values), stream)
        if key not in self._plans:
            options = dict(self._options)
            if kind == 1 and self._on_host:
                options["nthreads"] = 1  # several add to the grid in no fixed order
            if values.is_cuda:
                options |= {"gpu_stream": stream, "gpu_device_id": values.device.index}
            self._plans[key] = self._plan(
                kind, self._n_modes, len(values), self._accuracy, 1 if kind == 1 else -1, **options
            )
        plan = self._plans[key]
        if key not in self._ready:
            plan.setpts(*(self._given(row) for row in self._theta))
            self._ready.add(key)
        plan.execute(self._given(values.contiguous()), out=self._given(out))

    def _given(self, tensor: Tensor) -> Any:
        return tensor.detach().numpy() if self._on_host else tensor.detach()


def make_transforms(
    device: torch.device, accuracy: float, dtype: torch.dtype, *, by: str = "auto"
) -> Transforms:
    """Return the transforms of a device.

    Parameters
    ----------
    device, accuracy, dtype
        Where, how accurate relative to the norm of the result, and their complex type.
    by
        ``"finufft"``, ``"cufinufft"``, ``"torch"``, or ``"auto"`` for the best there is.

    Raises
    ------
    BackendUnavailableError
        If what was asked for by name is not installed or does not serve the device.
    """
    own = {"cpu": "finufft", "cuda": "cufinufft"}.get(device.type)
    if by == "torch":
        return PlainTransforms(accuracy)
    if by not in ("auto", own):
        raise BackendUnavailableError(
            by,
            f"it does not serve the device {str(device)!r}",
            [own or "torch", "torch"],
            "Use another device, or by='torch'.",
        )
    if own is None:
        return PlainTransforms(accuracy)
    try:
        module = import_module(own)
    except ImportError as error:
        if by == "auto":
            return PlainTransforms(accuracy)
        remedy = "pip install 'cace-fast[gpu]'" if own == "cufinufft" else "pip install finufft"
        raise BackendUnavailableError(
            by, f"it cannot be imported: {error}", ["torch"], remedy
        ) from None
    threads = torch.get_num_threads() if device.type == "cpu" else None
    return LibraryTransforms(module, accuracy, dtype, threads)
