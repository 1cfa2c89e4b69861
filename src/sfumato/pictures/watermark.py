"""The invisible watermark of the original Stable Diffusion scripts: the text `StableDiffusionV1` by the method dwtDct.

The chroma channel U is Haar-transformed once; in every 4×4 block of its low band the coefficient of largest magnitude
(the first is spared) is moved to a quarter or three quarters of its 36-wide bin, for a bit 0 or 1. The bits repeat over
the blocks, row by row. Reference: the package invisible-watermark, `EmbedMaxDct` (which, its name notwithstanding,
takes no DCT), and OpenCV's 8-bit YUV conversion; both are followed to the rounding, so pictures marked here and
there are the same.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

MESSAGE = b"StableDiffusionV1"
MIN_PIXELS = 256 * 256  # the reference refuses fewer, on encoding and decoding alike

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]

_BLOCK = 4
_SCALE = 36.0
_HAAR = np.sqrt(0.5)
_SHIFT = 14  # OpenCV's fixed-point conversion keeps 14 fractional bits
_HALF = 1 << (_SHIFT - 1)


State = Literal["StableDiffusionV1", "unreadable", "too small", "off"]


def mark(pixels: Pixels) -> tuple[Pixels, State]:
    """The marked picture (H, W, 3) and what to record of it.

    "unreadable" where the method fails, here as in the original: on white, black or pure colours its changes are
    clipped away, and in smooth chroma they hide each other.
    """
    if too_small(pixels.shape[1], pixels.shape[0]):
        return pixels, "too small"
    marked = add_watermark(pixels)
    return marked, "StableDiffusionV1" if read_watermark(marked) == MESSAGE else "unreadable"


def too_small(width: int, height: int) -> bool:
    """Whether a picture of this size (pixels) can't carry the mark."""
    return width * height < MIN_PIXELS


def add_watermark(pixels: Pixels, message: bytes = MESSAGE) -> Pixels:
    """The picture (H, W, 3) RGB with `message` hidden in it; unchanged where it is `too_small`.

    Rows and columns beyond the last multiple of 4 are only converted to YUV and back, as in the reference.
    """
    height, width = pixels.shape[:2]
    if too_small(width, height):
        return pixels.copy()
    luma, u, v = _rgb_to_yuv(pixels)
    rows, columns = height // 4 * 4, width // 4 * 4
    low, (horizontal, vertical, diagonal) = _haar(u[:rows, :columns].astype(np.float64))
    low = _embed(low, np.unpackbits(np.frombuffer(message, np.uint8)))
    # The reference hands the two detail bands back in each other's place. It shows as slightly turned chroma
    # texture and is kept: without it the pixels would differ from the original scripts'.
    marked = _inverse_haar(low, (vertical, horizontal, diagonal))
    u[:rows, :columns] = np.clip(np.trunc(marked), 0, 255)
    return _yuv_to_rgb(luma, u, v)


def read_watermark(pixels: Pixels, length: int = len(MESSAGE)) -> bytes | None:
    """The `length` bytes hidden in the picture (H, W, 3) RGB, each bit by the majority of the blocks that carry it.

    An unmarked picture gives bytes too, at random: compare with what you expect. None where it is `too_small`.
    """
    height, width = pixels.shape[:2]
    if too_small(width, height):
        return None
    _, u, _ = _rgb_to_yuv(pixels)
    low, _ = _haar(u[: height // 4 * 4, : width // 4 * 4].astype(np.float64))
    blocks = _blocks(low)
    peak = np.abs(blocks[np.arange(len(blocks)), _largest(blocks)])
    votes = peak % _SCALE > _SCALE / 2
    bits = np.arange(len(votes)) % (length * 8)
    carriers = np.bincount(bits, minlength=length * 8)
    share: Floats = np.bincount(bits, weights=votes, minlength=length * 8) / np.maximum(carriers, 1)
    return np.packbits(share * 255 > 127).tobytes()


def _embed(low: Floats, bits: Pixels) -> Floats:
    """The low band with one bit in each 4×4 block."""
    rows, columns = low.shape[0] // _BLOCK * _BLOCK, low.shape[1] // _BLOCK * _BLOCK
    blocks = _blocks(low)
    index = np.arange(len(blocks)), _largest(blocks)
    peak = blocks[index]
    bit = bits[np.arange(len(blocks)) % len(bits)]
    moved = (np.abs(peak) // _SCALE + 0.25 + 0.5 * bit) * _SCALE
    blocks[index] = np.where(peak >= 0, moved, -moved)
    marked = low.copy()
    grid = blocks.reshape(rows // _BLOCK, columns // _BLOCK, _BLOCK, _BLOCK)
    marked[:rows, :columns] = grid.transpose(0, 2, 1, 3).reshape(rows, columns)
    return marked


def _blocks(low: Floats) -> Floats:
    """(N, 16): the whole 4×4 blocks of a band, row by row."""
    rows, columns = low.shape[0] // _BLOCK, low.shape[1] // _BLOCK
    whole = low[: rows * _BLOCK, : columns * _BLOCK].reshape(rows, _BLOCK, columns, _BLOCK)
    return whole.transpose(0, 2, 1, 3).reshape(-1, _BLOCK * _BLOCK).copy()


def _largest(blocks: Floats) -> NDArray[np.intp]:
    """Where each block's coefficient of largest magnitude is, its first left out."""
    where: NDArray[np.intp] = np.argmax(np.abs(blocks[:, 1:]), axis=1) + 1
    return where


def _haar(x: Floats) -> tuple[Floats, tuple[Floats, Floats, Floats]]:
    """One level of the 2-D Haar transform: the low band, then (horizontal, vertical, diagonal) details.

    Rows before columns, each by 1/√2, not by ½ at once: ties and bin edges are decided by the reference's rounding.
    """
    low, high = _split(x[0::2], x[1::2])
    low_low, low_high = _split(low[:, 0::2], low[:, 1::2])
    high_low, high_high = _split(high[:, 0::2], high[:, 1::2])
    return low_low, (high_low, low_high, high_high)


def _split(even: Floats, odd: Floats) -> tuple[Floats, Floats]:
    return _HAAR * even + _HAAR * odd, _HAAR * even - _HAAR * odd


def _inverse_haar(low: Floats, details: tuple[Floats, Floats, Floats]) -> Floats:
    """Undo `_haar`: (H, W) of its bands (H/2, W/2), columns before rows."""
    horizontal, vertical, diagonal = details
    lower = _merge(low, vertical, axis=1)
    upper = _merge(horizontal, diagonal, axis=1)
    return _merge(lower, upper, axis=0)


def _merge(low: Floats, high: Floats, *, axis: int) -> Floats:
    even, odd = _split(low, high)
    shape = [size * (2 if dimension == axis else 1) for dimension, size in enumerate(low.shape)]
    return np.stack((even, odd), axis=axis + 1).reshape(shape)


def _rgb_to_yuv(pixels: Pixels) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
    """OpenCV's 8-bit RGB → YUV (BT.601, U = 0.492 (B−Y) + 128), in its fixed-point arithmetic."""
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    luma = (4899 * red + 9617 * green + 1868 * blue + _HALF) >> _SHIFT
    u = ((blue - luma) * 8061 + (128 << _SHIFT) + _HALF) >> _SHIFT
    v = ((red - luma) * 14369 + (128 << _SHIFT) + _HALF) >> _SHIFT
    return luma, _byte(u), _byte(v)


def _yuv_to_rgb(luma: NDArray[np.int32], u: NDArray[np.int32], v: NDArray[np.int32]) -> Pixels:
    """OpenCV's 8-bit YUV → RGB, in its fixed-point arithmetic."""
    u, v = u - 128, v - 128
    red = luma + ((18678 * v + _HALF) >> _SHIFT)
    green = luma + ((-6472 * u - 9519 * v + _HALF) >> _SHIFT)
    blue = luma + ((33292 * u + _HALF) >> _SHIFT)
    return np.stack((red, green, blue), axis=-1).clip(0, 255).astype(np.uint8)


def _byte(x: NDArray[Any]) -> NDArray[np.int32]:
    clipped: NDArray[np.int32] = np.clip(x, 0, 255).astype(np.int32)
    return clipped
