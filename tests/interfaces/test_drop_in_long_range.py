"""All interfaces take the same long range: modules, dictionaries, scripted files, mixed batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from support import upstream_like as like
from support.dictionaries import dictionary
from support.script_like import save_script

import cace_fast
from cace_fast import InputError, accelerate
from cace_fast.kernels import ewald

CUTOFF = 4.5


def box(side, spacing=2.6, seed=0, cell=None):
    rng = np.random.default_rng(seed)
    r = spacing * np.indices((side,) * 3).reshape(3, -1).T + rng.uniform(-0.2, 0.2, (side**3, 3))
    shape = np.eye(3) if cell is None else cell
    return Atoms([8, 1] * (side**3 // 2) + [6] * (side**3 % 2), r @ shape,
                 cell=spacing * side * shape, pbc=True)  # fmt: skip


def batch():
    """A crystal, a left-handed triclinic one, a molecule, a long box: in one dictionary."""
    leaning = np.array([[0.1, 1.0, 0.1], [1.0, 0.1, -0.1], [0.2, -0.1, 1.1]])
    molecule = Atoms([8, 1, 6], [[0, 0, 0], [0, 0, 1.1], [0, 1.3, -0.4]])
    return [box(3), box(3, seed=1, cell=leaning), molecule, box(3) * (1, 1, 4)]


@pytest.fixture
def taken(monkeypatch):
    """Numbers of atoms whose sums were done by a mesh."""
    seen = []

    class Watched(ewald.MeshSum):
        def evaluate(self, plan, q, *rest):
            seen.append(len(q))
            return super().evaluate(plan, q, *rest)

    monkeypatch.setattr(ewald, "MeshSum", Watched)
    return seen


def ways(tmp_path, module, **options):
    """The same module in memory, as a file, and as a file with TorchScript's conventions."""
    like.save(module, tmp_path / "model.pth")
    save_script(module, tmp_path / "scripted.pt")
    load = {"dtype": "float64", "backend": "reference"} | options
    return {
        "accelerate": accelerate(module.double(), **options),
        "file": cace_fast.load(tmp_path / "model.pth", **load),
        "script": cace_fast.load(tmp_path / "scripted.pt", **load),
    }


@pytest.mark.parametrize("way", ["accelerate", "file", "script"])
def test_a_forced_method_is_taken_in_batches_of_different_cells(way, tmp_path, taken):
    module = like.water_like()
    data = dictionary(batch(), CUTOFF)
    found = {}
    for method in ("direct", "mesh"):
        fast = ways(tmp_path, module.float(), long_range=method)[way]
        out = fast(data)
        found[method] = {key: value.detach() for key, value in out.items()}
        periodic = [27, 27, 108]
        assert sorted(set(taken)) == ([] if method == "direct" else [27, 108])
        assert method == "direct" or sorted(taken[:3]) == periodic
    assert set(found["direct"]) == set(found["mesh"])
    for key, want in found["direct"].items():
        torch.testing.assert_close(found["mesh"][key], want, rtol=1e-8, atol=1e-8)
    assert not torch.equal(found["direct"]["ewald_forces"], found["mesh"]["ewald_forces"])


def test_the_ways_agree(tmp_path):
    data = dictionary(batch(), CUTOFF)
    ours = ways(tmp_path, like.water_like(weight=0.25), long_range="mesh")
    results = {name: fast(data) for name, fast in ours.items()}
    for name in ("file", "script"):
        for key in ("CACE_energy", "CACE_forces"):
            torch.testing.assert_close(
                results[name][key], results["accelerate"][key], rtol=1e-9, atol=1e-9
            )
    frames = batch()
    direct = ours["script"].compute(frames)
    energies = torch.tensor([r["energy"] for r in direct], dtype=torch.float64)
    torch.testing.assert_close(results["script"]["CACE_energy"], energies, rtol=1e-8, atol=1e-8)


def test_large_boxes_take_the_cheaper_way(taken):
    fast = accelerate(like.water_like())
    small, large = box(3), box(3) * (4, 4, 5)
    fast(dictionary([small, large], CUTOFF, torch.float32))
    assert set(taken) == {len(large)}
    taken.clear()
    fast(dictionary(small, CUTOFF, torch.float32))
    assert taken == []


def test_training_sums_directly(taken):
    fast = accelerate(like.water_like().double(), long_range="mesh")
    out = fast(dictionary(box(2), CUTOFF), training=True)
    out["CACE_forces"].square().sum().backward()
    assert taken == []
    gradients = [p.grad for p in fast.parameters() if p.grad is not None]
    assert len(gradients) > 10  # those of an absent element and of constants have none
    assert all(torch.isfinite(g).all() for g in gradients)


def test_tolerance_and_set_of_vectors(taken):
    module = like.water_like()
    default = accelerate(module)
    assert default.long_range.tolerance == 1e-6
    default.double()
    default(dictionary(box(2), CUTOFF))
    assert default.long_range.tolerance == 1e-10
    module.float()
    fast = accelerate(module, long_range="mesh", k_set="frozen", long_range_tolerance=1e-5)
    fast.double()
    fast(dictionary(box(3), CUTOFF))
    assert fast.long_range.tolerance == 1e-5
    np.testing.assert_allclose(fast.long_range.reference_cell, box(3).cell[:])
    for options in ({"long_range": "fast"}, {"k_set": "cube"}, {"long_range_tolerance": 2.0}):
        with pytest.raises(InputError, match=next(iter(options))):
            accelerate(module, **options)
