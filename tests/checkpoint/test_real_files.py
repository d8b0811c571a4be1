"""Every published checkpoint at hand: the result equals the summary recorded beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.paths import NO_SHARED, upstream_checkpoints

from cace_fast import checkpoint
from cace_fast.checkpoint.reader import read_contents
from cace_fast.spec import Add, Ewald, Forces, Provenance, Readout
from cace_fast.weights import expected_shapes, load, save

FOLDERS = upstream_checkpoints()
pytestmark = pytest.mark.skipif(not FOLDERS, reason=NO_SHARED)
every = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def summary(folder: Path) -> dict:
    return json.loads((folder / "meta.json").read_text())["model"]


@every
def test_representation(folder):
    spec, tensors = checkpoint.read(folder / "model.pth")
    rep, want = spec.representation, summary(folder)["representation"]
    assert list(rep.elements) == want["elements"]
    assert rep.n_embedding == want["n_atom_basis"]
    assert rep.n_channels == want["n_edge_channels"]
    assert rep.shared_embedding != want["separate_receiver_embedding"]
    assert rep.cutoff == want["cutoff"]
    assert want["cutoff_fn"].lower() == f"{rep.cutoff_function.kind}cutoff"
    assert rep.cutoff_function.p == want["cutoff_fn_p"]
    assert rep.cutoff_function.cutoff == want["cutoff_fn_cutoff"]
    assert want["radial_basis"].lower() == f"{rep.radial.kind}rbf"
    assert rep.radial.n_rbf == want["n_rbf"]
    assert (rep.n_radial, rep.l_max, rep.nu_max) == (
        want["n_radial"], want["l_max"], want["nu_max"])  # fmt: skip
    assert rep.mp_norm_factor == want["mp_norm_factor"]
    assert list(rep.forward_features) == want["forward_features"]
    assert len(rep.steps) == want["num_message_passing"]
    for t, (step, parts) in enumerate(zip(rep.steps, want["message_passing"], strict=True)):
        types = [part["type"] for part in parts if part]
        assert (step.memory, step.ar) == ("NodeMemory" in types, "MessageAr" in types)
        (bchi,) = (part for part in parts if part and part["type"] == "MessageBchi")
        assert step.bchi.shared_l == bchi["shared_l"]
        assert step.bchi.shared_channels == bchi["shared_channels"]
        shapes = [
            list(tensors[f"messages.{t}.bchi.layers.0.{n}"].shape) for n in ("weight", "bias")
        ]
        assert shapes == bchi["hnet_shapes"]


@every
def test_output_modules(folder):
    spec, tensors = checkpoint.read(folder / "model.pth")
    wanted = summary(folder).get("submodels", [])
    assert len(spec.submodels) == len(wanted)
    for s, (part, want) in enumerate(zip(spec.submodels, wanted, strict=True)):
        assert part.strain == ("Preprocess" in want["input_modules"])
        assert set(part.outputs) == set(want["model_outputs"])
        assert len(part.modules) == len(want["output_modules"])
        for m, (module, entry) in enumerate(zip(part.modules, want["output_modules"], strict=True)):
            CHECKS[entry["type"]](module, entry)
            if isinstance(module, Readout):
                prefix = f"outputs.{s}.{m}"
                layers = [n for n in tensors if n.startswith(f"{prefix}.layers.")]
                assert [list(tensors[n].shape) for n in layers] == entry["parameter_shapes"]
                linear = [n for n in tensors if n.startswith(f"{prefix}.linear.")]
                assert [list(tensors[n].shape) for n in linear] == (entry["linear_shapes"] or [])


def check_readout(module, entry):
    assert isinstance(module, Readout)
    assert (module.output_key, module.per_atom_key) == (
        entry["output_key"], entry["per_atom_output_key"])  # fmt: skip
    keys = entry["feature_key"]
    assert module.features == ((keys,) if isinstance(keys, str) else tuple(keys))
    assert module.n_out == entry["n_out"]
    assert list(module.mlp.widths[1:-1]) == entry["n_hidden"]
    assert module.mlp.activation == entry["activation"]
    assert (module.linear, module.mlp.batch_norm, module.mlp.residual) == (
        entry["add_linear_nn"], entry["use_batchnorm"], entry["residual"])  # fmt: skip


def check_ewald(module, entry):
    assert isinstance(module, Ewald)
    assert (module.aggregation, module.charge_neutral_lambda) == ("sum", None)
    for name in ("dl", "sigma", "exponent", "remove_self_interaction", "norm_factor",
                 "feature_key", "output_key", "external_field"):  # fmt: skip
        assert getattr(module, name) == entry[name], name


def check_forces(module, entry):
    assert isinstance(module, Forces)
    for name in ("calc_stress", "energy_key", "forces_key", "stress_key"):
        assert getattr(module, name) == entry[name], name


def check_add(module, entry):
    assert module == Add(tuple(entry["feature_keys"]), entry["output_key"])


CHECKS = {
    "Atomwise": check_readout,
    "EwaldPotential": check_ewald,
    "Forces": check_forces,
    "FeatureAdd": check_add,
}


@every
def test_combination(folder):
    spec, _ = checkpoint.read(folder / "model.pth")
    want = summary(folder)
    if want["model_class"] != "CombinePotential":
        assert spec.combination is None
        return
    assert list(spec.combination.names) == want["out_keys"]
    for keys, weight, entry in zip(
        spec.combination.keys, spec.combination.weights, want["potential_keys"], strict=True
    ):
        assert {**dict(keys), "weight": weight} == {"weight": 1.0, **entry} | {
            "weight": float(entry.get("weight", 1.0))
        }


@every
def test_own_format_keeps_everything(folder, tmp_path):
    spec, tensors = checkpoint.read(folder / "model.pth")
    assert {n: tuple(t.shape) for n, t in tensors.items()} == expected_shapes(spec)
    save(tmp_path / "m.safetensors", spec, tensors)
    again, weights = load(tmp_path / "m.safetensors")
    assert again == spec
    assert all(torch.equal(weights[name], tensor) for name, tensor in tensors.items())


def named_tensors(record, prefix=""):
    """Yield the state dict of a record, as torch would name it."""
    for kind in ("_parameters", "_buffers"):
        for name, tensor in record.state[kind].items():
            if tensor is not None:
                yield prefix + name, tensor.detach()
    for name, child in record.state["_modules"].items():
        if child is not None:
            yield from named_tensors(child, f"{prefix}{name}.")


def outputs_as_options(folder: Path) -> dict:
    want = summary(folder)
    options = {"activation": "silu", "mp_norm_factor": want["representation"]["mp_norm_factor"]}
    if "submodels" not in want:
        return {"max_nu": want["representation"]["nu_max"]}
    options["outputs"] = [sub["output_modules"] for sub in want["submodels"]]
    return options | (
        {"potential_keys": want["potential_keys"]} if "potential_keys" in want else {}
    )


@every
def test_the_state_dict_with_what_it_lacks_gives_the_same_model(folder, tmp_path):
    """Shapes and names have to determine everything that checkpoint.md 9 says they do."""
    spec, tensors = checkpoint.read(folder / "model.pth")
    state = dict(named_tensors(read_contents(folder / "model.pth").root))
    torch.save({"model_state_dict": state}, tmp_path / "checkpoint.pt")
    again, same = checkpoint.read(tmp_path / "checkpoint.pt", **outputs_as_options(folder))
    assert all(torch.equal(same[name], tensor) for name, tensor in tensors.items())
    assert comparable(again) == comparable(spec)


def comparable(spec):
    """Leave out what has no effect: Preprocess without stress, inputs that no read-out uses."""
    parts = [
        replace(part, strain=False, modules=tuple(
            replace(m, external_field_direction=None) if isinstance(m, Ewald) else m
            for m in part.modules))
        for part in spec.submodels
    ]  # fmt: skip
    used = {key for part in parts for m in part.modules if isinstance(m, Readout)
            for key in m.features}  # fmt: skip
    rep = spec.representation
    rep = replace(rep, forward_features=tuple(k for k in rep.forward_features if k in used))
    if not rep.steps:
        rep = replace(rep, mp_norm_factor=1.0)
    return replace(spec, provenance=Provenance(), submodels=tuple(parts), representation=rep)


def test_28_files_are_here():
    assert len(FOLDERS) == 28
