"""The formulas that fast kernels are made of, run on floats: each is the reference's derivative."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from support.edges import radial_representation, radial_weights
from torch import Tensor

from cace_fast.kernels import kspace
from cace_fast.kernels.formulas import BASES, CUTOFFS, KERNELS
from cace_fast.kernels.moments import moments
from cace_fast.reference import ewald
from cace_fast.reference.radial import cutoff_function, radial_basis
from cace_fast.spec import CutoffFunction, Ewald, RadialBasis

R_C, PREFACTOR, N = 5.0, 0.7, 4
DISTANCES = (0.3, 1.1, 2.9, 4.6, 4.999, 5.0, 6.0)
TENSORS = {
    "frequencies": torch.arange(1.0, N + 1).double() * (1.1 * math.pi / R_C),
    "offsets": torch.linspace(0.2, 4.0, N).double(),
    "widths": torch.linspace(0.6, 1.4, N).double(),
    "ranges": torch.linspace(0.5, 3.0, N).double(),
}


def derivatives(function, *at: Tensor) -> list[Tensor]:
    """Return f, df/dx0, d2f/dx0^2, and df/dx, d2f/(dx dx0) of every further x."""
    leaves = [x.clone().requires_grad_() for x in at]
    f = function(*leaves)
    firsts = gradients(f, leaves)
    seconds = gradients(firsts[0], leaves)
    mixed = [x for pair in zip(firsts[1:], seconds[1:], strict=True) for x in pair]
    return [x.detach() for x in (f, firsts[0], seconds[0], *mixed)]


def gradients(y: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    if not y.requires_grad:
        return tuple(map(torch.zeros_like, leaves))
    return torch.autograd.grad(y, leaves, create_graph=True, materialize_grads=True)


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("r", DISTANCES[:4])
@pytest.mark.parametrize("n", range(N))
def test_bases_are_those_of_the_reference(kind: str, r: float, n: int) -> None:
    basis, spec = BASES[kind], RadialBasis(kind, N, PREFACTOR)
    parameters = [p for p in (basis.a, basis.b) if p is not None]
    assert {p.tensor for p in parameters} == set(spec.tensors)
    columns = [1.0 / TENSORS[p.tensor] if p.inverse else TENSORS[p.tensor] for p in parameters]

    def of_table(x: Tensor, *columns: Tensor) -> Tensor:
        weights = {
            f"radial.{p.tensor}": 1.0 / c if p.inverse else c
            for p, c in zip(parameters, columns, strict=True)
        }
        return radial_basis(x[None], weights, spec, R_C)[0, n]

    at = [torch.tensor(r, dtype=torch.float64), *columns]
    expected = derivatives(of_table, *at)
    expected = [x if x.ndim == 0 else x[n] for x in expected]
    expected += [torch.zeros(()).double()] * (7 - len(expected))
    a, b = (float(c[n]) for c in [*columns, *[torch.zeros(N)] * (2 - len(columns))])
    found = basis.function(n, r, 1.0 / r, 1.0 / R_C, a, b, PREFACTOR)
    assert found == pytest.approx([float(x) for x in expected], rel=1e-11, abs=1e-13)


@pytest.mark.parametrize(
    "spec",
    [
        CutoffFunction("polynomial", R_C, p=6.0),
        CutoffFunction("polynomial", R_C, p=1.0),
        CutoffFunction("polynomial", R_C, p=2.0),
        CutoffFunction("polynomial", R_C, p=4.5),
        CutoffFunction("cosine", R_C),
        CutoffFunction("mollifier", R_C, eps=1e-7),
        CutoffFunction("switch", R_C, switch_on=2.0),
    ],
    ids=lambda spec: f"{spec.kind}-{spec.p}",
)
@pytest.mark.parametrize("r", DISTANCES)
def test_cutoff_functions_are_those_of_the_reference(spec: CutoffFunction, r: float) -> None:
    whole = spec.p == int(spec.p)
    kind = spec.kind if spec.kind != "polynomial" or whole else "real polynomial"
    extra = spec.eps if kind == "mollifier" else spec.switch_on
    p = int(spec.p) if whole else spec.p
    found = CUTOFFS[kind](r, r / R_C, 1.0 / R_C, R_C, extra, p)
    expected = derivatives(
        lambda x: cutoff_function(x[None], spec)[0], torch.tensor(r, dtype=torch.float64)
    )
    assert found == pytest.approx([float(x) for x in expected], rel=1e-9, abs=1e-12)


def test_specifications_and_formulas_know_the_same_kinds() -> None:
    for kind in BASES:
        assert RadialBasis(kind, 1).tensors is not None
    for kind in list(CUTOFFS)[:-1]:
        assert replace(CutoffFunction(kind, R_C), p=2.0).kind == kind


@pytest.mark.parametrize("exponent", KERNELS)
@pytest.mark.parametrize("k2", [0.05, 1.3, 9.0])
def test_kernels_of_k_are_those_of_the_reference(exponent: int, k2: float) -> None:
    spec = Ewald("q", "y", dl=2.0, sigma=1.1, exponent=exponent)
    at = torch.tensor(k2, dtype=torch.float64, requires_grad=True)
    g = ewald.kernel(at, spec)
    (slope,) = torch.autograd.grad(g, at)
    expected = pytest.approx([g.item(), slope.item()], rel=1e-11)
    assert KERNELS[exponent](k2, spec.sigma) == expected
    assert [x.item() for x in kspace.kernel(at.detach(), spec.sigma, exponent)] == expected


def test_float32_takes_the_frequencies_of_a_file_as_they_are() -> None:
    """Rounded again, a frequency is wrong by the same factor for all pairs: energies get a bias."""
    n, k = 4096, 6
    rep = radial_representation("bessel", l_max=0, n_rbf=k)
    weights = radial_weights(rep, torch.float32)  # numbers of float32, as those of files
    weights["embedding.sender"] = torch.ones_like(weights["embedding.sender"])
    weights["embedding.receiver"] = weights["embedding.sender"]
    mixing = torch.zeros(k, rep.n_radial, rep.n_channels)
    mixing[:, :, 0] = torch.eye(k)[:, -rep.n_radial :]
    weights["mixing.0"] = mixing
    r = torch.linspace(1.0, 3.0, n, dtype=torch.float64).float()
    vectors = torch.stack([r, torch.zeros(n), torch.zeros(n)], 1)
    atoms, zeros = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    edges = (vectors, (atoms + 1) % n, atoms, zeros)
    single = moments(*edges, weights, rep)[:, :, 0, 0].double()
    wide = {name: t.double() for name, t in weights.items()}
    exact = moments(vectors.double(), *edges[1:], wide, rep)[:, :, 0, 0]
    f_c = cutoff_function(r.double(), rep.cutoff_function)[:, None]
    w = wide["radial.frequencies"][-rep.n_radial :]
    by_w = rep.radial.prefactor * torch.cos(w * r.double()[:, None]) * f_c
    error = ((single - exact) * by_w).sum(0) / (by_w * by_w).sum(0) / w
    assert error.abs().max() < 4e-9, error
