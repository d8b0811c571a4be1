"""The kernels of moments in float64 under the interpreter and the guard, against the reference."""

from __future__ import annotations

import pytest
import torch
from gpu_emulator.guard import watch
from support.edges import radial_representation, radial_weights, relative, rho_of, some_edges

from cace_fast.kernels.triton import configs, launch
from cace_fast.kernels.triton.configs import Tile

F64 = torch.float64
CASES = {
    "bessel, l 3": {"l_max": 3, "n_rbf": 6},
    "split over two launches": {"l_max": 4, "n_rbf": 8},
    "gaussian": {"kind": "gaussian"},
    "exponential": {"kind": "exponential"},
    "chebyshev": {"kind": "chebyshev"},
    "scalar only": {"l_max": 0, "n_rbf": 2},
    "p 1": {"p": 1.0, "l_max": 1},
    "p 2": {"p": 2.0, "l_max": 1},
    "p 2.5": {"p": 2.5, "l_max": 1},
    "cosine": {"cutoff": "cosine", "l_max": 1},
    "mollifier": {"cutoff": "mollifier", "l_max": 1},
    "switch": {"cutoff": "switch", "l_max": 1},
}


def nans(*shape: int) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=F64)


@pytest.mark.parametrize("name", CASES)
def test_values_and_all_derivatives_are_those_of_the_reference(name: str) -> None:
    rep = radial_representation(**CASES[name])
    weights, (edges, vectors) = radial_weights(rep, F64), some_edges(7, 9, F64)
    n_rho, n_segments = rep.radial.n_rbf * rep.n_monomials, len(edges.seg_atom)
    leaf = vectors.clone().requires_grad_(True)
    rho = rho_of(leaf, edges, weights, rep)
    grad_rho = torch.randn(n_rho, n_segments, dtype=F64, requires_grad=True)
    tangent = torch.randn_like(vectors)
    (grad,) = torch.autograd.grad((rho * grad_rho).sum(), leaf, create_graph=True)
    bend, jvp = torch.autograd.grad((grad * tangent).sum(), (leaf, grad_rho))
    grad_rho = grad_rho.detach()
    kernels, tangent = launch.Moments(rep, weights), tangent.T.contiguous()
    with watch() as guard:
        found = nans(n_rho, n_segments)
        kernels.forward(edges, found)
        assert relative(found, rho.detach()) < 1e-12
        found = nans(3, len(vectors))
        kernels.backward(edges, grad_rho, found)
        if len(kernels.chunks) == 1:
            assert guard.unwritten("grad_vectors") == 0
        assert relative(found, grad.detach().T) < 1e-12
        kernels.backward(edges, grad_rho, found, add=True)
        assert relative(found, 2.0 * grad.detach().T) < 1e-12
        found = nans(n_rho, n_segments)
        kernels.jvp(edges, tangent, found)
        assert relative(found, jvp) < 1e-12
        found = nans(3, len(vectors))
        kernels.vjp_jvp(edges, tangent, grad_rho, found)
        assert guard.unwritten("out") == 0
        assert relative(found, bend.T) < 1e-12


@pytest.mark.parametrize("tile", [Tile(1, 32), Tile(8, 4), Tile(16, 2), Tile(32, 1)])
def test_every_tile_gives_the_same(tile: Tile, monkeypatch: pytest.MonkeyPatch) -> None:
    rep = radial_representation(l_max=1, n_rbf=2)
    weights, (edges, vectors) = radial_weights(rep, F64), some_edges(9, 11, F64)
    monkeypatch.setattr(configs, "TILES", ((2**31, tile),))
    kernels, expected = launch.Moments(rep, weights), rho_of(vectors, edges, weights, rep)
    found, grad = nans(*expected.shape), nans(3, len(vectors))
    with watch() as guard:
        kernels.forward(edges, found)
        assert guard.unwritten("rho") == 0
        kernels.backward(edges, torch.ones_like(found), grad)
        assert guard.unwritten("grad_vectors") == 0
    assert relative(found, expected) < 1e-12


def test_padding_segments_are_empty() -> None:
    rep = radial_representation(l_max=1, n_rbf=2)
    weights, (edges, vectors) = radial_weights(rep, F64), some_edges(5, 6, F64)
    expected = rho_of(vectors, edges, weights, rep)
    n, end = expected.shape[1], torch.full((13,), len(vectors), dtype=torch.int32)
    padded = edges._replace(seg_first=torch.cat([edges.seg_first, end]))
    found = nans(expected.shape[0], n + 13)
    with watch():
        launch.Moments(rep, weights).forward(padded, found)
    assert relative(found[:, :n], expected) < 1e-12
    assert not found[:, n:].any()
