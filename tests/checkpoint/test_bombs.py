"""Files whose declared sizes are wrong, and files that cost more than they should."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from support import archives as a

from cace_fast.checkpoint import limits
from cace_fast.checkpoint.reader import read_contents
from cace_fast.errors import CheckpointError

BIG = 2**63 - 1
LIES = {
    "too many rows": {"size": (3, 3)},
    "one beyond": {"offset": 1},
    "offset beyond": {"offset": 7, "size": (1,), "stride": (1,)},
    "stride beyond": {"stride": (4, 1)},
    "huge offset": {"offset": BIG},
    "offset beyond int64": {"offset": 2**64},
    "offset of 2000 bits": {"offset": 2**2000},
    "negative offset": {"offset": -1},
    "negative stride": {"stride": (-3, 1)},
    "negative size": {"size": (-2, 3)},
    "two negative sizes": {"size": (-2, -3)},
    "size that overflows": {"size": (2**32, 2**32)},
    "size that wraps to 6": {"size": (2**63 + 3, 2)},
    "stride that overflows": {"stride": (2**62, 1)},
    "last element wraps to 0": {"size": (3, 3), "stride": (2**63, 1)},
    "fewer strides": {"stride": (1,)},
    "fewer sizes": {"size": (6,)},
    "no sizes": {"size": ()},
    "nine dimensions": {"size": (1,) * 9, "stride": (1,) * 9},
    "expanded to 2^40": {"size": (2**40, 6), "stride": (0, 1)},
    "expanded to 2^62": {"size": (2**31, 2**31), "stride": (0, 0)},
    "empty but endless": {"size": (0, 2**61, 2**61), "stride": (1, 1, 1)},
}


@pytest.mark.parametrize("name", LIES)
def test_tensors_that_lie(tmp_path, name):
    body = a.whole(a.tensor(**LIES[name]))
    path = a.write_archive(tmp_path / "m.pth", body, {"0": bytes(24)})
    with pytest.raises(CheckpointError, match=r"REDUCE: (a tensor|an empty tensor|reading on)"):
        read_contents(path)


STORAGES = {
    "more elements than bytes": (a.storage(n_elements=7), "has 24 bytes where 28 are claimed"),
    "fewer elements": (a.storage(n_elements=5), "reaches beyond storage '0'"),
    "another type": (a.storage(kind="DoubleStorage"), "has 24 bytes where 48 are claimed"),
    "2^61 elements": (a.storage(n_elements=2**61), "has 24 bytes where|reading on would need"),
    "2^64 elements": (a.storage(n_elements=2**64), "claims a number of 65 bits elements"),
    "negative": (a.storage(n_elements=-1), "claims -1 elements"),
    "missing": (a.storage(key="1"), "the archive has no entry 'data/1'"),
    "elsewhere": (a.storage(key="../version"), r"the archive has no entry 'data/\.\./version'"),
    "unknown type": (a.storage(kind="float32"), "a persistent id is not of the form"),
    "complex": (a.storage(kind="ComplexFloatStorage"), "names torch.ComplexFloatStorage"),
    "a text": (a.text("storage") + b"Q", "a persistent id is not of the form"),
    "a module": (b"(" + a.text("module") + b"NNNNtQ", "a persistent id is not of the form"),
    "truth as number": (a.storage()[:-4] + b"\x88tQ", "a persistent id is not of the form"),
    "none": (b"N", "a tensor names no storage"),
}


@pytest.mark.parametrize("name", STORAGES)
def test_storages_that_lie(tmp_path, name):
    body, message = STORAGES[name]
    path = a.write_archive(tmp_path / "m.pth", a.whole(a.tensor(body)), {"0": bytes(24)})
    with pytest.raises(CheckpointError, match=message):
        read_contents(path)


def test_one_storage_with_two_types(tmp_path):
    both = b"(" + a.tensor() + a.tensor(a.storage(kind="IntStorage")) + b"t"
    path = a.write_archive(tmp_path / "m.pth", a.whole(both), {"0": bytes(24)})
    with pytest.raises(CheckpointError, match="storage '0' is described in two contradictory ways"):
        read_contents(path)


def test_truth_values_are_zero_or_one(tmp_path):
    body = a.tensor(a.storage(kind="BoolStorage"))
    path = a.write_archive(tmp_path / "m.pth", a.whole(body), {"0": b"\0\1\2\0\1\0"})
    with pytest.raises(CheckpointError, match="something else than truth values"):
        read_contents(path)


def test_a_tensor_that_is_not_lying(tmp_path):
    """The helpers above make sound tensors, so the reader refused the wrong sizes."""
    raw = struct.pack("<6f", *range(6))
    path = a.write_archive(tmp_path / "m.pth", a.whole(a.tensor()), {"0": raw})
    assert torch.equal(read_contents(path).root, torch.arange(6.0).reshape(2, 3))
    repeated = a.tensor(size=(4, 3), stride=(0, 1))
    path = a.write_archive(tmp_path / "m.pth", a.whole(repeated), {"0": raw})
    assert torch.equal(read_contents(path).root, torch.arange(3.0).expand(4, 3))


MEMORY = r"reading on would need more than 2\d\d MB of memory \(4 x file size \+ 256 MB\)"
BOMBS = {
    "list in itself": (b"]q\0h\0a", "an object contains itself"),
    "dict in itself": (b"}q\0" + a.text("a") + b"h\0s", "an object contains itself"),
    "list in a tuple in the list": (b"]q\0h\0\x85a", "an object contains itself"),
    "state in itself": (
        a.named("cace.modules.forces.Forces") + b")\x81q\0}" + a.text("a") + b"h\0sb",
        "an object contains itself",
    ),
    "201 lists": (b"]" * 201 + b"a" * 200, "objects nest deeper than 200"),
    "201 tuples": (b")" + b"\x85" * 200, "objects nest deeper than 200"),
    "201 states": (
        (a.named("cace.modules.forces.Forces") + b")\x81}" + a.text("a")) * 101
        + b"N" + b"sb" * 101,
        "objects nest deeper than 200",
    ),
    "100 000 lists": (b"]" * 100_000 + b"a" * 99_999, "objects nest deeper than 200"),
    "a million lists": (b"]" * 10**6 + b"a" * (10**6 - 1), MEMORY),
    "a million marks": (b"(" * 10**6, MEMORY),
    "a million tuples": (b")" + b"\x85" * 10**6, MEMORY),
    "a million dicts": (b"(" + b"}" * 10**6 + b"t", MEMORY),
    "five million nones": (b"(" + b"N" * 5_000_000 + b"t", MEMORY + "|took more than 10 s"),
    "a million memos": (
        b"N" + b"".join(b"r" + struct.pack("<I", k) for k in range(1_400_000)),
        MEMORY,
    ),
    "60 doubled lists": (
        b"(]q\0" + b"".join(
            b"](h" + bytes([k]) + b"h" + bytes([k]) + b"eq" + bytes([k + 1]) for k in range(60)
        ) + b"t",
        "shared objects stand for more than",
    ),
    "60 doubled tuples": (
        b")" + b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(60)),
        "shared objects stand for more than",
    ),
    "60 doubled tuples as a key": (
        b"})" + b"".join(b"q" + bytes([k]) + b"h" + bytes([k]) + b"\x86" for k in range(60))
        + b"Ns",
        "a dictionary key is a tuple of too many parts",
    ),
    "deep tuple as a key": (
        b"})" + b"\x85" * 100_000 + b"Ns", "a dictionary key is a tuple of too many parts",
    ),
    "deep tuple in a set": (
        a.named("__builtin__.set") + b"])" + b"\x85" * 100_000 + b"a\x85R",
        "a dictionary key is a tuple of too many parts",
    ),
    "wide tuple as a key": (b"}(" + b"N" * 1000 + b"tNs", "a tuple of too many parts"),
    "long text": (b"X" + struct.pack("<I", 2_000_000) + b"x" * 2_000_000, "2000000 bytes long"),
    "one storage copied 100 times": (
        b"(" + a.tensor(a.storage(n_elements=10**6), size=(10**6,), stride=(1,)) * 100 + b"t",
        MEMORY,
    ),
}  # fmt: skip


def bomb(name: str, folder: Path) -> Path:
    storages = {"0": bytes(4 * 10**6)} if "storage" in name else {}
    return a.write_archive(folder / "m.pth", a.whole(BOMBS[name][0]), storages)


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(tmp_path, name):
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=BOMBS[name][1]):
        read_contents(bomb(name, tmp_path))
    assert time.monotonic() - start < limits.SECONDS + 5.0


def test_200_levels_are_read(tmp_path):
    path = a.write_archive(tmp_path / "m.pth", a.whole(b"]" * 200 + b"a" * 199))
    assert isinstance(read_contents(path).root, list)


def test_a_memo_index_of_two_billion_costs_nothing(tmp_path):
    """With Python's unpickler these nine bytes allocate gigabytes."""
    path = a.write_archive(tmp_path / "m.pth", a.whole(b"Nr\xff\xff\xff\x7fj\xff\xff\xff\x7f\x86"))
    assert read_contents(path).root == (None, None)


def test_colliding_keys_run_into_the_clock(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "SECONDS", 0.5)
    modulus = 2**61 - 1  # of Python's hash of whole numbers
    keys = b"".join(a.number(k * modulus) + b"N" for k in range(1, 30_000))
    path = a.write_archive(tmp_path / "m.pth", a.whole(b"}(" + keys + b"u"))
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"reading took more than 0\.5 s"):
        read_contents(path)
    assert time.monotonic() - start < 3.0


def test_limits_are_those_that_were_promised():
    assert (limits.MEMORY_FACTOR, limits.MEMORY_BASE) == (4, 256 * 2**20)
    assert (limits.SECONDS, limits.DEPTH, limits.INFLATED_BYTES) == (10.0, 200, 2**30)


# Prints how far the resident memory rose above where it was before each file
CHILD = """
import json, sys
from pathlib import Path
from cace_fast.checkpoint.reader import read_contents
from cace_fast.errors import CheckpointError

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))

read_contents(sys.argv[1])  # everything is imported and warm
results = {}
for path in sys.argv[2:]:
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    try:
        read_contents(path)
        outcome = "read"
    except CheckpointError as error:
        outcome = str(error)
    results[path] = (resident("VmHWM") - before, outcome)
print(json.dumps(results))
"""


def zip_bombs(folder: Path) -> list[Path]:
    """Return files whose entries inflate a thousandfold, with right and wrong declared sizes."""
    folder.mkdir()
    paths = []
    for name, claimed in (("honest", None), ("lying", 1000)):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("m/data.pkl", a.whole(b"N") + bytes(100 * limits.MIB))
        content = bytearray(buffer.getvalue())
        if claimed is not None:
            struct.pack_into("<I", content, content.rindex(b"PK\x01\x02") + 24, claimed)
        paths.append(folder / f"{name}.pth")
        paths[-1].write_bytes(content)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        n = 200 * 2**20
        big = a.tensor(a.storage(n_elements=n // 4), size=(n // 4,), stride=(1,))
        archive.writestr("m/data.pkl", a.whole(big))
        archive.writestr("m/data/0", bytes(n))
    paths.append(folder / "storage.pth")
    paths[-1].write_bytes(buffer.getvalue())
    return paths


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory_of_bombs_as_the_system_counts_it(tmp_path):
    paths = zip_bombs(tmp_path / "zip")
    for k, name in enumerate(BOMBS):
        folder = tmp_path / str(k)
        folder.mkdir()
        paths.append(bomb(name, folder))
    honest = a.write_archive(tmp_path / "m.pth", a.whole(a.tensor()), {"0": bytes(24)})
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(honest), *map(str, paths)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    results = json.loads(result.stdout)
    assert len(results) == len(paths)
    for path, (growth, outcome) in results.items():
        assert outcome != "read", path
        allowed = limits.MEMORY_FACTOR * Path(path).stat().st_size + limits.MEMORY_BASE
        assert growth <= allowed, outcome
    assert max(growth for growth, _ in results.values()) > 20 * limits.MIB  # it does measure
