"""Where each sample of a WebDataset shard lies, so that reading sample N is one row and one seek.

A tar file can only be read from its start; a reader that streams it can't begin in the middle, so a run stopped there
can't go on exactly. The index is one NumPy record a sample, of fixed width: it is mapped into memory, opens at once
whatever its size, needs no other package, and holds no pickle.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.data.decoding import PICTURE_SUFFIXES
from sfumato.errors import DataError

Index = NDArray[np.void]  # (samples,) of `record_type`

MAX_KEY_BYTES = 1000
ROLES: dict[str, str] = {"json": "fields", "txt": "text"} | dict.fromkeys(PICTURE_SUFFIXES, "picture")
_BLOCK = 512


def record_type(key_bytes: int) -> np.dtype[Any]:
    """Key (UTF-8), and (offset, size) in bytes of picture, fields and text; size 0 for what isn't there."""
    span = ("<i8", (2,))
    return np.dtype([("key", f"S{max(key_bytes, 1)}"), *[(role, *span) for role in ("picture", "fields", "text")]])


@dataclass(slots=True)
class _Group:
    """The members of one sample, met so far."""

    key: bytes
    spans: dict[str, tuple[int, int]]


def scan(path: Path) -> Index:
    """Read a shard's headers. Members are grouped as WebDataset does: the key is the name up to its first dot.

    Names are labels here and never paths. `DataError` names the shard, and the sample, for a tar that is damaged or
    ends too early, a member that isn't a plain file, a sample without a picture or with two, and a shard of none.
    """
    groups: list[_Group] = []
    try:
        size = path.stat().st_size
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                _add(groups, member, path, size)
            _check_end(path, archive.offset, size)
    except (tarfile.TarError, ValueError, OverflowError) as error:  # the latter two from numbers in a broken header
        raise DataError(f"{path} is not a whole tar file ({error}): make or download it again") from error
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error})") from error
    return _packed(groups, path)


def _add(groups: list[_Group], member: tarfile.TarInfo, path: Path, size: int) -> None:
    if member.isdir():
        return
    name = member.name
    if not member.isreg() or member.issparse():
        raise DataError(f"{path}: member {name!r:.80} is not a plain file: a shard holds nothing else")
    if member.size < 0 or member.offset_data + member.size > size:
        raise DataError(f"{path} is cut off within {name!r:.80}: make or download it again")
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    role = ROLES.get(suffix.lower())
    if role is None:
        return
    key = f"{folder}{slash}{stem}".encode(errors="surrogateescape")
    if not stem or len(key) > MAX_KEY_BYTES:
        raise DataError(f"{path}: member {name!r:.80} needs a name of 1 to {MAX_KEY_BYTES} bytes before its first dot")
    if not groups or groups[-1].key != key:
        groups.append(_Group(key=key, spans={}))
    if role in groups[-1].spans:
        raise DataError(f"{path}: sample {stem!r:.80} has two members for its {role}")
    groups[-1].spans[role] = (member.offset_data, member.size)


def _check_end(path: Path, offset: int, size: int) -> None:
    """`tarfile` takes a broken or missing header for the end; a whole tar ends with blocks of zeros."""
    with path.open("rb") as file:
        file.seek(min(offset, size))
        block = file.read(_BLOCK)
    if len(block) < _BLOCK or any(block):
        raise DataError(f"{path} is cut off or damaged at byte {offset}: make or download it again")


def _packed(groups: list[_Group], path: Path) -> Index:
    if not groups:
        raise DataError(f"{path} holds no sample: a sample is a picture with a JSON or text file of the same name")
    seen: set[bytes] = set()
    index = np.zeros(len(groups), record_type(max(len(group.key) for group in groups)))
    for row, group in zip(index, groups, strict=True):
        key = group.key.decode(errors="replace")
        if group.key in seen:
            raise DataError(f"{path}: sample {key!r:.80} comes twice, or its members are not next to each other")
        if "picture" not in group.spans:
            raise DataError(f"{path}: sample {key!r:.80} has no picture ({', '.join(PICTURE_SUFFIXES)})")
        seen.add(group.key)
        row["key"] = group.key
        for role, span in group.spans.items():
            row[role] = span
    return index


def load(path: Path, shard_bytes: int, samples: int) -> Index:
    """Map the index stored at `path`. `DataError` where it doesn't describe a shard of so many bytes and samples."""
    try:
        index = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise DataError(f"{path} is missing or not an index ({error}): make the shards again") from error
    width = index.dtype["key"].itemsize if index.dtype.names and "key" in index.dtype.names else 0
    if index.dtype != record_type(width) or index.shape != (samples,):
        raise DataError(f"{path} is not the index of {samples} samples: make the shards again")
    for role in ("picture", "fields", "text"):
        offsets, sizes = index[role][:, 0], index[role][:, 1]
        if (offsets < 0).any() or (sizes < 0).any() or (offsets > shard_bytes - sizes).any():
            raise DataError(f"{path} points outside its shard: make the shards again")
    rows: Index = np.asarray(index)  # a plain view of the mapping: rows of a memmap are twice as slow
    return rows
