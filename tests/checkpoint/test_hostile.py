"""Files made to harm: no code runs, nothing hangs, memory stays bounded, the error is typed."""

from __future__ import annotations

import builtins
import functools
import importlib
import operator
import os
import pickle
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
from support import archives as a

from cace_fast import checkpoint
from cace_fast.checkpoint.reader import read_contents
from cace_fast.checkpoint.unpickler import _OPCODES
from cace_fast.errors import CheckpointError, UnsupportedModelError


class Call:
    """Pickles as a call of a function."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args

    def __call__(self):
        """Only to pass for a function when a call of a call is pickled."""


def gadgets(canary: str) -> dict[str, Call]:
    """Return calls that leave ``canary`` behind when anything performs them."""
    touch = f"open({canary!r}, 'w').close()"
    shell = f"touch {canary}"
    inner = pickle.dumps(Call(os.system, shell), 2)
    return {
        "os.system": Call(os.system, shell),
        "os.popen": Call(os.popen, shell),
        "os.mkdir": Call(os.mkdir, canary),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", canary]),
        "subprocess.check_output": Call(subprocess.check_output, ["touch", canary]),
        "eval": Call(eval, touch),
        "exec": Call(exec, touch),
        "open": Call(open, canary, "w"),
        "pathlib.touch": Call(Path.touch, Path(canary)),
        "pickle.loads": Call(pickle.loads, inner),
        "torch.load": Call(torch.load, canary),
        "torch.save": Call(torch.save, 1, canary),
        "storage._load_from_bytes": Call(torch.storage._load_from_bytes, inner),
        "getattr(builtins, 'eval')": Call(Call(getattr, builtins_stub(), "eval"), touch),
        "functools.partial": Call(functools.partial, os.system, shell),
        "operator.methodcaller": Call(operator.methodcaller, "system", shell),
        "operator.attrgetter": Call(operator.attrgetter, "system"),
        "importlib.import_module": Call(importlib.import_module, "antigravity"),
        "builtins.__import__": Call(builtins.__import__, "this"),
        "shutil.copy": Call(shutil.copy, __file__, canary),
        "map": Call(list, Call(map, os.system, [shell])),
    }


def builtins_stub():
    return Call(__import__, "builtins")


GADGETS = sorted(gadgets("x"))


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "code of the file was run"


def refused(path, match=None):
    """Read a file that has to be refused, and return the message."""
    with pytest.raises((CheckpointError, UnsupportedModelError), match=match) as caught:
        checkpoint.read(path)
    return str(caught.value)


def test_the_gadgets_work_where_nobody_is_careful(tmp_path):
    """Without this the tests below could pass because the gadgets are harmless."""
    for name in ("os.system", "eval", "pickle.loads", "os.mkdir", "shutil.copy"):
        victim = tmp_path / name.replace(".", "_")
        pickle.loads(pickle.dumps(gadgets(str(victim))[name], 2))
        assert victim.exists(), name


WRAPPINGS = {
    "at the top": lambda gadget: gadget,
    "in a list": lambda gadget: [1, gadget],
    "as a value": lambda gadget: {"model_state_dict": gadget},
    "in a tuple in a dict": lambda gadget: {"a": [({"b": gadget},)]},
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("gadget", GADGETS)
def test_calls_are_refused_in_every_protocol(tmp_path, canary, gadget, protocol):
    for wrap in WRAPPINGS.values():
        data = pickle.dumps(wrap(gadgets(str(canary))[gadget]), protocol)
        message = refused(a.write_archive(tmp_path / "m.pth", data))
        if protocol == 2:
            assert "which is not part of a CACE model" in message or "nothing is called" in message
        # the same instructions behind the header of protocol 2
        body = data[2:] if protocol >= 2 else data
        refused(a.write_archive(tmp_path / "m.pth", a.PROTO + body))
        # and as a bare pickle
        (tmp_path / "bare.pth").write_bytes(data)
        refused(tmp_path / "bare.pth")


@pytest.mark.parametrize("gadget", ["os.system", "eval", "getattr(builtins, 'eval')"])
def test_calls_inside_a_model_are_refused(tmp_path, canary, gadget):
    call = pickle.dumps(gadgets(str(canary))[gadget], 2)[2:-1]
    cls = "cace.modules.forces.Forces"
    places = {
        "attribute": a.record(cls, a.text("calc_forces") + call),
        "state": a.named(cls) + b")\x81" + call + b"b",
        "key": b"}" + call + b"Ns",
        "hooks": a.tensor()[:-2] + call + b"tR",
        "storage type": b"(" + a.text("storage") + call + a.text("0") + a.text("cpu") + b"K\x06tQ",
        "persistent id": call + b"Q",
        "tensor": a.named("torch._utils._rebuild_tensor_v2") + call + b"R",
        "dtype": a.named("numpy.dtype") + b"(" + call + b"\x89\x88tR",
        "size": a.named("torch.Size") + call + b"\x85R",
        "argument of a set": a.named("__builtin__.set") + b"](" + call + b"e\x85R",
        "parameter": a.named("torch._utils._rebuild_parameter") + b"(" + call + b"\x88NtR",
        "getattr": a.named("__builtin__.getattr") + call + a.text("x") + b"\x86R",
        "type tag": a.named("torch.jit._pickle.restore_type_tag") + call + a.text("x") + b"\x86R",
    }
    for place, body in places.items():
        path = a.write_archive(tmp_path / "m.pth", a.whole(body), {"0": bytes(24)})
        assert "which is not part of" in refused(path), place


HANDWRITTEN = {
    "INST": b"(" + a.text("touch x") + b"ios\nsystem\n",
    "OBJ": b"(" + a.named("os.system") + a.text("touch x") + b"o",
    "NEWOBJ": a.named("os.system") + a.text("touch x") + b"\x85\x81",
    "NEWOBJ of subprocess.Popen": a.named("subprocess.Popen") + a.text("touch x") + b"\x85\x81",
    "NEWOBJ_EX": a.named("os.system") + a.text("touch x") + b"\x85}\x92",
    "STACK_GLOBAL": a.text("os") + a.text("system") + b"\x93",
    "EXT1": b"\x82\x01",
    "EXT2": b"\x83\x01\x00",
    "EXT4": b"\x84\x01\x00\x00\x00",
    "PERSID": b"Pos.system\n",
    "BUILD of a global": a.named("torch.nn.functional.silu") + b"}b",
    "BUILD with __setstate__": a.named("cace.modules.forces.Forces") + b"}b",
    "BUILD of a class": a.named("torch.nn.modules.linear.Linear") + b"}(" + a.text("__init__")
    + b"Nub",
    "BUILD of slots": a.record("cace.modules.forces.Forces")[:-4] + b"N}\x86b",
    "getattr of getattr": a.named("__builtin__.getattr") + a.named("__builtin__.getattr")
    + a.record("cace.modules.forces.Forces") + a.text("__class__") + b"\x86R"
    + a.text("__init__") + b"\x86R",
    "getattr of a text": a.named("__builtin__.getattr") + a.text("x") + a.text("join") + b"\x86R",
    "getattr of a number": a.named("__builtin__.getattr") + b"K\x01" + a.text("real") + b"\x86R",
    "call of a getattr": a.named("__builtin__.getattr") + a.record("cace.modules.forces.Forces")
    + a.text("__class__") + b"\x86R)R",
    "call of a record": a.record("cace.modules.forces.Forces") + b")R",
    "call of an activation": a.named("torch.nn.functional.silu") + b"N\x85R",
    "call of torch.tanh": a.named("__builtin__.getattr")
    + a.named("torch._C._VariableFunctionsClass") + a.text("from_file") + b"\x86R"
    + a.text("/etc/passwd") + b"\x85R",
    "user's function": a.named("__main__.post_process"),
    "dotted name": b"ctorch.nn.functional\nsilu.__globals__\n",
    "builtin": a.named("builtins.eval"),
    "private torch": a.named("torch._utils._rebuild_wrapper_subclass"),
    "torch.jit": a.named("torch.jit._pickle.build_tensor_from_id"),
}  # fmt: skip


@pytest.mark.parametrize("name", HANDWRITTEN)
def test_handwritten_calls_are_refused(tmp_path, name):
    path = a.write_archive(tmp_path / "m.pth", a.whole(HANDWRITTEN[name]), {"0": bytes(24)})
    message = refused(path)
    assert "model/data.pkl, byte " in message


def test_every_other_instruction_is_refused_by_name(tmp_path):
    names = {getattr(pickle, name): name for name in pickle.__all__ if name.isupper()}
    for value in range(256):
        code = bytes([value])
        if code in _OPCODES:
            continue
        path = a.write_archive(tmp_path / "m.pth", a.whole(b"NNN" + code))
        message = refused(path, match="no model file needs this instruction")
        assert f"byte 5, {names.get(code, f'0x{value:02x}')}: " in message


@pytest.mark.parametrize("place", ["data/0", "constants.pkl", "code/x.py", "version"])
def test_pickles_in_other_entries_are_never_read(tmp_path, canary, place):
    evil = pickle.dumps(gadgets(str(canary))["os.system"], 2)
    evil += bytes(-len(evil) % 4)
    with zipfile.ZipFile(tmp_path / "m.pth", "w") as archive:
        archive.writestr("m/data.pkl", a.whole(a.tensor(
            a.storage(n_elements=len(evil) // 4), size=(2,), stride=(1,))))  # fmt: skip
        if place != "data/0":
            archive.writestr("m/data/0", evil)
        archive.writestr(f"m/{place}", evil)
    assert read_contents(tmp_path / "m.pth").root.shape == (2,)
