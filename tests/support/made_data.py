"""Small data sets for the tests: pictures drawn here, in memory or in shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sfumato.data.samples import Record, Sample
from sfumato.data.shard_writer import as_stored, write_shards
from sfumato.pocket.dataset.emoji import EmojiSet, open_emoji

LABELS: dict[str, tuple[str, str]] = {
    "red apple": ("food-drink", "food-fruit"),
    "cat": ("animals-nature", "animal-mammal"),
    "horse": ("animals-nature", "animal-mammal"),
    "dog": ("animals-nature", "animal-mammal"),
    "elephant": ("animals-nature", "animal-mammal"),
    "astronaut": ("people-body", "person-role"),
    "cook": ("people-body", "person-role"),
    "bread": ("food-drink", "food-prepared"),
    "grapes": ("food-drink", "food-fruit"),
    "house": ("travel-places", "place-building"),
    "rocket": ("travel-places", "transport-air"),
    "left arrow": ("symbols", "arrow"),
    "flag: Japan": ("flags", "country-flag"),
    "key": ("objects", "lock"),
}
STYLES = ("flat", "noto")


@dataclass(frozen=True, slots=True)
class Pictures:
    """Samples held in memory, with their pictures as PNG."""

    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def record(self, index: int) -> Record:
        sample = self.samples[index]
        return Record(key=sample.key, captions=sample.captions, fields=sample.fields)

    def sample(self, index: int) -> Sample:
        return self.samples[index]

    def picture_bytes(self, index: int) -> bytes:
        return png(self.samples[index].picture)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def noise(width: int, height: int, seed: int, channels: int = 3) -> Image.Image:
    """A picture no two pixels of which are alike."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8))


def pictures(count: int) -> Pictures:
    """Samples `0` to `count` - 1, with a caption and a field each."""
    return Pictures(
        [
            Sample(
                key=f"{i:03}",
                captions=(f"number {i}",),
                fields={"number": i},
                picture=noise(9 + i % 4, 7, i, 3 + i % 2),
            )
            for i in range(count)
        ]
    )


def emoji_sample(label: str, style: str, number: int) -> Sample:
    """A drawing with transparent borders: a disc, a box or a bar, in a colour that its number decides."""
    group, subgroup = LABELS[label]
    picture = Image.new("RGBA", (128, 128))
    draw = ImageDraw.Draw(picture)
    colour = (200 + number % 50, 30 + 7 * number % 60, 90, 255)
    box = [(14, 20, 110, 116), (30, 10, 98, 122), (8, 50, 120, 100)][number % 3]
    (draw.ellipse if style == "flat" else draw.rectangle)(box, fill=colour)
    fields: dict[str, Any] = {
        "style": style, "codepoint": f"1f{number:03x}", "label": label, "tags": ["one", "two", "three", "four"],
        "group": group, "subgroup": subgroup, "source": "drawn for a test", "license": "CC0-1.0",
    }  # fmt: skip
    return Sample(key=f"{style}-1f{number:03x}", captions=(), fields=fields, picture=picture)


def emoji_set(folder: Path, styles: Sequence[str] = STYLES) -> EmojiSet:
    """Every label in each style, in shards of ten."""
    samples = [emoji_sample(label, style, i) for style in styles for i, label in enumerate(LABELS)]
    source = Pictures(samples)
    write_shards(source, as_stored(source), folder, name="emoji", samples_per_shard=10)
    return open_emoji(folder)


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """A tar of these members, whatever they are called."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path
