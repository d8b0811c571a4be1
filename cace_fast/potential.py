""":class:`Potential`: a model that computes properties of structures."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, overload

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from . import structures, weights
from .arrays import Arrays
from .engine import Batch, LongRange, find_device, find_dtype, make_engine
from .errors import renamed
from .evaluation import evaluate_frames
from .forward import Forward
from .graph import join
from .min_dist import AUTO, MinDist
from .process import ordinary
from .properties import (
    USUAL,
    Names,
    Result,
    check_names,
    check_structure,
    isolated_table,
    require_energy,
    to_numpy,
)
from .spec import ModelSpec, energy_program
from .structures import EdgeSource, extra_inputs, graph_of, no_edges
from .weights import Weights

if TYPE_CHECKING:
    from ase import Atoms

Frames = Sequence["Atoms"]


class Potential:
    """A model that computes energies, forces and other properties of structures.

    ``docs/user/evaluate_and_convert.md`` has examples; :func:`cace_fast.load` reads one from a
    file.

    Parameters
    ----------
    spec, weights
        Its architecture and tensors.
    device
        ``"auto"`` (CUDA where there is one), or what torch takes.
    dtype
        ``"float32"`` or ``"float64"``; energies are summed in float64 in either.
    backend
        ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``; see :attr:`backend`.
    energy_key, output_index
        Which energy of the model to take, by default its total; which of a read-out's several.
    long_range_tolerance, k_set, long_range, slab_vacuum, born_charges
        Tolerance (None: 1e-6 in float32, 1e-10 in float64), k_set, method, vacuum of slabs in A
        (``docs/user/slabs.md``) and kind of Born charges of
        :class:`cace_fast.engine.LongRange`, which is at
        :attr:`long_range`.

    Raises
    ------
    InputError
        For an argument out of its range.
    UnsupportedModelError
        If the total energy is ambiguous, or a backend asked for by name lacks a part of the model.
    BackendUnavailableError
        If a backend asked for by name cannot run here.
    """

    @ordinary
    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "float32",
        backend: str = "auto",
        energy_key: str | None = None,
        output_index: int | None = None,
        long_range_tolerance: float | None = None,
        k_set: str = "sphere",
        long_range: str = "auto",
        slab_vacuum: float | None = None,
        born_charges: str = "local",
    ) -> None:
        self.spec, self.weights = spec, weights
        self.device, self.dtype = find_device(device), find_dtype(dtype)
        self.energy_key, self.output_index = energy_key, output_index
        self.program = energy_program(spec, energy_key, output_index)
        self.long_range = LongRange.of(
            self.dtype, long_range, long_range_tolerance, k_set, slab_vacuum, born_charges
        )
        self._engine = make_engine(
            spec,
            weights,
            self.program,
            backend=backend,
            device=self.device,
            dtype=self.dtype,
            long_range=self.long_range,
        )
        self._forward = Forward.of(spec, self._engine.weights, self.long_range, self.backend)
        self._atomic_energies = dict(self.program.isolated)
        self._extra_inputs = extra_inputs(spec)

    def replace(self, **options: Any) -> Potential:
        """Return a potential of the same model with these options changed.

        Options and errors are those of :class:`Potential`.
        """
        how = self.long_range
        own: dict[str, Any] = {
            "device": self.device,
            "dtype": self.dtype,
            "backend": self.backend,
            "energy_key": self.energy_key,
            "output_index": self.output_index,
            "long_range": how.method,
            "long_range_tolerance": how.tolerance,
            "k_set": how.k_set,
            "slab_vacuum": how.slab_vacuum,
            "born_charges": how.born_charges,
        }
        if "dtype" in options and how.tolerance == LongRange.of(self.dtype).tolerance:
            own["long_range_tolerance"] = None  # the default of the new precision
        found = Potential(self.spec, self.weights, **(own | options))
        found.long_range.reference_cell = how.reference_cell
        return found

    changed = renamed("Potential.changed", "Potential.replace", replace)

    def __repr__(self) -> str:
        """Return one line: elements, cutoff, backend, device and dtype."""
        rep = self.spec.representation
        elements = " ".join(structures.symbol(z) for z in sorted(rep.elements)[:8])
        more = " ..." if rep.n_elements > 8 else ""
        return (
            f"Potential({elements}{more}, cutoff {rep.cutoff:g} A, backend {self.backend!r} on "
            f"{str(self.device)!r}, {str(self.dtype).removeprefix('torch.')})"
        )

    @property
    def backend(self) -> str:
        """Name of the backend that evaluates the model (``docs/user/install.md``)."""
        return self._engine.backend

    @property
    def backend_note(self) -> str:
        """The code of the backend that runs, and why ``auto`` chose no faster one.

        See ``docs/user/install.md``.
        """
        note = f" ({self._engine.note})" if self._engine.note else ""
        return self._engine.description + note

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in each part of the engine so far; empty where that is not measured.

        See ``docs/user/performance.md``.
        """
        return self._engine.seconds()

    @property
    def sorts_pairs(self) -> bool:
        """Whether candidate pairs may come in any order; see :meth:`evaluate`."""
        return self._engine.sorts_pairs

    @property
    def cutoff(self) -> float:
        """Cutoff of the neighbour search in A (``docs/theory.md``, section 1)."""
        return self.spec.representation.cutoff

    @overload
    def compute(
        self, atoms: Atoms, properties: Names = ..., *, min_dist: MinDist = ...
    ) -> Result: ...
    @overload
    def compute(
        self, atoms: Sequence[Atoms], properties: Names = ..., *, min_dist: MinDist = ...
    ) -> list[Result]: ...
    def compute(
        self, atoms: Atoms | Sequence[Atoms], properties: Names = USUAL, *, min_dist: MinDist = AUTO
    ) -> Result | list[Result]:
        """Return the ``properties`` of one structure, or of each structure of a list.

        ``docs/conventions.md``, "Results", defines them.

        Parameters
        ----------
        atoms
            ASE Atoms, or a list of them (evaluated in batches). They are not changed.
        properties
            Any of ``energy`` (float, eV), ``energies`` [n] (eV, sum to energy), ``energies_sr``
            and ``energies_lr`` [n] (read-out and long range alone), ``forces`` [n, 3] (eV/A),
            ``stress`` [3, 3] (eV/A^3, positive under tension), ``virials`` [3, 3] (-dE/dstrain,
            eV), ``latent_charges`` [n, n_q] (internal units), ``charges`` [n] (e), ``dipole`` [3]
            (e A), ``bec`` [n, 3, 3] (e, dP_b/dr_ia); without charges ``atom_virials`` [n, 3, 3]
            (eV, r_a F_b) and ``heat_flux`` [3] (eV A per ASE's unit of time).
        min_dist
            Shortest distance allowed between two atoms in A; ``"auto"``: 0.35 times the sum of
            their covalent radii (H-H 0.22 A, Cu-Cu 0.92 A); None allows any.

        Returns
        -------
        dict or list of dict
            float64 numpy arrays under the names asked for.

        Raises
        ------
        InputError, UnknownElementError
            For a structure that makes no sense or is not covered by the model.
        PropertyNotImplementedError
            For a property that the model or the structure does not have.
        """
        if structures.is_atoms(atoms):
            return self.evaluate([atoms], properties, min_dist=min_dist)[0]
        return self.evaluate(list(atoms), properties, min_dist=min_dist)

    @ordinary
    def evaluate(
        self,
        frames: Sequence[Atoms],
        properties: Sequence[str],
        *,
        edges: EdgeSource | None = None,
        inputs: Mapping[str, str] | None = None,
        min_dist: MinDist = AUTO,
    ) -> list[Result]:
        """Return :meth:`compute` of every frame, with a given source of candidate pairs.

        Parameters, results and errors are those of :meth:`compute`, and:

        Parameters
        ----------
        edges
            Called with positions [n, 3] and cell [3, 3] in A, and pbc [3]; see
            :class:`cace_fast.engine.VerletList`. Pairs ascend in the receiver unless
            :attr:`sorts_pairs`.
        inputs
            Where to find further inputs of the model: its name -> name in ``info`` or ``arrays``.
        """
        check_names(properties)
        require_energy(self.spec)
        for atoms in frames:
            check_structure(properties, atoms)
        return evaluate_frames(
            self._engine,
            self.program,
            frames,
            properties,
            edges=edges,
            inputs={key: key for key in self._extra_inputs} | dict(inputs or {}),
            min_dist=min_dist,
        )

    @ordinary
    def features(self, atoms: Atoms, *, min_dist: MinDist = AUTO) -> NDArray[Any]:
        """Return the invariants [n, n_radial, n_B, C, n_stages] in the working dtype (equation 21).

        ``min_dist`` (A) and errors are those of :meth:`compute`.
        """
        graph = graph_of(atoms, self.spec.representation, min_dist=min_dist)
        return np.asarray(self._engine.features(graph.to(self.device)).cpu().numpy())

    @ordinary
    def batch(
        self,
        positions: Sequence[Atoms] | ArrayLike,
        numbers: ArrayLike | None = None,
        cell: ArrayLike | None = None,
        pbc: ArrayLike = False,
        system_index: ArrayLike | None = None,
        *,
        inputs: Mapping[str, ArrayLike] | None = None,
        skin: float = 1.0,
        min_dist: MinDist = AUTO,
    ) -> Batch:
        """Return systems that stay on the device and move there (``docs/user/batches.md``).

        Parameters
        ----------
        positions
            A list of ASE Atoms, and nothing else; or positions [n, 3] in A of all systems.
        numbers
            Atomic numbers [n].
        cell, pbc
            [n_systems, 3, 3] in A, lattice vectors as rows, and [n_systems, 3] bool; one cell
            [3, 3], one row [3] or one bool for all. No cell: open systems.
        system_index
            The system of each atom [n], ascending from 0; by default there is one system.
        inputs
            Further inputs of the model [n, ...] by name, such as ``charge_states``.
        skin
            How far two atoms may move together before pairs are searched again, in A.
        min_dist
            Shortest distance allowed between two atoms: in A, ``"auto"`` or None.

        Returns
        -------
        Batch
            Its energies contain those of isolated atoms, as in :meth:`compute`.

        Raises
        ------
        InputError, UnknownElementError
            For arrays that do not fit, or elements that the model does not have.
        PropertyNotImplementedError
            For a bare descriptor, which has no energy.
        """
        require_energy(self.spec)
        rep = self.spec.representation
        if numbers is None:
            names = {key: key for key in self._extra_inputs}
            frames = cast(Frames, positions)
            graph = join([graph_of(a, rep, inputs=names, edges=no_edges) for a in frames])
        else:
            arrays = Arrays.of(positions, numbers, cell, pbc, system_index)
            graph = arrays.graph(rep, self._extra_inputs, inputs or {})
        table = isolated_table(self._atomic_energies, rep.elements)
        return Batch(self._engine, graph, skin, min_dist=min_dist, isolated=table)

    def resident(self, frames: Frames, skin: float = 1.0, *, min_dist: MinDist = AUTO) -> Batch:
        """Return :meth:`batch`; the old name, with a DeprecationWarning."""
        warnings.warn("Potential.resident is Potential.batch now", DeprecationWarning, stacklevel=2)
        return self.batch(frames, skin=skin, min_dist=min_dist)

    @ordinary
    def hessian(self, atoms: Atoms, *, min_dist: MinDist = AUTO) -> NDArray[np.float64]:
        """Return the second derivatives of the energy [n, 3, n, 3] float64 in eV/A^2.

        The reference computes them, with cost and memory of 3 n evaluations of the forces; use
        ``dtype="float64"`` (``docs/user/dtype.md``). ``min_dist`` (A) and errors are those of
        :meth:`compute`.
        """
        require_energy(self.spec)
        names = extra_inputs(self.spec)
        graph = graph_of(atoms, self.spec.representation, inputs=names, min_dist=min_dist)
        return to_numpy(self._engine.hessian(graph.to(self.device)))

    def forward(
        self,
        data: Mapping[str, Tensor],
        training: bool = False,
        compute_stress: bool | None = None,
        output_index: int | None = None,
    ) -> dict[str, Tensor]:
        """Return upstream's outputs by the ``backend``; plain torch computes their derivatives.

        Output keys, shapes and units are those of the file's modules. Parts of a combined model
        are reported without their weight; the combined names are the weighted sums.

        Parameters
        ----------
        data
            ``positions``, ``atomic_numbers``, ``edge_index``, ``shifts`` or ``unit_shifts``,
            ``cell``, ``batch``, ``ptr`` and what the model's read-outs take
            (``docs/conventions.md``, "Input dictionary").
        training
            Keep the graph of the derivatives, for second derivatives.
        compute_stress
            Whether to compute stress; by default where the file declares it.
        output_index
            Which energy, for a read-out that gives several.

        Raises
        ------
        InputError
            For an entry that is missing, of another shape or type, or not finite.
        CaceFastError
            If an output is not finite.
        """
        return self._forward(
            data, training=training, compute_stress=compute_stress, output_index=output_index
        )

    __call__ = forward

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as one ``.safetensors`` file; see :func:`cace_fast.weights.save`."""
        weights.save(path, self.spec, self.weights)
