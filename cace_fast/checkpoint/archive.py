"""The zip layer of model files: finds the pickle and the storages, and distrusts every number.

Source: specification of checkpoints, section 2; docs/user/security.md.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from cace_fast.checkpoint.limits import (
    DIRECTORY_BYTES,
    ENTRIES,
    INFLATED_BYTES,
    MIB,
    PICKLE_BYTES,
    Budget,
    Refused,
    short,
)

# The exceptions of zipfile for a damaged archive
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    IndexError,
)
_LOCAL_HEADER = 30
_ENCRYPTED = 0x1 | 0x40 | 0x2000


class _BoundedFile:
    """A file that hands out little at a time while zipfile reads the list of entries.

    zipfile believes what the archive says about the size of that list, and makes an object of
    each entry before anyone can look.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.limit: int | None = DIRECTORY_BYTES

    def read(self, n: int = -1) -> bytes:
        if n is None or n < 0:
            n = max(0, self._size - self._file.tell())
        if self.limit is not None and n > self.limit:
            raise Refused(
                f"the archive's list of entries takes {n // MIB} MB; at most "
                f"{self.limit // MIB} MB are read"
            )
        return self._file.read(n)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True

    def flush(self) -> None:
        pass


class Archive:
    """A model file opened for reading; use it in a ``with`` statement (``docs/user/security.md``).

    Parameters
    ----------
    path
        The file.
    budget
        What reading may cost.

    Raises
    ------
    Refused
        The file is not a zip archive as torch writes them, or its entries lie about themselves.
    OSError
        The file cannot be opened.
    """

    def __init__(self, path: Path, budget: Budget) -> None:
        self.path, self._budget = path, budget
        self._file = path.open("rb")
        try:
            size = path.stat().st_size
            if reason := other_kind(self._file.read(512), size):
                raise Refused(reason)
            bounded = _BoundedFile(self._file, size)
            self._zip = _open_zip(bounded)
            bounded.limit = None
            self._entries = _check_entries(self._zip.infolist(), size)
            self._folder = _top_folder(self._entries)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Archive:
        """Return the archive itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._zip.close()
        self._file.close()

    @property
    def pickle_name(self) -> str:
        """Name of the entry that holds the pickle (``docs/user/security.md``)."""
        return f"{self._folder}/data.pkl"

    def names(self, below: str) -> list[str]:
        """Return the names of entries below a folder, relative to the archive's top folder.

        See ``docs/user/security.md``.
        """
        start = len(self._folder) + 1
        prefix = f"{self._folder}/{below}/"
        return [name[start:] for name in self._entries if name.startswith(prefix)]

    def read(self, name: str, expected: int | None = None, largest: int = INFLATED_BYTES) -> bytes:
        """Return one entry (``docs/user/security.md``).

        Parameters
        ----------
        name
            Relative to the archive's top folder, e.g. ``data/0``.
        expected
            Its exact size in bytes, where known.
        largest
            Its largest allowed size in bytes.

        Raises
        ------
        Refused
            If the entry is missing, damaged, of another size or too large, or the budget is spent.
        """
        info = self._entries.get(f"{self._folder}/{name}")
        if info is None:
            raise Refused(f"the archive has no entry {short(name)}")
        size = info.file_size
        if expected is not None and size != expected:
            raise Refused(f"entry {short(name)} has {size} bytes where {expected} are claimed")
        if size > largest:
            raise Refused(f"entry {short(name)} has {size} bytes; at most {largest} are read")
        self._budget.check_time()
        self._budget.charge(size)
        try:
            with self._zip.open(info) as entry:
                # `size` bounds what is inflated: the default would inflate first and cut later
                content = entry.read(size) if size else b""
                more = entry.read(1)
        except _ZIP_ERRORS as error:
            raise Refused(f"entry {short(name)} is damaged ({_reason(error)})") from None
        if len(content) != size or more:
            raise Refused(f"entry {short(name)} does not have the {size} bytes it claims")
        return content

    def pickle(self) -> bytes:
        """Return the pickle, after a look at the byte order.

        Raises
        ------
        Refused
            As for :meth:`read`, and if the byte order is not little.
        """
        if f"{self._folder}/byteorder" in self._entries:
            order = self.read("byteorder", largest=64)
            if order.strip() != b"little":
                raise Refused(
                    f"the file's numbers have byte order {ascii(order)[2:-1]}; only little is read"
                )
        return self.read("data.pkl", largest=PICKLE_BYTES)

    def storage(self, key: str, n_bytes: int) -> bytes:
        """Return the bytes of one storage.

        Raises
        ------
        Refused
            As for :meth:`read`.
        """
        return self.read(f"data/{key}", expected=n_bytes)


def _reason(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return ascii(text[:100])[1:-1]


def _open_zip(file: _BoundedFile) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except _ZIP_ERRORS as error:
        raise Refused(
            f"the zip archive is damaged or incomplete ({_reason(error)}); fetch the file again"
        ) from None


def _check_entries(entries: list[zipfile.ZipInfo], file_bytes: int) -> dict[str, zipfile.ZipInfo]:
    if len(entries) > ENTRIES:
        raise Refused(f"the archive has {len(entries)} entries; at most {ENTRIES} are read")
    found: dict[str, zipfile.ZipInfo] = {}
    for info in entries:
        name = info.filename
        if name in found:
            raise Refused(f"the archive has two entries named {short(name)}")
        if name != info.orig_filename or not _is_plain_path(name):
            raise Refused(f"the archive has an entry with the unsafe name {short(name)}")
        if info.flag_bits & _ENCRYPTED:
            raise Refused(f"entry {short(name)} is encrypted")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refused(f"entry {short(name)} is compressed by method {info.compress_type}")
        if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
            raise Refused(f"entry {short(name)} is stored but has two different sizes")
        found[name] = info
    inflated = sum(info.file_size for info in entries)
    if inflated > INFLATED_BYTES:
        raise Refused(
            f"the archive would inflate to {inflated // MIB} MB; "
            f"at most {INFLATED_BYTES // MIB} MB are read"
        )
    end = 0
    for info in sorted(entries, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise Refused(f"entry {short(info.filename)} overlaps another")
        end = info.header_offset + _LOCAL_HEADER + len(info.filename) + info.compress_size
    if end > file_bytes:
        raise Refused("an entry reaches beyond the end of the file")
    return found


def _is_plain_path(name: str) -> bool:
    if "\\" in name or ":" in name.split("/", 1)[0] or not name.isprintable():
        return False
    return all(part not in ("", ".", "..") for part in name.split("/"))


def _top_folder(entries: dict[str, zipfile.ZipInfo]) -> str:
    pickles = [name for name in entries if name.endswith("/data.pkl")]
    if len(pickles) != 1 or pickles[0].count("/") != 1:
        raise Refused(
            f"the archive has {len(pickles)} entries <folder>/data.pkl instead of one, so it was "
            "not written by torch.save or torch.jit.save"
        )
    return pickles[0].removesuffix("/data.pkl")


def other_kind(head: bytes, size: int) -> str:
    """Return what kind of file this is; an empty text for a zip archive.

    See ``docs/user/security.md``.

    Parameters
    ----------
    head
        The first 512 bytes of the file, fewer if it is shorter.
    size
        Size of the file in bytes.
    """
    resave = (
        "load it where you trust it, with upstream installed, and save it again with "
        "torch.save(model, path)"
    )
    if size == 0:
        return "the file is empty; fetch it again"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return ""
    if head.startswith(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"):
        return f"this is torch's old file format, a bare pickle, which is not read; {resave}"
    if head[257:262] == b"ustar":
        return f"this is a tar archive (the oldest torch format), which is not read; {resave}"
    if head[:1] == b"\x80" or (head[-1:] == b"." and head[:1] in b"c(]}ilp"):
        return f"this is a bare pickle, not a file of torch.save, and is not read; {resave}"
    if head.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer, not the file itself; run 'git lfs pull'"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return "this is a safetensors file; the reader of upstream files does not read it"
    for start, kind in ((b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ", "xz")):
        if head.startswith(start):
            return f"this is a {kind} file; unpack it first"
    if head.startswith(b"\x89HDF"):
        return "this is an HDF5 file, not a CACE model"
    if b"\0" not in head and all(byte >= 32 or byte in b"\t\n\r" for byte in head):
        return "this is a text file, not a CACE model; was a web page saved instead of the file?"
    return "this is not a file of torch.save (no zip archive); fetch it again"
