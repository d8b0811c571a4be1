"""From a file to a potential: :func:`load`."""

from __future__ import annotations

import os

import torch

from .model_files import read_model
from .potential import Potential
from .process import ordinary


@ordinary
def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    backend: str = "auto",
    verify: bool = False,
    long_range_tolerance: float | None = None,
    k_set: str = "sphere",
    long_range: str = "auto",
    slab_vacuum: float | None = None,
    born_charges: str = "local",
) -> Potential:
    """Return the potential of a file: upstream's ``.pth``, our ``.safetensors``, or a shipped name.

    No code of the file is run (``docs/user/security.md``).

    Parameters
    ----------
    path
        A file, or one of :func:`shipped`.
    device, dtype, backend, long_range_tolerance, k_set, long_range, slab_vacuum, born_charges
        See :class:`Potential`.
    verify
        Check forces against the energy and the backend against the float64 reference on a small
        structure before returning (``cace-fast verify`` does more).

    Raises
    ------
    FileNotFoundError
        If there is neither a file nor a shipped potential of that name.
    CheckpointError, UnsupportedModelError
        If the file cannot be read, or holds a part that cace-fast does not provide.
    InputError, BackendUnavailableError
        If an option is out of its range, or the backend cannot run here.
    VerificationError
        If the check finds a deviation above its limit.
    """
    spec, tensors = read_model(path)
    potential = Potential(
        spec,
        tensors,
        device=device,
        dtype=dtype,
        backend=backend,
        long_range_tolerance=long_range_tolerance,
        k_set=k_set,
        long_range=long_range,
        slab_vacuum=slab_vacuum,
        born_charges=born_charges,
    )
    if verify:
        from .verification import quick_check  # brings ASE: only when asked for

        quick_check(potential)
    return potential
