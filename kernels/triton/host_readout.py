"""Host side of networks: all read-outs merged into one chain of layers, launched one by one.

Rows that a network does not touch in a layer pass through it, so that networks of any depth, and
the linear read-outs beside them, are rows of the same few products (docs/kernels.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cace_fast.errors import UnsupportedModelError
from cace_fast.kernels.triton import _readout
from cace_fast.spec import MLP, Readout

NORM_EPS = 1e-5  # of the batch normalisation of trained models
LANES = 32  # a warp
ROWS = 16  # weights are padded to a multiple of it
LARGE = 20_000  # atoms from which a device is full without splitting the inputs
FEW = (4, 32, 1)  # rows of a program, inputs taken at once, atoms of a lane
MANY = (16, 2, 4)
PER_PART = 96  # inputs of one part where there are fewer atoms

Work = dict[str, Tensor]


class Layer(NamedTuple):
    """W [n_out, n_in] and b [n_out], float64, and the activation of every output ('' for none)."""

    weight: Tensor
    bias: Tensor
    kinds: tuple[str, ...]


def layers_of(
    mlp: MLP, weights: Mapping[str, Tensor], prefix: str, linear: bool = False
) -> list[Layer]:
    """Return a network as layers with its batch normalisation and linear read-out in them.

    Raises
    ------
    UnsupportedModelError
        For residual networks.
    """
    if mlp.residual:
        raise UnsupportedModelError("a residual network in a read-out, with backend='triton'")
    pairs = [_affine(weights, f"{prefix}.layers.{k}") for k in range(mlp.n_layers)]
    beside = _affine(weights, f"{prefix}.linear") if linear else None
    if mlp.n_layers == 1:
        w, b = pairs[0]
        if beside is not None:
            w, b = w + beside[0], b + beside[1]
        return [Layer(w, b, ("",) * len(b))]
    if beside is None:
        names: list[str] = [mlp.activation] * (len(pairs) - 1) + [""]
        kinds = [(name,) * len(b) for name, (_, b) in zip(names, pairs, strict=True)]
        return [Layer(w, b, kind) for (w, b), kind in zip(pairs, kinds, strict=True)]
    return _with_linear(pairs, beside, mlp.activation)


def _with_linear(
    pairs: list[tuple[Tensor, Tensor]], beside: tuple[Tensor, Tensor], activation: str
) -> list[Layer]:
    """Return layers whose last rows carry the linear read-out to the end."""
    n_out = len(beside[1])
    one, none = torch.eye(n_out).double(), torch.zeros(n_out).double()
    found = []
    for k, (w, b) in enumerate(pairs):
        if k == len(pairs) - 1:
            w, bias, kinds = torch.cat([w, one], 1), b, ("",) * n_out
        else:
            w = torch.cat([w, beside[0]]) if k == 0 else torch.block_diag(w, one)
            bias = torch.cat([b, beside[1] if k == 0 else none])
            kinds = (activation,) * len(b) + ("",) * n_out
        found.append(Layer(w, bias, kinds))
    return found


def _affine(weights: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Return W, b of a linear layer with its stored normalisation in them, float64 on the CPU."""

    def tensor(key: str) -> Tensor:
        return weights[f"{name}.{key}"].detach().double().cpu()

    w = tensor("weight")
    b = tensor("bias") if f"{name}.bias" in weights else torch.zeros(len(w)).double()
    if f"{name}.norm.mean" in weights:
        scale = tensor("norm.weight") * torch.rsqrt(tensor("norm.variance") + NORM_EPS)
        w, b = w * scale[:, None], (b - tensor("norm.mean")) * scale + tensor("norm.bias")
    return w, b


def merged(networks: Sequence[list[Layer]]) -> list[Layer]:
    """Return one chain of at least two layers that computes all networks of the same inputs."""
    depth = max(2, *(len(layers) for layers in networks))
    found = []
    for k in range(depth):
        parts = [layers[k] if k < len(layers) else _through(layers[-1]) for layers in networks]
        join = torch.cat if k == 0 else (lambda blocks: torch.block_diag(*blocks))
        found.append(
            Layer(
                join([p.weight for p in parts]),
                torch.cat([p.bias for p in parts]),
                tuple(kind for p in parts for kind in p.kinds),
            )
        )
    return found


def _through(layer: Layer) -> Layer:
    n = len(layer.bias)
    return Layer(torch.eye(n).double(), torch.zeros(n).double(), ("",) * n)


class _Packed(NamedTuple):
    """A layer as kernels read it, forwards [n_in, rows] and backwards [n_out, rows]."""

    forward: Tensor
    backward: Tensor
    bias: Tensor
    flags: Tensor
    n_in: int
    n_out: int


class Network:
    """Networks of the same inputs, evaluated together.

    Parameters
    ----------
    networks
        Layers of each.
    like
        A tensor whose device and dtype are those of the work.
    """

    def __init__(self, networks: Sequence[list[Layer]], like: Tensor) -> None:
        chain = merged(networks)
        kinds = sorted({kind for layer in chain for kind in layer.kinds} - {"", "identity"})
        self.kinds = tuple(kinds)
        self.layers = [self._packed(layer, like) for layer in chain]
        self.n_in, self.n_out = self.layers[0].n_in, self.layers[-1].n_out

    def _packed(self, layer: Layer, like: Tensor) -> _Packed:
        flags = [self.kinds.index(k) + 1 if k in self.kinds else 0 for k in layer.kinds]
        return _Packed(
            _padded(layer.weight.T).to(like),
            _padded(layer.weight).to(like),
            _padded(layer.bias[None])[0].to(like),
            torch.tensor(flags, dtype=torch.int32, device=like.device),
            layer.weight.shape[1],
            layer.weight.shape[0],
        )

    def buffers(self, n: int, n_more: int = 0) -> Work:
        """Return the buffers for ``n`` atoms; ``n_more`` parts of the first sums come from outside.

        ``z0``, ``z1``, ...: what goes into activations, kept for the backward pass. The last
        outputs go to the caller's tensor.
        """
        like = self.layers[0].forward
        work = {}
        for k, layer in enumerate(self.layers[:-1]):
            parts = n_parts(layer.n_in, n) + n_more if k == 0 else 1
            work[f"z{k}"] = like.new_empty(parts, layer.n_out, n)
            work[f"g{k}"] = like.new_empty(1, layer.n_out, n)
        return work

    def forward(self, x: Tensor, y: Tensor, work: Work) -> None:
        """Write y [n_out, n] of x [n_in, n]."""
        before = x
        for k, layer in enumerate(self.layers):
            last = k == len(self.layers) - 1
            out = y if last else work[f"z{k}"]
            flags = layer.flags if k == 0 else self.layers[k - 1].flags
            product(
                before, layer.forward, out, bias=layer.bias, n_in=layer.n_in, n_out=layer.n_out,
                flags=flags, kinds=self.kinds if k else (), split=k == 0,
            )  # fmt: skip
            before = out

    def backward(self, grad_y: Tensor, grad_x: Tensor, work: Work) -> None:
        """Write dE/dx [n_in, n] of dE/dy [n_out, n], after :meth:`forward`."""
        before = grad_y
        for k in reversed(range(len(self.layers))):
            layer = self.layers[k]
            out = work[f"g{k - 1}"] if k else grad_x
            product(
                before, layer.backward, out, n_in=layer.n_out, n_out=layer.n_in,
                z=work[f"z{k - 1}"] if k else None,
                flags=self.layers[k - 1].flags if k else layer.flags, kinds=self.kinds,
            )  # fmt: skip
            before = out


def n_parts(n_in: int, n: int) -> int:
    """Return into how many parts the first layer's inputs are split."""
    return 1 if n >= LARGE else -(-n_in // PER_PART)


def product(x: Tensor, w: Tensor, out: Tensor, **given: Any) -> None:
    """Launch one layer; see ``_readout.layer``. ``n_before`` parts of ``out`` are left alone."""
    n, n_in = x.shape[-1], given["n_in"]
    bias, z, kinds = given.get("bias"), given.get("z"), given.get("kinds", ())
    parts = n_parts(n_in, n) if given.get("split") else 1
    rows, turn, repeat = MANY if n >= LARGE and z is None else FEW
    forward = z is None and given.get("bias") is not None
    _readout.layer[(-(-n // (LANES * repeat)) * (w.shape[1] // rows), parts)](
        x, w, x if bias is None else bias, given["flags"], x if z is None else z, out,
        n, n_in, given["n_out"], given.get("n_before", 0), -(-n_in // parts) if n_in else 1,
        LDW=w.shape[1], KINDS=kinds, BIAS=bias is not None, ACTIVATE=forward and bool(kinds),
        SLOPE=z is not None, X_PARTS=x.shape[0] if x.dim() == 3 else 1,
        Z_PARTS=1 if z is None else z.shape[0], HC=rows, TURN=turn, REP=repeat, BL=LANES,
        num_warps=1,
    )  # fmt: skip


def _padded(w: Tensor) -> Tensor:
    """Return [n, rows] with zeros up to a multiple of ROWS."""
    return torch.nn.functional.pad(w, (0, -w.shape[1] % ROWS)).contiguous()


class Readouts:
    """All read-outs of a model, on the features of all generations.

    Parameters
    ----------
    heads
        Read-outs, each with the prefix of its tensors.
    weights
        The model's tensors.
    n_features
        Numbers per atom in the features of all generations.
    n_stages
        Generations: rows of the features are ordered (generation, q, B, c), those of files
        (q, B, c, generation).

    Attributes
    ----------
    n_out
        Rows of all outputs.
    slices
        The rows of each head.
    """

    def __init__(
        self,
        heads: Sequence[tuple[Readout, str]],
        weights: Mapping[str, Tensor],
        n_features: int,
        n_stages: int,
    ) -> None:
        networks, self._extra_weights = [], []
        like = weights[f"{heads[0][1]}.layers.0.weight"]
        widths = []
        for module, prefix in heads:
            first, *rest = layers_of(module.mlp, weights, prefix, module.linear)
            before = module.features.index("node_feats")
            n_extra = module.mlp.widths[0] - n_features
            columns = torch.arange(n_features).reshape(-1, n_stages).T.flatten() + before
            others = [k for k in range(n_extra + n_features) if not 0 <= k - before < n_features]
            networks.append([first._replace(weight=first.weight[:, columns]), *rest])
            widths.append(len(first.bias))
            self._extra_weights.append(first.weight[:, others])
        self.network = Network(networks, like)
        self.n_out = self.network.n_out
        ends = [sum(m.n_out for m, _ in heads[: k + 1]) for k in range(len(heads))]
        sizes = [module.n_out for module, _ in heads]
        self.slices = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        self._pack_extras(widths, like)

    def _pack_extras(self, widths: list[int], like: Tensor) -> None:
        """Place the weights of extra inputs in the rows of their head's first layer."""
        first, packed = 0, []
        for width, weight in zip(widths, self._extra_weights, strict=True):
            whole = torch.zeros(sum(widths), weight.shape[1]).double()
            whole[first : first + width] = weight
            packed.append(_padded(whole.T).to(like))
            first += width
        self._extra_weights = packed
        self._n_more = sum(1 for w in packed if len(w))

    def buffers(self, n: int) -> Work:
        """Return the buffers for ``n`` atoms."""
        return self.network.buffers(n, self._n_more)

    def forward(
        self, feats: Tensor, extras: Sequence[Tensor | None], y: Tensor, work: Work
    ) -> None:
        """Write y [n_out, n] of features [n_features, n] and extra inputs [n_extra, n] of heads."""
        layer = self.network.layers[0]
        n_before = n_parts(layer.n_in, feats.shape[1])
        for weight, extra in zip(self._extra_weights, extras, strict=True):
            if len(weight):
                assert extra is not None
                product(
                    extra, weight, work["z0"], n_in=len(weight), n_out=layer.n_out,
                    flags=layer.flags, n_before=n_before,
                )  # fmt: skip
                n_before += 1
        self.network.forward(feats, y, work)

    def backward(self, grad_y: Tensor, grad_feats: Tensor, work: Work) -> None:
        """Write dE/dfeatures of dE/dy, after :meth:`forward`."""
        self.network.backward(grad_y, grad_feats, work)
