"""How many cases a fuzzer tries: few in the tests, many by `make fuzz`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

many = False  # set by tests/fuzz/conftest.py before the fuzzers are imported


def cases(few: int, most: int) -> settings:
    """Return settings for ``few`` cases, the same ones every time, or ``most`` of any kind."""
    return settings(
        max_examples=most if many else few,
        derandomize=not many,
        database=None,
        deadline=None,  # the machine may be busy
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
