"""The invisible watermark against pictures marked by the package invisible-watermark (tests/golden/watermark)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.pictures.pixels import Pixels, psnr
from sfumato.pictures.watermark import MESSAGE, add_watermark, mark, read_watermark, too_small

GOLDEN = Path(__file__).parents[2] / "golden" / "watermark"
SIZES = [(256, 256), (259, 301)]


def wave(x: np.ndarray, y: np.ndarray, a: int, b: int, period: int, height: int) -> np.ndarray:
    """A triangle wave in whole numbers."""
    return np.abs((a * x + b * y) % period - period // 2) * height // (period // 2)


def synthetic(height: int, width: int) -> Pixels:
    """The picture the goldens were made from: gray waves with a little colour."""
    y, x = np.mgrid[0:height, 0:width]
    luma = 60 + wave(x, y, 3, 1, 190, 120)
    tints = (wave(x, y, 1, 4, 230, 12), wave(x, y, 2, 3, 310, 10), wave(x, y, 5, 2, 170, 12))
    return np.stack([luma + tint for tint in tints], axis=-1).astype(np.uint8)


def golden(height: int, width: int) -> Pixels:
    return np.array(Image.open(GOLDEN / f"{width}x{height}.png"))


def matching_bits(pixels: Pixels) -> int:
    """How many of the mark's 136 bits a picture gives back: about 68 by chance."""
    found = read_watermark(pixels)
    assert found is not None
    return sum(8 - (a ^ b).bit_count() for a, b in zip(found, MESSAGE, strict=True))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_marks_as_the_original_does(height: int, width: int) -> None:
    difference = np.abs(add_watermark(synthetic(height, width)).astype(int) - golden(height, width))
    assert difference.max() <= 1
    assert np.mean(difference > 0) < 0.001


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_reads_what_the_original_marked(height: int, width: int) -> None:
    assert read_watermark(golden(height, width)) == b"StableDiffusionV1"


def test_reads_nothing_from_an_unmarked_picture() -> None:
    picture = synthetic(256, 256)
    assert read_watermark(picture) != MESSAGE
    assert 40 < matching_bits(picture) < 96  # 68 ± 4.8 standard deviations of coin tosses


def test_is_invisible() -> None:
    picture = synthetic(512, 512)
    marked, state = mark(picture)
    assert state == "StableDiffusionV1"
    assert psnr(picture, marked) > 38
    assert marked is not picture


def test_survives_jpeg(tmp_path: Path) -> None:
    marked = add_watermark(synthetic(512, 512))
    Image.fromarray(marked).save(tmp_path / "a.jpg", quality=95, subsampling=0)
    assert matching_bits(np.array(Image.open(tmp_path / "a.jpg"))) > 120


def test_the_majority_of_the_blocks_decides_each_bit() -> None:
    picture = synthetic(512, 512)
    marked = add_watermark(picture)
    marked[-180:] = 0  # a third of the blocks now all say 0
    assert read_watermark(marked) == MESSAGE


def test_carries_other_messages() -> None:
    marked = add_watermark(synthetic(512, 512), b"another one")
    assert read_watermark(marked, len(b"another one")) == b"another one"


def test_leaves_small_pictures_alone() -> None:
    picture = synthetic(128, 128)
    marked, state = mark(picture)
    assert state == "too small"
    assert np.array_equal(marked, picture)
    assert read_watermark(picture) is None
    assert np.array_equal(add_watermark(picture), picture)


def test_the_limit_is_the_area_as_in_the_original() -> None:
    assert not too_small(512, 128)
    assert too_small(511, 128)


def test_owns_up_where_the_method_fails() -> None:
    yellow = np.full((256, 256, 3), (255, 255, 0), np.uint8)  # its U can't be lowered: the changes are clipped away
    assert mark(yellow)[1] == "unreadable"
