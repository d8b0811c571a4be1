"""Upstream's dictionaries: keys, shapes and numbers of upstream for the recorded checkpoints."""

from __future__ import annotations

import itertools
import json
import math

import ase.io
import numpy as np
import pytest
import torch
from support import golden
from support.dictionaries import dictionary
from support.paths import upstream_checkpoints

from cace_fast import InputError, Potential, load
from cace_fast.forward import Forward
from cace_fast.spec import Ewald, FixedCharge, Forces, ModelSpec, SubModel
from cace_fast.structures import extra_inputs


@pytest.mark.parametrize("folder", upstream_checkpoints(), ids=lambda f: f.name)
def test_outputs_of_recorded_checkpoints(folder):
    """Key for key what upstream returned, parts scaled by their weight as it does."""
    meta = json.loads((folder / "meta.json").read_text())
    with np.load(folder / "reference.npz") as file:
        reference = dict(file)
    potential = load(folder / "model.pth", dtype="float64", backend="reference")
    if not potential.spec.submodels:
        pytest.skip("a bare descriptor has no outputs")
    frames = ase.io.read(folder / "structures.xyz", index=":")
    forward = Forward(potential.spec, potential.weights.to("cpu", torch.float64))
    tried = 0
    for atoms, entry in zip(frames, meta["structures"], strict=True):
        if len(atoms) > 48 or entry.get("k_boundary") or 0 < atoms.pbc.sum() < 3:
            continue
        key = entry["key"]
        data = dictionary(atoms, potential.cutoff, extra=extra_inputs(potential.spec))
        got = forward(data, like_upstream=True)
        prefix = f"{key}/out/"
        want = {f.removeprefix(prefix): reference[f] for f in reference if f.startswith(prefix)}
        if not atoms.pbc.any():  # upstream divides by the volume of a cell that is not there
            want.pop("stress", None)
            got.pop("stress", None)
        assert set(got) == set(want)
        if folder.name.startswith("water-timing"):
            # recorded with the TorchScript branch, whose Ewald sum leaves the cell unstrained
            want.pop("stress", None)
        for out, value in want.items():
            found = got[out].detach().numpy()
            assert found.shape == value.shape, out
            np.testing.assert_allclose(found, value, rtol=1e-9, atol=1e-8, err_msg=f"{key} {out}")
        unscaled = potential(data)
        sub = len(meta["model"]["submodels"]) - 1
        for part in (f for f in reference if f.startswith(f"{key}/sub{sub}/")):
            out = part.rsplit("/", 1)[1]
            if out not in ("stress", "CACE_energy", "CACE_forces"):
                np.testing.assert_allclose(
                    unscaled[out].detach().numpy(), reference[part], rtol=1e-9, atol=1e-8
                )
        tried += 1
    assert tried


def golden_potential(**options):
    return Potential(*golden.model(), dtype="float64", backend="reference", **options)


def test_batch_with_different_cells_equals_compute():
    potential = golden_potential()
    frames = [golden.atoms("periodic"), golden.atoms("open"), golden.atoms("periodic")]
    frames[2].set_cell(frames[2].cell * 1.1, scale_atoms=True)
    got = potential(dictionary(frames, potential.cutoff))
    want = potential.compute(frames, ("energy", "forces"))
    np.testing.assert_allclose(
        got["total"].detach(), [w["energy"] for w in want], rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(
        got["forces"], np.concatenate([w["forces"] for w in want]), rtol=0, atol=1e-12
    )
    assert got["q"].shape == (15, 2)
    assert got["tot_q"].shape == (3, 2)
    stress = potential.compute(frames[0], ("stress",))["stress"]
    np.testing.assert_allclose(got["stress"][0], stress, rtol=0, atol=1e-12)


def test_shifts_may_be_integers_or_vectors():
    potential = golden_potential()
    data = dictionary(golden.atoms("periodic"), potential.cutoff)
    want = potential(data)["total"]
    for missing in ("shifts", "unit_shifts"):
        got = potential({k: v for k, v in data.items() if k != missing})["total"]
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)
    with pytest.raises(
        InputError, match=r"shifts: expected shifts or unit_shifts|data\['shifts'\]"
    ):
        potential({k: v for k, v in data.items() if "shifts" not in k})


def test_pairs_beyond_the_cutoff_and_a_missing_batch_do_no_harm():
    potential = golden_potential()
    data = dictionary(golden.atoms("periodic"), potential.cutoff)
    longer = dictionary(golden.atoms("periodic"), potential.cutoff + 1.0)
    longer = {k: v for k, v in longer.items() if k not in ("batch", "ptr")}
    torch.testing.assert_close(potential(longer)["total"], potential(data)["total"])


def test_input_is_not_changed_and_grad_mode_is_honoured():
    potential = golden_potential()
    data = dictionary(golden.atoms("periodic"), potential.cutoff)
    before = {k: v.clone() for k, v in data.items()}
    with torch.no_grad():
        out = potential(data)
    assert not any(v.requires_grad for v in out.values())
    assert all(torch.equal(data[k], before[k]) and not data[k].requires_grad for k in data)


def test_gradients_flow_to_positions_twice():
    potential = golden_potential()
    data = dictionary(golden.atoms("periodic"), potential.cutoff)
    positions = data["positions"].clone().requires_grad_(True)
    out = potential(data | {"positions": positions}, training=True)
    (gradient,) = torch.autograd.grad(out["total"].sum(), positions, retain_graph=True)
    torch.testing.assert_close(gradient, -out["forces"].detach())
    (second,) = torch.autograd.grad(out["forces"][0, 0], positions)
    hessian = potential.hessian(golden.atoms("periodic"))
    np.testing.assert_allclose(second, -hessian[0, 0], rtol=0, atol=1e-10)


def test_stress_on_request():
    potential = golden_potential()
    data = dictionary(golden.atoms("periodic"), potential.cutoff)
    assert "stress" in potential(data)  # the file declares it
    assert "stress" not in potential(data, compute_stress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": None}, r"data\['positions'\]: expected a tensor, got NoneType"),
        ({"cell": torch.ones(3, 3)}, r"data\['cell'\]: expected zero or three independent"),
        ({"cell": torch.ones(2, 3)}, r"data\['cell'\]: expected 1 cells of 3 x 3"),
        ({"atomic_numbers": torch.tensor([8, 1, 6, 1, 26])}, "numbers: expected elements among H"),
    ],
)
def test_refusals(change, message):
    potential = golden_potential()
    data = dictionary(golden.atoms("periodic"), potential.cutoff) | change
    with pytest.raises(InputError, match=message):
        potential({k: v for k, v in data.items() if v is not None})


def changed(*modules):
    """The golden model with other output modules."""
    spec, weights = golden.model()
    tensors = dict(weights)
    own = ModelSpec(spec.representation, (SubModel(modules, strain=True),))
    return Forward(own, {k: v for k, v in tensors.items() if not k.startswith("outputs")} | tensors)


def test_field_at_the_charges():
    """The potential of one channel is the derivative of its energy, self term included."""
    spec, _ = golden.model()
    readouts = spec.submodels[0].modules[:2]
    forward = changed(*readouts, Ewald("q", "e", 1.5, 0.9, compute_field=True, aggregation=None))
    data = dictionary(golden.atoms("periodic"), golden.CUTOFF)
    out = forward(data)
    assert out["e"].shape == (1, 2)
    assert out["q_field"].shape == (5, 2)
    energy = 0.5 * (out["q"] * out["q_field"]).sum(0)  # quadratic in the charges
    torch.testing.assert_close(energy, out["e"][0], rtol=1e-12, atol=1e-13)


def test_fixed_charges():
    fixed = FixedCharge("q", ((8, -0.8), (1, 0.4), (6, 0.1)))
    forward = changed(fixed, Ewald("q", "e", 1.5, 0.9), Forces("e", "F"))
    atoms = golden.atoms("open")
    out = forward(dictionary(atoms, golden.CUTOFF))
    q = 9.48933 * np.array([{8: -0.8, 1: 0.4, 6: 0.1}[z] for z in atoms.numbers])
    np.testing.assert_allclose(out["q"][:, 0], q)
    energy = (q @ q) / (0.9 * (2 * np.pi) ** 1.5)
    for i, j in itertools.combinations(range(5), 2):
        r = atoms.get_distance(i, j)
        energy += q[i] * q[j] * math.erf(r / (0.9 * math.sqrt(2))) / (r + 1e-6) / (2 * np.pi)
    assert out["e"].item() == pytest.approx(energy, rel=1e-12)
    with pytest.raises(
        InputError, match=r"numbers: expected elements with a fixed charge, got \[6\]"
    ):
        changed(FixedCharge("q", ((8, 1.0), (1, 1.0))), Ewald("q", "e", 1.5, 0.9))(
            dictionary(atoms, golden.CUTOFF)
        )


def test_open_systems_have_no_stress():
    potential = golden_potential()
    data = dictionary([golden.atoms("periodic"), golden.atoms("open")], potential.cutoff)
    stress = potential(data)["stress"]
    assert torch.isfinite(stress[0]).all()
    assert torch.isnan(stress[1]).all()


def test_charges_may_come_from_outside():
    """A model whose Ewald sum takes charges as an input."""
    forward = changed(Ewald("given", "e", 1.5, 0.9), Forces("e", "F"))
    data = dictionary(golden.atoms("open"), golden.CUTOFF)
    with pytest.raises(InputError, match=r"data\['given'\]: expected an input"):
        forward(data)
    one = forward(data | {"given": torch.ones(5, dtype=torch.float64)})["e"]
    two = forward(data | {"given": 2 * torch.ones(5, dtype=torch.float64)})["e"]
    torch.testing.assert_close(two, 4 * one)
