"""The descriptor as modules of torch, for your own models: :class:`Moments`, :class:`Contraction`.

Both run on the kernels of the device and have the derivatives that training on energies and forces
needs; ``docs/developer/training.md`` shows a whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import pi

import torch
from torch import Tensor, nn

from cace_fast.errors import InputError
from cace_fast.kernels.contraction import contraction
from cace_fast.kernels.moments import moments
from cace_fast.spec import ModelSpec, Representation
from cace_fast.weights import expected_shapes


class Moments(nn.Module):
    """A basis: radial-weighted Cartesian moments, with weights to train.

    See ``docs/theory.md``, eq. 11.

    Parameters are called as in the files of cace-fast: ``embedding.sender``,
    ``radial.frequencies``, ``mixing.0``, ...

    Parameters
    ----------
    spec
        The representation; its message passing steps are no part of this module.
    weights
        Initial tensors by these names; None for random ones.
    seed
        Of the random ones. torch's global generator is not used.
    backend
        ``"cpu"`` or ``"triton"``; None for the best one of the device.
    dtype
        Of random weights.

    Raises
    ------
    InputError
        If a weight is missing or of another shape.

    Examples
    --------
    >>> from cace_fast import nn, spec
    >>> rep = spec.Representation(
    ...     (1, 8), 3, False, 5.5, spec.RadialBasis("bessel", 6, 0.6),
    ...     spec.CutoffFunction("polynomial", 5.5, 6.0), 12, 3, 3,
    ... )
    >>> a = nn.Moments(rep)
    >>> a.mixing["0"].shape
    torch.Size([6, 12, 9])
    """

    def __init__(
        self,
        spec: Representation,
        weights: Mapping[str, Tensor] | None = None,
        *,
        seed: int = 0,
        backend: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.spec, self.backend = replace(spec, steps=()), backend
        given = _random(self.spec, seed, dtype) if weights is None else weights
        parts = {part: nn.ParameterDict() for part in ("embedding", "radial", "mixing")}
        for name, shape in expected_shapes(ModelSpec(self.spec)).items():
            found = given.get(name)
            if found is None or tuple(found.shape) != shape:
                got = "nothing" if found is None else tuple(found.shape)
                raise InputError(f"weights[{name!r}]", f"a tensor of shape {shape}", got)
            part, _, key = name.partition(".")
            parts[part][key] = nn.Parameter(found.detach().clone())
        self.embedding, self.radial, self.mixing = parts.values()

    def forward(
        self, vectors: Tensor, senders: Tensor, receivers: Tensor, species: Tensor
    ) -> Tensor:
        """Return A [n, n_radial, n_A, C] (``docs/theory.md``, equation 11).

        Parameters
        ----------
        vectors
            d [n_edges, 3] in A, from sender to receiver; float32 or float64 like the weights.
        senders, receivers
            [n_edges] int64, in any order.
        species
            [n] int64, row of each atom's element in the embeddings.

        Raises
        ------
        InputError, BackendUnavailableError
            As for :func:`cace_fast.kernels.moments.moments`.
        """
        weights = dict(self.named_parameters())
        edges = (vectors, senders, receivers, species)
        return moments(*edges, weights, self.spec, backend=self.backend)

    def extra_repr(self) -> str:
        """Return the line that torch prints for the module (``docs/developer/training.md``)."""
        rep = self.spec
        return f"{rep.n_elements} elements, l_max={rep.l_max}, cutoff={rep.cutoff:g} A"


class Contraction(nn.Module):
    """B basis: the invariants of moments (``docs/theory.md``, equations 13 to 16).

    It has nothing to train.

    Parameters
    ----------
    l_max, nu_max
        Highest degree (0 to 6) and highest correlation order (1 to 4).
    backend
        ``"cpu"`` or ``"triton"``; None for the best one of the device.
    """

    def __init__(self, l_max: int, nu_max: int, *, backend: str | None = None) -> None:
        super().__init__()
        self.l_max, self.nu_max, self.backend = l_max, nu_max, backend

    def forward(self, a: Tensor) -> Tensor:
        """Return B [n, n_radial, n_B, C] of A [n, n_radial, n_A, C] (equations 13 to 16).

        Raises
        ------
        InputError, BackendUnavailableError
            As for :func:`cace_fast.kernels.contraction.contraction`.
        """
        return contraction(a, self.l_max, self.nu_max, backend=self.backend)

    def extra_repr(self) -> str:
        """Return the line that torch prints for the module (``docs/developer/training.md``)."""
        return f"l_max={self.l_max}, nu_max={self.nu_max}"


def _random(spec: Representation, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return random embeddings and mixing of unit variance, and evenly spread radial parameters."""
    generator = torch.Generator().manual_seed(seed)
    n, cutoff = spec.radial.n_rbf, spec.cutoff
    steps = torch.arange(1, n + 1, dtype=dtype)
    found = {
        "radial.frequencies": steps * (pi / cutoff),
        "radial.offsets": (steps - 1) * (cutoff / max(1, n - 1)),
        "radial.widths": torch.full_like(steps, cutoff / n),
        "radial.ranges": steps * (cutoff / n),
    }
    for name, shape in expected_shapes(ModelSpec(spec)).items():
        if name not in found:
            scale = n**-0.5 if name.startswith("mixing") else 1.0
            found[name] = scale * torch.randn(shape, generator=generator, dtype=dtype)
    return found
