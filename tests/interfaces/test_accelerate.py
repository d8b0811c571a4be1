"""Drop-in for upstream modules, with stand-ins that carry upstream's class names."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from support import upstream_like as like
from support.dictionaries import dictionary
from support.physics import PhysicsTests
from support.tiny_models import tiny_structure

from cace_fast import UnsupportedModelError, accelerate, load

CUTOFF = 4.5


def frames():
    crystal = Atoms([8, 1, 6, 1], [[0, 0, 0], [1.1, 0.4, 0.1], [2.3, 2.1, 1.9], [0.6, 3.0, 2.6]],
                    cell=[[4.2, 0, 0], [0.7, 3.9, 0], [-0.5, 0.6, 4.4]], pbc=True)  # fmt: skip
    molecule = Atoms([8, 1, 6], [[0, 0, 0], [0, 0, 1.1], [0, 1.3, -0.4]])
    return [crystal, molecule]


def inputs(dtype=torch.float32):
    return dictionary(frames(), CUTOFF, dtype)


def gentle(module):
    """The module with small read-outs: random ones of full size make forces of 1e4 eV/A."""
    with torch.no_grad():
        for sub in module.models:
            for parameter in sub.output_modules.parameters():
                parameter.mul_(0.002)
    return module


class TestPhysics(PhysicsTests):
    """The golden structures on a stand-in with message passing and charges, in float64."""

    module = accelerate(gentle(like.water_like(steps=[["M", "Ar", "B"]], cutoff=3.5).double()))
    energy_tolerance = 1e-9
    force_tolerance = 1e-9
    drift_per_atom = 1e-3  # of an exchange of some 0.1 eV between potential and kinetic energy

    def evaluate(self, atoms):
        out = self.module(dictionary(atoms, 3.5))
        energy = out["CACE_energy"].item()
        return {"energy": energy, "forces": out["CACE_forces"].detach().numpy()}


def test_keys_shapes_dtypes_and_defaults():
    module = like.water_like()
    fast = accelerate(module)
    out = fast(inputs())
    assert set(out) == {"CACE_energy", "CACE_forces", "ewald_potential", "ewald_forces"}
    assert out["CACE_energy"].shape == (2,)
    assert out["CACE_forces"].shape == (7, 3)
    assert all(v.dtype == torch.float32 for v in out.values())
    assert isinstance(fast, torch.nn.Module)


def test_parts_are_scaled_as_upstream_does_and_not_by_the_potential(tmp_path):
    module = like.water_like(weight=0.25)
    like.save(module, tmp_path / "model.pth")
    potential = load(tmp_path / "model.pth", dtype="float32")
    scaled, plain = accelerate(module)(inputs()), potential(inputs())
    torch.testing.assert_close(scaled["ewald_potential"], 0.25 * plain["ewald_potential"])
    torch.testing.assert_close(scaled["CACE_energy"], plain["CACE_energy"])
    want = potential.compute(frames())
    np.testing.assert_allclose(
        plain["CACE_energy"].detach(), [w["energy"] for w in want], rtol=2e-5
    )
    forces = np.concatenate([w["forces"] for w in want])
    np.testing.assert_allclose(plain["CACE_forces"].detach(), forces, atol=1e-3)


def test_shares_parameters_and_follows_them():
    module = like.water_like()
    fast = accelerate(module)
    before = fast(inputs())["CACE_energy"].detach()
    assert {id(p) for p in fast.parameters()} == {id(p) for p in module.parameters()}
    with torch.no_grad():
        for parameter in module.models[0].output_modules.parameters():
            parameter.mul_(1.5)
    assert not torch.allclose(fast(inputs())["CACE_energy"].detach(), before)


def test_gradients_reach_every_parameter():
    module = like.water_like(steps=[["M", "Ar", "B"]])
    fast = accelerate(module)
    out = fast(inputs(), training=True)
    loss = out["CACE_energy"].sum() + out["CACE_forces"].square().sum()
    loss.backward()
    without = [n for n, p in module.named_parameters() if p.grad is None]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


def test_dtype_of_the_module():
    module = like.water_like()
    fast = accelerate(module)
    single = fast(inputs())["CACE_energy"]
    fast.double()
    double = fast(inputs(torch.float64))["CACE_energy"]
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-4)


def test_refresh_after_a_change_of_settings():
    module = like.water_like(weight=1.0)
    fast = accelerate(module)
    before = fast(inputs())["CACE_energy"]
    module.potential_keys[1]["weight"] = 0.0
    torch.testing.assert_close(fast(inputs())["CACE_energy"], before)
    fast.refresh()
    assert not torch.allclose(fast(inputs())["CACE_energy"], before)


def test_attributes_of_the_module_are_at_hand():
    fast = accelerate(like.water_like())
    assert fast.models[0].representation.cutoff == CUTOFF
    assert fast.potential_keys[0]["CACE_energy"] == "CACE_energy"
    with pytest.raises(AttributeError):
        _ = fast.nonsense


@pytest.mark.parametrize(
    ("preprocess", "calc_stress", "compute_stress", "present"),
    [
        (True, True, None, True),  # a single potential computes stress by default
        (True, True, False, True),  # and always when it declares the key "stress"
        (False, True, None, False),  # never without a Preprocess module
        (True, False, True, False),  # never when the file did not ask for it
    ],
)
def test_stress_follows_upstream(preprocess, calc_stress, compute_stress, present):
    rep = like.representation()
    read = like.atomwise(like.Numbers(1), like.n_features(rep))
    module = like.potential(rep, read, like.forces(calc_stress=calc_stress), preprocess=preprocess)
    if calc_stress:
        module.model_outputs = ["CACE_energy", "CACE_forces", "stress"]
    options = {} if compute_stress is None else {"compute_stress": compute_stress}
    data = dictionary(frames()[:1], CUTOFF, torch.float32)
    out = accelerate(module)(data, **options)
    assert ("stress" in out) == present
    if present:
        assert out["stress"].shape == (1, 3, 3)


def test_several_energies_and_output_index():
    rep = like.representation()
    read = like.atomwise(like.Numbers(1), like.n_features(rep), n_out=2)
    fast = accelerate(like.potential(rep, read, like.forces()).double())
    data = inputs(torch.float64)
    both, second = fast(data), fast(data, output_index=1)
    assert both["CACE_energy"].shape == (2, 2)
    assert both["CACE_forces"].shape == (7, 3, 2)
    torch.testing.assert_close(second["CACE_energy"], both["CACE_energy"][:, 1])
    torch.testing.assert_close(second["CACE_forces"], both["CACE_forces"][..., 1])


def test_foreign_modules_are_refused():
    with pytest.raises(UnsupportedModelError, match="Linear"):
        accelerate(torch.nn.Linear(2, 2))
    module = like.water_like()
    module.models[0].output_modules.append(like.make("cace.modules.metal_wall.MetalWall"))
    with pytest.raises(UnsupportedModelError, match="MetalWall"):
        accelerate(module)


def born_charge_module():
    rep = like.representation()
    n_in = like.n_features(rep)
    charges = like.atomwise(like.Numbers(2), n_in, "tot_q", per_atom_output_key="q")
    energy = like.atomwise(like.Numbers(1), n_in)
    pieces = [
        like.make("cace.modules.dipole.Polarization", charge_key="q", output_key="P",
                  phase_key="phase", remove_mean=True, pbc=True, output_index=None,
                  normalization_factor=1.0 / 9.48933),
        like.make("cace.modules.grad.Grad", y_key="P", x_key="positions", output_key="dP"),
        like.make("cace.modules.dipole.Dephase", input_key="dP", phase_key="phase",
                  output_key="bec"),
    ]  # fmt: skip
    module = like.potential(rep, energy, charges, like.ewald(), *pieces, like.forces())
    module.model_outputs = ["CACE_energy", "CACE_forces", "bec", "P"]
    return module.double()


def test_polarisation_modules_give_the_born_charges_of_the_potential(tmp_path):
    """Also in triclinic cells; the formula of the modules holds for orthogonal cells only."""
    module = born_charge_module()
    out = accelerate(module)(dictionary(frames()[:1], CUTOFF))
    assert out["bec"].shape == (4, 3, 3)
    assert out["P"].is_complex()
    like.save(module.float(), tmp_path / "model.pth")
    potential = load(tmp_path / "model.pth", dtype="float64")
    from cace_fast import Potential

    with_charges = Potential(
        potential.spec,
        potential.weights,
        dtype="float64",
        energy_key="ewald_potential",
        born_charges="dephased",
    )
    want = with_charges.compute(frames()[0], ("bec",))["bec"]
    np.testing.assert_allclose(out["bec"].detach(), want, rtol=1e-5, atol=1e-6)


def test_polarisation_of_molecules():
    module = born_charge_module()
    molecule = tiny_structure(load_spec(), pbc=False)
    out = accelerate(module)(dictionary([molecule], CUTOFF))
    q = 0.1053816 * out["bec"].sum(0)
    np.testing.assert_allclose(q.detach(), 0.0, atol=1e-9)  # the mean charge was removed
    assert not out["P"].is_complex()


def load_spec():
    from cace_fast import checkpoint

    return checkpoint.from_module(born_charge_module())[0]
