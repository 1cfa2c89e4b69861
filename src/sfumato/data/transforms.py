"""What happens to a picture between its file and the model: background, square, crop. Pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.data.counter_rng import Stream
from sfumato.errors import InvalidRequest

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]
Kernel = Literal["area", "lanczos"]

WHITE: Colour = (255, 255, 255)

_KERNELS: dict[Kernel, Image.Resampling] = {"area": Image.Resampling.BOX, "lanczos": Image.Resampling.LANCZOS}


def on_background(picture: Image.Image, colour: Colour = WHITE) -> Image.Image:
    """An RGBA picture laid on a colour → RGB; an RGB one as it is."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (*colour, 255)), layer).convert("RGB")


def resized(picture: Image.Image, width: int, height: int, kernel: Kernel = "lanczos") -> Image.Image:
    """The picture at that size; its proportions are not kept. "area" is the mean of what each pixel covers.

    Pixels are weighted by their opacity: the colour hidden under transparency never shows at an edge. Raises
    `InvalidRequest` for an unknown kernel.
    """
    if kernel not in _KERNELS:
        raise InvalidRequest(f"kernel {kernel!r} is unknown: use {' or '.join(_KERNELS)}")
    if picture.mode != "RGBA":
        return picture.resize((width, height), _KERNELS[kernel])
    return picture.convert("RGBa").resize((width, height), _KERNELS[kernel]).convert("RGBA")


def fitted(
    picture: Image.Image, width: int, height: int, *, stream: Stream | None = None, kernel: Kernel = "lanczos"
) -> Image.Image:
    """The picture scaled until it just covers width × height, and cut to that: at a place drawn from `stream`, or from
    the middle without one. Nothing is stretched by more than the rounding of a side to whole pixels.
    """
    scale = max(width / picture.width, height / picture.height)
    across = max(width, round(picture.width * scale))
    down = max(height, round(picture.height * scale))
    covering = picture if picture.size == (across, down) else resized(picture, across, down, kernel)
    draw: Callable[[int], int] = (
        (lambda spare: spare // 2) if stream is None else (lambda spare: stream.below(spare + 1))
    )
    left, top = draw(across - width), draw(down - height)
    return covering.crop((left, top, left + width, top + height))


def to_pixels(picture: Image.Image) -> Pixels:
    """An RGB picture → (H, W, 3) uint8, an array of its own."""
    return np.array(picture.convert("RGB"), dtype=np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What is done to a picture before it is encoded for good: laid on white, scaled until it just covers
    width × height pixels, and cut to that from the middle. Wrong values raise `InvalidRequest`."""

    width: int
    height: int
    kernel: Kernel = "lanczos"

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise InvalidRequest(f"pictures of {self.width}×{self.height} pixels: each side must be at least 1")
        if self.kernel not in _KERNELS:
            raise InvalidRequest(f"kernel {self.kernel!r} is unknown: use {' or '.join(_KERNELS)}")

    def __call__(self, picture: Image.Image) -> Pixels:
        """Any picture → (height, width, 3) uint8."""
        return to_pixels(fitted(on_background(picture), self.width, self.height, kernel=self.kernel))
