"""torch's requirements of operators, for all of them on the CPU kernels."""

from __future__ import annotations

import pytest
import torch
from support.traced import assert_compiles_whole, assert_exports, checks_of_torch, operators

from cace_fast.errors import PropertyNotImplementedError

WHERE = ("cpu", torch.float64, torch.device("cpu"))
CASES = operators(*WHERE)
EVERY = pytest.mark.parametrize("name", CASES)


@EVERY
def test_passes_torchs_own_checks(name):
    checks_of_torch(name, operators(*WHERE, trained=True)[name])


@pytest.mark.parametrize("name", ["messages", "readout", "ewald"])
def test_second_derivatives_are_refused_by_name(name):
    case = CASES[name]
    leaves = [x.requires_grad_(x.is_floating_point()) for x in case.inputs("small")]
    value = case.call(*leaves)
    (slope,) = torch.autograd.grad(value.sin().sum(), leaves[0], create_graph=True)
    text = rf"{name}: this operator has first derivatives at most .*reference\.{name} for higher"
    with pytest.raises(PropertyNotImplementedError, match=text):
        torch.autograd.grad(slope.sum(), leaves[0])


@EVERY
def test_compiles_whole_for_any_size(name):
    assert_compiles_whole(CASES[name])


@EVERY
def test_exports_for_any_size(name):
    assert_exports(CASES[name])
