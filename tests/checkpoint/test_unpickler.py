"""Results of the opcode loop for honest files, and its messages about broken ones."""

from __future__ import annotations

import math
import pickle
import random
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from support import archives as a
from support.upstream_like import Numbers, importable, make, representation, save, water_like

from cace_fast.checkpoint.reader import read_contents
from cace_fast.checkpoint.records import Attribute, Global, Record
from cace_fast.checkpoint.unpickler import _OPCODES
from cace_fast.errors import CheckpointError


def saved(value, path, **options):
    torch.save(value, path, **options)
    return read_contents(path).root


def from_pickle(tmp_path, body, storages=None):
    return read_contents(a.write_archive(tmp_path / "m.pth", a.whole(body), storages)).root


def test_plain_data_comes_back_with_types(tmp_path):
    value = {
        "numbers": [0, 255, 256, 65535, 65536, -1, 2**31, -(2**40), 2**62, 0.1, -math.inf],
        "texts": ("", "q", "é\u4e00\U0001f600", "a" * 70_000),
        "flags": [True, False, None],
        "tuples": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "keys": {(1, 0, 0): "x", (1, (2, 3)): "y", 5: "z", 1.5: "f", None: "n"},
        "set": {"a", "b"},
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
        "bytes": b"\x00\xff",
        "size": torch.Size([2, 3]),
    }
    got = saved(value, tmp_path / "m.pth")
    assert got == value
    assert list(got["ordered"]) == ["b", "a"]
    assert type(got["ordered"]) is OrderedDict
    assert [type(x) for x in got["numbers"]] == [type(x) for x in value["numbers"]]


@pytest.mark.parametrize("scalar", [
    np.int64(-7), np.int32(8), np.uint8(200), np.int16(-3), np.float64(0.1), np.float32(0.5),
    np.bool_(True), np.bool_(False),
], ids=lambda s: f"{s.dtype}")  # fmt: skip
def test_numpy_scalars_become_python_numbers(tmp_path, scalar):
    got = saved([scalar], tmp_path / "m.pth")[0]
    assert type(got) is type(scalar.item())
    assert got == scalar.item()


def test_numpy_2_names_are_read_too(tmp_path):
    old = pickle.dumps([np.int64(7)], protocol=2)
    for module in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        data = old.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
        data = data.replace(b"numpy.core.multiarray", module)
        assert read_contents(a.write_archive(tmp_path / "m.pth", data)).root == [7]


@pytest.mark.parametrize("dtype", [
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.bool,
], ids=str)  # fmt: skip
def test_every_dtype(tmp_path, dtype):
    value = (torch.arange(12).reshape(3, 4) % 5).to(dtype)
    got = saved(value, tmp_path / "m.pth")
    assert got.dtype == dtype
    assert torch.equal(got, value)


VIEWS = {
    "whole": lambda t: t[:],
    "transposed": lambda t: t.T,
    "rows": lambda t: t[1:],
    "strided": lambda t: t[:, ::2],
    "scalar": lambda t: t[1, 2],
    "empty": lambda t: t[2:2],
    "expanded": lambda t: t[0].expand(5, 4),
    "column": lambda t: t[:, :1],
    "ones": lambda t: t[None, :, None],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_of_a_storage_become_contiguous_copies(tmp_path, view):
    whole = torch.arange(12.0).reshape(3, 4)
    got, base = saved([view(whole), whole], tmp_path / "m.pth")
    assert torch.equal(got, view(whole))
    assert got.is_contiguous()
    if got.numel():
        got.fill_(-1.0)
    assert torch.equal(base, whole), "two tensors share memory"


def test_parameters_and_sharing_survive(tmp_path):
    tied = torch.nn.Parameter(torch.ones(3))
    fixed = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    got = saved({"a": tied, "b": tied, "c": fixed, "d": torch.ones(1)}, tmp_path / "m.pth")
    assert got["a"] is got["b"]
    assert isinstance(got["a"], torch.nn.Parameter)
    assert got["a"].requires_grad
    assert isinstance(got["c"], torch.nn.Parameter)
    assert not got["c"].requires_grad
    assert not isinstance(got["d"], torch.nn.Parameter)


def test_modules_become_inert_records_with_identity(tmp_path):
    model = water_like(steps=[("M", "Ar", "B")], shared_embedding=True)
    save(model, tmp_path / "m.pth")
    root = read_contents(tmp_path / "m.pth").root
    assert isinstance(root, Record)
    assert root.path == "cace.models.combined.CombinePotential"
    assert root.state["operation"] == Attribute(
        Global("cace.models.combined", "CombinePotential"), "default_operation"
    )
    models = root.state["_modules"]["models"].state["_modules"]
    first, second = (models[k].state["_modules"]["representation"] for k in "01")
    assert first is second
    parts = first.state["_modules"]
    assert parts["node_embedding_sender"] is parts["node_embedding_receiver"]
    weights = parts["node_embedding_sender"].state["_parameters"]["embedding_weights"]
    original = model.models[0].representation.node_embedding_sender.embedding_weights
    assert torch.equal(weights, original)
    assert first.state["device"].path == "torch.device"
    assert repr(root) == "<record of cace.models.combined.CombinePotential>"


def test_activations_are_kept_as_names(tmp_path):
    functional = torch.nn.functional
    got = saved([functional.silu, functional.gelu, torch.tanh], tmp_path / "m.pth")
    assert got[:2] == [Global("torch.nn.functional", "silu"), Global("torch._C._nn", "gelu")]
    assert got[2] == Attribute(Global("torch._C", "_VariableFunctionsClass"), "tanh")


def test_reading_leaves_random_numbers_and_modules_alone(tmp_path):
    save(representation(), tmp_path / "m.pth")
    state, torch_state, modules = random.getstate(), torch.get_rng_state(), set(sys.modules)
    read_contents(tmp_path / "m.pth")
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert set(sys.modules) == modules


def test_state_dicts_with_optimizer(tmp_path):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(3)).sum().backward()
    optimizer.step()
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    got = saved(
        {"m": layer.state_dict(), "o": optimizer.state_dict(), "s": steps.state_dict()},
        tmp_path / "m.pt",
    )
    assert torch.equal(got["m"]["weight"], layer.weight)
    assert torch.equal(
        got["o"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"]
    )
    assert got["s"]["milestones"] == {3: 1, 5: 1}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchscript_data(tmp_path):
    class Scripted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 2)
            self.integers, self.floats, self.flags = [1, 2], [0.5], [True]
            self.table = {"a": "0.01"}

        def forward(self, x):
            return self.linear(x)

    script = torch.jit.script(Scripted())
    script.save(tmp_path / "m.pt")
    contents = read_contents(tmp_path / "m.pt")
    state = contents.root.state
    assert (state["integers"], state["floats"], state["flags"]) == ([1, 2], [0.5], [True])
    assert state["table"] == {"a": "0.01"}
    assert torch.equal(state["linear"].state["weight"], script.linear.weight)
    assert any("class Scripted" in text for text in contents.code.values())


def test_the_instructions_are_those_of_the_specification():
    listed = (
        "GLOBAL BINPUT LONG_BINPUT BINGET LONG_BINGET EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 MARK "
        "EMPTY_DICT EMPTY_LIST SETITEM SETITEMS APPEND APPENDS BINUNICODE BININT BININT1 BININT2 "
        "BINFLOAT NONE NEWTRUE NEWFALSE NEWOBJ REDUCE BUILD BINPERSID STOP"
    )
    # LONG1: state dicts of optimisers and TorchScript write whole numbers beyond 32 bits
    assert {name for name, _ in _OPCODES.values()} == {*listed.split(), "LONG1"}
    assert all(getattr(pickle, name) == code for code, (name, _) in _OPCODES.items())


BROKEN = {
    "empty stack": (b"a", "APPEND: an instruction takes a value from an empty stack"),
    "append to a dict": (b"}Na", "APPEND: appending needs a list but finds a dict of 0"),
    "set in a list": (b"]NNs", "SETITEM: setting entries needs a dict but finds a list of 0"),
    "odd entries": (b"}(Nu", "SETITEMS: dictionary entries come as an odd number"),
    "no mark": (b"]e", "APPENDS: an instruction looks for a mark"),
    "below the mark": (b"]N(a", "APPEND: an instruction takes a value from an empty stack"),
    "short tuple": (b"N\x87", "TUPLE3: a tuple of 3 finds only 1 values"),
    "never remembered": (b"h\x07", "BINGET: value number 7 is recalled"),
    "put nothing": (b"q\x00", "BINPUT: an instruction remembers a value from an empty stack"),
    "state to nothing": (b"Nb", "BUILD: a state is given to nothing"),
    "state to a list": (b"]}b", "BUILD: the file gives a state to a list of 0"),
    "two states": (
        a.record("cace.modules.forces.Forces") + b"}b",
        "BUILD: the file gives the state of cace.modules.forces.Forces twice",
    ),
    "state of numbers": (
        a.named("cace.modules.forces.Forces") + b")\x81}K\x01Nsb",
        "BUILD: the state of cace.modules.forces.Forces is not a dictionary of named",
    ),
    "two results": (b"NN", "STOP: the pickle ends with unfinished objects"),
    "open mark": (b"(N", "STOP: the pickle ends with unfinished objects"),
    "invalid utf-8": (b"X\x02\0\0\0\xff\xfe", "BINUNICODE: a text is not valid UTF-8"),
    "long text": (b"X\xff\xff\xff\xffabc", "BINUNICODE: a text claims to be 4294967295 bytes"),
    "cut number": (b"G\0\0", "BINFLOAT: the pickle ends in the middle"),
    "unnamed": (b"cos", "GLOBAL: a name is not ended by a line break"),
    "non-ascii name": ("cé\nx\n".encode(), "GLOBAL: a name is not plain ASCII"),
    "strange name": (b"ca b\nx\n", "GLOBAL: the file names 'a b' 'x', which is not a Python name"),
    "list as key": (b"}]Ns", "SETITEM: a list of 0 stands where a dictionary key belongs"),
    "set of lists": (
        a.named("__builtin__.set") + b"](]e\x85R",
        "REDUCE: a list of 0 stands where a dictionary key belongs",
    ),
    "object with arguments": (
        a.named("cace.modules.forces.Forces") + b"N\x85\x81",
        "NEWOBJ: a cace.modules.forces.Forces is made with arguments",
    ),
    "object of a function": (
        a.named("torch.nn.functional.silu") + b")\x81",
        "NEWOBJ: an object is made of torch.nn.functional.silu, which is no class",
    ),
    "call of a class": (
        a.named("cace.modules.forces.Forces") + b")R",
        "REDUCE: the file calls cace.modules.forces.Forces; nothing is called",
    ),
    "call without tuple": (
        a.named("collections.OrderedDict") + b"NR",
        "REDUCE: a call of collections.OrderedDict has no argument tuple",
    ),
    "big-endian number": (
        a.named("numpy.core.multiarray.scalar") + a.named("numpy.dtype") + a.text("i8")
        + b"\x89\x88\x87R(" + a.number(3) + a.text(">") + b"tb" + a.named("_codecs.encode")
        + a.text("\0" * 8) + a.text("latin1") + b"\x86R\x86R",
        "REDUCE: a numpy number of type 'i8', byte order '>'",
    ),
    "short number": (
        a.named("numpy.core.multiarray.scalar") + a.named("numpy.dtype") + a.text("i8")
        + b"\x89\x88\x87R(" + a.number(3) + a.text("<") + b"tb" + a.named("_codecs.encode")
        + a.text("\0" * 7) + a.text("latin1") + b"\x86R\x86R",
        "REDUCE: a numpy number of type i8 has 7 bytes",
    ),
    "dtype of a dict": (
        a.named("numpy.dtype") + a.text("i8") + b"\x85R}b",
        "BUILD: the state of a numpy dtype is not a tuple",
    ),
    "ordered dict of a list": (
        a.named("collections.OrderedDict") + b"]\x85R",
        "REDUCE: an OrderedDict is made with arguments",
    ),
    "set of a text": (
        a.named("__builtin__.set") + a.text("x") + b"\x85R",
        "REDUCE: expected one list as the only argument",
    ),
    "parameter of a number": (
        a.named("torch._utils._rebuild_parameter") + b"K\x01\x88N\x87R",
        "REDUCE: a parameter is not made of a tensor, a truth value and hooks",
    ),
    "type tag alone": (
        a.named("torch.jit._pickle.restore_type_tag") + b"N\x85R",
        "REDUCE: a type tag does not come with one value and one type",
    ),
    "bytes beyond latin-1": (
        a.named("_codecs.encode") + a.text("\u4e00") + a.text("latin1") + b"\x86R",
        "REDUCE: bytes are written as text that is not latin-1",
    ),
    "bytes of another code": (
        a.named("_codecs.encode") + a.text("x") + a.text("rot13") + b"\x86R",
        "REDUCE: bytes are not written as latin-1 text",
    ),
    "tensor of nothing": (
        a.named("torch._utils._rebuild_tensor_v2") + b")R",
        "REDUCE: a tensor has 0 arguments instead of 6 or 7",
    ),
    "object number": (
        a.named("numpy.core.multiarray.scalar") + a.named("numpy.dtype") + a.text("O8")
        + b"\x89\x88\x87R(" + a.number(3) + a.text("|") + b"tb" + b"N\x86R",
        "REDUCE: a numpy number is not made of a dtype and bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pickles_say_what_and_where(tmp_path, name):
    body, message = BROKEN[name]
    path = a.write_archive(tmp_path / "m.pth", a.whole(body))
    with pytest.raises(CheckpointError) as caught:
        read_contents(path)
    text = str(caught.value)
    assert message in text
    assert text.startswith(f"{path}: model/data.pkl, byte ")


def test_the_byte_in_the_message_is_that_of_the_instruction(tmp_path):
    with pytest.raises(CheckpointError, match=r"data\.pkl, byte 4, APPEND: "):
        from_pickle(tmp_path, b"NN" + b"a")


def test_bytes_after_the_end_are_refused(tmp_path):
    path = a.write_archive(tmp_path / "m.pth", a.whole(b"N") + b"more")
    with pytest.raises(CheckpointError, match="4 bytes follow the end of the pickle"):
        read_contents(path)


@pytest.mark.parametrize("protocol", [0, 1, 3, 4, 5])
def test_other_protocols_are_refused(tmp_path, protocol):
    path = a.write_archive(tmp_path / "m.pth", pickle.dumps({"a": 1}, protocol=protocol))
    with pytest.raises(CheckpointError, match="not a pickle of protocol 2"):
        read_contents(path)


def test_stand_ins_pickle_as_upstream(tmp_path):
    """The stand-ins' pickles use the globals of real files, so tests on them mean something."""
    with importable():
        data = pickle.dumps(
            make("cace.modules.forces.Forces", parameters={"w": Numbers()(2)}), protocol=2
        )
    assert b"ccace.modules.forces\nForces\n" in data
    assert b"ctorch._utils\n_rebuild_parameter\n" in data
