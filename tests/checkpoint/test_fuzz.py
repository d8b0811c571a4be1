"""Some thousands of damaged files: each is read, or refused by a typed error."""

from __future__ import annotations

import io
import random
import time
import zipfile
from pathlib import Path

import torch
from support.paths import upstream_checkpoints
from support.script_like import save_script
from support.upstream_like import representation, save, water_like

from cace_fast import checkpoint
from cace_fast.checkpoint import limits
from cace_fast.checkpoint.file_views import view_of_record
from cace_fast.checkpoint.reader import read_contents
from cace_fast.checkpoint.records import Attribute, Global, Record
from cace_fast.checkpoint.unpickler import _OPCODES
from cace_fast.checkpoint.upstream import read_model
from cace_fast.errors import CheckpointError, InputError, UnsupportedModelError

CASES_PER_FILE = 320


def sound_files(folder: Path) -> dict[str, bytes]:
    """Return files that read without error: stand-ins, and real ones if there are any."""
    files = {}
    small = {"n_embedding": 1, "n_rbf": 2, "n_radial": 2, "elements": (1, 8)}
    for name, model in {
        "combination": water_like(steps=[("M", "Ar", "B")], **small),
        "potential": water_like(steps=[("Bcl",)], **small).models[1],
        "descriptor": representation(shared_embedding=True, **small),
    }.items():
        save(model, folder / name)
        files[name] = (folder / name).read_bytes()
    model = water_like(steps=[("M", "Ar", "B")], **small)
    save_script(model, folder / "script")
    torch.save({"model_state_dict": model.models[0].state_dict()}, folder / "state dict")
    files |= {name: (folder / name).read_bytes() for name in ("script", "state dict")}
    by_size = sorted(upstream_checkpoints(), key=lambda real: (real / "model.pth").stat().st_size)
    for real in by_size[:20:4]:  # every kind is among the small ones, which are quicker
        files[real.name] = (real / "model.pth").read_bytes()
    return files


def repacked(content: bytes, change) -> bytes:
    """Return the archive with its pickle changed and all checksums right."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for info in old.infolist():
            raw = old.read(info)
            new.writestr(info.filename, change(raw) if info.filename.endswith("data.pkl") else raw)
    return buffer.getvalue()


def flip(raw: bytes, rng) -> bytes:
    changed = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(raw: bytes, rng) -> bytes:
    at = rng.randrange(len(raw))
    new = rng.choice((bytes(4), b"\xff" * 4, b"\xff\xff\xff\x7f", rng.randbytes(rng.randint(1, 9))))
    return raw[:at] + new + raw[at + len(new) :]


def cut(raw: bytes, rng) -> bytes:
    return raw[: rng.randrange(len(raw))]


def move(raw: bytes, rng) -> bytes:
    """Copy one stretch of bytes to another place."""
    start, at = rng.randrange(len(raw)), rng.randrange(len(raw))
    return raw[:at] + raw[start : start + rng.randint(1, 60)] + raw[at + rng.choice((0, 1, 20)) :]


def swap_instruction(raw: bytes, rng) -> bytes:
    """Replace a byte by an instruction that the reader knows."""
    at = rng.randrange(2, len(raw))
    return raw[:at] + rng.choice(sorted(_OPCODES)) + raw[at + rng.choice((0, 1)) :]


STATE_DICT_OPTIONS = {
    "activation": "silu",
    "mp_norm_factor": 0.3,
    "outputs": [[{"type": "Atomwise", "output_key": "CACE_energy"}]],
}
MUTATIONS = (flip, overwrite, cut, move, swap_instruction)


def test_mutated_files_are_read_or_refused(tmp_path, record_property, capsys):
    rng = random.Random(20240607)
    counts = {"read": 0, "CheckpointError": 0, "UnsupportedModelError": 0, "InputError": 0}
    slowest = 0.0
    path = tmp_path / "m.pth"
    for name, content in sound_files(tmp_path).items():
        options = STATE_DICT_OPTIONS if name == "state dict" else {}
        path.write_bytes(content)
        checkpoint.read(path, **options)
        for k in range(CASES_PER_FILE):
            mutate = MUTATIONS[k % len(MUTATIONS)]
            if k % 10 < 2:  # the archive itself
                case = mutate(content, rng)
            else:
                case = repacked(content, lambda raw, mutate=mutate: mutate(raw, rng))
            path.write_bytes(case)
            start = time.thread_time()
            try:
                checkpoint.read(path, **options)
                outcome = "read"
            except (CheckpointError, UnsupportedModelError) as error:
                outcome = type(error).__name__
            except InputError:  # the options no longer fit the names in the file
                assert options
                outcome = "InputError"
            except BaseException:
                (tmp_path / "failed.pth").write_bytes(case)
                print(f"case {k} of {name} is kept in {tmp_path / 'failed.pth'}")
                raise
            counts[outcome] += 1
            slowest = max(slowest, time.thread_time() - start)
    total = sum(counts.values())
    record_property("mutated files", total)
    with capsys.disabled():
        print(f"\n{total} mutated files: {counts}, slowest {slowest:.2f} s")
    assert total >= 5 * CASES_PER_FILE
    assert counts["read"] > 0  # changes of unused parts
    assert counts["CheckpointError"] > total / 2
    assert slowest < limits.SECONDS


ODD = (
    None, True, -1, 0, 2**31, 10**400, 1.5, -0.0, float("nan"), float("inf"), "", "x", "0.5", b"x",
    [], [1], ["a", "b"], (), (1, 2), {}, {"a": 1}, {1: "a"}, {"weight": "x"}, set(),
    torch.ones(()), torch.ones(0), torch.ones(1), torch.ones(4), torch.ones(2, 3),
    torch.ones(2, 3, 4), torch.ones(2, 3, 4, 5), torch.tensor(float("nan")), torch.tensor([True]),
    torch.tensor(3), torch.tensor([-1, 0, 5]), torch.ones(6, dtype=torch.float16),
    Global("torch.nn.functional", "relu"), Attribute(Global("a", "b"), "c"),
    Record("cace.modules.forces", "Forces"), Record("cace.modules.forces", "Forces", (), (1,)),
    Record("torch.nn.modules.linear", "Identity", (), {}),
    Record("torch.nn.modules.container", "ModuleList", (), {"_modules": {}}),
    Record("torch.nn.modules.container", "ParameterList", (), {"_parameters": {"0": None}}),
)  # fmt: skip


def places(record, seen):
    """Yield every dictionary and key below a record whose value can be replaced."""
    if id(record) in seen or not isinstance(record.state, dict):
        return
    seen.add(id(record))
    for key, value in record.state.items():
        yield record.state, key
        if isinstance(value, dict):
            yield from ((value, name) for name in value)
            for child in value.values():
                if isinstance(child, Record):
                    yield from places(child, seen)
        elif isinstance(value, Record):
            yield from places(value, seen)


def test_odd_values_in_sound_pickles_are_refused(tmp_path, record_property, capsys):
    """Well-formed files with senseless values, which a mutation of bytes seldom makes."""
    rng = random.Random(7)
    counts = {"read": 0, "CheckpointError": 0, "UnsupportedModelError": 0}
    for name in ("combination", "script"):
        sound_files(tmp_path)
        contents = read_contents(tmp_path / name)
        spots = list(places(contents.root, set()))
        for _ in range(1500):
            target, key = rng.choice(spots)
            before = dict(target)
            if rng.random() < 0.15:
                del target[key]
            else:
                target[key] = rng.choice(ODD)
            try:
                read_model(view_of_record(contents.root, contents.code))
                outcome = "read"
            except (CheckpointError, UnsupportedModelError) as error:
                outcome = type(error).__name__
            counts[outcome] += 1
            target.clear()
            target.update(before)
        read_model(view_of_record(contents.root, contents.code))
    record_property("odd values", sum(counts.values()))
    with capsys.disabled():
        print(f"\n{sum(counts.values())} odd values: {counts}")
    assert all(counts.values())
