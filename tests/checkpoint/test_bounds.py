"""Files that are sound pickles but hostile models, and paths that are not files.

Each bound has a case that only this bound refuses, and most have one just within it that is read.
"""

from __future__ import annotations

import copy
import io
import json
import os
import struct
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import archives as a
from support import upstream_like as u
from support.tiny_models import tiny_spec, tiny_weights

import cace_fast
from cace_fast import checkpoint, weights
from cace_fast.checkpoint import limits
from cace_fast.checkpoint.reader import read_contents
from cace_fast.errors import CheckpointError, SpecError, UnsupportedModelError
from cace_fast.spec import MLP, MessageStep, ModelSpec, Readout, SubModel, to_json

CENTRAL = b"PK\x01\x02"


# -- archive and pickle ------------------------------------------------------------------------


def _zip(entries):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def _moved(content: bytes, offset: int) -> bytes:
    """Return an archive whose last listed entry begins elsewhere."""
    at = content.rindex(CENTRAL) + 42
    return content[:at] + struct.pack("<I", offset) + content[at + 4 :]


def test_an_entry_inside_the_data_of_another_is_refused(tmp_path):
    """An overlap: a whole entry lies in the numbers of a storage, and is listed too."""
    inner = _zip([("m/data/1", bytes(24))])[: 30 + len("m/data/1") + 24]
    body = a.whole(a.tensor(a.storage("0", n_elements=len(inner) // 4), size=(2,), stride=(1,)))
    pad = bytes(-len(inner) % 4)
    content = _zip([("m/data.pkl", body), ("m/data/0", inner + pad), ("m/data/1", bytes(24))])
    sound = tmp_path / "sound.pth"
    content = content.replace(
        struct.pack("<I", len(inner) // 4), struct.pack("<I", len(inner) // 4)
    )
    (tmp_path / "m.pth").write_bytes(_moved(content, content.index(inner)))
    sound.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"entry 'm/data/\d' overlaps another"):
        read_contents(tmp_path / "m.pth")


def test_two_entries_of_one_place_are_refused(tmp_path):
    content = _zip([("m/data.pkl", a.whole(a.text("read"))), ("m/data.pk2", b"x")])
    (tmp_path / "m.pth").write_bytes(_moved(content, 0))
    with pytest.raises(CheckpointError, match="overlaps another"):
        read_contents(tmp_path / "m.pth")


@pytest.mark.parametrize("more", [0, 1])
def test_texts_have_a_length(tmp_path, more):
    """All bytes are there: only the limit of a text refuses the longer one."""
    body = a.whole(a.text("x" * (limits.STRING_BYTES + more)))
    path = a.write_archive(tmp_path / "m.pth", body)
    if more:
        message = rf"BINUNICODE: a text claims to be {limits.STRING_BYTES + 1} bytes long"
        with pytest.raises(CheckpointError, match=message):
            read_contents(path)
    else:
        assert len(read_contents(path).root) == limits.STRING_BYTES


def test_waiting_is_not_reading(tmp_path, monkeypatch):
    """The limit is of processor time, which a busy machine or a slow disk does not change."""
    monkeypatch.setattr(limits, "SECONDS", 0.05)
    u.save(u.water_like(), tmp_path / "m.pth")
    opened = Path.open

    def slow(self, *args, **options):
        time.sleep(0.3)
        return opened(self, *args, **options)

    monkeypatch.setattr(Path, "open", slow)
    checkpoint.read(tmp_path / "m.pth")
    budget = limits.Budget(0)
    end = time.thread_time() + 0.06
    while time.thread_time() < end:
        pass
    with pytest.raises(limits.Refused, match=r"more than 0\.05 s of processor time"):
        budget.check_time()


def test_the_time_of_other_threads_does_not_count():
    budget = limits.Budget(0)
    budget._deadline = time.thread_time() + 0.2
    stop = threading.Event()

    def work():
        while not stop.is_set():
            sum(range(1000))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    time.sleep(0.5)
    stop.set()
    for worker in workers:
        worker.join()
    budget.check_time()


def test_what_is_no_file_is_not_waited_for(tmp_path):
    for name in ("pipe.pth", "pipe.safetensors"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(CheckpointError, match="a pipe or device, expected a model file"):
            cace_fast.load(tmp_path / name)
    with pytest.raises(CheckpointError, match="a pipe or device"):
        checkpoint.read(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match="a folder, expected a model file"):
        cace_fast.load(tmp_path)


@pytest.mark.parametrize("path", ["x" * 300, "a/" * 3000 + "m.pth", "a\0b.pth"])
def test_paths_that_no_system_takes(path):
    with pytest.raises(CheckpointError, match="the file cannot be read") as caught:
        cace_fast.load(path)
    assert len(str(caught.value)) < 400


# -- sizes -------------------------------------------------------------------------------------

CHILD = """
import json, resource, sys, time
import cace_fast
from cace_fast.errors import CaceFastError
start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    cace_fast.load(sys.argv[1])
    outcome = "read"
except CaceFastError as error:
    outcome = type(error).__name__ + ": " + str(error)
grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(json.dumps([outcome, grown, time.process_time() - start]))
"""


def _apart(path: Path):
    """Return outcome, growth of memory and time of loading a file in a separate process."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("n_channels", [4, 6000])
def test_radial_weights_for_all_channels_are_charged(tmp_path, n_channels):
    """Two-dimensional radial weights stand for K^2 channels each: 6000^2 of them are 1.7 GB."""
    model = u.representation(n_embedding=2)
    if n_channels > 4:
        for part in (model.node_embedding_sender, model.node_embedding_receiver):
            part.embedding_weights = torch.nn.Parameter(torch.ones(3, n_channels))
    shared = [torch.nn.Parameter(u.Numbers()(4, 3)) for _ in range(3)]
    model.radial_transform.weights = torch.nn.ParameterList(shared)
    u.save(model, tmp_path / "m.pth")
    outcome, grown, _ = _apart(tmp_path / "m.pth")
    if n_channels == 4:
        assert outcome == "read"
    else:
        assert outcome.startswith("CheckpointError")
        assert "would need more than" in outcome
        assert grown < 4 * (tmp_path / "m.pth").stat().st_size + limits.MEMORY_BASE


def _own_file(path: Path, change) -> Path:
    """Write a file of our own format whose specification was changed after it was checked."""
    spec = tiny_spec()
    weights.save(path, spec, tiny_weights(spec))
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    content = json.loads(header["__metadata__"]["cace_fast"])
    content = change(content) or content
    text = content if isinstance(content, str) else json.dumps(content)
    header["__metadata__"]["cace_fast"] = text
    head = json.dumps(header).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + raw[8 + length :])
    return path


def test_sizes_beyond_int_are_refused(tmp_path):
    """5 178 message steps without a message: sizes overflowed an int of the library."""

    def change(content):
        rep = content["model"]["representation"]
        rep |= {"n_embedding": 16, "n_radial": 90, "l_max": 6, "nu_max": 4}
        empty = {"type": "MessageStep", "memory": False, "ar": False, "bchi": None}
        rep["steps"] = [empty] * 5178
        content["model"]["submodels"][0]["modules"][0]["features"] = ["node_feats", "x"]

    outcome, _, _ = _apart(_own_file(tmp_path / "m.safetensors", change))
    assert outcome.startswith("CheckpointError")
    assert "MessageStep: expected a message: memory, ar or bchi, got none" in outcome


def test_steps_and_features_have_limits():
    rep = tiny_spec().representation
    with pytest.raises(SpecError, match="steps: expected at most 100 message steps"):
        replace(rep, steps=(MessageStep(memory=True),) * 101)
    with pytest.raises(SpecError, match="at most 1000000 features of an atom"):
        replace(rep, n_embedding=400, steps=(MessageStep(memory=True),) * 100)
    narrow = SubModel((Readout("E", MLP((5, 1)), features=("node_feats", "x")),))
    with pytest.raises(SpecError, match="inputs or more, got 5"):
        ModelSpec(rep, (narrow,))


def test_the_library_counts_by_itself():
    """C programs load files without the checks of Python, so the library checks sizes too."""
    from cace_fast.kernels.cpu.evaluator import Evaluator

    spec = tiny_spec(steps=("M",))
    arrays = {n: t.double().numpy() for n, t in tiny_weights(spec).items()}

    def made(change):
        content = json.loads(to_json(spec))
        change(content["model"]["representation"])
        Evaluator(json.dumps(content), arrays, [], [], 64)

    made(lambda rep: None)
    empty = {"type": "MessageStep", "memory": False, "ar": False, "bchi": None}
    for change, message in (
        (lambda rep: rep.update(steps=rep["steps"] * 5000), "message steps, or features"),
        (lambda rep: rep.update(n_radial=10**8), "message steps, or features"),
        (lambda rep: rep.update(steps=[empty]), "a step without a message"),
        (lambda rep: rep["radial"].update(n_rbf=-1), "n_rbf out of range"),
    ):
        with pytest.raises(cace_fast.errors.CaceFastError, match=message):
            made(change)


# -- code that upstream would run --------------------------------------------------------------


def _with_hook(model):
    model.output_modules[0].register_forward_hook(torch.nn.functional.relu)


def _with_pre_hook(model):
    model.representation.register_forward_pre_hook(torch.nn.functional.relu)


def _with_backward_hook(model):
    model.output_modules[0].register_full_backward_hook(torch.nn.functional.relu)


def _with_forward(model):
    model.representation.angular_basis.forward = torch.nn.functional.relu


CHANGES = {
    "hook": (_with_hook, "output_modules.0 .*_forward_hooks"),
    "pre-hook": (_with_pre_hook, "representation .*_forward_pre_hooks"),
    "backward hook": (_with_backward_hook, "output_modules.0 .*_backward_hooks"),
    "forward": (_with_forward, r"angular_basis .*: forward would change what upstream computes"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_upstreams_computation_is_refused(tmp_path, name):
    change, message = CHANGES[name]
    model = copy.deepcopy(u.water_like().models[0])
    change(model)
    u.save(model, tmp_path / "m.pth")
    with pytest.raises(UnsupportedModelError, match=message):
        checkpoint.read(tmp_path / "m.pth")
    with pytest.raises(UnsupportedModelError, match=message):
        checkpoint.from_module(model)


class _Doubling(torch.nn.Module):
    """A module with a name of upstream's, without tensors."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2.0 * x


class _Pair(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = _Doubling(), _Doubling()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.other(self.one(x))


def _plus_one(
    self, given: tuple[torch.Tensor], output: torch.Tensor
) -> torch.Tensor:  # pragma: no cover
    return output + 1.0


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_hooks_of_scripted_modules_are_seen(tmp_path):
    """Two modules that differ only in their hooks are told apart."""
    pair = _Pair()
    pair.other.register_forward_hook(_plus_one)
    script = torch.jit.script(pair)
    script.save(tmp_path / "m.pt")
    for read in (
        lambda: checkpoint.read(tmp_path / "m.pt"),
        lambda: checkpoint.from_module(script),
    ):
        with pytest.raises(UnsupportedModelError, match=r"other .*forward_hooks.* would change"):
            read()
