"""TorchScript archives and scripted modules in memory."""

from __future__ import annotations

import zipfile
from dataclasses import replace

import pytest
import torch
from support import upstream_like as u
from support.script_like import save_script

from cace_fast import checkpoint
from cace_fast.errors import UnsupportedModelError
from cace_fast.spec import Provenance


def filled(model):
    """Put a scriptable module into the places that are None, as scripted models have it."""
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList):
            for k, part in enumerate(module):
                if part is None:
                    module[k] = torch.nn.Identity()
    return model


@pytest.mark.parametrize("empty", [filled, lambda model: model], ids=["Identity", "None"])
@pytest.mark.parametrize("steps", [(), [("M", "Ar", "B")], [("Bcl",), ("M",)]], ids=str)
def test_archives_hold_the_same_model(tmp_path, steps, empty):
    model = u.water_like(steps=steps, weight=0.02, l_max=3, nu_max=3)
    expected, expected_tensors = checkpoint.from_module(model)
    save_script(empty(model), tmp_path / "scripted.pt")
    spec, tensors = checkpoint.read(tmp_path / "scripted.pt")
    assert replace(spec, provenance=Provenance()) == expected
    assert tensors.keys() == expected_tensors.keys()
    for name, tensor in expected_tensors.items():
        assert torch.equal(tensors[name], tensor), name


def test_weights_are_text_and_names_are_mangled_there(tmp_path):
    save_script(u.water_like(weight=0.02), tmp_path / "scripted.pt")
    with zipfile.ZipFile(tmp_path / "scripted.pt") as archive:
        data = archive.read("scripted/data.pkl")
    assert b"0.02" in data
    assert data.count(b"___torch_mangle_") > 10


@pytest.mark.parametrize(("code", "name"), [
    ("__torch__.torch.nn.functional.silu", "silu"), ("torch.silu", "silu"), ("torch.tanh", "tanh"),
    ("__torch__.torch.nn.functional.relu", "relu"), ("torch.sigmoid", "sigmoid"),
])  # fmt: skip
def test_activations_stand_in_the_source_text(tmp_path, code, name):
    save_script(u.water_like(), tmp_path / "scripted.pt", code)
    spec, _ = checkpoint.read(tmp_path / "scripted.pt")
    assert spec.submodels[0].modules[0].mlp.activation == name


@pytest.mark.parametrize("code", ["torch.gelu", "torch.cos", "torch.silu(torch.tanh", "", "silu"])
def test_activations_that_the_text_does_not_tell(tmp_path, code):
    save_script(u.water_like(), tmp_path / "scripted.pt", code)
    with pytest.raises(UnsupportedModelError, match="source text does not name one activation"):
        checkpoint.read(tmp_path / "scripted.pt")


def test_a_text_without_the_class(tmp_path):
    save_script(u.water_like(), tmp_path / "scripted.pt")
    with zipfile.ZipFile(tmp_path / "scripted.pt") as old:
        entries = {i.filename: old.read(i) for i in old.infolist() if "/code/" not in i.filename}
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as new:
        for name, raw in entries.items():
            new.writestr(name, raw)
    with pytest.raises(UnsupportedModelError, match="source text does not name one activation"):
        checkpoint.read(tmp_path / "other.pt")


# -- scripted by torch itself ----------------------------------------------------------------------


class Linear(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.embedding_weights = weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.embedding_weights


class Weighted(torch.nn.Module):
    def __init__(self, **tensors: torch.Tensor):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Mixing(torch.nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Hidden(torch.nn.Module):
    def __init__(self, dense):
        super().__init__()
        self.linear = dense.linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(self.linear(x))


class Last(torch.nn.Module):
    def __init__(self, dense):
        super().__init__()
        self.linear = dense.linear
        self.activation = torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.linear(x))


class Descriptor(torch.nn.Module):
    def __init__(self, rep):
        super().__init__()
        self.cutoff, self.max_nu, self.zs = rep.cutoff, rep.max_nu, rep.zs
        self.mp_norm_factor = rep.mp_norm_factor
        self.node_onehot = named(Weighted(index_map=rep.node_onehot.index_map), rep.node_onehot)
        sender, receiver = rep.node_embedding_sender, rep.node_embedding_receiver
        self.node_embedding_sender = named(Linear(sender.embedding_weights), sender)
        self.node_embedding_receiver = named(Linear(receiver.embedding_weights), receiver)
        radial = {**rep.radial_basis._buffers, "bessel_weights": rep.radial_basis.bessel_weights}
        self.radial_basis = named(
            Weighted(**{name: tensor.detach() for name, tensor in radial.items()}), rep.radial_basis
        )
        self.cutoff_fn = named(Weighted(**rep.cutoff_fn._buffers), rep.cutoff_fn)
        self.radial_transform = named(Mixing(rep.radial_transform.weights), rep.radial_transform)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.node_embedding_sender(x) * self.cutoff


class Atomwise(torch.nn.Module):
    def __init__(self, readout):
        super().__init__()
        for name in ("output_key", "add_linear_nn", "feature_key", "aggregation_mode"):
            setattr(self, name, getattr(readout, name))
        *hidden, last = readout.outnet
        layers = [named(Hidden(layer), layer) for layer in hidden] + [named(Last(last), last)]
        self.outnet = torch.nn.Sequential(*layers)
        self.linear_nn = named(Last(readout.linear_nn), readout.linear_nn)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outnet(x) + self.linear_nn(x)


class Potential(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        rep, readout = model.representation, model.output_modules[0]
        self.representation = named(Descriptor(rep), rep)
        self.input_modules = torch.nn.ModuleList()
        self.output_modules = torch.nn.ModuleList([named(Atomwise(readout), readout)])
        self.model_outputs = ["CACE_energy"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.representation(x)
        for module in self.output_modules:
            x = module(x)
        return x


def named(module, after):
    """Give a scriptable module the class name of a stand-in."""
    cls = type(after)
    base = type(module)
    module.__class__ = type(cls.__name__, (base,), {
        "__module__": cls.__module__, "__qualname__": cls.__qualname__})  # fmt: skip
    return module


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_modules_that_torch_scripted(tmp_path):
    rep = u.representation(elements=(8, 1), l_max=1, nu_max=2)
    model = u.potential(rep, u.atomwise(u.Numbers(), u.n_features(rep)))
    model.model_outputs = ["CACE_energy"]
    rep.num_message_passing = 0
    expected, expected_tensors = checkpoint.from_module(model)
    with u.importable():
        script = torch.jit.script(named(Potential(model), model))
    spec, tensors = checkpoint.from_module(script)
    assert spec == expected
    script.save(tmp_path / "m.pt")
    loaded, loaded_tensors = checkpoint.from_module(torch.jit.load(tmp_path / "m.pt"))
    filed, filed_tensors = checkpoint.read(tmp_path / "m.pt")
    assert loaded == replace(filed, provenance=Provenance()) == expected
    for name, tensor in expected_tensors.items():
        assert torch.equal(tensors[name], tensor), name
        assert torch.equal(loaded_tensors[name], tensor), name
        assert torch.equal(filed_tensors[name], tensor), name
    weight = model.output_modules[0].linear_nn.linear.weight
    assert tensors["outputs.0.0.linear.weight"].data_ptr() == weight.data_ptr()
