"""The emoji cut out and scaled, ready to be laid on a scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.data.samples import Dataset
from sfumato.data.transforms import Colour, Pixels
from sfumato.errors import DataError

_SEEN = 24  # opacity out of 255 below which a pixel doesn't count for the outline
_CONTRAST = 56  # of 255, in the channel that differs most
_EDGE_SHARE = 0.6  # of the outline's pixels that must have that contrast to the background


@dataclass(frozen=True, slots=True)
class Layer:
    """A cut-out picture: `colour` (H, W, 3) uint16, multiplied by its opacity, `rest` (H, W, 1) = 255 - opacity."""

    colour: NDArray[np.uint16]
    rest: NDArray[np.uint16]

    @property
    def width(self) -> int:
        return int(self.rest.shape[1])

    @property
    def height(self) -> int:
        return int(self.rest.shape[0])

    def lay_on(self, canvas: Pixels, left: int, top: int) -> None:
        """Blend into the canvas (H, W, 3) in place, with the upper left corner at (left, top); it must fit."""
        region = canvas[top : top + self.height, left : left + self.width]
        behind = region * self.rest + 128
        region[:] = self.colour + (behind + (behind >> 8) >> 8)  # division by 255, rounded; exact below 2**16

    def upper_edge(self) -> NDArray[np.int64]:
        """Find for each column the first row in which there is anything, the height where there is nothing: (W,)."""
        seen = self.rest[..., 0] < 255 - _SEEN
        edge: NDArray[np.int64] = np.where(seen.any(axis=0), seen.argmax(axis=0), self.height)
        return edge


class Sprite:
    """One emoji without its transparent border, at any size."""

    def __init__(self, picture: Image.Image, name: str) -> None:
        """Raise `DataError` for a picture in which nothing is to be seen."""
        box = picture.convert("RGBA").getchannel("A").point(lambda alpha: 255 * (alpha >= _SEEN)).getbbox()
        if box is None:
            raise DataError(f"{name} is an empty picture: leave it out")
        self._cut = picture.convert("RGBA").crop(box).convert("RGBa")
        self._layers: dict[int, Layer] = {}
        self._shows: dict[Colour, bool] = {}

    def layer(self, size: int) -> Layer:
        """Scaled so that the longer side has `size` pixels."""
        layer = self._layers.get(size)
        if layer is None:
            layer = self._layers[size] = self._scaled(size)
        return layer

    def size(self, size: int) -> tuple[int, int]:
        """(width, height) of that layer."""
        longest = max(self._cut.size)
        width, height = (max(1, round(side * size / longest)) for side in self._cut.size)
        return width, height

    def shows_on(self, colour: Colour) -> bool:
        """Whether the sprite's outline stands out from a background of that colour."""
        known = self._shows.get(colour)
        if known is None:
            difference = np.abs(self._outline() - np.array(colour)).max(axis=1)
            known = self._shows[colour] = float((difference >= _CONTRAST).mean()) >= _EDGE_SHARE
        return known

    def _scaled(self, size: int) -> Layer:
        pixels = np.array(self._cut.resize(self.size(size), Image.Resampling.LANCZOS)).astype(np.uint16)
        opacity = pixels[..., 3:]
        # Lanczos overshoots: colour above opacity would exceed 255 once laid on white.
        return Layer(np.minimum(pixels[..., :3], opacity), 255 - opacity)

    def _outline(self) -> NDArray[np.int64]:
        """The colours along the edge, (N, 3)."""
        pixels = np.array(self._cut.convert("RGBA")).astype(np.int64)
        solid = np.pad(pixels[..., 3] > 127, 2)
        inside = solid.copy()
        for axis in (0, 1):
            for step in (-2, 2):
                inside &= np.roll(solid, step, axis)
        edge = (solid & ~inside)[2:-2, 2:-2]
        return pixels[edge][:, :3] if edge.any() else pixels[..., :3].reshape(-1, 3)


class Sprites:
    """The sprites of a data set, cut when first asked for and kept: about 20 kB for each size of each."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._sprites: dict[int, Sprite] = {}

    def __getitem__(self, index: int) -> Sprite:
        sprite = self._sprites.get(index)
        if sprite is None:
            sample = self._dataset.sample(index)
            sprite = self._sprites[index] = Sprite(sample.picture, f"sample {sample.key!r}")
        return sprite
