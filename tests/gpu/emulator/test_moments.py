"""The compiled kernels of moments and forces in float32, executed for three GPUs."""

from __future__ import annotations

import pytest
import torch
from gpu_emulator import emulate
from support.edges import radial_representation, radial_weights, relative, rho_of, some_edges

from cace_fast.kernels.triton import configs, launch
from cace_fast.kernels.triton.configs import Tile

F32 = torch.float32
CASES = {
    "l 3": {"l_max": 3, "n_rbf": 6},
    "gaussian": {"kind": "gaussian", "l_max": 1},
    "exponential": {"kind": "exponential", "l_max": 1},
    "chebyshev": {"kind": "chebyshev", "l_max": 1},
    "cosine": {"cutoff": "cosine", "l_max": 1},
    "mollifier": {"cutoff": "mollifier", "l_max": 1},
    "switch": {"cutoff": "switch", "l_max": 1},
    "p 2.5": {"p": 2.5, "l_max": 1},
}


CPU = torch.device("cpu")


def nans(*shape: int, device: torch.device = CPU) -> torch.Tensor:
    return torch.full(shape, torch.nan, device=device)


def check(device: torch.device, *, jvps: bool = True, **options: object) -> None:
    rep = radial_representation(**options)  # type: ignore[arg-type]
    single = radial_weights(rep, F32)
    weights = {name: w.double() for name, w in single.items()}
    edges, vectors = some_edges(40, 30, F32)
    leaf = vectors.double().requires_grad_(True)
    rho = rho_of(leaf, edges, weights, rep)
    grad_rho = torch.randn(rho.shape, requires_grad=True)
    tangent = torch.randn_like(vectors)
    (grad,) = torch.autograd.grad((rho * grad_rho).sum(), leaf, create_graph=True)
    bend, jvp = torch.autograd.grad((grad * tangent).sum(), (leaf, grad_rho))
    grad_rho, tangent = grad_rho.detach().to(device), tangent.T.contiguous().to(device)
    edges = type(edges)(*(t.to(device) for t in edges))
    kernels = launch.Moments(rep, {name: w.to(device) for name, w in single.items()})
    found = nans(*rho.shape, device=device)
    kernels.forward(edges, found)
    assert relative(found, rho.detach()) < 1e-6
    found = nans(3, len(vectors), device=device)
    kernels.backward(edges, grad_rho, found)
    assert relative(found, grad.detach().T) < 2e-6
    if not jvps:  # they take long to compile
        return
    found = nans(*rho.shape, device=device)
    kernels.jvp(edges, tangent, found)
    assert relative(found, jvp) < 2e-6
    found = nans(3, len(vectors), device=device)
    kernels.vjp_jvp(edges, tangent, grad_rho, found)
    assert relative(found, bend.T) < 4e-6


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives(name: str, device: torch.device) -> None:
    check(device, **CASES[name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "l_max"), [("sm_80", 3), ("sm_120", 3), ("sm_90", 4)], ids=str
)
def test_other_gpus_and_split_sums(architecture: str, l_max: int) -> None:
    with emulate(architecture):
        check(CPU, l_max=l_max, n_rbf=6, jvps=False)


@pytest.mark.parametrize("tile", [t for _, t in configs.TILES])
def test_every_shipped_tile(
    tile: Tile, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configs, "TILES", ((2**31, tile),))
    check(device, l_max=1, n_rbf=2, jvps=False)


def test_forces_are_the_same_bits_from_run_to_run(device: torch.device) -> None:
    edges, vectors = some_edges(90, 25, F32)
    grad, before = torch.randn(3, len(vectors)), torch.randn(3, 90)
    found = [(nans(3, 90, device=device), nans(6, 90, device=device)) for _ in range(2)]
    there = type(edges)(*(t.to(device) for t in edges))
    for forces, virials in found:
        launch.gather_forces(there, grad.to(device), forces, virials, before.to(device))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    wide = torch.zeros(90, 3).double().index_add(0, edges.receiver.long(), -grad.T.double())
    wide = wide.index_add(0, edges.sender.long(), grad.T.double()).T + before
    assert relative(found[0][0], wide) < 1e-6


def test_vectors_in_a_large_box_keep_single_precision_of_their_own_length(
    device: torch.device,
) -> None:
    generator = torch.Generator().manual_seed(5)
    edges, _ = some_edges(60, 5, F32)
    n_edges = len(edges.sender)
    cell = torch.diag(torch.tensor([812.3456789, 700.1234567, 640.7654321]).double())
    positions = torch.rand(60, 3, generator=generator).double() @ cell
    numbers = torch.randint(-1, 2, (3, 20), generator=generator, dtype=torch.int32)
    shift = torch.randint(0, 20, (n_edges,), generator=generator, dtype=torch.int32)
    cells = torch.stack([cell, torch.eye(3).double()])
    atoms, shifts = ((nans(3, k, device=device), nans(3, k, device=device)) for k in (60, 20))
    system = torch.zeros(20, dtype=torch.int32)
    given = (x.to(device) for x in (shift, numbers, system, cells))
    lists, there = (
        launch.EdgeGeometry(*given, atoms, shifts),
        type(edges)(*(t.to(device) for t in edges)),
    )
    launch.split_positions(positions.to(device), lists)
    launch.edge_vectors(lists, there, nans(launch.n_blocks(n_edges), device=device))
    moved = numbers[:, shift].T.double() @ cell
    expected = (positions[edges.receiver] - positions[edges.sender] + moved).T
    error = (there.vectors.double().cpu() - expected).abs()
    assert bool((error <= 1.2e-7 * expected.abs() + 1e-9).all())
