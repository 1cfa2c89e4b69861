"""Where the entries of an uncompressed zip lie: the part of the format `torch.save` writes, and nothing else of it.

Nothing is unpacked and no name becomes a path. Stricter than `zipfile` on purpose: two readers of one ambiguous zip can
see different files in it, so ambiguity (overlaps, duplicates, a comment, data before the first entry) is refused.
Format: PKWARE APPNOTE 6.3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from sfumato.errors import CheckpointError, UnsafeCheckpoint
from sfumato.weights.mapped_file import MappedFile

MAX_ENTRIES = 50_000
MAX_ENTRY_NAME = 1024

_END = struct.Struct("<4sHHHHIIH")
_END64_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_ENCRYPTED = 0x1
_FULL32, _FULL16 = 0xFFFFFFFF, 0xFFFF


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """The bytes of an entry: `start` to `start + size` in the file."""

    start: int
    size: int


def read_zip_index(file: MappedFile) -> dict[str, ZipEntry]:
    """Read entries. `UnsafeCheckpoint` for anything `torch.save` doesn't write, `CheckpointError` if damaged."""
    count, directory, directory_size = _end_record(file)
    if count > MAX_ENTRIES:
        raise UnsafeCheckpoint(f"{file.path}: a zip of {count} entries; at most {MAX_ENTRIES} are read")
    if count * _CENTRAL.size > directory_size:
        raise UnsafeCheckpoint(f"{file.path}: the zip claims {count} entries in {directory_size} bytes")
    entries: dict[str, ZipEntry] = {}
    spans: list[tuple[int, int, str]] = []
    position, end = directory, directory + directory_size
    for _ in range(count):
        name, header, entry, position = _central_entry(file, position, end)
        if name in entries:
            raise UnsafeCheckpoint(f"{file.path}: the zip has two entries named {name!r}")
        if entry.start + entry.size > directory:
            raise UnsafeCheckpoint(f"{file.path}: zip entry {name!r} claims {entry.size} bytes, more than the file has")
        entries[name] = entry
        spans.append((header, entry.start + entry.size, name))
    if position != end:
        raise UnsafeCheckpoint(f"{file.path}: the zip's directory has {end - position} bytes more than its entries")
    reached = 0
    for header, stop, name in sorted(spans):
        if header < reached:
            raise UnsafeCheckpoint(f"{file.path}: zip entry {name!r} overlaps another")
        reached = stop
    return entries


def _unpack(file: MappedFile, record: struct.Struct, position: int, signature: bytes, what: str) -> tuple[int, ...]:
    data = file.bytes(position, position + record.size) if position >= 0 else b""
    if len(data) != record.size or data[:4] != signature:
        raise CheckpointError(
            f"{file.path}: the zip's {what} is missing: the file is cut off or damaged; download it again"
        )
    return record.unpack(data)[1:]


def _end_record(file: MappedFile) -> tuple[int, int, int]:
    """Number of entries, and the central directory's position and size."""
    position = file.size - _END.size
    disk, first_disk, count_here, count, size, offset, _ = _unpack(file, _END, position, b"PK\x05\x06", "end")
    end = position
    locator = position - _END64_LOCATOR.size
    if locator >= 0 and file.bytes(locator, locator + 4) == b"PK\x06\x07":
        _, end, _ = _unpack(file, _END64_LOCATOR, locator, b"PK\x06\x07", "zip64 locator")
        if end + _END64.size > locator:
            raise UnsafeCheckpoint(f"{file.path}: the zip64 end record is not where the zip says")
        wide = _unpack(file, _END64, end, b"PK\x06\x06", "zip64 end")
        narrow = (disk, first_disk, count_here, count, size, offset)
        _, _, _, disk, first_disk, count_here, count, size, offset = wide
        full = (_FULL16, _FULL16, _FULL16, _FULL16, _FULL32, _FULL32)
        for short, long, unknown in zip(narrow, wide[3:], full, strict=True):
            if short not in (long, unknown):
                raise UnsafeCheckpoint(f"{file.path}: the zip's two end records disagree ({short} and {long})")
    if disk or first_disk or count_here != count:
        raise UnsafeCheckpoint(f"{file.path}: a zip in several parts")
    if offset + size != end:
        raise UnsafeCheckpoint(
            f"{file.path}: the zip's directory (byte {offset}, {size} bytes) is not just before its end"
        )
    return count, offset, size


def _central_entry(file: MappedFile, position: int, end: int) -> tuple[str, int, ZipEntry, int]:
    """One directory entry: name, position of its local header, its bytes, and where the next directory entry starts."""
    if position + _CENTRAL.size > end:
        raise CheckpointError(f"{file.path}: the zip's directory is cut off; download the file again")
    fields = _unpack(file, _CENTRAL, position, b"PK\x01\x02", "directory entry")
    flags, method, packed, size = fields[2], fields[3], fields[7], fields[8]
    name_size, extra_size, comment_size, header = fields[9], fields[10], fields[11], fields[15]
    position += _CENTRAL.size
    after = position + name_size + extra_size + comment_size
    if after > end or name_size > MAX_ENTRY_NAME:
        raise UnsafeCheckpoint(f"{file.path}: a zip entry with a name of {name_size} bytes")
    raw_name = file.bytes(position, position + name_size)
    name = _entry_name(file, raw_name)
    extra = file.bytes(position + name_size, position + name_size + extra_size)
    size, packed, header = _widen(file, name, extra, size, packed, header)
    if method != 0 or packed != size:
        raise UnsafeCheckpoint(
            f"{file.path}: zip entry {name!r} is compressed ({packed} bytes that claim to be {size}); "
            "torch.save never does that, so it is not unpacked"
        )
    if flags & _ENCRYPTED:
        raise UnsafeCheckpoint(f"{file.path}: zip entry {name!r} is encrypted")
    local = _unpack(file, _LOCAL, header, b"PK\x03\x04", f"entry {name!r}")
    local_method, local_name, local_extra = local[2], local[8], local[9]
    start = header + _LOCAL.size + local_name + local_extra
    if local_method != 0 or file.bytes(header + _LOCAL.size, header + _LOCAL.size + local_name) != raw_name:
        raise UnsafeCheckpoint(f"{file.path}: zip entry {name!r} is described in two ways that disagree")
    return name, header, ZipEntry(start, size), after


def _entry_name(file: MappedFile, raw: bytes) -> str:
    try:
        name = raw.decode()
    except UnicodeDecodeError as error:
        raise UnsafeCheckpoint(f"{file.path}: a zip entry's name {raw[:60]!r} is not UTF-8") from error
    parts = name.split("/")
    if not name or "\\" in name or "\0" in name or "" in parts[:-1] or "." in parts or ".." in parts:
        raise UnsafeCheckpoint(
            f"{file.path}: a zip entry is named {name[:60]!r}, which leaves the archive's own folder"
        )
    return name


def _widen(file: MappedFile, name: str, extra: bytes, size: int, packed: int, header: int) -> tuple[int, int, int]:
    """Replace fields that are full with the 64-bit ones of the zip64 extra field, in the order the format gives."""
    values = [size, packed, header]
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, position)
        field = extra[position + 4 : position + 4 + length]
        if kind == 1:
            wanted = [index for index, value in enumerate(values) if value == _FULL32]
            if len(field) < 8 * len(wanted):
                raise CheckpointError(f"{file.path}: zip entry {name!r} lacks its 64-bit sizes")
            for index, (value,) in zip(wanted, struct.iter_unpack("<Q", field[: 8 * len(wanted)]), strict=True):
                values[index] = value
        position += 4 + length
    return values[0], values[1], values[2]
