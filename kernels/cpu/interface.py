"""Structures and functions of ``csrc/cace_fast.h`` and ``cace_fast_step.h``, for ctypes."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_void_p
from typing import Any


class Head(ctypes.Structure):
    """``cf_head`` of ``cace_fast.h``: one read-out to evaluate."""

    _fields_ = (
        ("submodel", c_int32),
        ("module", c_int32),
        ("energy_column", c_int32),
        ("average", c_int32),
        ("charges", c_int32),
        ("energy_weight", c_double),
    )


class EwaldSpec(ctypes.Structure):
    """``cf_ewald_spec`` of ``cace_fast_step.h``: parameters of an Ewald module."""

    _fields_ = (
        ("dl", c_double),
        ("sigma", c_double),
        ("norm", c_double),
        ("field", c_double),
        ("neutral_lambda", c_double),
        ("exponent", c_int32),
        ("remove_self", c_int32),
        ("field_direction", c_int32),
    )


class LongRange(ctypes.Structure):
    """``cf_long_range`` of ``cace_fast_step.h``: one Ewald term of the energy."""

    _fields_ = (
        ("ewald", EwaldSpec),
        ("weight", c_double),
        ("first_charge", c_int32),
        ("n_charges", c_int32),
        ("fixed", POINTER(c_double)),
    )


class StructuresC(ctypes.Structure):
    """``cf_structures`` of ``cace_fast_step.h``; addresses of arrays."""

    _fields_ = (
        ("n_atoms", c_int32),
        ("n_systems", c_int32),
        ("species", c_void_p),
        ("positions", c_void_p),
        ("first_atom", c_void_p),
        ("cells", c_void_p),
        ("periodic", c_void_p),
        ("extras", c_void_p),
        ("min_dist", c_double),
    )


class StepResultC(ctypes.Structure):
    """``cf_step_result`` of ``cace_fast_step.h``; addresses of arrays."""

    _fields_ = tuple(
        (name, c_void_p) for name in ("energies_sr", "energies_lr", "forces", "virials", "charges")
    )


class EdgesC(ctypes.Structure):
    """``cf_edges``; addresses of arrays."""

    _fields_ = (
        ("n_edges", c_int64),
        ("n_atoms", c_int64),
        *((name, c_void_p) for name in ("vectors", "senders", "receivers", "species")),
    )


class MessageC(ctypes.Structure):
    """``cf_message``; addresses of arrays."""

    _fields_ = (("step", c_int32), ("a", c_void_p), ("b", c_void_p))


class GridsC(ctypes.Structure):
    """``cf_grids``."""

    _fields_ = (
        ("n_grids", c_int32),
        ("precision", c_int32),
        ("size", c_int64 * 3),
        ("modes", c_int64 * 3),
    )


# context, grids, forward, points, modes
TRANSFORM = ctypes.CFUNCTYPE(ctypes.c_int, c_void_p, POINTER(GridsC), c_int32, c_void_p, c_void_p)


class TransformC(ctypes.Structure):
    """``cf_transform``."""

    _fields_ = (("run", TRANSFORM), ("context", c_void_p))


# a description, and the number, names, data and sizes of tensors
_TENSORS = (c_char_p, c_int32, POINTER(c_char_p), POINTER(c_void_p), POINTER(c_int64))

SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "cf_version": (ctypes.c_int, ()),
    "cf_invalid": (c_char_p, (c_int32,)),
    "cf_isa": (c_char_p, (c_char_p,)),
    "cf_model_create": (
        ctypes.c_int,
        (*_TENSORS, c_int32, POINTER(Head), POINTER(c_void_p), c_char_p),
    ),
    "cf_model_open": (ctypes.c_int, (c_char_p, c_char_p, c_int32, POINTER(c_void_p), c_char_p)),
    "cf_model_open_bytes": (
        ctypes.c_int,
        (c_char_p, c_int64, c_char_p, c_int32, POINTER(c_void_p), c_char_p),
    ),
    "cf_model_row": (c_int32, (c_void_p, c_int32)),
    "cf_model_isolated": (c_double, (c_void_p, c_int32)),
    "cf_model_charge_unit": (c_double, (c_void_p,)),
    "cf_model_terms": (POINTER(LongRange), (c_void_p, POINTER(c_int32))),
    "cf_model_free": (None, (c_void_p,)),
    "cf_model_query": (c_int64, (c_void_p, c_char_p)),
    "cf_model_extras": (c_int32, (c_void_p, c_int32)),
    "cf_state_create": (ctypes.c_int, (c_void_p, c_int32, POINTER(c_void_p), c_char_p)),
    "cf_state_free": (None, (c_void_p,)),
    "cf_state_error": (c_char_p, (c_void_p,)),
    "cf_state_bad_atom": (c_int64, (c_void_p,)),
    "cf_state_bytes": (c_int64, (c_void_p,)),
    "cf_step_create": (
        ctypes.c_int,
        (c_void_p, c_void_p, c_int32, POINTER(LongRange), POINTER(c_void_p), c_char_p),
    ),
    "cf_step_free": (None, (c_void_p,)),
    "cf_step_threads": (None, (c_void_p, c_int32)),
    "cf_step_freeze": (None, (c_void_p, c_void_p)),
    "cf_step_slab": (None, (c_void_p, c_double)),
    "cf_step_fields": (ctypes.c_int, (c_void_p, c_int32, c_void_p, c_void_p)),
    "cf_step_method": (ctypes.c_int, (c_void_p, c_int32, c_double, POINTER(TransformC))),
    "cf_step_pairs": (
        ctypes.c_int,
        (c_void_p, POINTER(StructuresC), c_int64, c_void_p, c_void_p, c_void_p),
    ),
    "cf_step_run": (ctypes.c_int, (c_void_p, POINTER(StructuresC), POINTER(StepResultC))),
    "cf_step_weighted_gradients": (
        ctypes.c_int,
        (c_void_p, POINTER(StructuresC), c_void_p, c_void_p),
    ),
    "cf_step_charge_gradients": (ctypes.c_int, (c_void_p, c_int32, c_void_p, c_void_p)),
    "cf_step_features": (ctypes.c_int, (c_void_p, POINTER(StructuresC), c_void_p)),
    "cf_step_error": (c_char_p, (c_void_p,)),
    "cf_step_closest": (None, (c_void_p, POINTER(c_int32), POINTER(c_double), POINTER(c_double))),
    "cf_machine_peak": (c_double, (c_int32,)),
    "cf_machine_bandwidth": (c_double, ()),
    "cf_ewald_create": (ctypes.c_int, (POINTER(EwaldSpec), POINTER(c_void_p), c_char_p)),
    "cf_ewald_free": (None, (c_void_p,)),
    "cf_ewald_threads": (None, (c_void_p, c_int32)),
    "cf_state_seconds": (c_double, (c_void_p, c_char_p)),
    "cf_ewald_freeze": (None, (c_void_p, c_void_p)),
    "cf_ewald_slab": (None, (c_void_p, c_double)),
    "cf_ewald_method": (ctypes.c_int, (c_void_p, c_int32, c_double, POINTER(TransformC), c_char_p)),
    "cf_ewald_cell": (
        ctypes.c_int,
        (c_void_p, c_void_p, c_int32, c_int64, c_int32, POINTER(c_int64), c_char_p),
    ),
    "cf_ewald_sums": (ctypes.c_int, (c_void_p, c_int64, *(c_void_p,) * 3, c_char_p)),
    "cf_ewald_finish": (ctypes.c_int, (c_void_p, c_int64, *(c_void_p,) * 7, c_char_p)),
    "cf_ewald_mesh": (ctypes.c_int, (c_void_p, c_void_p, c_char_p)),
    "cf_ewald_spread": (ctypes.c_int, (c_void_p, c_void_p, c_int64, *(c_void_p,) * 3, c_char_p)),
    "cf_ewald_multiply": (
        ctypes.c_int,
        (c_void_p, c_void_p, c_int32, c_void_p, c_void_p, c_char_p),
    ),
    "cf_ewald_moments": (ctypes.c_int, (c_void_p, c_int64, *(c_void_p,) * 3, c_char_p)),
    "cf_ewald_gather": (ctypes.c_int, (c_void_p, c_void_p, c_int64, *(c_void_p,) * 8, c_char_p)),
    "cf_search_create": (ctypes.c_int, (POINTER(c_void_p), c_char_p)),
    "cf_search_free": (None, (c_void_p,)),
    "cf_search_run": (
        ctypes.c_int,
        (c_void_p, c_int64, *(c_void_p,) * 3, ctypes.c_double, c_int32, POINTER(c_int64), c_char_p),
    ),
    "cf_search_pairs": (None, (c_void_p, *(POINTER(c_void_p),) * 3)),
    "cf_edge_sums_run": (ctypes.c_int, (c_void_p, c_void_p, c_int32)),
    "cf_contraction": (
        ctypes.c_int,
        (c_int32, c_int32, c_int32, c_int64, c_int64, *(c_void_p,) * 2),
    ),
    "cf_contraction_gradient": (
        ctypes.c_int,
        (c_int32, c_int32, c_int32, c_int64, c_int64, *(c_void_p,) * 3),
    ),
    "cf_network_create": (ctypes.c_int, (*_TENSORS, c_int32, POINTER(c_void_p), c_char_p)),
    "cf_network_free": (None, (c_void_p,)),
    "cf_network_run": (ctypes.c_int, (c_void_p, c_int64, *(c_void_p,) * 2)),
    "cf_network_gradient": (ctypes.c_int, (c_void_p, c_int64, *(c_void_p,) * 3)),
    "cf_moments": (ctypes.c_int, (c_void_p, POINTER(EdgesC), c_void_p)),
    "cf_moments_gradient": (ctypes.c_int, (c_void_p, POINTER(EdgesC), *(c_void_p,) * 2)),
    "cf_messages": (ctypes.c_int, (c_void_p, POINTER(EdgesC), POINTER(MessageC), c_void_p)),
    "cf_messages_gradient": (
        ctypes.c_int,
        (c_void_p, POINTER(EdgesC), POINTER(MessageC), *(c_void_p,) * 4),
    ),
    "cf_ewald_evaluate": (
        ctypes.c_int,
        (c_void_p, c_int64, c_int32, *(c_void_p,) * 3, c_int32, *(c_void_p,) * 4, c_char_p),
    ),
}
