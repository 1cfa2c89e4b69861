"""Pictures to tensors and back, for training and its validation sheets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sfumato.data.transforms import on_background, to_pixels
from sfumato.errors import InvalidConfig

COLUMNS = 8


def to_bytes(picture: Image.Image) -> Tensor:
    """A picture as (3, H, W) of bytes; transparent places are white."""
    return torch.from_numpy(to_pixels(on_background(picture))).permute(2, 0, 1)


def scaled(pixels: Tensor) -> Tensor:
    """Bytes of any shape to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1.0


def random_crop(pixels: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A random square of a picture (3, H, W) that must be at least that large (`InvalidConfig`)."""
    _, height, width = pixels.shape
    if height < side or width < side:
        raise InvalidConfig(f"a picture of {width}×{height} is smaller than crop = {side}: lower it, or leave it out")
    top = int(torch.randint(height - side + 1, (), generator=generator))
    left = int(torch.randint(width - side + 1, (), generator=generator))
    return pixels[:, top : top + side, left : left + side]


def whole_cells(pixels: Tensor, factor: int) -> Tensor:
    """The middle of a picture (3, H, W), its sides the largest multiples of `factor` there are; one that has none is
    refused (`InvalidConfig`)."""
    sides = [size // factor * factor for size in pixels.shape[1:]]
    if not all(sides):
        raise InvalidConfig(f"a picture of {pixels.shape[2]}×{pixels.shape[1]} has no whole latent of {factor} pixels: "
                            f"leave it out")  # fmt: skip
    top, left = ((size - side) // 2 for size, side in zip(pixels.shape[1:], sides, strict=True))
    return pixels[:, top : top + sides[0], left : left + sides[1]]


def psnr(output: Tensor, target: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pixels in [-1, 1], of one shape; infinite where they are equal.

    In float32 on the device, so that a run's scores stay what its older checkpoints hold: `pictures.pixels.psnr`, which
    is for finished images, differs in the last digits.
    """
    error = float(((output - target) / 2.0).square().mean())
    return -10.0 * math.log10(error) if error else math.inf


def write_sheet(pictures: Sequence[Tensor], path: Path) -> None:
    """Pictures (3, H, W) in [-1, 1], eight a row, as a PNG; white beside smaller ones, and where a row is short."""
    height, width = (max(picture.shape[side] for picture in pictures) for side in (1, 2))
    whole = [F.pad(one, (0, width - one.shape[2], 0, height - one.shape[1]), value=1.0) for one in pictures]
    padded = [*whole, *[torch.ones_like(whole[0])] * (-len(pictures) % COLUMNS)]
    rows = [torch.cat(padded[i : i + COLUMNS], dim=2) for i in range(0, len(padded), COLUMNS)]
    array = ((torch.cat(rows, dim=1) + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)
    Image.fromarray(array.cpu().numpy()).save(path)
