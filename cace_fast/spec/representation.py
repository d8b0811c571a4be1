"""The descriptor as data: radial functions, cutoff, mixing, message passing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cace_fast import tables
from cace_fast.errors import SpecError

from .checks import (
    MAX_SIZE,
    Constant,
    require,
    require_bools,
    require_choice,
    require_float,
    require_int,
    require_texts,
    require_tuple,
)

CUTOFFS = (0.01, 1000.0)  # A
MOST_STEPS, MOST_LAYERS, MOST_FEATURES = 100, 1000, 10 * MAX_SIZE  # real ones: 3, 4, 20 000

RadialKind = Literal["bessel", "gaussian", "exponential", "chebyshev"]
RADIAL_TENSORS = {
    "bessel": ("frequencies",),
    "gaussian": ("offsets", "widths"),
    "exponential": ("ranges",),
    "chebyshev": (),
}
CutoffKind = Literal["polynomial", "cosine", "mollifier", "switch"]
Activation = Literal[
    "silu", "relu", "tanh", "sigmoid", "elu", "gelu", "softplus", "mish", "identity"
]


@dataclass(frozen=True)
class RadialBasis:
    """Radial functions R_n(r) (``docs/theory.md``, equations 3 to 5a).

    ``prefactor`` multiplies Bessel functions and exponentials.

    Raises
    ------
    SpecError
        If a field is wrong.
    """

    kind: RadialKind
    n_rbf: int
    prefactor: float = 1.0

    def __post_init__(self) -> None:
        require_choice(self, "kind", RadialKind)
        require_int(self, "n_rbf", 1)
        require_float(self, "prefactor")

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of its tensors, each [n_rbf] (``docs/conventions.md``, "Tensors of a model")."""
        return RADIAL_TENSORS[self.kind]


@dataclass(frozen=True)
class CutoffFunction:
    """Cutoff function f_c(r), zero for r >= ``cutoff`` in A (``docs/theory.md``, equations 6 to 9).

    ``p`` belongs to ``polynomial``, ``eps`` (A) to ``mollifier``, ``switch_on`` (A) to ``switch``.

    Raises
    ------
    SpecError
        If a field is wrong.
    """

    kind: CutoffKind
    cutoff: float
    p: float = 6.0
    eps: float = 1e-7
    switch_on: float = 0.0

    def __post_init__(self) -> None:
        require_choice(self, "kind", CutoffKind)
        require_float(self, "cutoff", *CUTOFFS)
        require_float(self, "p", 1e-3, 1000.0)
        for field in ("eps", "switch_on"):
            require_float(self, field)
        require(
            self.kind != "switch" or self.switch_on < self.cutoff,
            self,
            "switch_on",
            "less than cutoff",
        )


@dataclass(frozen=True)
class MLP:
    """Linear layers of the given ``widths``, input first (``docs/theory.md``, equations 22 and 23).

    Raises
    ------
    SpecError
        If a field is wrong.
    """

    widths: tuple[int, ...]
    bias: bool = True
    activation: Activation = "silu"
    residual: bool = False
    batch_norm: bool = False

    def __post_init__(self) -> None:
        require_tuple(self, "widths", int, 2)
        require(len(self.widths) <= MOST_LAYERS, self, "widths", f"at most {MOST_LAYERS} layers")
        require(
            all(type(w) is int and 0 < w <= MOST_FEATURES for w in self.widths),
            self,
            "widths",
            "positive widths",
        )
        require_bools(self, "bias", "residual", "batch_norm")
        require_choice(self, "activation", Activation)
        good = not self.residual or (self.n_layers >= 3 and self.n_layers % 2 == 1)
        require(good, self, "residual", "an odd number of layers, at least 3, when true")

    @property
    def n_layers(self) -> int:
        """Number of linear layers (equation 22)."""
        return len(self.widths) - 1

    @property
    def layer_shapes(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of every layer; both layers of a residual block have its output width.

        See ``docs/theory.md``, equation 23.
        """
        if not self.residual:
            return tuple(
                (out, into) for into, out in zip(self.widths, self.widths[1:], strict=False)
            )
        shapes: list[tuple[int, int]] = []
        for into, out in self.skip_shapes:
            shapes += [(out, into), (out, out)]
        return (*shapes, (self.widths[-1], self.widths[-2]))

    @property
    def skip_shapes(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of every residual block; empty without residual connections (equation 23)."""
        if not self.residual:
            return ()
        return tuple((self.widths[k], self.widths[k + 2]) for k in range(0, self.n_layers - 1, 2))


@dataclass(frozen=True)
class Bchi:
    """Message Bchi: a network on the sender weighs its edges (``docs/theory.md``, equation 19).

    Raises
    ------
    SpecError
        If a field is wrong.
    """

    shared_l: bool
    shared_channels: bool
    mlp: MLP

    def __post_init__(self) -> None:
        require_bools(self, "shared_l", "shared_channels")
        require(isinstance(self.mlp, MLP), self, "mlp", "an MLP")


@dataclass(frozen=True)
class MessageStep:
    """One message passing step: which of memory, Ar and Bchi it has.

    See ``docs/theory.md``, section 6.

    Raises
    ------
    SpecError
        If a field is wrong, or the step has no part.
    """

    memory: bool = False
    ar: bool = False
    bchi: Bchi | None = None

    def __post_init__(self) -> None:
        require_bools(self, "memory", "ar")
        require(self.bchi is None or isinstance(self.bchi, Bchi), self, "bchi", "Bchi or nothing")
        if not (self.memory or self.ar or self.bchi is not None):
            raise SpecError("MessageStep", "a message: memory, ar or bchi", "none")


@dataclass(frozen=True)
class Representation(Constant):
    """The CACE descriptor (``docs/theory.md``, sections 1 to 6).

    ``elements`` are atomic numbers in the order of the embedding rows; ``cutoff`` (A) is that of
    the neighbour search; ``forward_features`` are extra inputs handed on to read-outs.

    Raises
    ------
    SpecError
        If a field is wrong, the features are too many, or a network of a message does not fit.
    """

    elements: tuple[int, ...]
    n_embedding: int
    shared_embedding: bool
    cutoff: float
    radial: RadialBasis
    cutoff_function: CutoffFunction
    n_radial: int
    l_max: int
    nu_max: int
    steps: tuple[MessageStep, ...] = ()
    mp_norm_factor: float = 1.0
    forward_features: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_tuple(self, "elements", int, 1)
        distinct = len(set(self.elements)) == len(self.elements)
        require(
            distinct and all(type(z) is int and 0 <= z <= 10_000 for z in self.elements),
            self,
            "elements",
            "distinct atomic numbers",
        )
        for field in ("n_embedding", "n_radial"):
            require_int(self, field, 1)
        require_int(self, "l_max", 0, tables.MAX_DEGREE)
        require_int(self, "nu_max", 1, tables.MAX_ORDER)
        require_float(self, "cutoff", *CUTOFFS)
        require_float(self, "mp_norm_factor")
        require_bools(self, "shared_embedding")
        require(isinstance(self.radial, RadialBasis), self, "radial", "a RadialBasis")
        require(
            isinstance(self.cutoff_function, CutoffFunction),
            self,
            "cutoff_function",
            "a CutoffFunction",
        )
        require_tuple(self, "steps", MessageStep)
        require_texts(self, "forward_features")
        require(len(self.steps) <= MOST_STEPS, self, "steps", f"at most {MOST_STEPS} message steps")
        if self.n_features > MOST_FEATURES:  # engines compute sizes of arrays from it
            expected = f"at most {MOST_FEATURES} features of an atom"
            raise SpecError("Representation", expected, self.n_features)
        for step in self.steps:
            if step.bchi is not None:
                self._check_bchi(step.bchi)

    def _check_bchi(self, bchi: Bchi) -> None:
        widths = (self.n_radial * self.n_invariants * self.n_channels, self.n_bchi_weights(bchi))
        got = (bchi.mlp.widths[0], bchi.mlp.widths[-1])
        if got != widths:
            raise SpecError("Bchi.mlp.widths", f"{widths[0]} inputs and {widths[1]} outputs", got)

    @property
    def n_elements(self) -> int:
        """Number of elements the model knows, n_z (``docs/conventions.md``, "Sizes")."""
        return len(self.elements)

    @property
    def n_channels(self) -> int:
        """Number of edge channels, C = K^2 (``docs/conventions.md``, "Sizes")."""
        return self.n_embedding**2

    @property
    def n_monomials(self) -> int:
        """Number of monomials, n_A (``docs/conventions.md``, "Sizes")."""
        return tables.n_monomials(self.l_max)

    @property
    def n_invariants(self) -> int:
        """Number of invariants per radial function and channel, n_B.

        See ``docs/conventions.md``, "Sizes".
        """
        return tables.n_features(self.l_max, self.nu_max)

    @property
    def n_stages(self) -> int:
        """Number of feature generations, T (``docs/conventions.md``, "Sizes")."""
        return len(self.steps) + 1

    @property
    def n_features(self) -> int:
        """Length of the flattened feature vector of an atom, n_radial n_B C T (section 6)."""
        return self.n_radial * self.n_invariants * self.n_channels * self.n_stages

    def n_bchi_weights(self, bchi: Bchi) -> int:
        """Return the number of outputs of the Bchi network, n_l n_c (equation 19)."""
        return (1 if bchi.shared_l else self.l_max + 1) * (
            1 if bchi.shared_channels else self.n_channels
        )
