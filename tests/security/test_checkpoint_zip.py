"""Hostile zips around a harmless pickle: refused from what they declare, before anything is unpacked."""

from __future__ import annotations

import io
import re
import struct
import zipfile
from pathlib import Path

import pytest
import torch

from sfumato.errors import CheckpointError, UnsafeCheckpoint
from sfumato.weights.checkpoint import open_checkpoint
from support.hostile_files import state_dict, tensor, torch_zip

PICKLE = state_dict(tensor())


def compressed() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", PICKLE)
        archive.writestr("archive/data/0", bytes(100 * 2**20), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def changed(signature: bytes, offset: int, value: bytes, *, which: int = 0) -> bytes:
    """A good file with bytes replaced at `offset` of the `which`-th record with that signature."""
    data = bytearray(torch_zip(PICKLE, {"0": bytes(16)}))
    position = -1
    for _ in range(which + 1):
        position = data.index(signature, position + 1)
    data[position + offset : position + offset + len(value)] = value
    return bytes(data)


def one_body() -> bytes:
    """The second directory entry points at the first one's data."""
    data = bytearray(torch_zip(PICKLE, {"0": bytes(16)}))
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 1)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    return bytes(data)


def overlapping() -> bytes:
    """An entry whose declared size runs over the next entry's header."""
    data = bytearray(torch_zip(PICKLE, {"0": bytes(16)}))
    first = data.index(b"PK\x01\x02")
    data[first + 20 : first + 28] = struct.pack("<II", len(PICKLE) + 40, len(PICKLE) + 40)
    return bytes(data)


def named(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", PICKLE)
        for name in names:
            archive.writestr(name, bytes(16))
    return buffer.getvalue()


def zip64_lies(size: int) -> bytes:
    """A storage whose 32-bit size says "see the zip64 field", and whose zip64 field lies."""
    name = b"archive/data/0"
    buffer = io.BytesIO(torch_zip(PICKLE))
    with zipfile.ZipFile(buffer, "a") as archive:
        entry = zipfile.ZipInfo(name.decode())
        entry.extra = struct.pack("<HHQQ", 1, 16, size, size)
        archive.writestr(entry, bytes(16))
    data = bytearray(buffer.getvalue())
    central = data.rindex(b"PK\x01\x02")
    data[central + 20 : central + 28] = b"\xff" * 8
    return bytes(data)


def two_end_records() -> bytes:
    """Read from its end one zip, found by searching forwards another: readers would disagree."""
    return torch_zip(b"\x80\x02}.") + torch_zip(PICKLE, {"0": bytes(16)})


HOSTILE = {
    "deflated storage": (compressed, "compressed ("),
    "claims to be deflated": (lambda: changed(b"PK\x01\x02", 10, b"\x08\x00"), "compressed"),
    "deflated in the local header only": (lambda: changed(b"PK\x03\x04", 8, b"\x08\x00"), "disagree"),
    "unknown compression": (lambda: changed(b"PK\x01\x02", 10, b"\x63\x00"), "compressed"),
    "encrypted": (lambda: changed(b"PK\x01\x02", 8, b"\x01\x00"), "encrypted"),
    "packed and unpacked sizes differ": (
        lambda: changed(b"PK\x01\x02", 24, struct.pack("<I", 2**31)),
        "claim to be 2147483648",
    ),
    "declared size of 4 GB": (
        lambda: changed(b"PK\x01\x02", 20, struct.pack("<II", 2**32 - 2, 2**32 - 2), which=2),
        "claims 4294967294 bytes",
    ),
    "zip64 size of 2^62": (lambda: zip64_lies(2**62), "claims 4611686018427387904 bytes"),
    "zip64 size of 2^64 - 1": (lambda: zip64_lies(2**64 - 1), "claims 18446744073709551615 bytes"),
    "zip64 field missing": (lambda: changed(b"PK\x01\x02", 20, b"\xff" * 8), "claims 4294967295 bytes"),
    "local header outside the file": (
        lambda: changed(b"PK\x01\x02", 42, struct.pack("<I", 2**31)),
        "cut off or damaged",
    ),
    "two entries with one body": (one_body, "disagree"),
    "an entry over the next": (overlapping, "overlaps another"),
    "names that differ": (lambda: changed(b"PK\x03\x04", 30, b"Archive"), "disagree"),
    "more entries than the directory": (
        lambda: changed(b"PK\x05\x06", 8, struct.pack("<HH", 60000, 60000)),
        "60000 entries",
    ),
    "fewer entries than the directory": (
        lambda: changed(b"PK\x05\x06", 8, struct.pack("<HH", 1, 1)),
        "more than its entries",
    ),
    "several disks": (lambda: changed(b"PK\x05\x06", 4, struct.pack("<H", 1)), "several parts"),
    "directory elsewhere": (lambda: changed(b"PK\x05\x06", 16, struct.pack("<I", 0)), "not just before its end"),
    "a comment": (lambda: torch_zip(PICKLE, {"0": bytes(16)}) + b"comment", "end is missing"),
    "two zips in one file": (two_end_records, "not just before its end"),
    "path out of the folder": (lambda: named("archive/../../../evil", "archive/data/0"), "leaves the archive"),
    "absolute path": (lambda: named("/etc/evil", "archive/data/0"), "leaves the archive"),
    "backslash path": (
        lambda: torch_zip(PICKLE, {"0": bytes(16), "..x..x": b""}).replace(b"..x..x", b"..\\..\\"),
        "leaves the archive",
    ),
    "NUL in a name": (
        lambda: torch_zip(PICKLE, {"0": bytes(16), "aXb": b""}).replace(b"aXb", b"a\0b"),
        "leaves the archive",
    ),
    "two pickles": (lambda: named("other/data.pkl", "archive/data/0"), "2 files data.pkl"),
    "no pickle": (lambda: torch_zip(PICKLE, {"0": bytes(16)}).replace(b"data.pkl", b"date.pkl"), "0 files data.pkl"),
    "no storage": (lambda: torch_zip(PICKLE), "is not in the zip"),
    "short storage": (lambda: torch_zip(PICKLE, {"0": bytes(15)}), "claims 4 elements and has 15"),
    "long storage": (lambda: torch_zip(PICKLE, {"0": bytes(17)}), "claims 4 elements and has 17"),
    "big-endian": (lambda: torch_zip(PICKLE, {"0": bytes(16)}).replace(b"little", b"BIGBIG"), "big-endian"),
    "no end": (lambda: torch_zip(PICKLE, {"0": bytes(16)})[:-10], "end is missing"),
    "only a start": (lambda: b"PK\x03\x04", "end is missing"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_refused(case: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    make, reason = HOSTILE[case]
    path.write_bytes(make())
    with pytest.raises(CheckpointError, match=rf"model\.ckpt: .*{re.escape(reason)}") as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.ckpt"]


def test_duplicate_names_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    with pytest.warns(UserWarning, match="Duplicate name"):
        path.write_bytes(named("archive/data/0", "archive/data/0"))
    with pytest.raises(UnsafeCheckpoint, match="two entries named 'archive/data/0'"):
        open_checkpoint(path)


def test_too_many_entries_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(named(*(f"archive/data/{index}" for index in range(50_001))))
    with pytest.raises(UnsafeCheckpoint, match="50002 entries"):
        open_checkpoint(path)


def test_a_storage_beyond_four_gigabytes_is_found_through_zip64(tmp_path: Path) -> None:
    """A sparse file with the layout torch writes: the pickle and a later storage lie behind the 4 GB mark."""
    path = tmp_path / "model.ckpt"
    big = 2**32 + 64
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        pickle = state_dict(tensor((3,), (1,), big - 3, key="0", kind="ByteStorage", numel=big), tensor(key="1"))
        header = zipfile.ZipInfo("archive/data/0")
        header.file_size = header.compress_size = big
        header.CRC = 0
        archive.fp.write(header.FileHeader(zip64=True))
        archive.fp.seek(big - 3, io.SEEK_CUR)
        archive.fp.write(b"\x01\x02\x03")
        header.header_offset = 0
        archive.filelist.append(header)
        archive.NameToInfo[header.filename] = header
        archive.start_dir = archive.fp.tell()
        archive._didModify = True
        archive.writestr("archive/data/1", struct.pack("<4f", 1, 2, 3, 4))
        archive.writestr("archive/data.pkl", pickle)
    assert zipfile.ZipFile(path).infolist()[1].header_offset > 2**32
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("w0").tolist() == [1, 2, 3]
        assert checkpoint.read("w1", torch.float16).tolist() == [1, 2, 3, 4]
