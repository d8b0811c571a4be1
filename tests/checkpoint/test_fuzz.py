"""Some thousands of damaged files: each is read, or refused by a typed error."""

from __future__ import annotations

import io
import random
import time
import zipfile
from pathlib import Path

from support.paths import upstream_checkpoints
from support.upstream_like import representation, save, water_like

from cace_fast import checkpoint
from cace_fast.checkpoint import limits
from cace_fast.checkpoint.unpickler import _OPCODES
from cace_fast.errors import CheckpointError, UnsupportedModelError

CASES_PER_FILE = 400


def sound_files(folder: Path) -> dict[str, bytes]:
    """Return files that read without error: own stand-ins, and real ones where there are any."""
    files = {}
    small = {"n_embedding": 1, "n_rbf": 2, "n_radial": 2, "elements": (1, 8)}
    for name, model in {
        "combination": water_like(steps=[("M", "Ar", "B")], **small),
        "potential": water_like(steps=[("Bcl",)], **small).models[1],
        "descriptor": representation(shared_embedding=True, **small),
    }.items():
        save(model, folder / name)
        files[name] = (folder / name).read_bytes()
    for real in upstream_checkpoints()[::6]:
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
    """Put one instruction of the reader's own set somewhere."""
    at = rng.randrange(2, len(raw))
    return raw[:at] + rng.choice(sorted(_OPCODES)) + raw[at + rng.choice((0, 1)) :]


MUTATIONS = (flip, overwrite, cut, move, swap_instruction)


def test_mutated_files_are_read_or_refused(tmp_path, record_property, capsys):
    rng = random.Random(20240607)
    counts = {"read": 0, "CheckpointError": 0, "UnsupportedModelError": 0}
    slowest = 0.0
    path = tmp_path / "m.pth"
    for name, content in sound_files(tmp_path).items():
        path.write_bytes(content)
        checkpoint.read(path)
        for k in range(CASES_PER_FILE):
            mutate = MUTATIONS[k % len(MUTATIONS)]
            if k % 10 < 2:  # the archive itself
                case = mutate(content, rng)
            else:
                case = repacked(content, lambda raw, mutate=mutate: mutate(raw, rng))
            path.write_bytes(case)
            start = time.monotonic()
            try:
                checkpoint.read(path)
                outcome = "read"
            except (CheckpointError, UnsupportedModelError) as error:
                outcome = type(error).__name__
            except BaseException:
                (tmp_path / "failed.pth").write_bytes(case)
                print(f"case {k} of {name} is kept in {tmp_path / 'failed.pth'}")
                raise
            counts[outcome] += 1
            slowest = max(slowest, time.monotonic() - start)
    total = sum(counts.values())
    record_property("mutated files", total)
    with capsys.disabled():
        print(f"\n{total} mutated files: {counts}, slowest {slowest:.2f} s")
    assert total >= 3 * CASES_PER_FILE
    assert counts["read"] > 0  # changes of unused parts
    assert counts["CheckpointError"] > total / 2
    assert slowest < limits.SECONDS
