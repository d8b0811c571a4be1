"""Public operators and fused kernels on compiled kernels in float32, against float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from support import operator_cases as cases
from support.cases import EDGE_CASES, random_weights, representation
from support.edges import relative
from support.mixing import chain
from support.tolerances import to_dtype, value_and_grads
from torch import Tensor

from cace_fast.errors import InputError
from cace_fast.kernels.edges import edges_of
from cace_fast.kernels.triton import host_contraction, host_readout, operators
from cace_fast.kernels.triton.host_contraction import Contraction
from cace_fast.kernels.triton.host_ewald import DeviceEwaldSum
from cace_fast.reference.ewald import ewald
from cace_fast.spec import Ewald

F32 = torch.float32
CASES = {
    "contraction, l 3": lambda: cases.contraction(3, 3),
    "contraction, l 4": lambda: cases.contraction(4, 3, channels=1),
    "contraction, nu 4": lambda: cases.contraction(4, 4, n_radial=1),
    "readout": lambda: cases.readout("silu", True),
    "readout, softplus": lambda: cases.readout("softplus", True),
    "readout, gelu": lambda: cases.readout("gelu", False),
    "readout, many inputs": lambda: cases.readout("wide", True),
    **{
        f"readout, {name}{', linear' * linear}": partial(cases.readout, name, linear)
        for name in cases.DEEP_NETWORKS
        for linear in (False, True)
    },
    "messages": lambda: cases.messages("all", "400 edges", k=3, n_rbf=6),
    "messages, hub": lambda: cases.messages("all", "hub atom", l_max=2, nu_max=2),
    "messages, shared": lambda: cases.messages("bchi shared", "63 edges", l_max=2, nu_max=2),
    "ewald": lambda: cases.ewald("triclinic"),
    "ewald, open": lambda: cases.ewald("open", n_q=1),
    "messages, no edges": lambda: cases.messages("all", "none", l_max=2, nu_max=2),
}


@pytest.mark.parametrize("name", CASES)
def test_operators_keep_float32(name: str, device: torch.device) -> None:
    case = CASES[name]()
    given = {key: t.to(device) for key, t in to_dtype(case.tensors, F32).items()}
    found = value_and_grads(case.kernels("triton"), given)
    exact = {key: t.float().double() for key, t in case.tensors.items()}
    expected = value_and_grads(case.reference, exact)
    for key, want in expected.items():
        if want.any():
            assert relative(found[key].cpu(), want) < 4e-6, key
        else:
            assert not found[key].any()


@pytest.mark.parametrize("cell", cases.CELLS)
def test_ewald_keeps_float32(cell: str, device: torch.device) -> None:
    """The engine's sum in float32 with atoms far outside the cell: phases are exact."""
    module, n = Ewald("q", "e", 1.9, 0.8, norm_factor=1.3), 60
    periodic = cell != "open"
    box = 3.0 * torch.tensor(cases.CELLS[cell], dtype=torch.float64)
    q, r = cases.normal((n, 2), 1).float().double(), 6.0 * cases.normal((n, 3), 2)
    r = r + (1e5 if periodic else 100.0)
    leaves = [q.requires_grad_(True), r.requires_grad_(True)]
    exact = ewald(*leaves, box, module, periodic=periodic).energies
    by_q, by_r = torch.autograd.grad(exact.sum(), leaves)
    total = DeviceEwaldSum(module, device, F32)
    total.set_systems([0, n], box[None], [periodic])
    wide = torch.float64
    out = (
        torch.empty(n, dtype=wide, device=device), torch.empty(2, n, device=device),
        torch.empty(3, n, device=device), torch.empty(6, 1, dtype=wide, device=device),
    )  # fmt: skip
    total.evaluate(q.detach().float().T.contiguous().to(device), r.detach().to(device), out)
    for found, want in zip(out, (exact.sum(1), by_q.T, -by_r.T), strict=False):
        assert relative(found.cpu(), want.detach()) < 1e-6


@pytest.mark.parametrize("few", [True, False], ids=["few atoms", "many atoms"])
@pytest.mark.parametrize(("l_max", "k"), [(2, 4), (3, 3), (4, 2)])
def test_mixing_and_contraction_in_one(
    l_max: int, k: int, few: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_contraction, "_few", lambda n: few)
    spec, case = representation(l_max=l_max, k=k, n_rbf=6, n_radial=2), EDGE_CASES["63 edges"]
    weights, species = random_weights(spec), case["species"]
    edges, _ = edges_of(case["vectors"], case["senders"], case["receivers"], species)
    rho = cases.normal((spec.radial.n_rbf * spec.n_monomials, len(edges.seg_atom)), 3)
    a, b, grad_a, grad_b, grad = chain(rho, edges, species, weights, spec)
    kernels = Contraction(spec, {name: w.float().to(device) for name, w in weights.items()})
    edges = type(edges)(*(t.to(device) for t in edges))
    numbers = species.int().to(device)

    def low(x: Tensor) -> Tensor:
        return x.float().to(device)

    def run() -> list[Tensor]:
        got = [torch.full_like(low(x), torch.nan) for x in (a, b, grad)]
        kernels.forward(low(rho), edges, numbers, got[1], got[0])
        kernels.backward(low(rho), edges, numbers, low(grad_b), low(grad_a), got[2], add=True)
        return got

    got = run()
    assert all(torch.equal(x, y) for x, y in zip(got, run(), strict=True))  # to the last bit
    for found, want in zip(got, (a, b, grad), strict=True):
        assert relative(found.cpu(), want) < 2e-6


def test_a_large_system_takes_other_layers(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases.readout("wide", True)
    given = {key: t.to(device) for key, t in to_dtype(case.tensors, F32).items()}
    expected = value_and_grads(case.kernels("triton"), given)
    monkeypatch.setattr(host_readout, "LARGE", 1)
    found = value_and_grads(case.kernels("triton"), given)
    for key, want in expected.items():
        assert relative(found[key], want.double()) < 1e-6


def test_refusals_name_the_remedy(device: torch.device) -> None:
    huge = torch.empty(1, device=device).expand(2**16, 2**6, 4, 2**10)
    with pytest.raises(InputError, match="atoms: expected an array of at most 2147483647 numbers"):
        operators.contraction_gradient(huge, huge, 1, 2)
