"""Interrupts that wait for the end of a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether a signal has asked the run to end.

    See ``docs/user/molecular_dynamics.md``, "Restart".
    """

    signal: int | None = None

    def __call__(self) -> bool:
        """Tell whether a signal has come."""
        return self.signal is not None

    def ask(self, number: int, frame: FrameType | None) -> None:
        """Record a signal; the second one raises KeyboardInterrupt at once.

        See ``docs/user/molecular_dynamics.md``.
        """
        del frame
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


@contextmanager
def stopping() -> Iterator[Stop]:
    """Yield a :class:`Stop` that Ctrl-C and SIGTERM set while the block runs."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():  # it gets no signals
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
