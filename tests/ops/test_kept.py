"""Objects that CPU operators reuse between calls: none is made twice, none is stale."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter

import pytest
import torch
from support.cases import EDGE_CASES, random_weights, with_step

from cace_fast.errors import CaceFastError
from cace_fast.kernels import _operators
from cace_fast.kernels.contraction import contraction
from cace_fast.kernels.cpu import library
from cace_fast.kernels.messages import messages
from cace_fast.kernels.moments import moments
from cace_fast.kernels.readout import readout
from cace_fast.reference.moments import moments as reference_moments
from cace_fast.spec import MLP, ModelSpec, Readout, to_json
from cace_fast.weights import mlp_shapes

SPEC = with_step(True, True, (False, False))
EDGES = EDGE_CASES["400 edges"]
MODULE = Readout("E", MLP((21, 6, 3)), linear=False)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    """Start and end each test without stored objects."""
    monkeypatch.setattr(_operators, "_KEPT", _operators._Kept())


@pytest.fixture
def built(monkeypatch):
    """Count the objects that the library makes from weights."""
    found, lib = Counter(), library.library()

    class Counting:
        def __getattr__(self, name):
            if name in ("cf_model_create", "cf_network_create"):
                found["made"] += 1
            return getattr(lib, name)

    monkeypatch.setattr(library, "library", Counting)
    return found


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_moments(edges=EDGES, weights=None, **changed):
    return moments(**(edges | changed), weights=weights or random_weights(SPEC), spec=SPEC)


def cases():
    """Each operator with constant weights, as a function of its first input, and that input."""
    weights = random_weights(SPEC)
    n = len(EDGES["species"])
    a = random(n, SPEC.n_radial, SPEC.n_monomials, SPEC.n_channels)
    b = 0.3 * random(n, SPEC.n_radial, SPEC.n_invariants, SPEC.n_channels)
    net = {name: random(*s) for name, s in mlp_shapes(MODULE.mlp, "outputs.0.0").items()}
    return {
        "moments": (lambda d: of_moments(weights=weights, vectors=d), EDGES["vectors"]),
        "contraction": (lambda a: contraction(a, 3, 3), a),
        "messages": (lambda a: messages(a, b, **EDGES, weights=weights, spec=SPEC), a),
        "readout": (lambda x: readout(x, net, MODULE, "outputs.0.0"), random(7, 21)),
    }


def value_and_slope(function, x):
    x = x.detach().clone().requires_grad_(True)
    value = function(x)
    return value.detach(), *torch.autograd.grad(value.sin().sum(), x)


@pytest.mark.parametrize("name", ["moments", "contraction", "messages", "readout"])
def test_an_operator_builds_once(name, built):
    function, x = cases()[name]
    first = value_and_slope(function, x)
    once = 0 if name == "contraction" else 1  # which has no weights
    assert built["made"] == once
    for _ in range(3):
        again = value_and_slope(function, x)
        assert all(map(torch.equal, again, first))
    assert built["made"] == once


def test_each_precision_has_its_own(built):
    function, x = cases()["readout"]
    exact, rough = function(x), function(x.float())
    assert built["made"] == 2
    torch.testing.assert_close(function(x.float()), rough, rtol=0, atol=0)
    assert torch.equal(function(x), exact)
    assert 1e-7 < (exact - rough).abs().max() < 1e-2
    assert built["made"] == 2


CHANGES = {
    "in place": lambda w: w.mul_(1.5),
    "through data": lambda w: w.data.mul_(1.5),  # which leaves the tensor's version as it was
    "through numpy": lambda w: w.numpy().__imul__(1.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_give_their_own_numbers(change, built):
    weights = random_weights(SPEC)
    before = of_moments(weights=weights)
    CHANGES[change](weights["mixing.1"])
    after = of_moments(weights=weights)
    assert built["made"] == 2
    want = reference_moments(**EDGES, weights=weights, spec=SPEC)
    torch.testing.assert_close(after, want, rtol=1e-11, atol=1e-11)
    assert (after - before).abs().max() > 0.1


def test_steps_of_an_optimizer_are_seen(built):
    weights = random_weights(SPEC)
    leaf = weights["mixing.0"].requires_grad_(True)
    optimizer = torch.optim.SGD([leaf], lr=1e-3)
    values = []
    for _ in range(3):
        value = of_moments(weights=weights).square().mean()
        values.append(value.item())
        want = reference_moments(**EDGES, weights=weights, spec=SPEC).square().mean()
        torch.testing.assert_close(value, want)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert len(set(values)) == 3
    assert built["made"] == 3


def test_what_is_kept_from_inference_mode_serves_outside_of_it(built):
    with torch.inference_mode():
        weights = random_weights(SPEC)
        inside = of_moments(weights=weights)
    ordinary = random_weights(SPEC)
    value, _ = value_and_slope(lambda d: of_moments(weights=ordinary, vectors=d), EDGES["vectors"])
    assert torch.equal(value, inside)
    assert built["made"] == 1


def test_structures_of_any_size_take_turns():
    names = ["400 edges", "none", "hub atom", "one edge", "63 edges", "400 edges"]
    weights = random_weights(SPEC)

    def run(name):
        edges = EDGE_CASES[name]
        return value_and_slope(
            lambda d: of_moments(edges, weights, vectors=d), edges["vectors"]
        )  # fmt: skip

    kept = [run(name) for name in names]
    for name, got in zip(names, kept, strict=True):
        _operators._KEPT.reset()
        assert all(map(torch.equal, got, run(name))), name


def test_threads_do_not_share_buffers(built):
    every, found, errors = cases(), {}, []
    want = {name: value_and_slope(*case) for name, case in every.items()}
    start = threading.Barrier(4)

    def work(k):
        try:
            start.wait()
            for _ in range(20):
                for name, case in every.items():
                    found[k, name] = value_and_slope(*case)
                    assert all(map(torch.equal, found[k, name], want[name])), name
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert len(found) == 16
    assert built["made"] < 320  # half the calls, forward and backward


def test_one_in_use_is_not_given_to_another():
    text = to_json(ModelSpec(SPEC))
    weights = list(random_weights(SPEC).values())
    given = (_operators.edge_operations, text, weights, torch.float64)
    with _operators.compiled(*given):
        pass
    with _operators.compiled(*given) as first, _operators.compiled(*given) as second:
        assert first is not second
    with _operators.compiled(*given) as third:
        assert third is first  # the one given back last


def narrow(width):
    """A read-out with layers of this width."""
    module = Readout("E", MLP((2, width, 1)), linear=False)
    net = {name: random(*s) for name, s in mlp_shapes(module.mlp, "net").items()}
    return readout(random(3, 2), net, module, "net")


def test_memory_is_bounded(monkeypatch):
    for width in range(1, 2 * _operators.MAX_KEPT):
        narrow(width)
    entries = _operators._KEPT._entries
    assert len(entries) == _operators.MAX_KEPT
    assert len(entries[0].weights[0]) == 2 * _operators.MAX_KEPT - 1  # the last one stays
    of_moments()
    size = _operators._KEPT._entries[0].n_bytes
    assert size > 8 * SPEC.n_monomials * len(EDGES["species"])
    monkeypatch.setattr(_operators, "MAX_BYTES", size - 1)
    before = _operators._KEPT._entries[1:]
    of_moments()
    after = _operators._KEPT._entries  # one too large is gone, and took no small one with it
    assert after
    assert all(a is b for a, b in zip(after, before, strict=False))
    monkeypatch.setattr(_operators, "MAX_BYTES", after[0].n_bytes + after[1].n_bytes)
    narrow(1)
    kept = _operators._KEPT._entries
    assert 0 < sum(entry.n_bytes for entry in kept) <= _operators.MAX_BYTES


def test_after_an_error_nothing_is_kept(built):
    with pytest.raises(CaceFastError, match="species: expected 0 to 2, got 7"):
        of_moments(species=EDGES["species"] * 0 + 7)
    assert not _operators._KEPT._entries
    assert torch.isfinite(of_moments()).all()
    assert built["made"] == 2


FORK = """
import os, signal, threading
import torch
from cace_fast.kernels import _operators
from cace_fast.kernels.readout import readout
from cace_fast.spec import MLP, Readout

x, module = torch.arange(12.0).reshape(4, 3).sin(), Readout("E", MLP((3, 1)), linear=False)
net = {"net.layers.0.weight": torch.ones(1, 3), "net.layers.0.bias": torch.ones(1)}
want = readout(x, net, module, "net")
held, done = threading.Event(), threading.Event()

def hold():
    with _operators._KEPT._lock:
        held.set()
        done.wait()

thread = threading.Thread(target=hold)
thread.start()
held.wait()
child = os.fork()
if child == 0:
    signal.alarm(30)  # a hang ends here
    empty = not _operators._KEPT._entries
    same = torch.equal(readout(x, net, module, "net"), want)
    os._exit(0 if empty and same and len(_operators._KEPT._entries) == 1 else 2)
done.set()
thread.join()
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert code == 0, code
assert len(_operators._KEPT._entries) == 1
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_forked_child_starts_with_nothing_and_an_open_lock():
    run = [sys.executable, "-W", "ignore", "-c", FORK]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
