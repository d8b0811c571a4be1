"""The frame of all operators' derivatives: what is kept for them, and how they are handed back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor
from torch.utils import _pytree as pytree

from cace_fast.errors import PropertyNotImplementedError

Operator = Callable[..., Any]


def differentiable(operator: Any, backward: Operator) -> None:
    """Register the derivative of an operator of torch.

    ``backward(ctx, *gradients)`` finds the operator's arguments by :func:`kept` and answers by
    :func:`slopes`.
    """
    operator.register_autograd(backward, setup_context=_keep)


def differentiable_once(operator: Any, gradient: Any, name: str) -> None:
    """Register ``gradient``, another operator, as the only derivative there is.

    It takes the gradient of the result and the operator's arguments; what it returns are the
    gradients with respect to the first of these.
    """

    def backward(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
        arguments = kept(ctx)
        found = gradient(grad_out, *arguments)
        return slopes(arguments, *(found if isinstance(found, tuple) else (found,)))

    differentiable(operator, backward)
    differentiable(gradient, refuse(name, "first"))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    leaves, ctx.structure = pytree.tree_flatten(inputs)
    ctx.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    ctx.save_for_backward(*(leaf for leaf in leaves if isinstance(leaf, Tensor)))


def kept(ctx: Any) -> tuple[Any, ...]:
    """Return the arguments of the operator."""
    tensors = iter(ctx.saved_tensors)
    leaves = [next(tensors) if other is None else other for other in ctx.others]
    found: tuple[Any, ...] = pytree.tree_unflatten(leaves, ctx.structure)
    return found


def slopes(arguments: tuple[Any, ...], *first: Any) -> tuple[Any, ...]:
    """Return gradients of the first arguments, and none of the others."""
    return (*first, *map(_nothing, arguments[len(first) :]))


def _nothing(argument: Any) -> list[None] | None:
    """Return no gradient: for a list of tensors one each."""
    if isinstance(argument, list) and all(isinstance(x, Tensor) for x in argument):
        return [None] * len(argument)
    return None


def refuse(name: str, order: str) -> Callable[..., NoReturn]:
    """Return the backward of an operator's highest derivative, which says that there is no more."""

    def backward(ctx: Any, *gradients: Any) -> NoReturn:
        raise PropertyNotImplementedError(
            f"{name}: this operator has {order} derivatives at most in autograd "
            f"(docs/developer/training.md); use cace_fast.reference.{name} for higher ones"
        )

    return backward
