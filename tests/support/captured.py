"""A stand-in for CUDA graphs on the emulated device.

The launches of a step are recorded once, kernels with their arguments and operations of torch with
theirs, and replayed unchanged: decisions of Python are not made again, as on a GPU. Operations
without a fixed size, or that make the host read the device, cannot be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from gpu_emulator import EmulatedDriver
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cace_fast.engine.runner import Runner

LOOKS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero"}
UNWRITTEN = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"}


class Graph(TorchDispatchMode):
    """A stand-in for ``torch.cuda.CUDAGraph``; ``replays`` counts its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[Callable[[], object]] = []
        self.replays, self.launching = 0, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.name().split("::")[1].split(".")[0]
        assert name not in LOOKS, f"{func.name()} in a capture: the host looks at the device"
        out = func(*args, **kwargs)
        if self.launching:  # the emulator's own work
            return out
        if func._schema.is_mutable:
            self.work.append(partial(func, *args, **kwargs))
        elif not any(r.alias_info for r in func._schema.returns) and name not in UNWRITTEN:
            self.work.append(partial(_again, func, args, kwargs, out))
        return out

    def replay(self) -> None:
        """Do the recorded work on the recorded memory."""
        self.replays += 1
        for piece in self.work:
            piece()


def _again(func: Any, args: Any, kwargs: Any, out: Any) -> None:
    for held, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
        if isinstance(held, Tensor):
            assert held.shape == new.shape, f"{func.name()}: a size depends on data"
            held.copy_(new)


@contextmanager
def _no_transfers(graph: Graph) -> Iterator[None]:
    """Refuse what moves data between host and device: where all is on the CPU it moves nothing."""

    def refused(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            assert graph.launching, f"{name} in a capture: data move between host and device"
            return original(*args, **options)

        return call

    with ExitStack() as stack:
        for owner, name in (
            (Tensor, "cpu"),
            (Tensor, "numpy"),
            (Tensor, "tolist"),
            (torch, "tensor"),
        ):
            changed = refused(name, getattr(owner, name))
            stack.enter_context(mock.patch.object(owner, name, changed))
        yield


@contextmanager
def graphs() -> Iterator[list[Graph]]:
    """Let every run capture its steps; yield the graphs that were made."""
    made: list[Graph] = []
    recording: list[Graph] = []
    launch, begin = EmulatedDriver.run, Runner.__init__

    def run(self: EmulatedDriver, *given: Any) -> None:
        for graph in recording:
            graph.work.append(partial(launch, self, *given))
            graph.launching = True
        launch(self, *given)
        for graph in recording:
            graph.launching = False

    def captures(self: Runner, *given: Any) -> None:
        begin(self, *given)
        self.captures = True

    @contextmanager
    def capture(graph: Graph) -> Iterator[None]:
        made.append(graph)
        recording.append(graph)
        with graph, _no_transfers(graph):
            yield
        recording.pop()

    with (
        mock.patch.object(EmulatedDriver, "run", run),
        mock.patch.object(Runner, "__init__", captures),
        mock.patch("torch.cuda.CUDAGraph", Graph),
        mock.patch("torch.cuda.graph", lambda graph, **_: capture(graph)),
    ):
        yield made
