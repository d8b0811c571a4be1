"""Field checks shared by the dataclasses of a specification."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any, TypeVar, get_args

from cace_fast.errors import SpecError

MAX_SIZE = 100_000  # no width, channel or table of a real model comes near; guards hostile files

Found = TypeVar("Found")


class Constant:
    """A part of a specification: what follows from it alone is constant for ``torch.compile``."""

    def derive(self, function: Callable[[Any], Found]) -> Found:
        """Return ``function(self)``, which ``torch.compile`` calls once, while it traces."""
        return function(self)

    # What torch.compiler.assume_constant_result does, without importing dynamo (170 MB). A method,
    # since torch 2.11 takes no frozen dataclass as the argument of a constant function.
    derive._dynamo_marked_constant = True  # type: ignore[attr-defined]


def require(condition: bool, owner: object, field: str, expected: str) -> None:
    """Raise SpecError for a field unless ``condition`` holds."""
    if not condition:
        raise SpecError(f"{type(owner).__name__}.{field}", expected, repr(getattr(owner, field)))


def require_int(owner: object, field: str, low: int, high: int = MAX_SIZE) -> None:
    """Ask for an integer in a range."""
    value = getattr(owner, field)
    good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    require(good, owner, field, f"an integer from {low} to {high}")


def require_float(owner: object, field: str, *, positive: bool = False) -> None:
    """Ask for a finite number."""
    value = getattr(owner, field)
    good = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    require(
        good and (value > 0 or not positive),
        owner,
        field,
        "a finite number" + " above zero" * positive,
    )


def require_bools(owner: object, *names: str) -> None:
    """Ask for true or false."""
    for field in names:
        require(isinstance(getattr(owner, field), bool), owner, field, "true or false")


def require_choice(owner: object, field: str, choices: object) -> None:
    """Ask for one of the values of a Literal."""
    allowed = get_args(choices)
    require(
        getattr(owner, field) in allowed,
        owner,
        field,
        f"one of {', '.join(map(repr, allowed))}",
    )


def require_names(owner: object, *names: str, optional: bool = False) -> None:
    """Ask for non-empty text."""
    for field in names:
        value = getattr(owner, field)
        good = (isinstance(value, str) and value != "") or (optional and value is None)
        require(good, owner, field, "a non-empty name" + " or nothing" * optional)


def require_tuple(
    owner: object, field: str, kinds: type | tuple[type, ...], length: int = 0
) -> None:
    """Ask for a tuple of some types."""
    value = getattr(owner, field)
    good = (
        isinstance(value, tuple)
        and all(isinstance(v, kinds) for v in value)
        and len(value) >= length
    )
    require(good, owner, field, f"a tuple of at least {length} {kinds}")
