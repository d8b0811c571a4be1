"""The generator of the contraction's C++: its statements, run as Python, are the reference."""

from __future__ import annotations

import re

import pytest
import torch

from cace_fast import tables
from cace_fast.kernels import polynomials
from cace_fast.kernels.cpu import generate
from cace_fast.reference.contraction import contraction

STATEMENT = re.compile(r"^(?:const V )?(\w+(?:\[\d+\])?) = (.+);$")


def execute(lines, **names):
    """Run generated statements, each an assignment, with the given arrays."""
    names["T"] = float
    for line in lines:
        target, expression = STATEMENT.match(line).groups()
        exec(f"{target} = {expression}", {}, names)
    return names


@pytest.mark.parametrize(("l_max", "nu_max"), [*generate.UNROLLED, (3, 4), (5, 4)])
def test_statements_are_the_contraction_and_its_gradient(l_max, nu_max):
    n_a, n_b = tables.n_monomials(l_max), tables.n_features(l_max, nu_max)
    generator = torch.Generator().manual_seed(l_max)
    a = torch.randn(2, 3, n_a, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    g = torch.randn(2, 3, n_b, 4, generator=generator, dtype=torch.float64)
    expected = contraction(a, l_max, nu_max)
    (gradient,) = torch.autograd.grad((expected * g).sum(), a)
    inputs = {"A": a.detach().unbind(2), "G": g.unbind(2)}
    programs = polynomials.invariants(l_max, nu_max), polynomials.gradient(l_max, nu_max)
    values, slopes = map(generate.statements, programs)
    value = execute(values, B=[None] * n_b, **inputs)["B"]
    slope = execute(slopes, D=[None] * n_a, **inputs)["D"]
    torch.testing.assert_close(torch.stack(value, 2), expected.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(torch.stack(slope, 2), gradient, rtol=1e-13, atol=1e-12)


def test_every_unrolled_shape_is_in_the_header():
    text = generate.contraction()
    for l_max, nu_max in generate.UNROLLED:
        assert f"void contract_{l_max}_{nu_max}(" in text
        assert f"void contract_gradient_{l_max}_{nu_max}(" in text
        assert f"X({l_max}, {nu_max})" in text


def test_files_are_written_only_when_they_change(tmp_path):
    generate.main(str(tmp_path))
    made = {tmp_path / name: text() for name, text in generate.FILES.items()}
    assert {path: path.read_text() for path in made} == made
    before = [path.stat().st_mtime_ns for path in made]
    generate.main(str(tmp_path))
    assert [path.stat().st_mtime_ns for path in made] == before
    for path in made:
        path.write_text("old")
    generate.main(str(tmp_path))
    assert {path: path.read_text() for path in made} == made
