"""The result of a verification: a table of checks, each with its value and its limit."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any


@dataclass(frozen=True)
class Check:
    """One row: a deviation, the largest one allowed, and their unit (``docs/user/first_run.md``).

    ``skipped`` says why the check does not apply; it is empty for a check that was made.
    """

    name: str
    value: float
    limit: float
    unit: str
    skipped: str = ""

    @property
    def ok(self) -> bool:
        """Whether the deviation is within its limit; NaN never is (``docs/user/first_run.md``)."""
        return bool(self.skipped) or bool(self.value <= self.limit)

    def __str__(self) -> str:
        """Return the row as text."""
        if self.skipped:
            return f"{self.name:<44} skipped: {self.skipped}"
        state = "ok" if self.ok else "FAILED"
        return f"{self.name:<44} {self.value:10.2e} {self.limit:10.2e} {self.unit:<8} {state}"


def skip(name: str, reason: str) -> Check:
    """Return the row of a check that does not apply (``docs/user/first_run.md``)."""
    return Check(name, 0.0, 0.0, "", reason)


@dataclass(frozen=True)
class Report:
    """All checks of one potential on one structure (``docs/user/first_run.md``).

    Attributes
    ----------
    subject
        Which potential, and on which structure.
    checks
        The rows in the order in which they were made.
    """

    subject: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check is within its limit (``docs/user/first_run.md``)."""
        return all(check.ok for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that exceed their limit (``docs/user/first_run.md``)."""
        return tuple(check for check in self.checks if not check.ok)

    def __str__(self) -> str:
        """Return the table as plain text."""
        head = f"{'check':<44} {'value':>10} {'limit':>10} unit"
        return "\n".join([self.subject, head, *map(str, self.checks)])

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data for JSON; None stands for numbers that are not finite.

        See ``docs/user/first_run.md``.
        """
        rows = [
            {
                "check": check.name,
                "value": float(check.value) if isfinite(check.value) else None,
                "limit": float(check.limit) if isfinite(check.limit) else None,
                "unit": check.unit,
                "ok": check.ok,
                "skipped": check.skipped,
            }
            for check in self.checks
        ]
        return {"subject": self.subject, "ok": self.ok, "checks": rows}
