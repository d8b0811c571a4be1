"""Typed access to the plain attributes of a module (``docs/developer/file_reader.md``, "Model")."""

from __future__ import annotations

from typing import Any

from cace_fast.checkpoint.limits import short
from cace_fast.checkpoint.views import MISSING, ModuleView
from cace_fast.errors import CheckpointError

_MANY = 1000  # lists of keys, elements and sub-models of real models are shorter


def attribute(view: ModuleView, name: str, default: Any = MISSING) -> Any:
    """Return an attribute, or ``default`` if the file lacks it (``docs/developer/file_reader.md``).

    Raises
    ------
    CheckpointError
        If the file lacks it and there is no ``default``.
    """
    value = view.raw(name)
    if value is not MISSING:
        return value
    if default is MISSING:
        raise CheckpointError(f"{view}: has no attribute {name!r}")
    return default


def wrong(view: ModuleView, name: str, expected: str, value: Any) -> CheckpointError:
    """Return the CheckpointError about an attribute of a wrong kind.

    See ``docs/developer/file_reader.md``.
    """
    return CheckpointError(f"{view}: attribute {name!r} is {short(value)}, expected {expected}")


def flag(view: ModuleView, name: str, default: Any = MISSING) -> bool:
    """Return a truth value.

    Raises
    ------
    CheckpointError
        As for :func:`attribute`, and if the value is not true or false.
    """
    value = attribute(view, name, default)
    if type(value) is not bool:
        raise wrong(view, name, "true or false", value)
    return value


def integer(view: ModuleView, name: str, default: Any = MISSING) -> int:
    """Return a whole number.

    Raises
    ------
    CheckpointError
        As for :func:`attribute`, and if the value is not an integer of at most 2^31.
    """
    value = attribute(view, name, default)
    if type(value) is not int or abs(value) > 2**31:
        raise wrong(view, name, "a whole number", value)
    return value


def number(view: ModuleView, name: str, default: Any = MISSING) -> float:
    """Return a number as float.

    Raises
    ------
    CheckpointError
        As for :func:`attribute`, and if the value is not a finite number.
    """
    value = attribute(view, name, default)
    if type(value) not in (int, float) or not abs(value) < 1e300:
        raise wrong(view, name, "a finite number", value)
    return float(value)


def text(view: ModuleView, name: str, default: Any = MISSING) -> str:
    """Return a non-empty text.

    Raises
    ------
    CheckpointError
        As for :func:`attribute`, and if the value is not such a text.
    """
    value = attribute(view, name, default)
    if type(value) is not str or not value:
        raise wrong(view, name, "a name", value)
    return value


def optional_text(view: ModuleView, name: str, default: Any = None) -> str | None:
    """Return a non-empty text or None.

    Raises
    ------
    CheckpointError
        As for :func:`text`.
    """
    return None if attribute(view, name, default) is None else text(view, name)


def texts(view: ModuleView, name: str, default: Any = MISSING) -> tuple[str, ...]:
    """Return one name or a list of names as a tuple.

    Raises
    ------
    CheckpointError
        As for :func:`attribute`, and if the value is no name or list of names.
    """
    value = attribute(view, name, default)
    names = (value,) if type(value) is str else value
    if (
        not isinstance(names, list | tuple)
        or len(names) > _MANY
        or not all(type(item) is str for item in names)
    ):
        raise wrong(view, name, "a name or a list of names", value)
    return tuple(names)
