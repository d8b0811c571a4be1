"""Tests of the fixtures that guard all other tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.paths import shared_folder
from support.poison import poisoning
from support.state import unchanged_settings


def call_as(module: str, expression: str):
    """Evaluate ``expression`` as if it stood in ``module``."""
    return eval(expression, {"__name__": module, "torch": torch, "np": np})


@pytest.mark.parametrize(
    "expression",
    [
        "torch.empty(3)",
        "torch.empty(3, dtype=torch.float64, requires_grad=True)",
        "torch.empty(3, dtype=torch.complex64)",
        "torch.empty_like(torch.zeros(2, 2))",
        "torch.empty_strided((2, 2), (2, 1))",
        "torch.zeros(1).new_empty(4)",
        "torch.from_numpy(np.empty((3, 2)))",
        "torch.from_numpy(np.empty_like(np.zeros(3)))",
    ],
)
def test_what_the_library_leaves_unwritten_is_nan(expression):
    assert torch.isnan(call_as("cace_fast.somewhere", expression)).all()


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("torch.empty(3, dtype=torch.int64)", 2**63 - 1),
        ("torch.empty(3, dtype=torch.int32)", 2**31 - 1),
        ("np.empty(3, dtype=np.int64)", 2**63 - 1),
        ("torch.empty(3, dtype=torch.bool)", True),
    ],
)
def test_integers_that_the_library_leaves_unwritten_are_huge(expression, value):
    assert (call_as("cace_fast.somewhere", expression) == value).all()


@pytest.mark.parametrize(
    ("caller", "is_poisoned"),
    [
        ("cace_fast", True),
        ("cace_fast.reference.moments", True),
        ("cace_faster", False),
        ("torch.nn", False),
    ],
)
def test_only_the_library_is_poisoned(caller, is_poisoned):
    allocate = poisoning(lambda: torch.ones(3))
    got = eval("allocate()", {"__name__": caller, "allocate": allocate})
    assert bool(torch.isnan(got).all()) is is_poisoned


def test_a_changed_setting_of_torch_is_an_error():
    threads = torch.get_num_threads()
    try:
        with pytest.raises(AssertionError, match=f"threads': '{threads} -> {threads + 1}'"):  # noqa: SIM117
            with unchanged_settings():
                torch.set_num_threads(threads + 1)
    finally:
        torch.set_num_threads(threads)


def test_a_shared_folder_that_is_not_there_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("CACE_FAST_SHARED", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"CACE_FAST_SHARED=.*no data/upstream"):
        shared_folder()
