"""Operations that the formulas of a model need, by the parts that the CPU engine times."""

from __future__ import annotations

from collections.abc import Iterable

from cace_fast.kernels import polynomials
from cace_fast.kernels.cpu import generate
from cace_fast.kernels.cpu.evaluator import PARTS
from cace_fast.spec import MessageStep, ModelSpec, Readout, Representation
from cace_fast.tables import n_monomials

FUNCTION = 20  # multiply-adds of a pair of sine and cosine, or an exponential


def counted(spec: ModelSpec, neighbours: float) -> dict[str, float]:
    """Return the multiply-adds per atom of each part, for energy and forces together.

    They are counted from the shapes (``docs/theory.md``, sections 3 to 8), without what a schedule
    computes twice. Long range is not among the parts.

    Parameters
    ----------
    spec
        The model.
    neighbours
        Mean number of neighbours within the cutoff.
    """
    rep = spec.representation
    count = dict.fromkeys(PARTS, 0.0)
    count["pairs"] = 10 * neighbours
    count["forces"] = 6 * neighbours
    for stage in range(rep.n_stages):
        _add_stage(count, rep, rep.steps[stage - 1] if stage else None, neighbours)
        count["readout"] += 2 * _rows(spec, stage) * rep.n_features / rep.n_stages
    return count


def _add_stage(
    count: dict[str, float], rep: Representation, step: MessageStep | None, neighbours: float
) -> None:
    """Add the moments or messages of one stage, and the contraction."""
    n_a, n_b = n_monomials(rep.l_max), rep.radial.n_rbf
    lanes = rep.n_radial * rep.n_channels
    count["radial"] += neighbours * n_b * (FUNCTION + 4)
    programs = [p(rep.l_max, rep.nu_max) for p in (polynomials.invariants, polynomials.gradient)]
    count["contract"] += lanes * sum(_products(generate.statements(p)) for p in programs)
    if step is None or step.bchi is not None:
        grouped = step is None and rep.n_elements <= rep.n_embedding + 1
        by_channel = step is not None and step.bchi is not None and not step.bchi.shared_channels
        columns = 1 if grouped else rep.n_channels if by_channel else rep.n_embedding
        size = n_b * n_a * columns
        count["sums"] += neighbours * size
        count["edges"] += neighbours * (2 * size + 6 * n_a)
        groups = rep.n_embedding * rep.n_elements * n_b * n_a if grouped else 0
        count["mix"] += 2 * (lanes * n_b * n_a + groups)
    if step is not None and step.memory:
        count["messages"] += 2 * lanes * n_a
    if step is not None and step.ar:
        count["messages"] += neighbours * lanes * (3 * n_a + 2 * FUNCTION * (rep.l_max + 1))


def _rows(spec: ModelSpec, stage: int) -> int:
    """Return how many numbers the networks take from the features of a stage."""
    heads = [m for sub in spec.submodels for m in sub.modules if isinstance(m, Readout)]
    rows = sum(head.mlp.widths[1] + head.linear * head.n_out for head in heads)
    steps = spec.representation.steps
    bchi = steps[stage].bchi if stage < len(steps) else None
    return rows + (bchi.mlp.widths[1] if bchi is not None else 0)


def _products(lines: Iterable[str]) -> int:
    return sum(line.count("*") for line in lines)
