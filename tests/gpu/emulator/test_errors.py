"""The tables of errors in float32 on docs/developer/accuracy.md, and long sums in parts."""

from __future__ import annotations

import kernel_errors
import large_errors
import pytest
import torch
from gpu_emulator import emulate
from kernel_errors import Error, held, measure
from large_errors import Case, Found, descriptor, error_of, long_range, wide_readout

LIMIT = 2e-6  # of the largest number
MORE, LEAST = 4.0, 3e-7  # times the error of plain torch in float32; of the largest number


def test_no_kernel_of_the_table_is_worse_than_float32() -> None:
    table = held()
    assert {"moments_forward", "contraction_backward", "layer", "memory_and_ar", "bchi_sum"} <= set(
        table
    )
    assert all(error < LIMIT for error in table.values()), table


def test_an_error_is_in_units_of_the_largest_number() -> None:
    error = Error()
    error.add(torch.tensor([1.0, 4.5]), torch.tensor([1.0, 4.0]).double())
    error.add(torch.zeros(2), torch.zeros(2).double())
    assert error.largest == pytest.approx(0.125)
    assert error.typical == pytest.approx(0.5 / 17.0**0.5)


@pytest.mark.slow
def test_the_table_is_what_is_measured() -> None:
    table, found = held(), measure("sm_90")
    assert set(found) == set(table), f"run python {kernel_errors.__file__}"
    for name, error in found.items():
        assert error.largest < max(LIMIT, 1.5 * table[name]), name


def exact(case: Case) -> Found:
    return case.exact(**{name: t.double() for name, t in case.tensors.items()})


def judge(case: Case, found: Found) -> None:
    assert case.plain is not None
    true, usual = exact(case), case.plain(**case.tensors)
    for name in true:
        allowed = max(MORE * error_of(usual, true, name), LEAST)
        assert error_of(found, true, name) < allowed, name


@pytest.mark.parametrize("many", [False, True], ids=["few atoms", "many atoms"])
def test_wide_readout_with_a_large_bias_on_the_gpu(many: bool) -> None:
    case = wide_readout(many, 1_500)
    with emulate("sm_90"):
        judge(case, case.gpu(**case.tensors))


@pytest.mark.parametrize("case", [descriptor("moments"), wide_readout(False)], ids=lambda c: c.name)
def test_long_sums_in_the_compiled_library(case: Case) -> None:
    assert case.cpu is not None
    judge(case, case.cpu(**case.tensors))


def test_many_charges_on_the_gpu() -> None:
    case = long_range(2_500, 6.0, True)
    with emulate("sm_90"):
        found = case.gpu(**case.tensors)
    for name in (true := exact(case)):
        assert error_of(found, true, name) < LIMIT, name


@pytest.mark.slow
def test_the_table_of_long_sums_is_what_is_measured() -> None:
    for case in large_errors.cases():
        for row in large_errors.measure(case):
            assert row.gpu < large_errors.held()[row.case, row.result] * 1.5 + LEAST, row
