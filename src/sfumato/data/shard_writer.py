"""Any data set → shards, the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote

import numpy as np

from sfumato.data import tar_index
from sfumato.data.decoding import suffix_of, to_webp
from sfumato.data.samples import Dataset, Record, StoredDataset
from sfumato.data.shards import MANIFEST, Shard, ShardSet, index_path, manifest_text, open_shards
from sfumato.errors import DataError, InvalidRequest
from sfumato.files import atomic_folder, plain_name

MAX_KEY_BYTES = 92  # a plain tar header holds names of 100 bytes, suffix and dot included


class EncodedPicture(NamedTuple):
    """A picture file's bytes and the suffix of its format."""

    data: bytes
    suffix: str


Encode = Callable[[int], EncodedPicture]


def as_stored(dataset: StoredDataset) -> Encode:
    """Pictures copied byte for byte."""

    def encode(index: int) -> EncodedPicture:
        data = dataset.picture_bytes(index)
        return EncodedPicture(data, suffix_of(data, f"sample {index}"))

    return encode


def as_webp(dataset: Dataset, quality: int) -> Encode:
    """Pictures encoded anew as WebP, lossy at a quality of 0–100, lossless at 101. Raises `InvalidRequest` for another
    quality."""
    if not 0 <= quality <= 101:
        raise InvalidRequest(f"WebP quality {quality} must lie between 0 and 100, or be 101 for lossless")

    def encode(index: int) -> EncodedPicture:
        return EncodedPicture(to_webp(dataset.sample(index).picture, quality), "webp")

    return encode


def write_shards(
    dataset: Dataset,
    encode: Encode,
    folder: Path,
    *,
    name: str,
    indices: Sequence[int] | None = None,
    samples_per_shard: int = 10_000,
    overwrite: bool = False,
) -> ShardSet:
    """Write the samples (all, or those in `indices`) in order, as `NAME-00000.tar` and on, and open what was written.

    `folder` appears whole or not at all. Keys that aren't plain ASCII names are percent-encoded. The captions are in
    each sample's JSON, so text files beside pictures are not needed any more. `DataError` for a sample that can't be
    read, and for no samples; `OutputError` where the folder can't be written; `InvalidRequest` for a bad name or size.
    """
    plain_name(name, what="the shards' name")
    if samples_per_shard < 1:
        raise InvalidRequest(f"samples_per_shard {samples_per_shard} must be at least 1")
    chosen = range(len(dataset)) if indices is None else indices
    if not chosen:
        raise DataError("there are no samples to write: an empty shard can't be read")
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        shards = [
            write_shard(
                dataset, encode, chosen[start : start + samples_per_shard], temporary / f"{name}-{number:05}.tar"
            )
            for number, start in enumerate(range(0, len(chosen), samples_per_shard))
        ]
        (temporary / MANIFEST).write_text(manifest_text(shards), encoding="utf-8")
    return open_shards(folder)


def write_shard(dataset: Dataset, encode: Encode, indices: Sequence[int], path: Path) -> Shard:
    """One tar file, and its index beside it; the caller sees to it that they appear whole.

    A key names one sample of a shard, but shards that are put together may have it each: KEY comes again as KEY~2.
    """
    taken: set[str] = set()
    repeats: Counter[str] = Counter()
    with path.open("w+b") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for index in indices:
                record = dataset.record(index)
                key = _free_name(record.key, taken, repeats)
                taken.add(key)
                picture = encode(index)
                _add(archive, f"{key}.{picture.suffix}", picture.data)
                _add(archive, f"{key}.json", _fields(record))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    index_rows = tar_index.scan(path)
    with index_path(path).open("wb") as file:
        _save(index_rows, file)
    return Shard(path=path, samples=len(indices), bytes=path.stat().st_size, sha256=digest)


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # owner, time and mode stay at their defaults: the same bytes every time
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _free_name(key: str, taken: Collection[str], repeats: Counter[str]) -> str:
    """The member's name of the key, or of KEY~2, KEY~3 and on where that is taken.

    `repeats` holds the last number given to each key, where the search goes on: what was taken stays so.
    """
    while True:
        repeats[key] += 1
        name = _member_name(key if repeats[key] == 1 else f"{key}~{repeats[key]}")
        if name not in taken:
            return name


def _member_name(key: str) -> str:
    """The key as a member's name: a dot would end it, a slash make a path of it, odd letters need other headers."""
    name = quote(key, safe="").replace(".", "%2E")
    if not name or len(name) > MAX_KEY_BYTES:
        raise DataError(f"the key {key!r:.80} takes {len(name)} bytes in a shard: 1 to {MAX_KEY_BYTES} fit")
    return name


def _fields(record: Record) -> bytes:
    fields = dict(record.fields)
    fields.pop("caption", None)
    fields.pop("text", None)
    if record.captions:
        fields["captions"] = list(record.captions)
    return json.dumps(fields, ensure_ascii=False, sort_keys=True).encode()


def _save(index: tar_index.Index, file: BinaryIO) -> None:
    np.save(file, index, allow_pickle=False)
