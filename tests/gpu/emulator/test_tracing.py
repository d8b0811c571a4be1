"""torch's requirements of operators, for all of them on compiled kernels."""

from __future__ import annotations

import pytest
import torch
from support.traced import assert_compiles_whole, assert_exports, checks_of_torch, operators

EVERY = pytest.mark.parametrize("name", ["moments", "contraction", "messages", "readout", "ewald"])
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # the emulator disturbs approximate instructions


@EVERY
def test_passes_torchs_own_checks(name: str, device: torch.device) -> None:
    checks_of_torch(name, operators("triton", torch.float32, device, trained=True)[name])


@EVERY
def test_compiles_whole_for_any_size(name: str, device: torch.device) -> None:
    assert_compiles_whole(operators("triton", torch.float32, device)[name], **CLOSE)


@EVERY
def test_exports_for_any_size(name: str, device: torch.device) -> None:
    assert_exports(operators("triton", torch.float32, device)[name], **CLOSE)
