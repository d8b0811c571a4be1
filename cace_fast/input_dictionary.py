"""Upstream's input dictionary as a graph (docs/conventions.md, "Input dictionary")."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .engine import check_graph
from .errors import InputError
from .graph import AtomicGraph
from .spec import ModelSpec
from .structures import extra_inputs, species_of, trim

REQUIRED = ("positions", "atomic_numbers", "edge_index")
ROUNDING = 0.01  # of shifts in units of the cell: float32 coordinates leave 1e-5


def graph_of_dict(data: Mapping[str, Tensor], positions: Tensor, spec: ModelSpec) -> AtomicGraph:
    """Return the graph of upstream's input dictionary.

    See ``docs/conventions.md``, "Input dictionary".

    A structure is open where its cell is zero and periodic where it is not singular. ``positions``
    [n, 3] are in A; the graph has them in float64.

    Raises
    ------
    InputError
        For an entry that is missing, of another shape or type, or names atoms, structures or
        images that do not exist.
    UnknownElementError
        For an element that the model does not have.
    """
    for key in REQUIRED:
        tensor_of(data, key)
    device, n = positions.device, positions.shape[0]
    _check_shape("positions", positions, (n, 3))
    batch, n_systems = _systems(data, n, device)
    raw = data.get("cell")
    cell = torch.zeros(n_systems, 3, 3) if raw is None else raw.detach()
    if cell.numel() != 9 * n_systems:
        raise InputError("data['cell']", f"{n_systems} cells of 3 x 3", tuple(cell.shape))
    cell = cell.to(device, torch.float64).reshape(n_systems, 3, 3)
    volume = torch.linalg.det(cell).abs()
    open_ = (cell == 0).flatten(1).all(1)
    if bool((~open_ & ~(volume > 0)).any()):
        raise InputError("data['cell']", "zero or three independent vectors", cell.tolist())
    senders, receivers = _edges(data, n, batch)
    shifts = _unit_shifts(data, cell, batch, receivers, open_)
    if len(receivers) and not bool((receivers[1:] >= receivers[:-1]).all()):
        order = torch.argsort(receivers, stable=True)
        senders, receivers, shifts = senders[order], receivers[order], shifts[order]
    names = {*extra_inputs(spec, unused=True), *spec.representation.forward_features}
    _check_shape("atomic_numbers", data["atomic_numbers"], (n,))
    species = species_of(data["atomic_numbers"].cpu().numpy(), spec.representation)
    graph = AtomicGraph(
        positions=positions.to(torch.float64),
        species=torch.from_numpy(species).to(device),
        cell=cell,
        pbc=(~open_)[:, None].expand(-1, 3),
        batch=batch,
        senders=senders,
        receivers=receivers,
        shifts=shifts,
        inputs={key: _per_atom(data[key], batch, n) for key in names if key in data},
    )
    check_graph(graph)
    return trim(graph, spec.representation)


def tensor_of(data: Mapping[str, Tensor], key: str) -> Tensor:
    """Return an entry of the dictionary; InputError unless it is a tensor.

    See ``docs/conventions.md``.
    """
    if key not in data or not isinstance(data[key], Tensor):
        raise InputError(f"data[{key!r}]", "a tensor", type(data.get(key)).__name__)
    return data[key]


def _systems(data: Mapping[str, Tensor], n: int, device: torch.device) -> tuple[Tensor, int]:
    """Return the system of each atom [n] and the number of systems."""
    given, ptr = data.get("batch"), data.get("ptr")
    batch = torch.zeros(n, dtype=torch.int64, device=device) if given is None else given
    _check_shape("batch", batch, (n,), integers=True)
    n_systems = len(ptr) - 1 if ptr is not None else int(batch.max()) + 1 if n else 1
    _check_range("batch", batch, n_systems, "structures")
    return batch, n_systems


def _edges(data: Mapping[str, Tensor], n: int, batch: Tensor) -> tuple[Tensor, Tensor]:
    index = data["edge_index"]
    _check_shape("edge_index", index, (2, index.shape[-1] if index.dim() else 0), integers=True)
    _check_range("edge_index", index, n, "atoms")
    if bool((batch[index[0]] != batch[index[1]]).any()):
        raise InputError("data['edge_index']", "edges within a structure", "edges between two")
    return index[0], index[1]


def _unit_shifts(
    data: Mapping[str, Tensor], cell: Tensor, batch: Tensor, receivers: Tensor, open_: Tensor
) -> Tensor:
    """Return integer shifts, from ``unit_shifts`` or from the Cartesian ``shifts``."""
    if "unit_shifts" in data:
        key = "unit_shifts"
        exact = data[key].detach().to(cell)
        _check_shape(key, exact, (len(receivers), 3))
    elif "shifts" in data:
        key = "shifts"
        full = torch.where(
            open_[:, None, None], torch.eye(3, dtype=cell.dtype, device=cell.device), cell
        )
        inverse = torch.linalg.inv(full)[batch[receivers]]
        _check_shape(key, data[key], (len(receivers), 3))
        exact = torch.einsum("ex,exk->ek", data[key].detach().to(cell), inverse)
    else:
        raise InputError("data['shifts']", "shifts or unit_shifts for each edge", "neither")
    whole = exact.round()
    off = ~((exact - whole).abs() < ROUNDING).all(1)
    if bool(off.any()):
        first = int(torch.nonzero(off)[0])
        expected = "whole numbers of cells for each edge"
        raise InputError(f"data[{key!r}]", expected, f"{exact[first].tolist()} for edge {first}")
    moved = (whole != 0).any(1) & open_[batch[receivers]]
    if bool(moved.any()):
        first = int(torch.nonzero(moved)[0])
        expected = "no shifts in a structure without a cell"
        raise InputError(f"data[{key!r}]", expected, f"{exact[first].tolist()} for edge {first}")
    return whole.long()


def _per_atom(value: Tensor, batch: Tensor, n: int) -> Tensor:
    """Return an input with one row for each atom; one number for a structure is repeated."""
    return value if value.dim() and len(value) == n else value.reshape(-1)[batch]


def _check_shape(
    key: str, value: Tensor, shape: tuple[int, ...], *, integers: bool = False
) -> None:
    of_kind = not (integers and (value.is_floating_point() or value.is_complex()))
    if tuple(value.shape) != shape or not of_kind:
        expected = f"a tensor of {'integers of ' if integers else ''}shape {list(shape)}"
        raise InputError(f"data[{key!r}]", expected, f"{value.dtype} {list(value.shape)}")


def _check_range(key: str, values: Tensor, end: int, of: str) -> None:
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < end:
        got = f"{int(values.min())} to {int(values.max())}"
        raise InputError(f"data[{key!r}]", f"numbers of {of} from 0 to {end - 1}", got)
