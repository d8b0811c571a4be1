"""Errors of float32 where sums are long: hub atoms, wide read-outs, many charges and vectors k.

python bench/large_errors.py             # write the table into docs/developer/accuracy.md
python bench/large_errors.py --print     # print it only

Plain torch in float32, the C++ kernels and the GPU kernels (executed by the emulator) get the same
float32 numbers; the error is against plain torch in float64, of the largest number.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import torch
from gpu_emulator import emulate
from kernel_errors import PAGE, write
from systems import random_weights, specification
from torch import Tensor

from cace_fast.kernels.cpu.interface import EwaldSpec
from cace_fast.kernels.cpu.long_range import EwaldSum
from cace_fast.kernels.edges import edges_of
from cace_fast.kernels.triton import host_readout, launch, operators
from cace_fast.kernels.triton.kvectors import k_vectors
from cace_fast.spec import MLP, Ewald, Readout
from cace_fast.weights import mlp_shapes

BEGIN, END = "<!-- large errors: begin -->", "<!-- large errors: end -->"
NEIGHBOURS, INPUTS = 2_000, 4_000
LONG = ("potential", "forces", "virial")
Found = dict[str, Tensor]


@dataclass
class Case:
    """What runs on float32 tensors, and what takes the same numbers in float64."""

    name: str
    tensors: dict[str, Tensor]
    exact: Callable[..., Found]
    plain: Callable[..., Found] | None
    cpu: Callable[..., Found] | None
    gpu: Callable[..., Found]


class Row(NamedTuple):
    """Largest errors of one result in units of its largest number; None where nobody works so."""

    case: str
    result: str
    plain: float | None
    cpu: float | None
    gpu: float | None


def draw(*shape: int, seed: int = 5) -> Tensor:
    """Return normal random numbers in float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_gradients(function: Callable[..., Tensor]) -> Callable[..., Found]:
    """Return a function that gives the value of ``function``, and dE/dx where E adds up w y."""

    def run(**tensors: Tensor) -> Found:
        leaves = {k: t.detach().clone().requires_grad_(True) for k, t in tensors.items()}
        value = function(**leaves)
        weight = draw(*value.shape, seed=11).to(value)
        grads = torch.autograd.grad((weight * value).sum(), list(leaves.values()))
        return {"value": value.detach()} | dict(zip(leaves, grads, strict=True))

    return run


def hub_edges() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return vectors, senders, receivers of an atom that gets and sends 2 000 edges; species."""
    generator = torch.Generator().manual_seed(3)
    d = draw(NEIGHBOURS, 3, seed=4)
    r = 0.8 + 4.5 * torch.rand(NEIGHBOURS, 1, generator=generator)
    d = d / d.norm(dim=1, keepdim=True) * r
    others = 1 + torch.arange(NEIGHBOURS) % 3
    hub = torch.zeros_like(others)
    senders, receivers = torch.cat([others, hub]), torch.cat([hub, others])
    order = torch.argsort(receivers, stable=True)
    vectors = torch.cat([d, -d])[order]
    return vectors, senders[order], receivers[order], torch.tensor([0, 1, 0, 1])


def descriptor(name: str) -> Case:
    """Return moments, or messages with Ar and Bchi, around hub atoms."""
    spec = specification()
    rep, weights = spec.representation, random_weights(spec, torch.float32)
    vectors, *edges = hub_edges()
    tensors = {"vectors": vectors}
    if name == "messages":
        a = draw(4, rep.n_radial, rep.n_monomials, rep.n_channels)
        b = 0.1 * draw(4, rep.n_radial, rep.n_invariants, rep.n_channels, seed=6)
        tensors = {"a": a, "b": b, **tensors}

    def of(home: str, **options: Any) -> Callable[..., Found]:
        function = getattr(import_module(f"cace_fast.{home}.{name}"), name)

        def run(**tensors: Tensor) -> Tensor:
            own = {k: w.to(tensors["vectors"]) for k, w in weights.items()}
            return function(*tensors.values(), *edges, own, rep, **options)

        return with_gradients(run)

    ours = {name: of("kernels", backend=name) for name in ("cpu", "triton")}
    title = f"{name}, {NEIGHBOURS} neighbours"
    return Case(title, tensors, of("reference"), of("reference"), ours["cpu"], ours["triton"])


@contextmanager
def many_atoms(wanted: bool) -> Iterator[None]:
    """Let a read-out run as one of many atoms would, or of few."""
    held, host_readout.LARGE = host_readout.LARGE, 0 if wanted else 2**31
    try:
        yield
    finally:
        host_readout.LARGE = held


def wide_readout(many: bool, n_in: int = INPUTS) -> Case:
    """Return a read-out of many inputs, whose bias is larger than the sums."""
    module, prefix = Readout("E", MLP((n_in, 32, 16, 1)), linear=True), "outputs.0.0"
    shapes = mlp_shapes(module.mlp, prefix) | {f"{prefix}.linear.weight": (1, n_in)}
    weights = {
        name: draw(*shape, seed=k) / shape[-1] ** 0.5
        for k, (name, shape) in enumerate(shapes.items())
    }
    weights[f"{prefix}.linear.bias"] = torch.tensor([-1.2])

    def of(home: str, **options: Any) -> Callable[..., Found]:
        function = import_module(f"cace_fast.{home}.readout").readout

        def run(x: Tensor) -> Tensor:
            own = {k: w.to(x) for k, w in weights.items()}
            return function(x, own, module, prefix, **options)

        return with_gradients(run)

    def gpu(**tensors: Tensor) -> Found:
        with many_atoms(many):
            return of("kernels", backend="triton")(**tensors)

    plain = of("reference")
    cpu = None if many else of("kernels", backend="cpu")
    title = f"read-out of {n_in} inputs, {'many' if many else 'few'} atoms"
    return Case(title, {"x": 0.3 * draw(64, n_in)}, plain, plain, cpu, gpu)


def gathered() -> Case:
    """Return forces of an atom that 4 000 edges push."""
    vectors, senders, receivers, species = hub_edges()
    edges, order = edges_of(vectors, senders, receivers, species)

    def plain(grad: Tensor) -> Found:
        forces = grad.new_zeros(3, len(species))
        forces = forces.index_add(1, receivers, -grad[:, :]).index_add(1, senders, grad)
        return {"value": forces}

    def gpu(grad: Tensor) -> Found:
        forces = grad.new_empty(3, len(species))
        launch.gather_forces(edges, grad[:, order].contiguous(), forces)
        return {"value": forces}

    title = f"forces, {NEIGHBOURS} neighbours"
    return Case(title, {"grad": draw(3, len(senders), seed=8)}, plain, plain, None, gpu)


def long_range(n: int, length: float, periodic: bool) -> Case:
    """Return the sum over vectors k, or over pairs, of ``n`` charges in a cube."""
    module = Ewald("q", "lr", dl=2.0, sigma=1.0)
    generator = torch.Generator().manual_seed(9)
    positions = length * torch.rand(n, 3, generator=generator, dtype=torch.float64)
    cell = length * torch.eye(3, dtype=torch.float64)

    def exact(q: Tensor) -> Found:
        arrays = (q.numpy(), positions.numpy(), cell.numpy())
        spec = EwaldSpec(module.dl, module.sigma, module.norm_factor, exponent=module.exponent)
        found = EwaldSum(spec).evaluate(*arrays, periodic=int(periodic), n_threads=1)
        return {name: torch.from_numpy(x) for name, x in zip(LONG, found[1:], strict=True)}

    def gpu(q: Tensor) -> Found:
        found = operators.ewald(q, positions, cell, cell, module, periodic=periodic)
        return dict(zip(LONG, found, strict=True))

    over = f"{len(k_vectors(cell, module.dl))} vectors k" if periodic else "all pairs"
    return Case(f"{n} charges, {over}", {"q": draw(n, 1, seed=10)}, exact, None, None, gpu)


def cases() -> list[Case]:
    """Return all rows of the table."""
    return [
        descriptor("moments"), descriptor("messages"), gathered(), wide_readout(False),
        wide_readout(True), long_range(20_000, 10.0, True), long_range(40, 42.5, True),
        long_range(2_000, 30.0, False),
    ]  # fmt: skip


def error_of(found: Found | None, exact: Found, name: str) -> float | None:
    """Return the largest error of a result in units of its largest number."""
    if found is None:
        return None
    return float((found[name].double() - exact[name]).abs().max() / exact[name].abs().max())


def measure(case: Case, architecture: str = "sm_90") -> Iterator[Row]:
    """Yield a row for each result of a case."""
    exact = case.exact(**{name: t.double() for name, t in case.tensors.items()})
    plain, cpu = (f and f(**case.tensors) for f in (case.plain, case.cpu))
    with emulate(architecture):
        gpu = case.gpu(**case.tensors)
    for name in exact:
        errors = (error_of(found, exact, name) for found in (plain, cpu, gpu))
        yield Row(case.name, name, *errors)


def table(rows: list[Row]) -> str:
    """Return the errors as a table of Markdown."""
    lines = ["| sum | result | plain torch | C++ | GPU, emulated |", "|---|---|---|---|---|"]
    for row in rows:
        errors = ("" if e is None else f"{e:.1e}" for e in row[2:])
        lines.append(f"| {row.case} | {row.result} | {' | '.join(errors)} |")
    return "\n".join(lines)


def held() -> dict[tuple[str, str], float]:
    """Return the GPU's error of every row of the table on the page."""
    _, _, rest = PAGE.read_text().partition(BEGIN)
    rows = [line.split("|") for line in rest.partition(END)[0].splitlines()[3:] if "|" in line]
    return {(row[1].strip(), row[2].strip()): float(row[5]) for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", action="store_true", help="leave the page as it is")
    options = parser.parse_args()
    text = table([row for case in cases() for row in measure(case)])
    print(text)
    if not options.print:
        write(text, BEGIN, END)


if __name__ == "__main__":
    main()
