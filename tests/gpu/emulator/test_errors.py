"""The table of every kernel's error in float32, on docs/performance.md."""

from __future__ import annotations

import kernel_errors
import pytest
import torch
from kernel_errors import Error, held, measure

LIMIT = 2e-6  # of the largest number


def test_no_kernel_of_the_table_is_worse_than_float32() -> None:
    table = held()
    assert {"moments_forward", "contraction_backward", "layer", "messages_forward"} <= set(table)
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
