"""One tolerance rule for every operation, on every backend, in every precision."""

from __future__ import annotations

import torch


def value_and_grads(function, tensors):
    """Return {"value": f, "d/d<name>": gradient of a fixed random projection of f}."""
    leaves = {
        k: t.detach().clone().requires_grad_(t.is_floating_point()) for k, t in tensors.items()
    }
    value = function(**leaves)
    generator = torch.Generator().manual_seed(11)
    weight = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)
    found = {"value": value.detach()}
    names = [k for k, t in leaves.items() if t.is_floating_point()]
    if value.requires_grad:
        grads = torch.autograd.grad(
            (weight * value).sum(), [leaves[k] for k in names], materialize_grads=True
        )
        found |= {f"d/d{k}": g for k, g in zip(names, grads, strict=True)}
    return found


def assert_as_good(got, oracle, floor, *, growth=1.0):
    """Compare with a float64 oracle, allowing what plain torch loses in the working precision.

    max|got - oracle| <= growth max(4 max|floor - oracle|, 32 eps max|oracle|) for the value and
    every gradient; ``growth`` is for long sums, with the reason beside it.
    """
    assert got.keys() == oracle.keys()
    for name, true in oracle.items():
        assert got[name].shape == true.shape, name
        if not true.numel():
            continue
        eps = torch.finfo(got[name].dtype).eps
        true = true.to(torch.float64)
        error = (got[name].to(torch.float64) - true).abs().max().item()
        lost = (floor[name].to(torch.float64) - true).abs().max().item()
        allowed = growth * max(4.0 * lost, 32.0 * eps * true.abs().max().item())
        assert error <= allowed, f"{name}: error {error:.3e} > {allowed:.3e}"


def to_dtype(tensors, dtype):
    """Return the tensors with floating ones in ``dtype``."""
    return {k: t.to(dtype) if t.is_floating_point() else t for k, t in tensors.items()}
