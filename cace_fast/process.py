"""Guards against the rest of the process: torch's modes, threads and forks.

Every public way into an evaluation is decorated by :func:`ordinary`, and every object that keeps
state between evaluations has a :class:`Lock`.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import ClassVar, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
DEVICES = ("cpu", "cuda")
# A default device is a mode of torch's functions; counting modes is quicker than asking for it, and
# every step of a small molecule does it.
_n_modes: Callable[[], int] = getattr(torch._C, "_len_torch_function_stack", lambda: 1)


def ordinary(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function independent of torch's modes (``docs/user/threads_and_processes.md``).

    It runs without inference mode, in which nothing is differentiated; without autocast, which
    would round to 16 bits; and with the CPU as the default device. The function decides whether
    gradients are enabled.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        _Process.used = True
        autocast = [device for device in DEVICES if torch.is_autocast_enabled(device)]
        elsewhere = bool(_n_modes()) and torch.get_default_device().type != "cpu"
        if not (autocast or elsewhere or torch.is_inference_mode_enabled()):
            return function(*args, **kwargs)
        with ExitStack() as modes:
            gradients = torch.is_grad_enabled()
            modes.enter_context(torch.inference_mode(False))  # which enables gradients
            modes.enter_context(torch.set_grad_enabled(gradients))
            for device in autocast:
                modes.enter_context(torch.autocast(device, enabled=False))
            if elsewhere:
                modes.enter_context(torch.device("cpu"))
            return function(*args, **kwargs)

    return call


def ordinary_tensor(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy that can be differentiated if inference mode made it.

    See ``docs/user/threads_and_processes.md``.
    """
    return tensor.clone() if tensor.is_inference() else tensor


class Stateful(Protocol):
    """An object that keeps state between evaluations (``docs/user/threads_and_processes.md``)."""

    def reset(self) -> None:
        """Drop the state: at a fork another thread may have changed half of it.

        See ``docs/user/threads_and_processes.md``.
        """


class Lock:
    """A reentrant lock that is open in a forked child (``docs/user/threads_and_processes.md``).

    Copies and pickles of the owner get a new lock.

    Parameters
    ----------
    owner
        The object that the lock guards; in a forked child it is reset by :meth:`Stateful.reset`.
        Only a weak reference is kept. None if nothing has to be reset.
    """

    def __init__(self, owner: Stateful | None = None) -> None:
        self._owner = (lambda: None) if owner is None else weakref.ref(owner)
        self._lock = threading.RLock()
        _Process.locks.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def open(self) -> None:
        """Open the lock, whoever held it, and reset its owner.

        See ``docs/user/threads_and_processes.md``.
        """
        self._lock = threading.RLock()
        owner = self._owner()
        if owner is not None:
            owner.reset()


class _Process:
    used = False  # whether anything was evaluated
    locks: ClassVar[weakref.WeakSet[Lock]] = weakref.WeakSet()


def _in_child() -> None:
    if _Process.used:
        # threads do not survive a fork: OpenMP would wait for its pool forever
        torch.set_num_threads(1)
    for lock in list(_Process.locks):
        lock.open()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_in_child)
