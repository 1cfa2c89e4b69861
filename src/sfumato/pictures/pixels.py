"""Pictures as numbers: decoded tensors → 8-bit pixels, input pictures → tensors, and how alike two pictures are."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.errors import InvalidRequest, NumericalError

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8]
Rounding = Literal["round", "truncate"]

_ROUNDINGS: Mapping[Rounding, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {
    "round": np.round,
    "truncate": np.trunc,
}


def to_pixels(images: Tensor, rounding: Rounding = "round") -> Pixels:
    """Decoded pictures (B, 3, H, W) in [-1, 1] → (B, H, W, 3) uint8 RGB; what lies outside the range is clamped.

    "round" is diffusers' (`VaeImageProcessor.postprocess`, half to even), "truncate" CompVis' `astype(uint8)`.
    NaN is a `NumericalError`: it would be saved as a black picture.
    """
    unit = (images.detach() * 0.5 + 0.5).clamp(0, 1)
    values = unit.cpu().permute(0, 2, 3, 1).float().numpy()
    if np.isnan(values).any():
        raise NumericalError("the decoded picture holds NaN: try dtype float32, or another model")
    return _ROUNDINGS[rounding](values * 255).astype(np.uint8)


def picture_to_tensor(picture: Image.Image, width: int, height: int) -> Tensor:
    """An RGB picture → (1, 3, height, width) float32 in [-1, 1], resized by Lanczos, as diffusers prepares it."""
    import torch

    pixels = np.array(_resized(picture.convert("RGB"), width, height), dtype=np.float32)
    return torch.from_numpy(pixels / 255).permute(2, 0, 1)[None].contiguous() * 2 - 1


def mask_to_tensor(picture: Image.Image, width: int, height: int) -> Tensor:
    """A mask → (1, 1, height, width) float32: 1 (white) where to repaint, 0 (black) what to keep.

    Resized by Lanczos and cut at one half, as diffusers' mask processor does.
    """
    import torch

    gray = np.array(_resized(picture, width, height).convert("L"), dtype=np.float32) / 255
    return torch.from_numpy((gray >= 0.5).astype(np.float32))[None, None]


def mask_to_latents(mask: Tensor, width: int, height: int) -> Tensor:
    """A mask (1, 1, H, W) at the latents' size (1, 1, height, width), each cell its nearest pixel (diffusers)."""
    from torch.nn.functional import interpolate

    return interpolate(mask, size=(height, width))


def fitting_size(size: tuple[int, int], multiple: int = 8) -> tuple[int, int]:
    """(width, height) of a picture rounded down to multiples, as diffusers sizes a picture nobody gave a size for.
    Raises `InvalidRequest` where nothing is left."""
    width, height = (side // multiple * multiple for side in size)
    if not width or not height:
        raise InvalidRequest(
            f"a picture of {size[0]}×{size[1]} pixels is too small to start from: give a width and height"
        )
    return width, height


def _resized(picture: Image.Image, width: int, height: int) -> Image.Image:
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def pixels_sha256(pixels: Pixels) -> str:
    """SHA-256 of the RGB bytes (H, W, 3), row by row: the same picture has the same hash whatever file holds it."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def psnr(a: NDArray[Any], b: NDArray[Any], span: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB of two pictures (H, W, 3), or any arrays of one size, whose values lie within
    `span`; infinite where they are equal. Raises `InvalidRequest` for two sizes."""
    if a.shape != b.shape:
        raise InvalidRequest(f"pictures of {_size(a)} and {_size(b)} pixels can't be compared: give two of one size")
    mean_square = float(np.mean(np.square(a.astype(np.float64) - b)))
    return math.inf if mean_square == 0 else 10 * math.log10(span**2 / mean_square)


def _size(pixels: Pixels) -> str:
    return f"{pixels.shape[1]}×{pixels.shape[0]}"
