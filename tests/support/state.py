"""The library leaves torch's global settings as it found them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def _settings() -> dict[str, object]:
    return {
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
    }


@contextmanager
def unchanged_settings() -> Iterator[None]:
    """Raise when torch's global settings at the end are not those at the start."""
    before = _settings()
    yield
    after = _settings()
    changed = {k: f"{before[k]} -> {after[k]}" for k in before if before[k] != after[k]}
    assert not changed, f"global settings of torch changed: {changed}"
