"""`cace-fast eval`: predictions for a file of structures."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from io import FileIO
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cace_fast.cli.common import (
    REMEDY,
    BackendOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ForceOption,
    SlabOption,
    append_whole,
    fingerprint,
    frames_to_bytes,
    load_model,
    note,
    progress,
    read_structures,
)
from cace_fast.cli.field import FieldOption, field_of
from cace_fast.cli.resume import count_frames, resume
from cace_fast.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

    from cace_fast.potential import Potential

PER_ATOM = ("energies", "energies_sr", "forces", "latent_charges", "charges", "bec")


def evaluate(
    configs: Annotated[Path, typer.Option(help="Structures: a file that ASE reads.")],
    model: Annotated[str, typer.Option(help="A model file or the name of a shipped one.")],
    output: Annotated[Path, typer.Option(help="The extended xyz file to write.")],
    device: DeviceOption = "auto",
    default_dtype: DtypeOption = Dtype.float32,
    backend: BackendOption = "auto",
    batch_size: Annotated[int, typer.Option(min=1, help="Structures evaluated together.")] = 64,
    compute_stress: Annotated[
        bool, typer.Option("--compute-stress", help="Stress too, of structures that have one.")
    ] = False,
    properties: Annotated[
        str, typer.Option(help="What to predict, names as in Potential.compute.")
    ] = "energy,forces",
    info_prefix: Annotated[str, typer.Option(help="Prefix of the predicted keys.")] = "CACE_",
    slab_vacuum: SlabOption = None,
    field: FieldOption = None,
    force: ForceOption = False,
) -> None:
    """Predict energies, forces and more for every structure of a file.

    The output holds the structures with everything that came with them, and predictions under
    prefixed keys. A run that was interrupted continues where it stopped.
    """
    from cace_fast.properties import check_names

    potential = load_model(model, device, default_dtype, backend, slab_vacuum=slab_vacuum)
    names = [name.strip() for name in properties.split(",") if name.strip()]
    check_names(names)
    if not re.fullmatch(r"[A-Za-z]\w*", info_prefix):
        raise InputError("--info-prefix", "letters, digits and _", repr(info_prefix))
    external = field_of(field)
    writer = Writer(
        potential, names, info_prefix, compute_stress or "stress" in names,
        None if external is None else external.amplitude,
    )  # fmt: skip
    if output.exists() and configs.exists() and output.samefile(configs):
        raise InputError("--output", "another file than --configs", str(output))
    frames = read_structures(configs, "--configs")
    done, end = 0, 0
    if output.exists() and not force:
        done, end = resume(output, frames, writer)
    first = next(frames, None)
    if first is None:
        raise FileExistsError(f"--output: {output} is complete ({done} frames). {REMEDY}")
    if done:
        note(f"{output} holds {done} frames of an interrupted run: continuing")
    with output.open("ab", buffering=0) as file:
        file.truncate(end)
        count = writer.run(chain([first], frames), file, batch_size, (done, count_frames(configs)))
    note(f"wrote {output}: {count} frames, predictions under {info_prefix}*")


class Writer:
    """Predicts and writes batches of frames.

    Parameters
    ----------
    potential
        What predicts.
    properties
        Names of its properties.
    prefix
        Prefix of the keys in ``info`` and ``arrays``.
    stress
        Whether to add the stress of the structures that are periodic enough to have one.
    field
        Electric field [3] in V/A that acts as in the ASE calculator, or None.
    """

    def __init__(
        self,
        potential: Potential,
        properties: Sequence[str],
        prefix: str,
        stress: bool,
        field: tuple[float, ...] | None = None,
    ) -> None:
        self._field = field
        self.potential, self.prefix, self.stress = potential, prefix, stress
        self.properties = tuple(name for name in dict.fromkeys(properties) if name != "stress")
        needed = ("virials",) if stress else ()
        self.asked = tuple(dict.fromkeys((*self.properties, *needed)))
        dtype = str(potential.dtype).removeprefix("torch.")
        vacuum = potential.long_range.slab_vacuum
        options = [fingerprint(potential)[:16]]
        options += [] if vacuum is None else [f"slab_{vacuum!r}"]
        options += [] if field is None else ["_".join(["field", *map(repr, field)])]
        self.source = "-".join([*options, dtype, potential.backend])

    def keys(self, atoms: Atoms) -> set[str]:
        """Return the keys with the prefix that the frame of a structure has when it is written."""
        own = {key for key in (*atoms.info, *atoms.arrays) if key.startswith(self.prefix)}
        return own | {self.prefix + name for name in (*self._names(atoms), "model")}

    @property
    def mark(self) -> str:
        """What the comment line of every written frame holds."""
        return f"{self.prefix}model={self.source}"

    def run(
        self, frames: Iterator[Atoms], file: FileIO, batch_size: int, counts: tuple[int, int | None]
    ) -> int:
        """Write all ``frames`` and return their number, those before included.

        If anything interrupts it, the file ends after a whole frame.

        Parameters
        ----------
        frames
            What to predict for.
        file
            Opened for appending, without a buffer.
        batch_size
            Frames evaluated and written together.
        counts
            Frames done before, and of the whole input if that is known.
        """
        done, total = counts
        with progress("eval", total, "frames") as advance:
            advance(done)
            while batch := list(islice(frames, batch_size)):
                append_whole(file, frames_to_bytes(self._predicted(batch, done)))
                done += len(batch)
                advance(len(batch))
        return done

    def _predicted(self, batch: list[Atoms], first: int) -> list[Atoms]:
        """Return the frames with predictions; an error names the frame in the file."""
        try:
            results = self._compute(batch)
        except Exception:
            for number, atoms in enumerate(batch):
                self._alone(atoms, first + number)
            raise  # none fails by itself: not the fault of a structure
        for atoms, result in zip(batch, results, strict=True):
            self._attach(atoms, result)
        return batch

    def _compute(self, batch: list[Atoms]) -> list[dict[str, Any]]:
        """Return what is asked for of each frame, within the field."""
        if self._field is None:
            return self.potential.compute(batch, self.asked)
        from cace_fast.electric_field import add_field

        results: list[dict[str, Any]] = [{}] * len(batch)
        for is_open, more in ((False, ("bec",)), (True, ("bec", "dipole"))):
            numbers = [k for k, atoms in enumerate(batch) if is_open == (not atoms.pbc.any())]
            asked = tuple(dict.fromkeys((*self.asked, *more)))
            found = self.potential.compute([batch[k] for k in numbers], asked)
            for number, result in zip(numbers, found, strict=True):
                add_field(result, self._field)
                results[number] = result
        return results

    def _alone(self, atoms: Atoms, number: int) -> None:
        try:
            self._compute([atoms])
        except Exception as error:
            error.args = (f"frame {number}: {error}",)
            raise

    def _names(self, atoms: Atoms) -> tuple[str, ...]:
        """Return what is predicted for one structure."""
        from cace_fast.properties import has_stress

        return (
            (*self.properties, "stress") if self.stress and has_stress(atoms) else self.properties
        )

    def _attach(self, atoms: Atoms, result: dict[str, Any]) -> None:
        from cace_fast.properties import volume

        for name in self._names(atoms):
            key = self.prefix + name
            if name in PER_ATOM:
                value = result[name]
                atoms.arrays[key] = value.reshape(len(atoms), -1) if value.ndim > 1 else value
            elif name == "stress":
                atoms.info[key] = -result["virials"] / volume(atoms)
            else:
                atoms.info[key] = result[name]
        atoms.info[self.prefix + "model"] = self.source
