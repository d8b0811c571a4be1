"""The zip layer: layouts that are read, and archives that lie about themselves."""

from __future__ import annotations

import gc
import gzip
import io
import pickle
import struct
import tarfile
import tracemalloc
import zipfile

import pytest
import torch
from support import archives as a

from cace_fast.checkpoint import limits
from cace_fast.checkpoint.reader import read_contents
from cace_fast.errors import CheckpointError

PICKLE = a.whole(a.text("read"))


def zipped(entries, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def read(tmp_path, content):
    path = tmp_path / "m.pth"
    path.write_bytes(content)
    return read_contents(path).root


def patched(content, signature, offset, form, value):
    """Change one number in the first record with this signature."""
    start = content.index(signature) + offset
    new = struct.pack(form, value)
    return content[:start] + new + content[start + len(new) :]


CENTRAL, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("folder", ["archive", "model-tmp", "my model v1.2", "modèle"])
def test_folder_and_compression_do_not_matter(tmp_path, compression, folder):
    assert read(tmp_path, zipped([(f"{folder}/data.pkl", PICKLE)], compression)) == "read"


def test_old_files_without_byte_order(tmp_path):
    entries = [("m/data.pkl", PICKLE), ("m/version", b"3\n")]
    assert read(tmp_path, zipped(entries)) == "read"
    entries += [("m/byteorder", b"little"), ("m/.data/serialization_id", b"1")]
    assert read(tmp_path, zipped(entries)) == "read"


def test_aligned_entries_of_torch(tmp_path):
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "m.pth")
    assert torch.equal(read_contents(tmp_path / "m.pth").root["a"], torch.arange(1000.0))


@pytest.mark.parametrize(("entries", "message"), [
    ([], "0 entries <folder>/data.pkl instead of one"),
    ([("data.pkl", PICKLE)], "0 entries <folder>/data.pkl"),
    ([("a/b/data.pkl", PICKLE)], "1 entries <folder>/data.pkl instead of one"),
    ([("a/data.pkl", PICKLE), ("b/data.pkl", PICKLE)], "2 entries <folder>/data.pkl"),
    ([("a/data.pkl", PICKLE), ("../evil", b"")], "unsafe name '../evil'"),
    ([("a/data.pkl", PICKLE), ("a/../../evil", b"")], "unsafe name 'a/../../evil'"),
    ([("a/data.pkl", PICKLE), ("/etc/passwd", b"")], "unsafe name '/etc/passwd'"),
    ([("a/data.pkl", PICKLE), ("a\\b", b"")], r"unsafe name 'a\\b'"),
    ([("a/data.pkl", PICKLE), ("C:/x", b"")], "unsafe name 'C:/x'"),
    ([("a/data.pkl", PICKLE), ("a//x", b"")], "unsafe name 'a//x'"),
    ([("a/data.pkl", PICKLE), ("a/x\ny", b"")], r"unsafe name 'a/x\ny'"),
    ([("a/data.pkl", PICKLE), ("a/byteorder", b"big")], "byte order big; only little is read"),
])  # fmt: skip
def test_layouts_that_are_refused(tmp_path, entries, message):
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, zipped(entries))
    assert message in str(caught.value)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_duplicate_entries(tmp_path):
    content = zipped([("a/data.pkl", PICKLE), ("a/data.pkl", a.whole(b"N"))])
    with pytest.raises(CheckpointError, match=r"two entries named 'a/data\.pkl'"):
        read(tmp_path, content)


def test_names_that_end_at_a_zero_byte(tmp_path):
    content = zipped([("a/data.pkl", PICKLE), ("a/dataXpkl", b"")])
    content = content.replace(b"a/dataXpkl", b"a/data\0pkl")
    with pytest.raises(CheckpointError, match="unsafe name 'a/data'"):
        read(tmp_path, content)


def test_encrypted_entries(tmp_path):
    content = patched(zipped([("a/data.pkl", PICKLE)]), CENTRAL, 8, "<H", 1)
    with pytest.raises(CheckpointError, match=r"entry 'a/data\.pkl' is encrypted"):
        read(tmp_path, content)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression(tmp_path, method):
    with pytest.raises(CheckpointError, match=f"is compressed by method {method}"):
        read(tmp_path, zipped([("a/data.pkl", PICKLE)], method))


def test_changed_content_fails_its_checksum(tmp_path):
    content = zipped([("a/data.pkl", PICKLE)])
    at = content.index(b"read")
    with pytest.raises(CheckpointError, match=r"'data\.pkl' is damaged \(Bad CRC-32"):
        read(tmp_path, content[:at] + b"bead" + content[at + 4 :])


@pytest.mark.parametrize("size", [1, len(PICKLE) - 1, len(PICKLE) + 1, 2**31])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_declared_sizes_are_checked_against_the_content(tmp_path, size, compression):
    content = patched(zipped([("a/data.pkl", PICKLE)], compression), CENTRAL, 24, "<I", size)
    with pytest.raises(CheckpointError, match=r"two different sizes|is damaged|claims|at most"):
        read(tmp_path, content)


def test_a_stream_that_inflates_beyond_its_declared_size_is_cut(tmp_path):
    bomb = zipped([("a/data.pkl", PICKLE + bytes(60_000_000))], zipfile.ZIP_DEFLATED)
    content = patched(bomb, CENTRAL, 24, "<I", len(PICKLE))
    tracemalloc.start()
    with pytest.raises(CheckpointError, match=r"is damaged|claims"):
        read(tmp_path, content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * limits.MIB, "the stream was inflated first and cut later"


def test_declared_total_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("cace_fast.checkpoint.archive.INFLATED_BYTES", 5 * limits.MIB)
    fill = [(f"a/data/{k}", bytes(limits.MIB)) for k in range(6)]
    with pytest.raises(CheckpointError, match="would inflate to 6 MB; at most 5 MB"):
        read(tmp_path, zipped([("a/data.pkl", PICKLE), *fill], zipfile.ZIP_DEFLATED))


def test_the_total_limit_is_one_gigabyte():
    assert limits.INFLATED_BYTES == 2**30


def test_the_pickle_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("cace_fast.checkpoint.archive.PICKLE_BYTES", 100)
    with pytest.raises(CheckpointError, match=r"'data\.pkl' has 1\d\d bytes; at most 100"):
        read(tmp_path, zipped([("a/data.pkl", a.whole(a.text("x" * 120)))]))


def test_overlapping_entries(tmp_path):
    content = zipped([("a/data.pkl", PICKLE), ("a/x", b"12345")])
    second = content.rindex(CENTRAL)
    quoted = content[: second + 42] + struct.pack("<I", 1) + content[second + 46 :]
    with pytest.raises(CheckpointError, match=r"overlaps another"):
        read(tmp_path, quoted)


def test_an_entry_beyond_the_end(tmp_path):
    content = zipped([("a/data.pkl", PICKLE)])
    moved = patched(content, CENTRAL, 42, "<I", len(content))
    with pytest.raises(CheckpointError, match=r"reaches beyond|is damaged"):
        read(tmp_path, moved)


def test_number_of_entries(tmp_path):
    entries = [("a/data.pkl", PICKLE), *((f"a/{k}", b"") for k in range(limits.ENTRIES))]
    with pytest.raises(CheckpointError, match=rf"has {limits.ENTRIES + 1} entries"):
        read(tmp_path, zipped(entries))


def test_a_list_of_entries_of_many_megabytes_is_never_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr("cace_fast.checkpoint.archive.DIRECTORY_BYTES", 70_000)
    entries = [("a/data.pkl", PICKLE), *((f"a/{'x' * 1000}{k}", b"") for k in range(80))]
    content = zipped(entries)
    made = []
    monkeypatch.setattr(zipfile, "ZipInfo", lambda *args: made.append(args))
    with pytest.raises(CheckpointError, match="list of entries takes 0 MB"):
        read(tmp_path, content)
    assert not made


def test_truncated_at_every_place(tmp_path):
    content = zipped([("a/data.pkl", PICKLE), ("a/byteorder", b"little")])
    for n in range(len(content)):
        with pytest.raises(CheckpointError):
            read(tmp_path, content[:n])


def legacy(tmp_path):
    torch.save({"a": 1}, tmp_path / "old", _use_new_zipfile_serialization=False)
    return (tmp_path / "old").read_bytes()


def tarred(tmp_path):
    (tmp_path / "x").write_bytes(b"1")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "x", "storages")
    return (tmp_path / "x.tar").read_bytes()


OTHERS = {
    "empty": (lambda _: b"", "the file is empty; fetch it again"),
    "legacy torch": (legacy, r"torch's old file format, a bare pickle.* save it again"),
    "tar": (tarred, r"this is a tar archive .* save it again"),
    "pickle 4": (lambda _: pickle.dumps({"a": 1}, 4), r"this is a bare pickle.* save it again"),
    "pickle 2": (lambda _: pickle.dumps({"a": 1}, 2), "this is a bare pickle"),
    "pickle 0": (lambda _: pickle.dumps({"a": 1}, 0), "this is a bare pickle"),
    "text": (lambda _: b"hello\n", "this is a text file, not a CACE model"),
    "web page": (lambda _: b"<!DOCTYPE html><html>" * 50, "was a web page saved instead"),
    "git lfs": (lambda _: b"version https://git-lfs.github.com/spec/v1\n", "'git lfs pull'"),
    "gzip": (lambda _: gzip.compress(b"x" * 100), "this is a gzip file; unpack it first"),
    "safetensors": (lambda _: struct.pack("<Q", 2) + b"{} ", "this is a safetensors file"),
    "hdf5": (lambda _: b"\x89HDF\r\n\x1a\n" + bytes(100), "this is an HDF5 file"),
    "noise": (lambda _: bytes(range(255, 0, -1)), r"not a file of torch\.save"),
    "zip start": (lambda _: LOCAL + bytes(100), "zip archive is damaged or incomplete"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_kinds_of_files_are_named_with_a_remedy(tmp_path, name):
    make, message = OTHERS[name]
    path = tmp_path / "m.pth"
    path.write_bytes(make(tmp_path))
    with pytest.raises(CheckpointError, match=message):
        read_contents(path)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read \\(No such file"):
        read_contents(tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match="a folder, expected a model file"):
        read_contents(tmp_path)


def test_the_file_is_closed_after_an_error(tmp_path):
    """ResourceWarning is an error in tests: an open handle would fail this one."""
    with pytest.raises(CheckpointError):
        read(tmp_path, zipped([("a/x", b"")]))
    gc.collect()
