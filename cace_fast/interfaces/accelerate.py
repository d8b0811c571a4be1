"""Drop-in for modules of upstream: the same ``forward(dict)``, computed by cace-fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cace_fast import checkpoint
from cace_fast.engine import LongRange
from cace_fast.forward import Forward
from cace_fast.inference import Inference
from cace_fast.weights import Weights, same_values


class Accelerated(nn.Module):
    """An upstream module with the same inputs, outputs and defaults, evaluated by a fast engine.

    It shares the Parameter objects of the module it was made from, so training and ``.to()`` act
    on both. Attributes that it does not have (``representation``, ``models``, ...) are those of
    the wrapped module. ``options`` and errors are those of :func:`accelerate`
    (``docs/user/coming-from-upstream.md``).
    """

    def __init__(self, module: nn.Module, **options: Any) -> None:
        super().__init__()
        self.wrapped = module
        self._options = options
        self.long_range = LongRange.of(self._state()[0], **options)
        self.refresh()

    def refresh(self) -> None:
        """Read architecture and tensors from the wrapped module again.

        Needed only after a change other than of parameter values, dtype or device.

        Raises
        ------
        CheckpointError, UnsupportedModelError
            As for :func:`cace_fast.checkpoint.from_module`.
        """
        spec, tensors = checkpoint.from_module(self.wrapped)
        self.spec = spec
        self._tensors = Weights(spec, tensors)
        self._held: tuple[dict[str, Tensor], Inference] | None = None
        self._made_for = self._state()
        default = LongRange.of(self._made_for[0], **self._options)
        self.long_range.tolerance = default.tolerance

    def forward(
        self,
        data: Mapping[str, Tensor],
        training: bool = False,
        compute_stress: bool | None = None,
        output_index: int | None = None,
    ) -> dict[str, Tensor]:
        """Return what the wrapped module returns, key for key, by the fast engine of its device.

        With ``training`` everything is computed in plain torch; otherwise only outputs that are
        differentiated are.

        Parameters
        ----------
        data
            Upstream's input dictionary (``docs/conventions.md``, "Input dictionary"); not changed.
        training
            Keep the graph of the derivatives.
        compute_stress
            As upstream: by default true for a single potential, false for a combination, and
            without effect where the file has no stress module.
        output_index
            Which energy, for a read-out that gives several.

        Returns
        -------
        dict
            Energies [n_systems] in eV, forces [n, 3] in eV/A, stress [n_systems, 3, 3] in eV/A^3,
            and what else the modules write, in the dtype of the weights.

        Raises
        ------
        InputError
            If an input is missing, of a wrong shape or not finite.
        """
        if self._state() != self._made_for:
            self.refresh()
        like = next(iter(self.wrapped.parameters()))
        weights = self._tensors.to(like.device, like.dtype)
        fast = None if training else self._inference_of(weights)
        return Forward(self.spec, weights, self.long_range, fast)(
            data,
            training=training,
            compute_stress=compute_stress,
            output_index=output_index,
            like_upstream=True,
        )

    def _inference_of(self, weights: dict[str, Tensor]) -> Inference:
        """Return the fast engines of these weights: those of the last call if none has changed."""
        values = list(weights.values())
        if self._held is None or not same_values(list(self._held[0].values()), values):
            own = {name: t.detach().clone() for name, t in weights.items()}
            self._held = own, Inference(self.spec, own, "auto", self.long_range)
        return self._held[1]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies, without the engines."""
        return self.__dict__ | {"_held": None}

    def _state(self) -> tuple[torch.dtype, torch.device]:
        like = next(iter(self.wrapped.parameters()))
        return like.dtype, like.device

    def __getattr__(self, name: str) -> Any:
        """Return the wrapped module's attribute where this module has none of that name."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "wrapped":  # not set yet
                raise
            return getattr(self.wrapped, name)


def accelerate(
    module: nn.Module,
    *,
    long_range: str = "auto",
    long_range_tolerance: float | None = None,
    k_set: str = "sphere",
) -> Accelerated:
    """Return a module with an upstream module's ``forward(dict)``, by a fast engine.

    Outputs are differentiable, also with respect to the parameters, which are those of ``module``:
    plain torch computes again what is differentiated, and everything with ``training=True``.
    Molecular dynamics is quicker with :class:`cace_fast.CACECalculator`, which takes modules too
    and reuses its list of neighbours (``docs/user/performance.md``).

    Parameters
    ----------
    module
        An upstream ``NeuralNetworkPotential`` or ``CombinePotential``, or a ScriptModule of one,
        recognised by its class names; upstream itself is not imported.
    long_range, long_range_tolerance, k_set
        As for :func:`cace_fast.load`. With ``training=True`` the sum is direct: only that one has
        second derivatives.

    Raises
    ------
    InputError
        For an option out of its range.
    CheckpointError
        If a part of the module is missing or contradicts another.
    UnsupportedModelError
        If the module has a part that cace-fast does not provide.
    """
    return Accelerated(module, method=long_range, tolerance=long_range_tolerance, k_set=k_set)
