"""Public operators by the interpreted kernels in float64, under the guard: values and gradients."""

from __future__ import annotations

import pytest
import torch
from gpu_emulator.guard import watch
from support import operator_cases as cases
from support.cases import EDGE_CASES
from support.tolerances import value_and_grads

from cace_fast.kernels.triton import host_readout

SMALL = {"l_max": 2, "nu_max": 2, "k": 2, "n_rbf": 2, "n_radial": 2}


@pytest.fixture(autouse=True)
def few_inputs_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter takes as long for one lane as for all: fewer statements for each turn."""
    monkeypatch.setattr(host_readout, "FEW", (16, 4, 1))


def judge(case: cases.Case) -> None:
    with watch():
        found = value_and_grads(case.kernels("triton"), case.tensors)
    expected = value_and_grads(case.reference, case.tensors)
    for name, got in found.items():
        want = expected.get(name, torch.zeros_like(got))  # none where a step has no part at all
        assert got.shape == want.shape, name
        scale = max(1.0, float(want.abs().max())) if want.numel() else 1.0
        error = float((got - want).abs().max()) if want.numel() else 0.0
        assert error < 1e-12 * scale, name


@pytest.mark.parametrize(
    ("l_max", "nu_max"), [(0, 1), (1, 2), (2, 2), (3, 3), (4, 3), (3, 4), (4, 4), (5, 2), (6, 4)]
)
def test_contraction(l_max: int, nu_max: int) -> None:
    judge(cases.contraction(l_max, nu_max, n=37, channels=1))


@pytest.mark.parametrize("n", [0, 1])
def test_contraction_of_few_atoms(n: int) -> None:
    judge(cases.contraction(2, 3, n=n))


@pytest.mark.parametrize("name", [name for name in cases.NETWORKS if name != "wide"])
def test_readout(name: str) -> None:
    judge(cases.readout(name, linear=False))


@pytest.mark.parametrize("name", ["silu", "batch norm", "one layer"])
def test_readout_with_a_linear_one_beside_it(name: str) -> None:
    judge(cases.readout(name, linear=True))


@pytest.mark.parametrize("n", [0, 1, 33])
def test_readout_whose_inputs_are_split(n: int) -> None:
    judge(cases.readout("wide", True, n=n))


def test_readout_as_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_readout, "FEW", (4, 32, 1))
    judge(cases.readout("sigmoid", True))


@pytest.mark.parametrize("step", cases.STEPS)
def test_messages(step: str) -> None:
    judge(cases.messages(step, "63 edges", **SMALL))


@pytest.mark.parametrize("edges", sorted(set(EDGE_CASES) - {"400 edges", "63 edges"}))
def test_messages_on_awkward_edges(edges: str) -> None:
    judge(cases.messages("all", edges, **SMALL))


@pytest.mark.parametrize("options", [{"k": 1}, {"shared": True}, {"l_max": 3}], ids=str)
def test_messages_of_other_shapes(options: dict[str, int]) -> None:
    judge(cases.messages("all", "one edge", **(SMALL | options)))


@pytest.mark.parametrize("removed", [False, True], ids=["self kept", "self removed"])
@pytest.mark.parametrize("cell", cases.CELLS)
def test_ewald(cell: str, removed: bool) -> None:
    judge(cases.ewald(cell, removed=removed))


@pytest.mark.parametrize("cell", ["triclinic", "open"])
@pytest.mark.parametrize("n", [0, 1, 33])
def test_ewald_potential_of_few_atoms_and_many(cell: str, n: int) -> None:
    judge(cases.ewald(cell, "potential", n=n, n_q=1))


def test_ewald_of_exponent_6() -> None:
    judge(cases.ewald("triclinic", exponent=6))
