"""Output modules as data: read-outs, long range, forces and what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .checks import (
    Constant,
    is_number,
    require,
    require_bools,
    require_float,
    require_int,
    require_names,
    require_pairs,
    require_texts,
)
from .representation import MLP
from .units import FIXED_CHARGE_UNIT

RESOLUTIONS, WIDTHS = (0.05, 1000.0), (1e-3, 1000.0)  # A: of Ewald sums, and of their charges


@dataclass(frozen=True)
class Readout(Constant):
    """Per-atom network on features, summed over atoms (``docs/theory.md``, section 7).

    Attributes
    ----------
    output_key, per_atom_key, descriptor_key
        Keys of the sum or mean, of the outputs y of each atom, and of the inputs x.
    mlp, linear
        The network, and whether a linear layer is added to it.
    features
        Keys of what it takes, in the order of its columns.
    aggregation
        Sum or mean over the atoms of a structure; None leaves the outputs per atom.

    Raises
    ------
    SpecError
        If a field is wrong.
    """

    output_key: str
    mlp: MLP
    linear: bool = True
    features: tuple[str, ...] = ("node_feats",)
    per_atom_key: str | None = None
    descriptor_key: str | None = None
    aggregation: Literal["sum", "avg"] | None = "sum"

    def __post_init__(self) -> None:
        require_names(self, "output_key")
        require_names(self, "per_atom_key", "descriptor_key", optional=True)
        require(isinstance(self.mlp, MLP), self, "mlp", "an MLP")
        require_bools(self, "linear")
        require_texts(self, "features", 1)
        require(
            self.aggregation in ("sum", "avg", None), self, "aggregation", "'sum', 'avg' or nothing"
        )
        keys = written_keys(self)
        distinct = len(set(keys)) == len(keys)
        require(distinct, self, "output_key", f"a name of its own, not one of {keys[1:]}")

    @property
    def n_out(self) -> int:
        """Number of outputs per atom (equation 24)."""
        return self.mlp.widths[-1]


@dataclass(frozen=True)
class Ewald:
    """Latent Ewald sum over charges (``docs/theory.md``, section 9).

    Attributes
    ----------
    feature_key, output_key
        Keys of the charges and of the energy.
    dl, sigma
        Resolution, k_max = 2 pi/dl, and width of the charges, in A.
    exponent
        1 or 6 (equation 26).
    remove_self_interaction
        Whether the self term is taken out (equations 28 and 29).
    norm_factor
        norm of equations 27 and 29, in eV A for charges of one internal unit.
    aggregation
        Sum over the atoms of a structure; None leaves the energy as it is.
    compute_field
        Whether the potential is written under ``<feature_key>_field``.
    external_field, external_field_direction
        Field in V/A and its direction 0 to 2, or the keys of inputs that hold them.
    charge_neutral_lambda
        Penalty on the squared mean charge, in eV for one internal unit.

    Raises
    ------
    SpecError
        If a field is wrong.
    """

    feature_key: str
    output_key: str
    dl: float
    sigma: float
    exponent: int = 1
    remove_self_interaction: bool = False
    norm_factor: float = 1.0
    aggregation: Literal["sum"] | None = "sum"
    compute_field: bool = False
    external_field: float | str | None = None
    external_field_direction: int | str | None = None
    charge_neutral_lambda: float | None = None

    def __post_init__(self) -> None:
        require_names(self, "feature_key", "output_key")
        require_float(self, "dl", *RESOLUTIONS)
        require_float(self, "sigma", *WIDTHS)
        require_float(self, "norm_factor")
        require(type(self.exponent) is int, self, "exponent", "1 or 6")
        require(self.exponent in (1, 6), self, "exponent", "1 or 6")
        require_bools(self, "remove_self_interaction", "compute_field")
        require(self.aggregation in ("sum", None), self, "aggregation", "'sum' or nothing")
        strength, direction = self.external_field, self.external_field_direction
        good = strength is None or is_number(strength)
        good = good or (type(strength) is str and strength != "")
        require(good, self, "external_field", "a finite number, a key or nothing")
        good = direction is None or (type(direction) is str and direction != "")
        good = good or (type(direction) is int and direction in (0, 1, 2))
        require(good, self, "external_field_direction", "0, 1, 2, a key or nothing")
        if self.charge_neutral_lambda is not None:
            require_float(self, "charge_neutral_lambda")

    @property
    def takes_field(self) -> bool:
        """Whether an external field, or its direction, is an input of the structures.

        See ``docs/theory.md``, section 9.
        """
        return any(isinstance(x, str) for x in (self.external_field, self.external_field_direction))


@dataclass(frozen=True)
class Add:
    """Sum of the outputs under the keys ``features`` (``docs/theory.md``, section 7).

    Raises
    ------
    SpecError
        If a field is wrong.
    """

    features: tuple[str, ...]
    output_key: str

    def __post_init__(self) -> None:
        require_texts(self, "features", 1)
        require_names(self, "output_key")


@dataclass(frozen=True)
class Forces:
    """Negative gradient of an energy, and its strain derivative (``docs/theory.md``, equation 25).

    The fields name the keys of the energy and of the results, and say which results there are.

    Raises
    ------
    SpecError
        If a field is wrong.
    """

    energy_key: str
    forces_key: str
    stress_key: str = "stress"
    virial_key: str = "virials"
    calc_forces: bool = True
    calc_stress: bool = False

    def __post_init__(self) -> None:
        require_names(self, "energy_key", "forces_key", "stress_key", "virial_key")
        require_bools(self, "calc_forces", "calc_stress")


@dataclass(frozen=True)
class Polarization:
    """Dipole or periodic polarisation of latent charges (``docs/theory.md``, equations 31 and 32).

    Attributes
    ----------
    charge_key, output_key, phase_key
        Keys of the charges, the polarisation, and the phase factors of the atoms.
    remove_mean
        Whether the mean charge is taken out.
    pbc
        Whether the polarisation is periodic.
    normalization_factor
        e per internal unit of charge.
    output_index
        The one component (0 to 2) to compute; None for all.

    Raises
    ------
    SpecError
        If a field is wrong.
    """

    charge_key: str
    output_key: str
    phase_key: str | None = None
    remove_mean: bool = True
    pbc: bool = False
    normalization_factor: float = 1.0 / FIXED_CHARGE_UNIT
    output_index: int | None = None

    def __post_init__(self) -> None:
        require_names(self, "charge_key", "output_key")
        require_names(self, "phase_key", optional=True)
        require_bools(self, "remove_mean", "pbc")
        require_float(self, "normalization_factor")
        if self.output_index is not None:
            require_int(self, "output_index", 0, 2)


@dataclass(frozen=True)
class Grad:
    """Gradient of one output with respect to an input, ``positions``.

    See ``docs/theory.md``, section 10.

    Raises
    ------
    SpecError
        If a field is wrong.
    """

    y_key: str
    x_key: str
    output_key: str

    def __post_init__(self) -> None:
        require_names(self, "y_key", "x_key", "output_key")


@dataclass(frozen=True)
class Dephase:
    """Real part of a complex output times the conjugate phase of its atom (equation 34).

    Raises
    ------
    SpecError
        If a field is wrong.
    """

    input_key: str
    phase_key: str
    output_key: str

    def __post_init__(self) -> None:
        require_names(self, "input_key", "phase_key", "output_key")


@dataclass(frozen=True)
class FixedCharge:
    """A charge for each element (in e when ``normalize``), as latent charge of shape [n, 1].

    Its pairs are atomic number and charge (``docs/theory.md``, section 7).

    Raises
    ------
    SpecError
        If a field is wrong.
    """

    output_key: str
    charges: tuple[tuple[int, float], ...]
    normalize: bool = True

    def __post_init__(self) -> None:
        require_names(self, "output_key")
        require_pairs(self, "charges")
        require_bools(self, "normalize")

    def of_elements(self, elements: Sequence[int]) -> list[float]:
        """Return the charge of each element in internal units, 0 for those without one.

        See ``docs/theory.md``, section 7.
        """
        unit, table = FIXED_CHARGE_UNIT if self.normalize else 1.0, dict(self.charges)
        return [unit * table.get(z, 0.0) for z in elements]


OutputModule = Readout | Ewald | Add | Forces | Polarization | Grad | Dephase | FixedCharge


def written_keys(module: OutputModule) -> tuple[str, ...]:
    """Return the keys that an output module writes (``docs/theory.md``, section 7)."""
    if isinstance(module, Forces):
        return ((module.forces_key,) if module.calc_forces else ()) + (
            (module.stress_key, module.virial_key) if module.calc_stress else ()
        )
    if isinstance(module, Readout):
        extra = (module.per_atom_key, module.descriptor_key)
        return (module.output_key, *(key for key in extra if key is not None))
    if isinstance(module, Ewald):
        return (
            module.output_key,
            *((f"{module.feature_key}_field",) if module.compute_field else ()),
        )
    if isinstance(module, Polarization) and module.phase_key is not None:
        return (module.output_key, module.phase_key)
    return (module.output_key,)
