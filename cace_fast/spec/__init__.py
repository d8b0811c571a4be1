"""The architecture of a model as data: everything of it except its tensors.

A :class:`ModelSpec` is frozen, validated when it is made, prints readably and converts to and
from JSON (:func:`to_json`, :func:`from_json`). The tensors that belong to it are named and shaped
by :func:`cace_fast.weights.expected_shapes`. Symbols are those of ``docs/theory.md``.
"""

from .energy import EnergyTerm, energy_keys, energy_terms, total_energy_key
from .heads import Extra, Head
from .keys import Taken, chain, n_charges, taken_by, width_of
from .model import Combination, ModelSpec, Provenance, SubModel
from .outputs import (
    Add,
    Dephase,
    Ewald,
    FixedCharge,
    Forces,
    Grad,
    OutputModule,
    Polarization,
    Readout,
    written_keys,
)
from .program import EnergyHead, EnergyProgram, EwaldTerm, energy_column
from .representation import (
    MLP,
    Activation,
    Bchi,
    CutoffFunction,
    MessageStep,
    RadialBasis,
    Representation,
)
from .rule import energy_program, energy_programs, program_of
from .text import (
    file_from_json,
    file_to_json,
    from_json,
    program_from_json,
    program_to_json,
    readout_from_json,
    readout_to_json,
    to_json,
)

__all__ = [
    "MLP",
    "Activation",
    "Add",
    "Bchi",
    "Combination",
    "CutoffFunction",
    "Dephase",
    "EnergyHead",
    "EnergyProgram",
    "EnergyTerm",
    "Ewald",
    "EwaldTerm",
    "Extra",
    "FixedCharge",
    "Forces",
    "Grad",
    "Head",
    "MessageStep",
    "ModelSpec",
    "OutputModule",
    "Polarization",
    "Provenance",
    "RadialBasis",
    "Readout",
    "Representation",
    "SubModel",
    "Taken",
    "chain",
    "energy_column",
    "energy_keys",
    "energy_program",
    "energy_programs",
    "energy_terms",
    "file_from_json",
    "file_to_json",
    "from_json",
    "n_charges",
    "program_from_json",
    "program_of",
    "program_to_json",
    "readout_from_json",
    "readout_to_json",
    "taken_by",
    "to_json",
    "total_energy_key",
    "width_of",
    "written_keys",
]
