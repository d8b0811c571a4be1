"""Host side of networks: all read-outs merged into one chain of layers, launched in two kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cace_fast.kernels.triton import _readout, configs
from cace_fast.kernels.triton.chains import chain_layers
from cace_fast.kernels.triton.networks import Layer, merged
from cace_fast.spec import Head

LANES = 32  # a warp
ROWS = 16  # weights are padded to a multiple of it
LARGE = 12_000  # atoms from which a device is full without so many programs
FEW = (4, 32, 1)  # rows of a program, inputs taken at once, atoms of a lane
MANY = (16, 2, 4)
PER_PART, PER_LONG_PART = 96, 256  # inputs of one part, and where there are many atoms
TAIL_ROWS, TAIL_OUTPUTS, TAIL_WEIGHTS = 128, 64, 1024  # of first, second, and further layers

Work = dict[str, Tensor]


class _Packed(NamedTuple):
    """A layer in the layout of the kernels, forward [n_in, rows] and backward [n_out, rows]."""

    forward: Tensor
    backward: Tensor
    bias: Tensor
    flags: Tensor
    n_in: int
    n_out: int


class Networks:
    """Networks of the same inputs, evaluated together.

    Parameters
    ----------
    networks
        Layers of each.
    like
        A tensor with the device and dtype to use.
    """

    def __init__(self, networks: Sequence[list[Layer]], like: Tensor) -> None:
        chain = merged(networks)
        kinds = sorted({kind for layer in chain for kind in layer.kinds} - {"", "identity"})
        self.kinds = tuple(kinds)
        self.layers = [self._packed(layer, like) for layer in chain]
        self.n_in, self.n_out = self.layers[0].n_in, self.layers[-1].n_out
        self.tail = FusedHiddenLayers(chain[1:], self.layers[0].flags, self.kinds, like)

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

        ``z0``, ``z1``, ...: inputs of the activations, stored for the backward pass. The last
        outputs go to the caller's tensor.
        """
        like = self.layers[0].forward
        work = {}
        for k, layer in enumerate(self.layers[:-1]):
            parts = n_parts(layer.n_in, n) + n_more if k == 0 else 1
            work[f"z{k}"] = like.new_empty(parts, layer.n_out, n)
            work[f"g{k}"] = like.new_empty(1, layer.n_out, n)
        return work

    def forward(self, x: Tensor, y: Tensor, work: Work, grad_y: Tensor | None = None) -> None:
        """Write y [n_out, n] of x [n_in, n]; with dE/dy also the first part of the backward pass.

        Tell :meth:`backward` then that dE/dy was known.
        """
        before = x
        for k, layer in enumerate(self.layers):
            if k == 1 and self.tail.fits:
                self.tail.run(work, y, grad_y)
                return
            last = k == len(self.layers) - 1
            out = y if last else work[f"z{k}"]
            flags = layer.flags if k == 0 else self.layers[k - 1].flags
            product(
                before,
                layer.forward,
                out,
                bias=layer.bias,
                n_in=layer.n_in,
                n_out=layer.n_out,
                flags=flags,
                kinds=self.kinds if k else (),
                split=k == 0,
            )
            before = out

    def backward(self, grad_y: Tensor, grad_x: Tensor, work: Work, *, known: bool = False) -> None:
        """Write dE/dx [n_in, n] of dE/dy [n_out, n], after :meth:`forward`."""
        before, layers = grad_y, list(enumerate(self.layers))
        if self.tail.fits:
            if not known:
                self.tail.run(work, None, grad_y)
            before, layers = work["g0"], layers[:1]
        for k, layer in reversed(layers):
            out = work[f"g{k - 1}"] if k else grad_x
            product(
                before,
                layer.backward,
                out,
                n_in=layer.n_out,
                n_out=layer.n_in,
                z=work[f"z{k - 1}"] if k else None,
                flags=self.layers[k - 1].flags if k else layer.flags,
                kinds=self.kinds,
            )
            before = out


class FusedHiddenLayers:
    """All layers of a network after the first one, as one launch.

    Parameters
    ----------
    layers
        The layers of the whole network, at least two.
    flags
        The activation of every output of the first layer.
    kinds
        Names of activations; ``flags`` number them from 1 on.
    like
        A tensor with the device and dtype to use.

    Attributes
    ----------
    fits
        Whether it is small enough: a lane holds all its numbers.
    """

    def __init__(
        self, layers: Sequence[Layer], flags: Tensor, kinds: tuple[str, ...], like: Tensor
    ) -> None:
        sizes = [tuple(layer.weight.shape) for layer in layers]
        within = sizes[0][1] <= TAIL_ROWS and sizes[0][0] <= TAIL_OUTPUTS
        self.fits = within and sum(a * b for a, b in sizes[1:]) <= TAIL_WEIGHTS
        self._flags, self._kinds = flags, kinds
        net, packed, first, place = [], [], 0, 0
        for layer in layers:
            n_out, n_in = layer.weight.shape
            net.append((n_in, n_out, place, place + n_out * n_in, n_in, first))
            packed += [layer.weight.flatten(), layer.bias]
            place, first = place + n_out * (n_in + 1), first + n_out
        self._packed = torch.cat(packed).to(like)
        numbers = [kinds.index(k) + 1 if k in kinds else 0 for x in layers for k in x.kinds]
        self._net, self._numbers = tuple(net), tuple(numbers)

    def run(self, work: Work, y: Tensor | None, grad_y: Tensor | None) -> None:
        """Write y of the first layer's sums ``work["z0"]``, dE/dz to ``work["g0"]``, or both."""
        z, grad_z = work["z0"], work["g0"]
        n = z.shape[-1]
        _readout.tail[(n,)](
            z,
            self._packed,
            self._flags,
            grad_z if y is None else y,
            grad_z if grad_y is None else grad_y,
            grad_z,
            n,
            NET=self._net,
            FLAGS=self._numbers,
            KINDS=self._kinds,
            PARTS=z.shape[0],
            FORWARD=y is not None,
            BACKWARD=grad_y is not None,
            BLOCK_HIDDEN=-(-self._net[0][0] // LANES),
            num_warps=1,
        )


def n_parts(n_in: int, n: int) -> int:
    """Return into how many parts the first layer's inputs are split."""
    return -(-n_in // (PER_PART if configs.below(n, LARGE) else PER_LONG_PART))


def product(x: Tensor, w: Tensor, out: Tensor, **given: Any) -> None:
    """Launch one layer; see ``_readout.layer``. ``n_before`` parts of ``out`` are left alone."""
    n, n_in = x.shape[-1], given["n_in"]
    bias, z, kinds = given.get("bias"), given.get("z"), given.get("kinds", ())
    parts = n_parts(n_in, n) if given.get("split") else 1
    rows, turn, repeat = FEW if configs.below(n, LARGE) or z is not None else MANY
    forward = z is None and given.get("bias") is not None
    _readout.layer[(-(-n // (LANES * repeat)) * (w.shape[1] // rows), parts)](
        x,
        w,
        x if bias is None else bias,
        given["flags"],
        x if z is None else z,
        out,
        n,
        n_in,
        given["n_out"],
        given.get("n_before", 0),
        -(-n_in // parts) if n_in else 1,
        STRIDE_W=w.shape[1],
        KINDS=kinds,
        BIAS=bias is not None,
        ACTIVATE=forward and bool(kinds),
        SLOPE=z is not None,
        X_PARTS=x.shape[0] if x.dim() == 3 else 1,
        Z_PARTS=1 if z is None else z.shape[0],
        BLOCK_HIDDEN=rows,
        UNROLL=turn,
        ATOMS_PER_LANE=repeat,
        BLOCK_ATOM=LANES,
        num_warps=1,
    )


def _padded(w: Tensor) -> Tensor:
    """Return [n, rows] with zeros up to a multiple of ROWS."""
    return torch.nn.functional.pad(w, (0, -w.shape[1] % ROWS)).contiguous()


class Readouts:
    """All read-outs of a model, on the features of all generations.

    Parameters
    ----------
    heads
        Read-outs, and sums of values of atoms, on the same features.
    weights
        The model's tensors.
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

    def __init__(self, heads: Sequence[Head], weights: Mapping[str, Tensor], n_stages: int) -> None:
        networks, self._extra_weights = [], []
        like = next(iter(weights.values()))
        widths = []
        for head in heads:
            first, *rest = chain_layers(head, weights)
            n_features = head.n_features
            columns = torch.arange(n_features).reshape(-1, n_stages).T.flatten()
            networks.append([first._replace(weight=first.weight[:, columns]), *rest])
            widths.append(len(first.bias))
            self._extra_weights.append(first.weight[:, n_features:])
        self.network = Networks(networks, like)
        self.n_out = self.network.n_out
        sizes = [head.n_out for head in heads]
        ends = [sum(sizes[: k + 1]) for k in range(len(heads))]
        self.slices = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
        self._pack_extras(widths, like)

    def _pack_extras(self, widths: list[int], like: Tensor) -> None:
        """Write the weights of extra inputs into the rows of their head's first layer."""
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
        self,
        feats: Tensor,
        extras: Sequence[Tensor | None],
        y: Tensor,
        work: Work,
        grad_y: Tensor | None = None,
    ) -> None:
        """Write y [n_out, n] of features [n_features, n] and extra inputs [n_extra, n] of heads.

        ``grad_y`` is dE/dy where it is known before y.
        """
        layer = self.network.layers[0]
        n_before = n_parts(layer.n_in, feats.shape[1])
        for weight, extra in zip(self._extra_weights, extras, strict=True):
            if len(weight):
                assert extra is not None
                product(
                    extra,
                    weight,
                    work["z0"],
                    n_in=len(weight),
                    n_out=layer.n_out,
                    flags=layer.flags,
                    n_before=n_before,
                )
                n_before += 1
        self.network.forward(feats, y, work, grad_y)

    def backward(
        self, grad_y: Tensor, grad_feats: Tensor, work: Work, *, known: bool = False
    ) -> None:
        """Write dE/dfeatures of dE/dy, after :meth:`forward`; ``known`` if forward had dE/dy."""
        self.network.backward(grad_y, grad_feats, work, known=known)
