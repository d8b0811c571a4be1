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
    XYZ,
    BackendOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    ForceOption,
    MinDistOption,
    SlabOption,
    check_output,
    fingerprint,
    load_model,
    min_dist_of,
    note,
    progress,
)
from cace_fast.cli.field import FieldOption, field_of
from cace_fast.cli.frames import frames_to_bytes, read_structures
from cace_fast.cli.resume import count_frames, resume
from cace_fast.errors import CaceFastError, InputError
from cace_fast.files import append_whole
from cace_fast.min_dist import AUTO, MinDist

if TYPE_CHECKING:
    from ase import Atoms

    from cace_fast.potential import Potential

MOST_TOLD = 20  # skipped frames that are listed; of others only the number


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
    min_dist: MinDistOption = "auto",
    field: FieldOption = None,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Leave out frames that fail; exit code 1 then.")
    ] = False,
    force: ForceOption = False,
) -> None:
    """Predict energies, forces and more for every structure of a file.

    The output holds the structures with everything that came with them, and predictions under
    prefixed keys, which replace those of an earlier run. A run that was interrupted continues where
    it stopped. More: docs/user/evaluate_and_convert.md; errors and exit codes: docs/user/errors.md.
    """
    from cace_fast.properties import check_names

    closest = min_dist_of(min_dist)
    check_output(output, True, suffixes=XYZ)
    potential = load_model(model, device, default_dtype, backend, slab_vacuum=slab_vacuum)
    names = [name.strip() for name in properties.split(",") if name.strip()]
    check_names(names)
    if not re.fullmatch(r"[A-Za-z]\w*", info_prefix):
        raise InputError("--info-prefix", "letters, digits and _", repr(info_prefix))
    external = field_of(field)
    writer = Writer(
        potential,
        names,
        info_prefix,
        compute_stress or "stress" in names,
        None if external is None else external.amplitude,
        closest,
        skip_errors,
    )
    if output.exists() and configs.exists() and output.samefile(configs):
        raise InputError("--output", "another file than --configs", str(output))
    frames = read_structures(configs, "--configs")
    done, end = 0, 0
    if output.exists() and not force:
        done, writer.n_read, end = resume(output, frames, writer)
    first = next(frames, None)
    if first is None:
        raise FileExistsError(f"--output: {output} is complete ({done} frames). {REMEDY}")
    if done:
        note(f"{output} holds {done} frames of an interrupted run: continuing")
    before = writer.n_read - done
    try:
        with output.open("ab", buffering=0) as file:
            file.truncate(end)
            writer.run(chain([first], frames), file, batch_size, count_frames(configs))
    finally:
        if output.stat().st_size == 0:  # no frame was written
            output.unlink()
    _report(output, writer, before)


def _report(output: Path, writer: Writer, before: int) -> None:
    """Print what was written and what was skipped, ``before`` frames by an earlier run."""
    n_skipped = before + len(writer.skipped)
    written = f"wrote {output}: {writer.n_read - n_skipped} frames"
    note(f"{written}, predictions under {writer.prefix}*")
    for message in writer.skipped[:MOST_TOLD]:
        note(f"skipped {message}")
    if n_skipped:
        note(f"{n_skipped} of {writer.n_read} frames were skipped")
        raise typer.Exit(1)


class Writer:
    """Predicts and writes batches of frames (``docs/user/evaluate_and_convert.md``).

    Parameters
    ----------
    potential
        The potential.
    properties
        Names of its properties.
    prefix
        Prefix of the keys in ``info`` and ``arrays``.
    stress
        Whether to add the stress of the structures that are periodic enough to have one.
    field
        Electric field [3] in V/A that acts as in the ASE calculator, or None.
    min_dist
        Shortest distance allowed between two atoms in A; see
        :meth:`cace_fast.Potential.compute`.
    skip_errors
        Whether frames that fail are left out.

    Attributes
    ----------
    n_read
        Frames of the input that are done, skipped ones included.
    skipped
        The error of each frame that was left out.
    """

    def __init__(
        self,
        potential: Potential,
        properties: Sequence[str],
        prefix: str,
        stress: bool,
        field: tuple[float, ...] | None = None,
        min_dist: MinDist = AUTO,
        skip_errors: bool = False,
    ) -> None:
        self._field, self._min_dist, self.skip_errors = field, min_dist, skip_errors
        self.n_read, self.skipped = 0, list[str]()
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
        """Return the keys that a written frame has, with their prefix.

        See ``docs/user/evaluate_and_convert.md``.
        """
        own = {key for key in (*atoms.info, *atoms.arrays) if key.startswith(self.prefix)}
        return (own - self._old) | {self.prefix + name for name in (*self._names(atoms), "model")}

    @property
    def _old(self) -> set[str]:
        """The keys that any run with this prefix writes; others than the new ones are outdated."""
        from cace_fast.properties import PROPERTIES

        return {self.prefix + name for name in (*PROPERTIES, "model")}

    @property
    def mark(self) -> str:
        """Text that marks a frame with the model that predicted it.

        See ``docs/user/evaluate_and_convert.md``.
        """
        return f"{self.prefix}model={self.source}"

    def run(
        self, frames: Iterator[Atoms], file: FileIO, batch_size: int, total: int | None
    ) -> None:
        """Write all ``frames`` (``docs/user/evaluate_and_convert.md``).

        If anything interrupts it, the file ends after a whole frame; if a frame fails, those before
        it are written.

        Parameters
        ----------
        frames
            The structures to predict for.
        file
            Opened for appending, without a buffer.
        batch_size
            Frames evaluated and written together.
        total
            Frames of the whole input, if that is known.

        Raises
        ------
        CaceFastError
            If a frame fails, with its number, unless ``skip_errors``.
        """
        with progress("eval", total, "frames") as advance:
            advance(self.n_read)
            while batch := list(islice(frames, batch_size)):
                good, errors = self._predicted(batch)
                if errors and not self.skip_errors:
                    good = [(k, atoms) for k, atoms in good if k < min(errors)]
                append_whole(file, frames_to_bytes([atoms for _, atoms in good]))
                for number, error in errors.items():
                    if not self.skip_errors:
                        error.args = (f"frame {self.n_read + number}: {error}",)
                        raise error
                    self.skipped.append(f"frame {self.n_read + number}: {error}")
                self.n_read += len(batch)
                advance(len(batch))

    def _predicted(
        self, batch: list[Atoms]
    ) -> tuple[list[tuple[int, Atoms]], dict[int, CaceFastError]]:
        """Return the frames with predictions, and errors, both with their number in the batch."""
        errors: dict[int, CaceFastError] = {}
        try:
            results = self._compute(batch)
        except CaceFastError:
            results = [{}] * len(batch)
            for number, atoms in enumerate(batch):
                try:
                    (results[number],) = self._compute([atoms])
                except CaceFastError as error:
                    errors[number] = error
            if not errors:
                raise  # no frame fails alone: the structures are not at fault
        good = [(k, atoms) for k, atoms in enumerate(batch) if k not in errors]
        for k, atoms in good:
            self._attach(atoms, results[k])
        return good, errors

    def _compute(self, batch: list[Atoms]) -> list[dict[str, Any]]:
        """Return the properties asked for of each frame, within the field."""
        for atoms in batch:
            if not len(atoms):
                raise InputError("atoms", "at least one atom", "none")
        if self._field is None:
            return self.potential.compute(batch, self.asked, min_dist=self._min_dist)
        from cace_fast.electric_field import add_field

        results: list[dict[str, Any]] = [{}] * len(batch)
        for is_open, more in ((False, ("bec",)), (True, ("bec", "dipole"))):
            numbers = [k for k, atoms in enumerate(batch) if is_open == (not atoms.pbc.any())]
            asked = tuple(dict.fromkeys((*self.asked, *more)))
            some = [batch[k] for k in numbers]
            found = self.potential.compute(some, asked, min_dist=self._min_dist)
            for number, result in zip(numbers, found, strict=True):
                add_field(result, self._field)
                results[number] = result
        return results

    def _names(self, atoms: Atoms) -> tuple[str, ...]:
        """Return the names of the properties predicted for one structure."""
        from cace_fast.properties import has_stress

        return (
            (*self.properties, "stress") if self.stress and has_stress(atoms) else self.properties
        )

    def _attach(self, atoms: Atoms, result: dict[str, Any]) -> None:
        from cace_fast.properties import PROPERTIES, volume

        for key in self._old:
            atoms.info.pop(key, None)
            atoms.arrays.pop(key, None)
        for name in self._names(atoms):
            key = self.prefix + name
            if PROPERTIES[name].per_atom:
                value = result[name]
                atoms.arrays[key] = value.reshape(len(atoms), -1) if value.ndim > 1 else value
            elif name == "stress":
                atoms.info[key] = -result["virials"] / volume(atoms)
            else:
                atoms.info[key] = result[name]
        atoms.info[self.prefix + "model"] = self.source
