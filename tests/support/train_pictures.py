"""A data set of drawn shapes, in memory, and the small autoencoder that encodes such."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw

from sfumato.data.moments import Moments
from sfumato.data.samples import Dataset, Record, Sample
from sfumato.data.transforms import Preparation
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.train.encoding.encode_dataset import encode_moments

TINY = AutoencoderConfig(block_channels=(8, 16), layers_per_block=1, norm_groups=4, sample_size=16)
SQUARE = Preparation(width=16, height=16)

COLOURS = ("red", "blue", "green", "orange", "purple", "black", "teal", "pink")


class Shapes:
    """`count` pictures of `side` pixels: discs and squares of eight colours on white."""

    def __init__(self, count: int, side: int) -> None:
        self.count, self.side = count, side

    def __len__(self) -> int:
        return self.count

    def record(self, index: int) -> Record:
        return Record(key=str(index), captions=(f"a {COLOURS[index % 8]} shape",), fields={})

    def sample(self, index: int) -> Sample:
        picture = Image.new("RGB", (self.side, self.side), "white")
        corner, size = self.side // 8 + index % 3, self.side // 2
        draw = ImageDraw.Draw(picture)
        (draw.ellipse if index % 2 else draw.rectangle)(
            (corner, corner, corner + size, corner + size), COLOURS[index % 8]
        )
        record = self.record(index)
        return Sample(key=record.key, captions=record.captions, fields={}, picture=picture)


def autoencoder(seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder(TINY)


def encoded(dataset: Dataset, folder: Path, **changes: object) -> Moments:
    """The moments of `dataset`, or what is left of them: also for a process that will be killed."""
    options = {"preparation": SQUARE, "batch": 4, "samples_per_part": 10, **changes}
    return encode_moments(dataset, autoencoder(), folder, **options)
