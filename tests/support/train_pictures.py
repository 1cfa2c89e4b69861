"""A data set of drawn shapes, in memory."""

from __future__ import annotations

from PIL import Image, ImageDraw

from sfumato.data.samples import Record, Sample

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
