"""Devices and precisions by the names that users give."""

from __future__ import annotations

import torch

from cace_fast.errors import InputError

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def find_device(device: str | torch.device) -> torch.device:
    """Return the device called ``device``; ``auto`` is CUDA where there is one.

    See ``docs/user/install.md``.

    Raises
    ------
    InputError
        If torch does not know the device, or the machine does not have it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise InputError("device", "'auto' or a device that torch knows", repr(device)) from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device", "a device that this machine has", repr(str(device)), "Use 'cpu'."
        )
    return chosen


def find_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Return the torch dtype of a name (``docs/user/dtype.md``).

    Raises
    ------
    InputError
        If it is neither float32 nor float64.
    """
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in DTYPES.values():
        raise InputError("dtype", "'float32' or 'float64'", repr(dtype))
    return found
