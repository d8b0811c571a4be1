"""Host side of message passing: packs weights once, launches kernels, no arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cace_fast.kernels import shapes
from cace_fast.kernels.edge_moments import embeddings
from cace_fast.kernels.edges import Edges, radial_table
from cace_fast.kernels.triton import _bchi, _layout, _messages
from cace_fast.kernels.triton.host_contraction import degrees, packed_mixing
from cace_fast.kernels.triton.host_readout import Networks, Work
from cace_fast.kernels.triton.launch import tiles
from cace_fast.kernels.triton.networks import layers_of
from cace_fast.spec import Bchi, Representation

LANES = 32  # of a program of one warp
AT_ONCE = (1, 2, 4)  # edges of a lane whose loads are under way together
MOST_LOADS = 80  # of them: with more registers spill
TURNED = {
    "BLOCK_ATOM": 64,
    "BLOCK_COMPONENT": 16,
    "num_warps": 1,
}  # atoms and numbers of a tile between layouts


class Messages:
    """One message passing step.

    A [R n_A C, n] and B [R n_B C, n] are component-major; copies inside are atom-major, so that the
    numbers of a neighbour are read as rows.

    Parameters
    ----------
    spec, weights
        The representation and its tensors; the kernels use their device and dtype.
    step
        Which step, from 0.

    Attributes
    ----------
    reads_a
        Whether A' depends on A: Bchi alone does not read it.
    """

    def __init__(self, spec: Representation, weights: Mapping[str, Tensor], step: int) -> None:
        like = weights["embedding.sender"]
        self.parts = spec.steps[step]
        self.reads_a = self.parts.memory or self.parts.ar
        self.empty = not self.reads_a and self.parts.bchi is None
        self.n_b, self.c, self.k = spec.radial.n_rbf, spec.n_channels, spec.n_embedding
        self.n_a, self.n_radial, self.n_degrees = spec.n_monomials, spec.n_radial, spec.l_max + 1
        self.rc = self.n_radial * self.c
        self.table = radial_table(spec, weights)
        sender, self.receiver = embeddings(spec, weights)
        self.sender = sender.repeat_interleave(self.k * self.n_degrees, 1)
        self.mixing = packed_mixing(spec, weights)
        self.scale = like.new_tensor([spec.mp_norm_factor])
        names = [
            f"messages.{step}.{part}" for part in ("memory", "ar.prefactor", "ar.inverse_range")
        ]
        self.memory = self._by_degree(weights, names[0]) if self.parts.memory else self.scale
        decay = [self._by_degree(weights, name) for name in names[1:]] if self.parts.ar else []
        self.decay = torch.stack(decay) if decay else self.scale
        self.network = None
        if self.parts.bchi is not None:
            layers = layers_of(self.parts.bchi.mlp, weights, f"messages.{step}.bchi")
            rows = self._rows(self.parts.bchi)
            last = layers[-1]
            kinds = tuple(last.kinds[k] for k in rows.tolist())
            layers[-1] = last._replace(weight=last.weight[rows], bias=last.bias[rows], kinds=kinds)
            self.network = Networks([layers], like)
        self.chunks = shapes.radial_chunks(self.n_b, spec.l_max)
        degree: dict[str, Any] = {"DEGREE": degrees(spec.l_max), "N_DEGREES": self.n_degrees}
        radial = shapes.radial_shape(spec)
        self.sums: dict[str, Any] = {
            "N_RBF": self.n_b,
            "C": self.c,
            "RADIAL": radial,
            "PARENT": shapes.parents(spec.l_max),
            **degree,
        }
        self.mixed: dict[str, Any] = {
            "N_RBF": self.n_b,
            "K": self.k,
            "N_RADIAL": self.n_radial,
            **degree,
            "BLOCK_LANE": LANES,
            "num_warps": 1,
        }
        self.carried: dict[str, Any] = {
            "N_RBF": self.n_b,
            "N_LANES": self.rc,
            "RADIAL": radial,
            **degree,
        }
        self.slopes = shapes.derivatives(spec.l_max)
        self.at_once = max(k for k in AT_ONCE if k == 1 or k * self.n_a <= MOST_LOADS)

    def _by_degree(self, weights: Mapping[str, Tensor], name: str) -> Tensor:
        found = [weights[f"{name}.{degree}"].flatten() for degree in range(self.n_degrees)]
        return torch.stack(found).contiguous()

    def _rows(self, bchi: Bchi) -> Tensor:
        """Return the output of the network that belongs to every (l, c), whatever is shared."""
        n_c = 1 if bchi.shared_channels else self.c
        degree = torch.arange(self.n_degrees) * (0 if bchi.shared_l else n_c)
        return (degree[:, None] + torch.arange(self.c) * (n_c > 1)).flatten()

    def buffers(self, n: int, n_edges: int) -> Work:
        """Return the buffers for ``n`` atoms and ``n_edges`` edges."""
        like, lanes, wide = self.scale, (self.n_a, self.rc), self.n_b * self.c
        held = ("a", "grad", "out") if self.reads_a else ("grad", "out")
        work = {name: like.new_empty(n, *lanes) for name in held}
        if self.parts.ar:
            work["slopes"] = like.new_empty(-(-self.rc // LANES), n_edges)
        if self.network is not None:
            work |= self.network.buffers(n)
            work["w"] = like.new_empty(self.n_degrees * self.c, n)
            work["grad_b"] = like.new_empty(self.network.n_in, n)
            work["v"] = like.new_empty(n, self.c * self.n_degrees)
            work["sent"] = like.new_empty(n_edges, self.c * self.n_degrees)
            for name in ("sums", "grad_sums"):
                work[name] = like.new_empty(n, self.n_a, wide)
        return work

    def forward(
        self, a: Tensor, b: Tensor, edges: Edges, species: Tensor, out: Tensor, work: Work
    ) -> None:
        """Write A' [R n_A C, n]; ``species`` [n] is int32."""
        n, n_edges = species.shape[0], edges.vectors.shape[1]
        if self.empty:
            out.zero_()
            return
        if self.reads_a:
            self._to_atoms(a, work["a"], species)
            self._carry(work["a"], edges, work["out"], sent=False)
        if self.network is not None:
            self.network.forward(b, work["w"], work)
            self._to_atoms(work["w"], work["v"], species, self.sender)
            tile, grid = tiles(n * self.c)
            for first, count in self.chunks:
                _bchi.bchi_sum[grid](
                    edges.vectors,
                    edges.sender,
                    edges.atom_first,
                    edges.seg_first,
                    self.table,
                    work["v"],
                    work["sums"],
                    n,
                    n_edges,
                    FIRST_RBF=first,
                    COUNT_RBF=count,
                    **self.sums,
                    BLOCK_ROW=tile.rows,
                    BLOCK_EDGE=tile.lanes,
                    num_warps=tile.warps,
                )
            _bchi.mix_sums[self._grid(n, self.rc)](
                work["sums"],
                species,
                self.receiver,
                self.mixing,
                work["out"],
                self.scale,
                ADD=self.reads_a,
                **self.mixed,
            )
        self._to_components(work["out"], out)

    def backward(
        self,
        edges: Edges,
        species: Tensor,
        grad_out: Tensor,
        grads: tuple[Tensor, Tensor, Tensor],
        work: Work,
    ) -> None:
        """Write or add the gradients of dE/dA' ``grad_out``, after :meth:`forward`.

        ``grads`` are those of A, which is written if it is read, and of B and vectors,
        which are added to.
        """
        grad_a, grad_b, grad_vectors = grads
        n, n_edges = species.shape[0], edges.vectors.shape[1]
        if self.empty:
            return
        self._to_atoms(grad_out, work["grad"], species)
        if self.reads_a:
            self._carry(work["grad"], edges, work["out"], sent=True)
            self._to_components(work["out"], grad_a)
        if self.parts.ar:
            _messages.ar_slopes[self._grid(n, self.rc)](
                work["a"],
                work["grad"],
                edges.vectors,
                edges.sender,
                edges.atom_first,
                edges.seg_first,
                self.table,
                self.decay,
                work["slopes"],
                n_edges,
                self.scale,
                **self.carried,
                BLOCK_LANE=LANES,
                BLOCK_EDGE=self.at_once,
                num_warps=1,
            )
        if self.network is not None:
            _bchi.mixing_gradient[self._grid(n, self.n_b * self.c)](
                work["grad"],
                species,
                self.receiver,
                self.mixing,
                work["grad_sums"],
                self.scale,
                **self.mixed,
            )
        if self.parts.ar or self.network is not None:
            unused = work["grad"]
            _bchi.edge_gradient[(-(-n_edges // LANES),)](
                work.get("grad_sums", unused),
                work.get("v", unused),
                work.get("slopes", unused),
                edges.vectors,
                edges.sender,
                edges.receiver,
                edges.seg_first,
                self.table,
                grad_vectors,
                work.get("sent", unused),
                edges.seg_atom.shape[0],
                n_edges,
                **self.sums,
                DERIVATIVES=self.slopes,
                PARTS=-(-self.rc // LANES) if self.parts.ar else 0,
                BCHI=self.network is not None,
                BLOCK_EDGE=LANES,
                num_warps=1,
            )
        if self.network is not None:
            self._network_backward(edges, species, grad_b, work)

    def _network_backward(self, edges: Edges, species: Tensor, grad_b: Tensor, work: Work) -> None:
        """Add dE/dB through the weights of the senders."""
        assert self.network is not None
        n = species.shape[0]
        tile, grid = tiles(n * self.c * self.n_degrees)
        _bchi.bchi_backward[grid](
            work["sent"],
            species,
            self.sender,
            edges.sent_first,
            edges.sent_edge,
            work["w"],
            n,
            C=self.c,
            N_DEGREES=self.n_degrees,
            BLOCK_ROW=tile.rows,
            BLOCK_EDGE=tile.lanes,
            num_warps=tile.warps,
        )
        self.network.backward(work["w"], work["grad_b"], work)
        grad_b.add_(work["grad_b"])

    def _carry(self, x: Tensor, edges: Edges, y: Tensor, *, sent: bool) -> None:
        """Write Ar and memory of x, atom-major, along edges that atoms receive or send."""
        other = edges.receiver if sent else edges.sender
        lists = edges.sent_first, edges.sent_edge
        if not sent:
            lists = edges.atom_first, edges.seg_first
        tile, grid = tiles(len(x) * self.rc)
        _messages.memory_and_ar[grid](
            x,
            edges.vectors,
            other,
            *lists,
            self.table,
            self.decay,
            self.memory,
            y,
            len(x),
            edges.vectors.shape[1],
            self.scale,
            **self.carried,
            AR=self.parts.ar,
            MEMORY=self.parts.memory,
            SENT=sent,
            BLOCK_ROW=tile.rows,
            BLOCK_EDGE=tile.lanes,
            num_warps=tile.warps,
        )

    def _to_atoms(self, x: Tensor, y: Tensor, species: Tensor, table: Tensor | None = None) -> None:
        """Write A atom-major of x [.., n]; or v [n, c, l] with ``table``, h_s of every (c, l)."""
        q, m, c = (
            (self.n_radial, self.n_a, self.c) if table is None else (self.n_degrees, self.c, 1)
        )
        _layout.to_atoms[_turned(x)](
            x,
            x if table is None else table,
            species,
            y,
            x.shape[1],
            N_RADIAL=q,
            N_MONOMIALS=m,
            C=c,
            FACTOR=table is not None,
            **TURNED,
        )

    def _to_components(self, y: Tensor, x: Tensor) -> None:
        """Write A [.., n] of y atom-major."""
        _layout.to_components[_turned(x)](
            y, x, x.shape[1], N_RADIAL=self.n_radial, N_MONOMIALS=self.n_a, C=self.c, **TURNED
        )

    def _grid(self, n: int, lanes: int) -> tuple[int]:
        return (n * -(-lanes // LANES),)


def _turned(x: Tensor) -> tuple[int]:
    """Return how many tiles [rows, n] has."""
    rows, n = x.shape
    return (-(-rows // TURNED["BLOCK_COMPONENT"]) * -(-n // TURNED["BLOCK_ATOM"]),)
