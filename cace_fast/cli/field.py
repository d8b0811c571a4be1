"""Options for an electric field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cace_fast.errors import InputError

if TYPE_CHECKING:
    from cace_fast.electric_field import OscillatingField

FieldOption = Annotated[
    str | None,
    typer.Option(metavar="X,Y,Z", help="Electric field in V/A, for models with charges."),
]
FrequencyOption = Annotated[
    float, typer.Option(help="THz, of a field X,Y,Z cos(2 pi frequency (t - t0) + phase).")
]
PhaseOption = Annotated[float, typer.Option(help="Degrees.")]
PulseOption = Annotated[
    str | None,
    typer.Option(
        metavar="T0,WIDTH", help="fs: times exp(-(t - t0)^2/(2 width^2)); without it t0 is 0."
    ),
]


def field_of(
    field: str | None, frequency: float = 0.0, phase: float = 0.0, pulse: str | None = None
) -> OscillatingField | None:
    """Return the electric field of the options; None without one.

    See ``docs/user/electric_fields.md``.

    ``field`` is text X,Y,Z in V/A; ``frequency`` is in THz, ``phase`` in degrees, ``pulse`` text
    T0,WIDTH in fs.

    Raises
    ------
    InputError
        For a text that is not numbers, or options of a field without one.
    """
    from cace_fast.electric_field import OscillatingField, vector_of

    if field is None:
        if frequency or phase or pulse is not None:
            raise InputError("--field", "X,Y,Z in V/A, with --field-...", "none")
        return None
    amplitude = numbers("--field", field, ("X", "Y", "Z"))
    vector_of("--field", amplitude)
    if pulse is None:
        return OscillatingField(amplitude, frequency, phase)
    centre, width = numbers("--field-pulse", pulse, ("T0", "WIDTH"))
    if not width > 0:
        raise InputError("--field-pulse", "a width above 0 fs", repr(pulse))
    return OscillatingField(amplitude, frequency, phase, (centre, width))


def numbers(argument: str, text: str, names: tuple[str, ...]) -> tuple[float, ...]:
    """Return the numbers of a comma-separated list (``docs/user/electric_fields.md``).

    Raises
    ------
    InputError
        If they are not as many numbers as ``names``.
    """
    try:
        found = tuple(float(word) for word in text.split(","))
    except ValueError:
        found = ()
    if len(found) != len(names):
        raise InputError(argument, f"numbers {','.join(names)}", repr(text))
    return found
