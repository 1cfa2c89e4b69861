"""A folder of WebDataset shards, read at random: ours, with a manifest and indices, or anybody's, scanned once.

FOLDER/manifest.json      which shards there are, with samples, bytes and SHA-256 of each
FOLDER/NAME-00000.tar     pictures and JSON, readable by any WebDataset program
FOLDER/NAME-00000.npy     where in the tar each sample lies (`tar_index`)
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sfumato.data import tar_index
from sfumato.data.decoding import MAX_PICTURE_BYTES, decode
from sfumato.data.samples import Record, Sample, captions_among, captions_in_lines, parse_fields
from sfumato.errors import DataError, InvalidRequest
from sfumato.files import plain_name

MANIFEST = "manifest.json"
FORMAT = 1
MAX_TEXT_BYTES = 2**20
_OPEN_INDICES = 256  # mapped at once; at ten thousand samples a shard, 150 MB of address space


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One tar file of a set. `sha256` is "" where the set has no manifest."""

    path: Path
    samples: int
    bytes: int
    sha256: str


class ShardSet:
    """The samples of some shards, numbered through.

    Every read opens the file anew: that takes some ten microseconds, a hundredth of decoding a picture, and leaves no
    descriptor for threads to share, forked workers to inherit or pickling to lose.
    """

    def __init__(self, shards: Sequence[Shard], scanned: Sequence[tar_index.Index] = ()) -> None:
        """Number the shards' samples; `scanned` holds the indices of shards that have none beside them."""
        self.shards = tuple(shards)
        self._scanned = tuple(scanned)
        self._ends = tuple(itertools.accumulate(shard.samples for shard in self.shards))

    def __len__(self) -> int:
        return self._ends[-1]

    def record(self, index: int) -> Record:
        shard, row, name = self._locate(index)
        return Record(**_texts(shard, row, name))

    def sample(self, index: int) -> Sample:
        shard, row, name = self._locate(index)
        picture = decode(_read(shard, row["picture"], MAX_PICTURE_BYTES, name), name)
        return Sample(**_texts(shard, row, name), picture=picture)

    def picture_bytes(self, index: int) -> bytes:
        shard, row, name = self._locate(index)
        return _read(shard, row["picture"], MAX_PICTURE_BYTES, name)

    def rows(self, number: int) -> tar_index.Index:
        """The index of a shard, one row a sample."""
        shard = self.shards[number]
        return self._scanned[number] if self._scanned else _stored_index(shard)

    def _locate(self, index: int) -> tuple[Shard, Any, str]:
        """The shard, the index row, and what errors call the sample."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = bisect.bisect_right(self._ends, index)
        shard = self.shards[number]
        row = self.rows(number)[index - self._ends[number] + shard.samples]
        return shard, row, f"{shard.path}: sample {_key(row)!r:.80}"


def open_shards(folder: Path) -> ShardSet:
    """The shards in a folder. Without a manifest, every `*.tar` there is scanned, in the order of their names.

    `DataError` where there are none, or where the manifest, an index or a shard's size doesn't fit.
    """
    if (folder / MANIFEST).is_file():
        return ShardSet(_listed(folder))
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise DataError(f"{folder} holds no shards (*.tar): give the folder they are in")
    scanned = [tar_index.scan(path) for path in paths]
    shards = [
        Shard(path=path, samples=len(index), bytes=path.stat().st_size, sha256="")
        for path, index in zip(paths, scanned, strict=True)
    ]
    return ShardSet(shards, scanned)


def manifest_text(shards: Sequence[Shard]) -> str:
    """The manifest of shards that lie in one folder."""
    entries = [asdict(shard) | {"path": shard.path.name} for shard in shards]
    return json.dumps({"format": FORMAT, "shards": entries}, indent=1) + "\n"


def index_path(shard: Path) -> Path:
    """Where the index of a shard is kept."""
    return shard.with_suffix(".npy")


def _listed(folder: Path) -> list[Shard]:
    path = folder / MANIFEST
    manifest = parse_fields(path.read_bytes(), str(path))
    if manifest.get("format") != FORMAT:
        raise DataError(f"{path} has format {manifest.get('format')!r}: this version reads format {FORMAT}")
    entries = manifest.get("shards")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path} lists no shards: make the set again")
    shards = [_entry(folder, entry, path) for entry in entries]
    for shard in shards:
        actual = shard.path.stat().st_size if shard.path.is_file() else None
        if actual != shard.bytes:
            what = "is missing" if actual is None else f"has {actual} bytes, not {shard.bytes}"
            raise DataError(f"{shard.path} {what}, against {path.name}: copy or make the set again")
    return shards


def _entry(folder: Path, entry: object, path: Path) -> Shard:
    """One line of the manifest. Its name must stay in the folder."""
    types = {"path": str, "samples": int, "bytes": int, "sha256": str}
    if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != types:
        raise DataError(f"{path}: {entry!r:.80} is no shard: it needs {', '.join(types)}")
    try:
        name = plain_name(entry["path"], what="a shard's name")
    except InvalidRequest as error:
        raise DataError(f"{path}: {error}") from error
    if entry["samples"] < 1:
        raise DataError(f"{path}: shard {name!r} has {entry['samples']} samples: leave empty ones out")
    return Shard(path=folder / name, samples=entry["samples"], bytes=entry["bytes"], sha256=entry["sha256"])


@lru_cache(maxsize=_OPEN_INDICES)
def _stored_index(shard: Shard) -> tar_index.Index:
    """Mapped once: the hash in `shard` tells a set from another one that took its place."""
    return tar_index.load(index_path(shard.path), shard.bytes, shard.samples)


def _texts(shard: Shard, row: Any, name: str) -> dict[str, Any]:
    """A record's fields, as keyword arguments."""
    fields: dict[str, Any] = {}
    captions: tuple[str, ...] = ()
    if row["fields"][1]:
        fields = parse_fields(_read(shard, row["fields"], MAX_TEXT_BYTES, name), name)
        captions = captions_among(fields, name)
    if row["text"][1]:
        captions += captions_in_lines(_read(shard, row["text"], MAX_TEXT_BYTES, name), name)
    return {"key": _key(row), "captions": tuple(dict.fromkeys(captions)), "fields": fields}


def _key(row: Any) -> str:
    return bytes(row["key"]).decode(errors="replace")


def _read(shard: Shard, span: Any, limit: int, name: str) -> bytes:
    offset, size = map(int, span)
    if size > limit:
        raise DataError(f"{name} has a member of {size} bytes: at most {limit} are read")
    try:
        with shard.path.open("rb", buffering=0) as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise DataError(f"{name} can't be read ({error.strerror or error})") from error
    if len(data) != size:
        raise DataError(
            f"{name} is cut off: {shard.path.name} ends at byte {offset + len(data)}; copy or make it again"
        )
    return data
