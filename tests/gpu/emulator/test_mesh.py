"""Spreading and gathering of the mesh, compiled for a GPU."""

from __future__ import annotations

import pytest
import torch
from support.mesh_cases import (
    CASES,
    assert_a_place_that_is_not_finite_stays_inside,
    assert_same_as_plain,
)


@pytest.mark.parametrize(("name", "n", "n_q", "tolerance", "dtype"), CASES)
def test_kernels_give_what_plain_torch_gives(
    name: str, n: int, n_q: int, tolerance: float, dtype: torch.dtype, device: torch.device
) -> None:
    assert_same_as_plain(name, n, n_q, tolerance, dtype, device)


def test_a_place_that_is_not_finite_stays_inside(device: torch.device) -> None:
    assert_a_place_that_is_not_finite_stays_inside(device)
