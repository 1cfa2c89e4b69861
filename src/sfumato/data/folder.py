"""A folder of pictures with captions, as people keep them and as Hugging Face's `imagefolder` lays them out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from sfumato.data.decoding import PICTURE_SUFFIXES, decode, read_picture
from sfumato.data.samples import Record, Sample, captions_among, captions_in_lines
from sfumato.data.tables import Tables
from sfumato.errors import DataError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_PARQUET_MEMORY = 1024  # MB


@dataclass(frozen=True, slots=True)
class PictureFolder:
    """Pictures in a folder and its subfolders, ordered by path, with the captions found for them."""

    folder: Path
    paths: tuple[Path, ...]
    records: tuple[Record, ...]

    def __len__(self) -> int:
        return len(self.records)

    def record(self, index: int) -> Record:
        return self.records[index]

    def sample(self, index: int) -> Sample:
        record = self.records[index]
        picture = decode(self.picture_bytes(index), str(self.paths[index]))
        return Sample(key=record.key, captions=record.captions, fields=record.fields, picture=picture)

    def picture_bytes(self, index: int) -> bytes:
        return read_picture(self.paths[index])


def open_folder(folder: Path, *, captions_required: bool = True) -> PictureFolder:
    """Pictures with captions, from `metadata.jsonl`, `.csv` or `.parquet` (`file_name`, `text`, any other columns) in
    the folder or in subfolders of it, as Hugging Face's `imagefolder` has them, or else from a text file beside each
    picture (`cat.png`, `cat.txt`; one caption a line).

    The key of a sample is its path without the suffix. `DataError` for a folder without pictures, a picture without a
    caption (unless they aren't `captions_required`), two pictures of one key, a metadata line that is broken, and a
    `file_name` that isn't there or leads out of the folder. Parquet needs the extra `data`.
    """
    found = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower().removeprefix(".") in PICTURE_SUFFIXES and path.is_file()
    }
    if not found:
        raise DataError(f"{folder} holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
    listed = _listed(folder)
    records: dict[str, Record] = {}
    for name, path in found.items():
        key = PurePosixPath(name).with_suffix("").as_posix()
        if key in records:
            raise DataError(f"{path}: another picture has the key {key!r} too: rename one")
        if listed is None:
            records[key] = Record(key=key, captions=_beside(path, captions_required), fields={})
        elif name not in listed:
            raise DataError(f"{path} is not in the metadata: add a line for it, or take it away")
        else:
            fields = listed[name]
            captions = captions_among(fields, str(path))
            if captions_required and not captions:
                raise DataError(f"{path} has no caption in the metadata: fill in its 'text'")
            records[key] = Record(key=key, captions=captions, fields=fields)
    for name in (listed or {}).keys() - found.keys():
        raise DataError(f"{folder}: the metadata names {name!r:.80}, which is no picture in this folder")
    return PictureFolder(folder=folder, paths=tuple(found.values()), records=tuple(records.values()))


def _beside(picture: Path, required: bool) -> tuple[str, ...]:
    path = picture.with_suffix(".txt")
    if not path.is_file():
        if not required:
            return ()
        raise DataError(f"{picture} has no caption: write it to {path.name}, or all of them to {METADATA[0]}")
    captions = captions_in_lines(_bytes(path), str(path))
    if required and not captions:
        raise DataError(f"{path} is empty: write a caption for {picture.name}")
    return captions


def _listed(folder: Path) -> dict[str, dict[str, Any]] | None:
    """The metadata's lines by the file's place in the folder, None where there is no metadata."""
    listed: dict[str, dict[str, Any]] = {}
    tables = {path.parent: path for name in reversed(METADATA) for path in folder.rglob(name)}
    for place, path in sorted(tables.items()):
        above = place.relative_to(folder)
        for name, fields in _by_name(_READERS[path.name](path), path).items():
            listed[(above / name).as_posix()] = fields
    return listed if tables else None


def _by_name(lines: list[dict[str, Any]], path: Path) -> dict[str, dict[str, Any]]:
    listed: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        name = line.pop("file_name", None)
        if not isinstance(name, str):
            raise DataError(f"{path}: entry {number} has no 'file_name'")
        if name in listed:
            raise DataError(f"{path}: entry {number} names {name!r:.80} a second time")
        listed[PurePosixPath(name).as_posix()] = line
    return listed


def _json_lines(path: Path) -> list[dict[str, Any]]:
    entries = []
    for number, line in enumerate(_bytes(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(entry, dict):
            raise DataError(
                f"{path}: line {number} must be an object of fields, not {line.decode(errors='replace'):.40}"
            )
        entries.append(entry)
    return entries


def _csv_lines(path: Path) -> list[dict[str, Any]]:
    try:
        reader = csv.DictReader(io.StringIO(_bytes(path).decode("utf-8-sig"), newline=""), strict=True, restkey="")
        return [{key: value for key, value in entry.items() if key and value is not None} for entry in reader]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path} is not a table in CSV: {error}") from error


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    tables = Tables(memory=_PARQUET_MEMORY)
    try:
        return [{name: _plain(value) for name, value in row.items()} for row in tables.rows(path)]
    finally:
        tables.close()


def _plain(value: object) -> object:
    """What JSON knows as it is, all else (dates, decimals) as text."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


_READERS: Mapping[str, Callable[[Path], list[dict[str, Any]]]] = dict(
    zip(METADATA, (_json_lines, _csv_lines, _parquet_rows), strict=True)
)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} can't be read ({error.strerror or error})") from error
