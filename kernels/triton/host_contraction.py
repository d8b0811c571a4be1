"""Host side of the contraction: packs weights once, launches kernels, no arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from cace_fast import tables
from cace_fast.kernels.edge_moments import embeddings
from cace_fast.kernels.edges import Edges
from cace_fast.kernels.polynomials import polynomials
from cace_fast.kernels.triton import _contraction, _invariants, configs
from cace_fast.spec import Representation

LANES = 32  # atoms of a program of one warp
MOST_MOMENTS = 105  # moments of all channels of a lane: with more of them registers spill
MOST_AT_ONCE = 60  # numbers of a lane for few atoms: everything is read at once
FEW_ROWS = 8  # rows of a tile: the table of tiles has fewer where a device is not full
MOST_FUSED = 56  # monomials: with more of them A is made in parts, and contracted from memory


def degrees(l_max: int) -> tuple[int, ...]:
    """Return the degree of every monomial."""
    return tuple(sum(m) for m in tables.monomials(l_max))


def packed_mixing(spec: Representation, weights: Mapping[str, Tensor]) -> Tensor:
    """Return W in the layout of the kernels, [n_b, L + 1, R, C]."""
    found = [weights[f"mixing.{degree}"] for degree in range(spec.l_max + 1)]
    return torch.stack(found, 1).contiguous()


class Contraction:
    """The contraction of one representation, alone or with the mixing that makes A.

    Arrays are component-major: rho [n_b n_A, S], A [R n_A C, n], B [R n_B C, n].

    Parameters
    ----------
    spec, weights
        The representation and its tensors; the kernels use their device and dtype.
    """

    def __init__(self, spec: Representation, weights: Mapping[str, Tensor]) -> None:
        self.embeddings = embeddings(spec, weights)
        self.mixing = packed_mixing(spec, weights)
        self.k, self.n_radial, self.n_a = spec.n_embedding, spec.n_radial, spec.n_monomials
        self.alone = ContractionFromA(spec.l_max, spec.nu_max, spec.n_radial, spec.n_channels)
        self.group = channels_at_once(self.k, spec.l_max)
        self.degrees = degrees(spec.l_max)
        self.parts = monomial_parts(spec.l_max)
        self.shape: dict[str, Any] = {
            "N_RBF": spec.radial.n_rbf,
            "K": self.k,
            "N_DEGREES": spec.l_max + 1,
            "N_RADIAL": spec.n_radial,
            "BLOCK_ATOM": LANES,
            "num_warps": 1,
        }

    def forward(
        self, rho: Tensor, edges: Edges, species: Tensor, b: Tensor | None, a: Tensor | None
    ) -> None:
        """Write B and A of rho; None leaves one out. ``species`` [n] is int32."""
        whole = len(self.parts) == 1
        if not whole and a is None:
            a = rho.new_empty(self.n_radial * self.n_a * self.k**2, species.shape[0])
        n = species.shape[0]
        for first, end in self.parts:
            _contraction.contraction_forward[self._grid(n)](
                rho,
                edges.atom_first,
                edges.seg_species,
                species,
                *self.embeddings,
                self.mixing,
                rho if a is None else a,
                rho if b is None else b,
                n,
                rho.shape[1],
                INVARIANTS=self.alone.functions.invariants,
                N_MONOMIALS=self.n_a,
                DEGREE=self.degrees[first:end],
                FIRST_MONOMIAL=first,
                N_INVARIANTS=self.alone.n_b,
                **self._turns(n),
                WRITE_A=a is not None,
                WRITE_B=whole and b is not None,
                **self.shape,
            )
        if not whole and b is not None:
            assert a is not None
            self.contract(a, b)

    def backward(
        self,
        rho: Tensor,
        edges: Edges,
        species: Tensor,
        grad_b: Tensor | None,
        grad_a: Tensor,
        grad_rho: Tensor,
        *,
        add: bool = False,
    ) -> None:
        """Write dE/drho.

        ``grad_a`` gets dE/dA, added if ``add`` is true; if ``grad_b`` is None, ``grad_a``
        is the input.
        """
        n = species.shape[0]
        if grad_b is not None and len(self.parts) > 1:
            a = torch.empty_like(grad_a)
            self.forward(rho, edges, species, None, a)
            self.contract_backward(a, grad_b, grad_a, add=add)
        elif grad_b is not None:
            _contraction.contraction_backward[self._grid(n)](
                rho,
                edges.atom_first,
                edges.seg_species,
                species,
                *self.embeddings,
                self.mixing,
                grad_b,
                grad_a,
                n,
                rho.shape[1],
                GRADIENT=self.alone.functions.gradient,
                N_MONOMIALS=self.n_a,
                DEGREE=self.degrees,
                FIRST_MONOMIAL=0,
                N_INVARIANTS=self.alone.n_b,
                ADD=add,
                **self._turns(n),
                **self.shape,
            )
        _contraction.mixing_backward[(_blocks(n) * self.n_a,)](
            grad_a,
            edges.atom_first,
            edges.seg_species,
            species,
            *self.embeddings,
            self.mixing,
            grad_rho,
            n,
            rho.shape[1],
            DEGREE=self.degrees,
            UNROLL=_divisor(self.n_radial, 4) if _few(n) else 1,
            **self.shape,
        )

    def contract(self, a: Tensor, b: Tensor) -> None:
        """Write B of A."""
        self.alone.forward(a, b)

    def contract_backward(
        self, a: Tensor, grad_b: Tensor, grad_a: Tensor, *, add: bool = False
    ) -> None:
        """Write dE/dA, or add it."""
        self.alone.backward(a, grad_b, grad_a, add=add)

    def _grid(self, n: int) -> tuple[int]:
        return (_blocks(n) * self.n_radial * self.k * self.k // self._turns(n)["GROUP"],)

    def _turns(self, n: int) -> dict[str, int]:
        """Return how many channels a lane takes, and how many radial functions at a time."""
        if not _few(n):
            return {"GROUP": self.group, "UNROLL": 1}
        most = max(1, MOST_AT_ONCE // min(self.n_a, MOST_FUSED) - 1)
        return {"GROUP": 1, "UNROLL": _divisor(self.shape["N_RBF"], most)}


class ContractionFromA:
    """The contraction of given moments: A [R n_A C, n], B [R n_B C, n]."""

    def __init__(self, l_max: int, nu_max: int, n_radial: int, n_channels: int) -> None:
        self.functions = polynomials(l_max, nu_max)
        self.n_b = tables.n_features(l_max, nu_max)
        self.lanes = n_radial * n_channels
        self.shape: dict[str, Any] = {
            "N_MONOMIALS": tables.n_monomials(l_max),
            "N_INVARIANTS": self.n_b,
            "N_RADIAL": n_radial,
            "C": n_channels,
            "BLOCK_ATOM": LANES,
            "num_warps": 1,
        }

    def forward(self, a: Tensor, b: Tensor) -> None:
        """Write B of A."""
        n = a.shape[1]
        _invariants.contract_forward[(_blocks(n) * self.lanes,)](
            a, b, n, INVARIANTS=self.functions.invariants, **self.shape
        )

    def backward(self, a: Tensor, grad_b: Tensor, grad_a: Tensor, *, add: bool = False) -> None:
        """Write dE/dA of A and dE/dB, or add it."""
        n = a.shape[1]
        _invariants.contract_backward[(_blocks(n) * self.lanes,)](
            a, grad_b, grad_a, n, GRADIENT=self.functions.gradient, ADD=add, **self.shape
        )

    def jvps(self, a: Tensor, grad_b: Tensor, tangent: Tensor, outs: tuple[Tensor, Tensor]) -> None:
        """Write the change of B, and of dE/dA at a fixed dE/dB, when A changes by ``tangent``."""
        n = a.shape[1]
        _invariants.contract_jvps[(_blocks(n) * self.lanes,)](
            a, grad_b, tangent, *outs, n, JVPS=self.functions.jvps, **self.shape
        )


def channels_at_once(k: int, l_max: int) -> int:
    """Return the channels of one sender's component that a lane takes: rho is read once for all."""
    return _divisor(k, MOST_MOMENTS // tables.n_monomials(l_max))


def _few(n: int) -> bool:
    """Return whether there are so few atoms that latency of memory decides."""
    return configs.tile(n).rows < FEW_ROWS


def _divisor(n: int, most: int) -> int:
    """Return the largest divisor of ``n`` up to ``most``, at least 1."""
    return max(d for d in range(1, n + 1) if n % d == 0 and d <= max(1, most))


def monomial_parts(l_max: int) -> tuple[tuple[int, int], ...]:
    """Return (first, end) of the monomials of A that one launch makes."""
    n = tables.n_monomials(l_max)
    count = -(-n // MOST_FUSED)
    edges = [k * n // count for k in range(count + 1)]
    return tuple(pairwise(edges))


def _blocks(n: int) -> int:
    return -(-n // LANES)
