"""The long range of several systems in float64 under the interpreter and the guard."""

from __future__ import annotations

import pytest
import torch
from gpu_emulator.guard import watch
from support.edges import relative
from support.operator_cases import CELLS, normal
from support.tiny_models import tiny_program, tiny_structure, tiny_weights
from torch import Tensor

from cace_fast.engine import ReferenceEngine
from cace_fast.engine.triton import TritonEngine
from cace_fast.graph import join
from cace_fast.kernels.triton import configs, ewald_tables
from cace_fast.kernels.triton.host_ewald import DeviceEwaldSum
from cace_fast.reference.ewald import ewald
from cace_fast.spec import Ewald
from cace_fast.structures import graph_of

F64 = torch.float64
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
BATCHES = {
    "crystals": (("triclinic", 9), ("left-handed", 0), ("elongated", 17)),
    "open": (("open", 35), ("open", 1)),
    "mixed": (("triclinic", 5), ("open", 7), ("left-handed", 1)),
}
WEIGHT, PADDING = -0.7, 37


def exact(module: Ewald, q: Tensor, r: Tensor, cell: Tensor, periodic: bool) -> list[Tensor]:
    """Return energies [n], dE/dq [n_q, n], forces [3, n] and virial [6, 1] of one system."""
    strain = torch.zeros(3, 3, dtype=F64)
    leaves = [x.detach().clone().requires_grad_(True) for x in (q, r, strain)]
    both = torch.eye(3, dtype=F64) + 0.5 * (leaves[2] + leaves[2].T)
    found = ewald(leaves[0], leaves[1] @ both, cell @ both, module, periodic=periodic)
    energies = found.energies.sum(1)
    by_q, by_r, by_strain = torch.autograd.grad(energies.sum(), leaves, materialize_grads=True)
    virial = -torch.stack([by_strain[i, j] for i, j in VOIGT])
    return [energies.detach(), by_q.T, -by_r.T, virial[:, None]]


@pytest.mark.parametrize("name", BATCHES)
def test_several_systems_with_a_weight_are_written_and_added(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configs, "SUM_BLOCK", 16)  # several turns of every loop over parts
    monkeypatch.setattr(ewald_tables, "RUN", 4)
    module, n_q = Ewald("q", "e", 2.4, 0.8, remove_self_interaction=True, norm_factor=1.3), 2
    sizes, cells = [n for _, n in BATCHES[name]], torch.tensor([CELLS[x] for x, _ in BATCHES[name]])
    n, cells = sum(sizes), cells.double()
    periodic = [x != "open" for x, _ in BATCHES[name]]
    q, r = normal((n, n_q), 1), 3.0 * normal((n, 3), 2)
    parts = zip(q.split(sizes), r.split(sizes), cells, periodic, strict=True)
    expected = [torch.cat(rows, -1) for rows in zip(*(exact(module, *x) for x in parts),
                                                    strict=True)]  # fmt: skip
    total = DeviceEwaldSum(module, torch.device("cpu"), F64, WEIGHT)
    first = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    total.set_systems(first, cells, periodic)
    pad = torch.nn.functional.pad
    charges = pad(q.T, (0, PADDING), value=torch.nan).contiguous()
    places = pad(r, (0, 0, 0, PADDING), value=torch.nan)
    known = normal((n_q, n + PADDING), 3)
    shapes = [(n + PADDING,), (n_q, n + PADDING), (3, n + PADDING), (6, len(sizes))]
    found = tuple(torch.full(shape, torch.nan, dtype=F64) for shape in shapes)
    with watch() as guard:
        total.evaluate(charges, places, found, known)
        assert guard.unwritten("virials") == 0
        for got, want, before in zip(found, expected, (0.0, known, 0.0, 0.0), strict=True):
            rest = got - before
            assert relative(rest[..., : want.shape[-1]], WEIGHT * want) < 1e-12
            assert not rest[..., want.shape[-1] :].any()
        total.evaluate(charges, places, found, found[1], add=True)
    for got, want, before in zip(found, expected, (0.0, known, 0.0, 0.0), strict=True):
        rest = got - before
        assert relative(rest[..., : want.shape[-1]], 2.0 * WEIGHT * want) < 1e-12
        assert not rest[..., want.shape[-1] :].any()


def test_terms_with_field_penalty_and_fixed_charges_in_one_energy() -> None:
    spec, program = tiny_program()
    weights = tiny_weights(spec).to("cpu", F64)
    graph = join([
        graph_of(tiny_structure(spec, side=side, pbc=pbc, seed=side), spec.representation)
        for side, pbc in ((2, True), (1, True), (2, False))
    ])  # fmt: skip
    wanted = ("forces", "virials")
    expected = ReferenceEngine(spec, weights, program).evaluate(graph, wanted)
    with watch():
        found = TritonEngine(ReferenceEngine(spec, weights, program)).evaluate(graph, wanted)
    for key in ("energy", "energies", "energies_sr", *wanted):
        assert relative(getattr(found, key), getattr(expected, key)) < 1e-11, key
