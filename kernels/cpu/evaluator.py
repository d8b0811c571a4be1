"""A model in the compiled library, and the buffers of its evaluation."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from ctypes import byref, c_double, c_int32, c_void_p
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cace_fast.kernels.cpu import interface, library
from cace_fast.kernels.cpu.library import Handle, address
from cace_fast.kernels.cpu.long_range import Transform
from cace_fast.process import Lock

PARTS = ("pairs", "radial", "sums", "mix", "contract", "readout", "edges", "messages", "forces")


class Structures(NamedTuple):
    """Structures evaluated together (``cf_structures`` of ``cace_fast_step.h``); arrays in C order.

    ``species`` [n] int32, ``positions`` [n, 3] float64 in A, ``first_atom`` [n_systems + 1] int32,
    ``cells`` [n_systems, 3, 3] float64 in A, ``periodic`` [n_systems] int32 (0 open, 1 in all
    directions, 2 + a in all but a), ``extras`` one float64 array [n, n_extra] or None for each
    head, ``min_dist`` in A (0: a share of covalent radii, below 0: any).
    """

    species: NDArray[np.int32]
    positions: library.Floats
    first_atom: NDArray[np.int32]
    cells: library.Floats
    periodic: NDArray[np.int32]
    extras: Sequence[library.Floats | None] = ()
    min_dist: float = 0.0


class StepResult(NamedTuple):
    """Results of :meth:`Evaluator.run`, float64; None where it was not asked for.

    ``energies_sr`` and ``energies_lr`` [n] in eV, ``forces`` [n, 3] in eV/A, ``virials``
    [n_systems, 3, 3] in eV, ``charges`` [n, n_charges] in internal units (``docs/conventions.md``).
    """

    energies_sr: library.Floats
    energies_lr: library.Floats
    forces: library.Floats | None
    virials: library.Floats | None
    charges: library.Floats | None


class Evaluator:
    """A model in the library, and the buffers of its evaluation (``cace_fast_step.h``).

    Parameters
    ----------
    spec_json
        The specification as JSON text.
    tensors
        Its tensors, float64 arrays in C order.
    heads, terms
        Read-outs to evaluate and Ewald terms of the energy.
    precision
        32 or 64.

    Raises
    ------
    UnsupportedModelError
        If the library does not have a part of the model.
    NotLoadedError
        If the library is not here.
    """

    def __init__(
        self,
        spec_json: str,
        tensors: Mapping[str, library.Floats],
        heads: Sequence[interface.Head],
        terms: Sequence[interface.LongRange],
        precision: int,
    ) -> None:
        self._lib = library.library()
        self._lock = Lock()
        self._n_heads = len(heads)
        self._model = Handle.of_tensors(
            "model", spec_json, tensors, len(heads), (interface.Head * len(heads))(*heads)
        )
        self._state = Handle("state", self._model, precision)
        native = (interface.LongRange * len(terms))(*terms)
        self._step = Handle("step", self._model, self._state, len(terms), native)
        self.n_charges = self.query("n_charges")
        self._transform: Transform | None = None

    def sum_by(self, method: str, tolerance: float) -> None:
        """Sum the long range of periodic systems by a method from now on.

        Parameters
        ----------
        method, tolerance
            ``"direct"``, ``"mesh"`` or ``"auto"``, and the error of forces by a mesh relative to
            max(max |F|, F0).
        """
        with self._lock:
            self._transform = Transform()
            given = byref(self._transform.given)
            number = library.METHODS[method]
            self._finish(self._lib.cf_step_method(self._step, number, tolerance, given))

    def freeze(self, cell: library.Floats | None) -> None:
        """Take the integer vectors k of one cell [3, 3] in A in every cell; None: each has its own.

        See ``docs/theory.md``, "Variable cells".
        """
        kept = None if cell is None else np.ascontiguousarray(cell, dtype=np.float64)
        with self._lock:
            self._lib.cf_step_freeze(self._step, None if kept is None else kept.ctypes.data)

    def slabs(self, vacuum: float | None) -> None:
        """Sum slabs in boxes with this vacuum in A beyond the height of their cells.

        See ``docs/theory.md``, equation 35.
        """
        with self._lock:
            self._lib.cf_step_slab(self._step, vacuum or 0.0)

    def fields(self, given: tuple[library.Floats, library.Ints]) -> None:
        """Take external fields in V/A and their directions, each [n_terms, n_systems] (section 9).

        Raises
        ------
        InputError
            If a direction is not 0, 1 or 2.
        """
        strengths = np.ascontiguousarray(given[0], dtype=np.float64)
        axes = np.ascontiguousarray(given[1], dtype=np.int32)
        n_systems = strengths.shape[1]
        with self._lock:
            code = self._lib.cf_step_fields(
                self._step, n_systems, address(strengths), address(axes)
            )
            self._finish(code)

    def query(self, name: str) -> int:
        """Return a number that describes the model; see ``cf_model_query`` of ``cace_fast.h``."""
        return int(self._lib.cf_model_query(self._model, name.encode()))

    def n_extras(self, head: int) -> int:
        """Return how many extra inputs a head takes beside the features (``cf_model_extras``)."""
        return int(self._lib.cf_model_extras(self._model, head))

    @property
    def n_bytes(self) -> int:
        """Memory in bytes held by the buffers of the engine (``cf_state_bytes``)."""
        return int(self._lib.cf_state_bytes(self._state))

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent in each part, summed over threads.

        See ``docs/user/performance.md``.

        They count from the last change of the number of threads.
        """
        seconds = self._lib.cf_state_seconds
        return {part: float(seconds(self._state, part.encode())) for part in PARTS}

    def run(
        self,
        structures: Structures,
        pairs: tuple[library.Ints, library.Ints, library.Ints] | None,
        wanted: Sequence[str],
        n_threads: int,
    ) -> StepResult:
        """Evaluate structures (``cf_step_run`` of ``cace_fast_step.h``).

        Parameters
        ----------
        structures
            Atoms and cells.
        pairs
            A new list: senders, receivers [n_pairs] and shifts [n_pairs, 3], int64; None to use
            that of the last call.
        wanted
            Any of ``forces``, ``virials``, ``charges``.
        n_threads
            How many threads to use.

        Raises
        ------
        library.TooCloseError, library.NotFiniteError, InputError
            For structures that make no sense.
        """
        n, n_systems = len(structures.species), len(structures.cells)
        result = StepResult(
            np.empty(n),
            np.empty(n),
            np.empty((n, 3)) if "forces" in wanted else None,
            np.empty((n_systems, 3, 3)) if "virials" in wanted else None,
            np.empty((n, self.n_charges)) if "charges" in wanted else None,
        )
        out = interface.StepResultC(*(None if a is None else address(a) for a in result))
        with self._lock:
            given, _kept = self._given(structures)
            self._prepare(given, pairs, n_threads)
            with nullcontext() if self._transform is None else self._transform.keeping():
                code = self._lib.cf_step_run(self._step, byref(given), byref(out))
            self._finish(code)
        return result

    def charge_gradients(self, weights: library.Floats) -> library.Floats:
        """Return the gradients [m, n, 3], in 1/A, of sum_i weights_i q_i with respect to positions.

        They are those of the structures of the last :meth:`run`, which have to live still and
        after which nothing else may have been evaluated; ``weights`` [m, n, n_charges] is float64
        in C order (``docs/theory.md``, section 10).

        Raises
        ------
        CaceFastError, MemoryError
            If the library fails.
        """
        found = np.empty((*weights.shape[:2], 3))
        with self._lock:
            self._finish(
                self._lib.cf_step_charge_gradients(
                    self._step, len(weights), address(weights), address(found)
                )
            )
        return found

    def weighted_gradients(
        self, structures: Structures, weights: library.Floats | None
    ) -> library.Floats:
        """Return sum_j (r_j - r_i)_b dy_j/dr_ia [n, 3, 3], images resolved.

        y_j is sum_c weights_jc q_jc, ``weights`` [n, n_charges] float64 in C order, or the energy
        of read-outs where they are None; the structures are those of the last :meth:`run`, and
        :meth:`charge_gradients` can no longer follow.
        """
        found = np.empty((len(structures.species), 3, 3))
        with self._lock:
            given, _kept = self._given(structures)
            self._finish(
                self._lib.cf_step_weighted_gradients(
                    self._step,
                    byref(given),
                    None if weights is None else address(weights),
                    address(found),
                )
            )
        return found

    def features(
        self,
        structures: Structures,
        pairs: tuple[library.Ints, library.Ints, library.Ints] | None,
        n_threads: int,
    ) -> library.Floats:
        """Return the invariants [n, n_radial, n_B, C, T] float64 (equation 21).

        Arguments and errors are those of :meth:`run`.
        """
        names = ("n_radial", "n_invariants", "n_channels", "n_stages")
        found = np.empty((len(structures.species), *(self.query(name) for name in names)))
        with self._lock:
            given, _kept = self._given(structures)
            self._prepare(given, pairs, n_threads)
            self._finish(self._lib.cf_step_features(self._step, byref(given), found.ctypes.data))
        return found

    def _given(self, s: Structures) -> tuple[interface.StructuresC, Any]:
        """Return the C structure, and the objects that have to live as long as it."""
        extras = None
        if any(e is not None for e in s.extras):
            pointers = (None if e is None else e.ctypes.data for e in s.extras)
            extras = (c_void_p * self._n_heads)(*pointers)
        given = interface.StructuresC(
            n_atoms=len(s.species),
            n_systems=len(s.cells),
            species=address(s.species),
            positions=address(s.positions),
            first_atom=address(s.first_atom),
            cells=address(s.cells),
            periodic=address(s.periodic),
            extras=None if extras is None else ctypes.addressof(extras),
            min_dist=s.min_dist,
        )
        return given, extras

    def _prepare(
        self,
        given: interface.StructuresC,
        pairs: tuple[library.Ints, library.Ints, library.Ints] | None,
        n_threads: int,
    ) -> None:
        self._lib.cf_step_threads(self._step, n_threads)
        if pairs is not None:
            senders, receivers, shifts = pairs
            self._finish(
                self._lib.cf_step_pairs(
                    self._step,
                    byref(given),
                    len(senders),
                    receivers.ctypes.data,
                    senders.ctypes.data,
                    shifts.ctypes.data,
                )
            )

    def _finish(self, code: int) -> None:
        if self._transform is not None:
            self._transform.raise_kept()
        if code == library.TOO_CLOSE:
            atoms, distance, allowed = (c_int32 * 2)(), c_double(), c_double()
            self._lib.cf_step_closest(self._step, atoms, byref(distance), byref(allowed))
            raise library.TooCloseError((atoms[0], atoms[1]), distance.value, allowed.value)
        text = self._lib.cf_step_error(self._step).decode() if code else ""
        if code == library.NOT_FINITE:
            raise library.NotFiniteError(int(self._lib.cf_state_bad_atom(self._state)), text)
        library.raise_for(code, text)
