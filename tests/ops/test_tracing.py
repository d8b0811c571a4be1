"""What torch demands of an operator, for all of them on the CPU kernels."""

from __future__ import annotations

import pytest
import torch
from support.traced import (
    assert_compiles_whole,
    assert_exports,
    checks_of_torch,
    operators,
)

WHERE = ("cpu", torch.float64, torch.device("cpu"))
CASES = operators(*WHERE)
EVERY = pytest.mark.parametrize("name", CASES)


@EVERY
def test_passes_torchs_own_checks(name):
    checks_of_torch(name, operators(*WHERE, trained=True)[name])


@EVERY
def test_compiles_whole_for_any_size(name):
    assert_compiles_whole(CASES[name])


@EVERY
def test_exports_for_any_size(name):
    assert_exports(CASES[name])
