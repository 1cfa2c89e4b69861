"""What a data set is to everything above it: numbered samples, each a pure function of its number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from sfumato.errors import DataError

CAPTION_FIELDS = ("captions", "caption", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is known of a sample without decoding its picture.

    `key` names it within its set; `captions` are texts that are each true of the picture, in no order that matters;
    `fields` is whatever else came with it, as plain JSON values.
    """

    key: str
    captions: tuple[str, ...]
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Record):
    """A record with its picture, 8-bit RGB or RGBA."""

    picture: Image.Image


class Dataset(Protocol):
    """Samples numbered from 0. Every method depends on nothing but the number, may be called from any thread or
    process, and raises `DataError` naming the file and the sample where that one can't be had."""

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record:
        """The sample's texts, without its picture."""
        ...

    def sample(self, index: int) -> Sample:
        """The sample with its picture decoded."""
        ...


class StoredDataset(Dataset, Protocol):
    """A data set whose pictures are files, so that they can be copied without being decoded."""

    def picture_bytes(self, index: int) -> bytes:
        """The sample's picture as it is stored."""
        ...


@dataclass(frozen=True, slots=True)
class Subset:
    """Some samples of a data set, in the order given."""

    dataset: Dataset
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def record(self, index: int) -> Record:
        return self.dataset.record(self.indices[index])

    def sample(self, index: int) -> Sample:
        return self.dataset.sample(self.indices[index])


@dataclass(frozen=True, slots=True)
class StoredSubset(Subset):
    """Some samples of a data set whose pictures are files, in the order given."""

    dataset: StoredDataset

    def picture_bytes(self, index: int) -> bytes:
        return self.dataset.picture_bytes(self.indices[index])


def spread(size: int, count: int) -> list[int]:
    """Up to `count` numbers below `size`, evenly spread, each once."""
    chosen = min(size, count)
    return [i * size // chosen for i in range(chosen)]


def parse_fields(data: bytes, name: str) -> dict[str, Any]:
    """The bytes of a JSON object. `DataError` says what is wrong with `name`."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise DataError(f"{name} holds a {type(fields).__name__}: it must be an object of fields")
    return fields


def captions_among(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The captions in a sample's fields: `captions` (a list), `caption` or `text`. Blank ones don't count. Raises
    `DataError` for one that is no text."""
    found: list[str] = []
    for field in CAPTION_FIELDS:
        value = fields.get(field)
        texts = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{name}: its {field!r} must be text, not {value!r:.60}")
        found += texts
    return tuple(dict.fromkeys(text.strip() for text in found if text.strip()))


def captions_in_lines(data: bytes, name: str) -> tuple[str, ...]:
    """The captions in a text file, one a line. Blank lines don't count. Raises `DataError` for bytes that are not
    UTF-8."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 text: save it as UTF-8") from error
    return tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
