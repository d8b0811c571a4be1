"""Field checks shared by the dataclasses of a specification."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar, get_args

from cace_fast.errors import SpecError

MAX_SIZE = 100_000  # real models stay far below; it guards against hostile files
MAX_NUMBER = sys.float_info.max  # whole numbers may be larger

Found = TypeVar("Found")


class Constant:
    """A part of a specification, from which ``torch.compile`` may derive constants.

    See ``docs/developer/training.md``.
    """

    def derive(self, function: Callable[[Any], Found]) -> Found:
        """Return ``function(self)``, which ``torch.compile`` calls once, while it traces.

        See ``docs/developer/training.md``.
        """
        return function(self)

    # As torch.compiler.assume_constant_result, without importing dynamo (170 MB). A method,
    # since torch 2.11 takes no frozen dataclass as the argument of a constant function.
    derive._dynamo_marked_constant = True  # type: ignore[attr-defined]


def shown(value: object) -> str:
    """Return a value from a file as text of at most 200 characters (``docs/user/errors.md``)."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    text = repr(value) if not isinstance(value, tuple) else repr(value[:20])
    return text if len(text) <= 200 else f"{text[:197]}..."


def is_number(value: object) -> bool:
    """Tell whether ``value`` is a finite number that a float can hold (``docs/user/errors.md``)."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and abs(value) <= MAX_NUMBER  # type: ignore[arg-type]


def is_pair(value: object, first: type, second: type) -> bool:
    """Tell whether ``value`` is a pair of these types; ``float`` stands for any finite number.

    See ``docs/user/errors.md``.
    """
    if not (isinstance(value, tuple) and len(value) == 2 and type(value[0]) is first):
        return False
    return is_number(value[1]) if second is float else type(value[1]) is second


def require(condition: bool, owner: object, field: str, expected: str) -> None:
    """Raise SpecError for a field unless ``condition`` holds (``docs/user/errors.md``)."""
    if not condition:
        raise SpecError(f"{type(owner).__name__}.{field}", expected, shown(getattr(owner, field)))


def require_int(owner: object, field: str, low: int, high: int = MAX_SIZE) -> None:
    """Raise SpecError unless a field is an integer from ``low`` to ``high``.

    See ``docs/user/errors.md``.
    """
    value = getattr(owner, field)
    good = type(value) is int and low <= value <= high
    require(good, owner, field, f"an integer from {low} to {high}")


def require_float(
    owner: object, field: str, low: float = -MAX_NUMBER, high: float = MAX_NUMBER
) -> None:
    """Raise SpecError unless a field is a finite number from ``low`` to ``high``.

    See ``docs/user/errors.md``.
    """
    value = getattr(owner, field)
    bounded = (low, high) != (-MAX_NUMBER, MAX_NUMBER)
    expected = f"a number from {low:g} to {high:g}" if bounded else "a finite number"
    require(is_number(value) and low <= value <= high, owner, field, expected)


def require_bools(owner: object, *names: str) -> None:
    """Raise SpecError unless the named fields are true or false (``docs/user/errors.md``)."""
    for field in names:
        require(isinstance(getattr(owner, field), bool), owner, field, "true or false")


def require_choice(owner: object, field: str, choices: object) -> None:
    """Raise SpecError unless a field is one of the values of a Literal, ``choices``.

    See ``docs/user/errors.md``.
    """
    allowed, value = get_args(choices), getattr(owner, field)
    require(
        isinstance(value, str) and value in allowed,
        owner,
        field,
        f"one of {', '.join(map(repr, allowed))}",
    )


def require_names(owner: object, *names: str, optional: bool = False) -> None:
    """Raise SpecError unless the named fields are non-empty texts, or None if ``optional``.

    See ``docs/user/errors.md``.
    """
    for field in names:
        value = getattr(owner, field)
        good = (isinstance(value, str) and value != "") or (optional and value is None)
        require(good, owner, field, "a non-empty name" + " or nothing" * optional)


def require_tuple(
    owner: object, field: str, kinds: type | tuple[type, ...], length: int = 0
) -> None:
    """Raise SpecError unless a field is a tuple of ``length`` or more items of these types.

    See ``docs/user/errors.md``.
    """
    value = getattr(owner, field)
    good = (
        isinstance(value, tuple)
        and all(isinstance(v, kinds) for v in value)
        and len(value) >= length
    )
    require(good, owner, field, f"a tuple of at least {length} {kinds}")


def require_texts(owner: object, field: str, length: int = 0) -> None:
    """Raise SpecError unless a field is a tuple of ``length`` or more non-empty texts.

    See ``docs/user/errors.md``.
    """
    require_tuple(owner, field, str, length)
    require(all(getattr(owner, field)), owner, field, "non-empty names")


def require_pairs(owner: object, field: str) -> None:
    """Raise SpecError unless a field pairs atomic numbers, each once, with finite numbers.

    See ``docs/user/errors.md``.
    """
    require_tuple(owner, field, tuple)
    pairs = getattr(owner, field)
    good = all(is_pair(pair, int, float) and 0 <= pair[0] <= MAX_SIZE for pair in pairs)
    good = good and len({z for z, _ in pairs}) == len(pairs)
    require(good, owner, field, "one finite number for each atomic number")
