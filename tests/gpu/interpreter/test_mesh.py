"""Spreading and gathering of the mesh under the interpreter."""

from __future__ import annotations

import pytest
import torch
from support.k_sums import CELLS, DL, SIGMA
from support.mesh_cases import CASES, assert_order_does_not_matter, assert_same_as_plain

from cace_fast.kernels.ewald_method import Sphere, mesh_plan

CPU = torch.device("cpu")


@pytest.mark.parametrize(("name", "n", "n_q", "tolerance", "dtype"), CASES)
def test_kernels_give_what_plain_torch_gives(
    name: str, n: int, n_q: int, tolerance: float, dtype: torch.dtype
) -> None:
    assert_same_as_plain(name, n, n_q, tolerance, dtype, CPU)


def test_the_order_of_atoms_changes_no_bit_of_a_grid() -> None:
    cell = CELLS["triclinic"]
    assert_order_does_not_matter(mesh_plan(9, cell, cell, Sphere(DL, SIGMA), 1e-2), cell, CPU)
