"""The public operators on Triton kernels: users' arrays become component-major ones.

Each function is the body of the operator of the same name in ``kernels/``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from cace_fast.errors import InputError
from cace_fast.kernels.edges import edges_of
from cace_fast.kernels.triton.ewald_tables import VOIGT
from cace_fast.kernels.triton.host_contraction import ContractionFromA
from cace_fast.kernels.triton.host_ewald import DeviceEwaldSum
from cace_fast.kernels.triton.host_messages import Messages
from cace_fast.kernels.triton.host_readout import Readouts, Work
from cace_fast.kernels.triton.launch import MOST_NUMBERS
from cace_fast.spec import Ewald, Head, Readout, Representation, SubModel


def _components(x: Tensor) -> Tensor:
    """Return [n, R, m, C] as [R m C, n]."""
    if x.numel() > MOST_NUMBERS:
        raise InputError("atoms", f"an array of at most {MOST_NUMBERS} numbers", x.numel())
    rows = x.shape[1:].numel()
    return x.detach().permute(1, 2, 3, 0).reshape(rows, x.shape[0]).contiguous()


def _atoms(x: Tensor, like: Tensor, n_rows: int) -> Tensor:
    """Return [R m C, n] as [n, R, m, C] with the R and C of ``like``."""
    shape = (like.shape[1], n_rows, like.shape[3], like.shape[0])
    return x.view(shape).permute(3, 0, 1, 2).contiguous()


def contraction(a: Tensor, l_max: int, nu_max: int) -> Tensor:
    """Return B [n, R, n_B, C] of A [n, R, n_A, C] (``docs/theory.md``, equations 13 to 16).

    Raises
    ------
    InputError
        For arrays of too many numbers.
    """
    alone = ContractionFromA(l_max, nu_max, a.shape[1], a.shape[3])
    b = a.new_empty(alone.n_b * alone.lanes, len(a))
    alone.forward(_components(a), b)
    return _atoms(b, a, alone.n_b)


def contraction_gradient(grad_out: Tensor, a: Tensor, l_max: int, nu_max: int) -> Tensor:
    """Return dE/dA [n, R, n_A, C] of dE/dB ``grad_out`` [n, R, n_B, C] (equations 13 to 16).

    Raises
    ------
    InputError
        For arrays of too many numbers.
    """
    alone, moments = ContractionFromA(l_max, nu_max, a.shape[1], a.shape[3]), _components(a)
    out = torch.empty_like(moments)
    alone.backward(moments, _components(grad_out), out)
    return _atoms(out, a, a.shape[2])


def contraction_jvps(
    tangent: Tensor, grad_out: Tensor, a: Tensor, l_max: int, nu_max: int
) -> tuple[Tensor, Tensor]:
    """Return the change of B, and of dE/dA at a fixed dE/dB, when A changes by ``tangent``.

    ``tangent`` and ``a`` are [n, R, n_A, C], ``grad_out`` is [n, R, n_B, C] (equations 13 to 16).

    Raises
    ------
    InputError
        For arrays of too many numbers.
    """
    alone, moments = ContractionFromA(l_max, nu_max, a.shape[1], a.shape[3]), _components(a)
    slopes = _components(grad_out)
    outs = torch.empty_like(slopes), torch.empty_like(moments)
    alone.jvps(moments, slopes, _components(tangent), outs)
    return _atoms(outs[0], a, alone.n_b), _atoms(outs[1], a, a.shape[2])


class Network:
    """One read-out on features [n, n_in] in the order of files (``docs/theory.md``, equation 24).

    The names of the weights begin with ``PREFIX``.
    """

    PREFIX = "outputs.0.0"

    def __init__(self, features: Tensor, weights: Mapping[str, Tensor], module: Readout) -> None:
        tensors = {name: tensor.to(features) for name, tensor in weights.items()}
        self.x = features.detach().T.contiguous()
        n_in, n = self.x.shape
        alone = replace(module, features=("node_feats",))
        self.heads = Readouts([Head(SubModel((alone,)), 0, 0, n_in)], tensors, 1)
        self.work: Work = self.heads.buffers(n)

    def value(self) -> Tensor:
        """Return y [n, n_out] in the dtype of the features (equation 24)."""
        y = self.x.new_empty(self.heads.n_out, self.x.shape[1])
        self.heads.forward(self.x, [None], y, self.work)
        return y.T.contiguous()

    def gradient(self, grad_out: Tensor) -> Tensor:
        """Return dE/dx [n, n_in] of dE/dy ``grad_out`` [n, n_out] (equation 24)."""
        self.value()
        out = torch.empty_like(self.x)
        self.heads.backward(grad_out.detach().T.contiguous(), out, self.work)
        return out.T.contiguous()


class Step:
    """One message passing step on edges in any order (``docs/theory.md``, equation 21).

    ``edges`` are vectors [n_edges, 3] in A, senders, receivers [n_edges] and species [n].
    """

    def __init__(
        self,
        edges: tuple[Tensor, Tensor, Tensor, Tensor],
        weights: Mapping[str, Tensor],
        spec: Representation,
        step: int,
    ) -> None:
        vectors, senders, receivers, species = edges
        tensors = {name: tensor.detach().to(vectors) for name, tensor in weights.items()}
        self.edges, self.order = edges_of(vectors.detach(), senders, receivers, species)
        self.messages = Messages(spec, tensors, step)
        self.species = species.int()
        self.work = self.messages.buffers(len(species), len(vectors))

    def value(self, a: Tensor, b: Tensor) -> Tensor:
        """Return A [n, R, n_A, C] of the next generation, of A and B of this one (equation 21).

        Raises
        ------
        InputError
            For arrays of too many numbers.
        """
        moments = _components(a)
        out = torch.empty_like(moments)
        self.messages.forward(moments, _components(b), self.edges, self.species, out, self.work)
        return _atoms(out, a, a.shape[2])

    def gradient(self, a: Tensor, b: Tensor, grad_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return dE/dA, dE/dB and dE/dd [n_edges, 3] of the gradient of the next generation.

        ``grad_out`` is dE/dA' of equation 21 (``docs/theory.md``); dE/dA, dE/dB and dE/dA' are
        shaped like A, B and A.

        Raises
        ------
        InputError
            For arrays of too many numbers.
        """
        self.value(a, b)
        grad = _components(grad_out)
        by_a, by_b = torch.zeros_like(grad), torch.zeros_like(_components(b))
        by_vectors = torch.zeros_like(self.edges.vectors)
        grads = (by_a, by_b, by_vectors)
        self.messages.backward(self.edges, self.species, grad, grads, self.work)
        unsorted = torch.empty_like(by_vectors.T, memory_format=torch.contiguous_format)
        unsorted[self.order] = by_vectors.T
        return _atoms(by_a, a, a.shape[2]), _atoms(by_b, b, b.shape[2]), unsorted


def ewald(
    q: Tensor, positions: Tensor, cell: Tensor, k_cell: Tensor, module: Ewald, *, periodic: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return potential [n, n_q], forces [n, 3] and virial [3, 3] of one system, without norm.

    ``q`` [n, n_q] is in internal units and its dtype is that of the work; ``positions`` [n, 3],
    ``cell`` and ``k_cell`` [3, 3] are float64 in A, like the virial (equation 27).

    Raises
    ------
    InputError
        If the cell is singular.
    """
    total = DeviceEwaldSum(module, q.device, q.dtype)
    cells = cell.detach().cpu()[None]
    total.set_systems([0, len(q)], cells, [periodic], k_cell.detach().cpu()[None])
    charges = q.detach().T.contiguous()
    energies, virial = (q.new_empty(s, dtype=torch.float64) for s in ((len(q),), (6, 1)))
    slopes, forces = torch.empty_like(charges), q.new_empty(3, len(q))
    total.evaluate(charges, positions.detach(), (energies, slopes, forces, virial))
    whole = virial.new_empty(3, 3)
    for k, (i, j) in enumerate(VOIGT):
        whole[i, j] = whole[j, i] = virial[k, 0]
    return slopes.T.contiguous(), forces.T.contiguous(), whole
