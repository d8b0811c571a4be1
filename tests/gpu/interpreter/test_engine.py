"""The GPU engine in float64 under the interpreter: forces of the schedule are exact gradients."""

from __future__ import annotations

import pytest
import torch
from gpu_emulator.guard import watch
from support.chained import chained_spec, seeded_weights, structure
from support.edges import relative
from support.tiny_models import tiny_spec, tiny_structure, tiny_weights

from cace_fast.engine import ReferenceEngine
from cace_fast.engine.triton import TritonEngine
from cace_fast.errors import UnsupportedModelError
from cace_fast.graph import join
from cace_fast.kernels.contraction import contraction
from cace_fast.kernels.moments import moments
from cace_fast.kernels.readout import readout
from cace_fast.spec import energy_program
from cace_fast.structures import extra_inputs, graph_of

PLAIN = {"l_max": 1, "n_rbf": 2, "n_radial": 2}
MODELS = {"plain": PLAIN, "one step": PLAIN | {"steps": ("M+Ar+Bchi",)}}


@pytest.mark.parametrize("name", MODELS)
def test_forces_and_virials_are_those_of_automatic_derivatives(name: str) -> None:
    spec = tiny_spec(**MODELS[name])
    weights, program = tiny_weights(spec).to("cpu", torch.float64), energy_program(spec)
    graph = graph_of(tiny_structure(spec), spec.representation)
    reference = ReferenceEngine(spec, weights, program)
    expected = reference.evaluate(graph, ("forces", "virials"))
    with watch():
        found = TritonEngine(reference).evaluate(graph, ("forces", "virials"))
    for key in ("energy", "energies", "forces", "virials"):
        assert relative(getattr(found, key), getattr(expected, key)) < 1e-11, key


def test_chains_of_read_outs_are_one_network() -> None:
    """Read-outs and charges that take what other modules give, open and periodic in one batch."""
    spec = chained_spec()
    weights, program = seeded_weights(spec).to("cpu", torch.float64), energy_program(spec)
    frames = [structure(spec, 2), structure(spec, 1), structure(spec, 2, pbc=False)]
    names = extra_inputs(spec)
    graph = join([graph_of(atoms, spec.representation, inputs=names) for atoms in frames])
    reference = ReferenceEngine(spec, weights, program)
    expected = reference.evaluate(graph, ("forces", "virials"))
    with watch():
        found = TritonEngine(reference).evaluate(graph, ("forces", "virials"))
    for key in ("energy", "energies", "forces", "virials"):
        assert relative(getattr(found, key), getattr(expected, key)) < 1e-11, key


def test_fields_that_are_inputs_are_refused() -> None:
    spec = tiny_spec(**PLAIN, ewald_channels=1, ewald={"external_field": "f"})
    weights = tiny_weights(spec).to("cpu", torch.float64)
    with pytest.raises(UnsupportedModelError, match="field that is an input of the structure"):
        TritonEngine(ReferenceEngine(spec, weights, energy_program(spec)))


def test_operators_with_automatic_derivatives_give_the_same_forces() -> None:
    spec = tiny_spec(**PLAIN)
    rep, weights = spec.representation, tiny_weights(spec).to("cpu", torch.float64)
    graph = graph_of(tiny_structure(spec), rep)
    engine = TritonEngine(ReferenceEngine(spec, weights, energy_program(spec)))
    analytic = engine.evaluate(graph, ("forces",))
    positions = graph.positions.clone().requires_grad_(True)
    moved = type(graph)(**{**vars(graph), "positions": positions})
    own = {key: w for key, w in weights.items() if not key.startswith("outputs")}
    edges = (moved.vectors(), moved.senders, moved.receivers, moved.species)
    a = moments(*edges, own, rep, backend="triton")
    b = contraction(a, rep.l_max, rep.nu_max, backend="triton")
    module = spec.submodels[0].modules[0]
    energy = readout(b.flatten(1), weights, module, "outputs.0.0", backend="triton").sum()
    (gradient,) = torch.autograd.grad(energy, positions)
    assert relative(energy[None].detach(), analytic.energy) < 1e-12
    assert relative(-gradient, analytic.forces) < 1e-11
