"""Typed errors: each message names the argument, what was expected, and what came."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class CaceFastError(Exception):
    """Base class of every error that cace-fast raises on purpose (``docs/user/errors.md``)."""


class InputError(CaceFastError, ValueError):
    """An argument does not have the required shape, type or value (``docs/user/errors.md``).

    Parameters
    ----------
    argument
        Name of the argument as the caller wrote it.
    expected
        What would have been accepted.
    got
        What came instead.
    remedy
        What the caller can do, as a sentence; empty when it is obvious.
    """

    def __init__(self, argument: str, expected: str, got: object, remedy: str = "") -> None:
        self.argument, self.expected, self.got, self.remedy = (argument, expected, got, remedy)
        super().__init__(
            f"{argument}: expected {expected}, got {got}." + (f" {remedy}" if remedy else "")
        )

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, object, str]]:
        return type(self), (self.argument, self.expected, self.got, self.remedy)


class UnknownElementError(InputError):
    """A structure holds an element that the model was not trained on (``docs/user/errors.md``)."""


class SpecError(InputError):
    """A field of a model specification is missing, unknown or out of range.

    See ``docs/user/errors.md``.
    """


class CheckpointError(CaceFastError, ValueError):
    """A model file cannot be read: truncated, hostile, or of another kind.

    See ``docs/user/errors.md``.
    """


class UnsupportedModelError(CaceFastError, ValueError):
    """A model file is sound but uses a part that cace-fast does not provide.

    See ``docs/user/errors.md``.
    """


class PropertyNotImplementedError(CaceFastError, NotImplementedError):
    """A property that this model or this structure does not have (``docs/user/errors.md``)."""


class VerificationError(CaceFastError, RuntimeError):
    """The self-check of a potential has a deviation above its limit (``docs/user/errors.md``)."""


class BackendUnavailableError(CaceFastError, RuntimeError):
    """An explicitly requested backend cannot run here (``docs/user/errors.md``).

    Parameters
    ----------
    backend
        The name that was asked for.
    reason
        Why it cannot run here.
    available
        Backends that can.
    remedy
        How to get the one asked for.
    """

    def __init__(self, backend: str, reason: str, available: Sequence[str], remedy: str) -> None:
        self.backend, self.reason, self.available, self.remedy = (
            backend,
            reason,
            tuple(available),
            remedy,
        )
        super().__init__(
            f"backend: {backend!r} is not available here ({reason}). "
            f"Available: {', '.join(available)}. {remedy}"
        )

    def __reduce__(
        self,
    ) -> tuple[type[BackendUnavailableError], tuple[str, str, tuple[str, ...], str]]:
        return type(self), (self.backend, self.reason, self.available, self.remedy)


def renamed(old: str, new: str, function: Callable[P, R]) -> Callable[P, R]:
    """Return an alias of a function that gives a DeprecationWarning (``CHANGELOG.md``)."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        warnings.warn(f"{old} is called {new} now", DeprecationWarning, stacklevel=2)
        return function(*args, **kwargs)

    return call
