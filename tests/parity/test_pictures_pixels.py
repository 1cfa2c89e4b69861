"""Tensors ↔ pixels as diffusers' VaeImageProcessor and the original scripts make them, byte for byte."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sfumato.errors import InvalidRequest, NumericalError
from sfumato.pictures.pixels import (
    fitting_size,
    mask_to_latents,
    mask_to_tensor,
    picture_to_tensor,
    pixels_sha256,
    psnr,
    to_pixels,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def decoded(dtype: torch.dtype) -> torch.Tensor:
    """Values in and out of range, and every half-way point between two bytes."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, 16, 32, generator=generator)
    halves = (torch.arange(512) - 0.5) / 127.5 - 1
    noise.view(-1)[:512] = halves
    return noise.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_is_diffusers(dtype: torch.dtype) -> None:
    images = decoded(dtype)
    reference = np.stack([np.array(picture) for picture in VaeImageProcessor().postprocess(images)])
    assert np.array_equal(to_pixels(images), reference)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_truncation_is_the_original_scripts(dtype: torch.dtype) -> None:
    images = decoded(dtype)
    samples = torch.clamp((images + 1.0) / 2.0, min=0.0, max=1.0).float().numpy()  # txt2img.py's formula
    reference = np.stack([(255.0 * sample.transpose(1, 2, 0)).astype(np.uint8) for sample in samples])
    assert np.array_equal(to_pixels(images, "truncate"), reference)
    assert not np.array_equal(to_pixels(images, "truncate"), to_pixels(images))


def test_nan_is_an_error_not_a_black_picture() -> None:
    images = torch.zeros(1, 3, 8, 8)
    images[0, 1, 2, 3] = torch.nan
    with pytest.raises(NumericalError, match="NaN"):
        to_pixels(images)


def photograph(width: int, height: int, mode: str = "RGB") -> Image.Image:
    generator = np.random.default_rng(0)
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width, channels) if channels > 1 else (height, width)
    return Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize("size", [(64, 48), (131, 77), (1, 1)])
def test_input_pictures_are_prepared_as_diffusers_does(size: tuple[int, int]) -> None:
    picture = photograph(*size)
    reference = VaeImageProcessor().preprocess(picture, height=64, width=96)
    ours = picture_to_tensor(picture, 96, 64)
    assert ours.shape == (1, 3, 64, 96)
    assert torch.equal(ours, reference)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_masks_are_prepared_as_diffusers_does(mode: str) -> None:
    picture = photograph(131, 77, mode)
    processor = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    reference = processor.preprocess(picture, height=64, width=96)
    ours = mask_to_tensor(picture, 96, 64)
    assert ours.shape == (1, 1, 64, 96)
    assert torch.equal(ours, reference)
    cells = torch.nn.functional.interpolate(reference, size=(8, 12))
    assert torch.equal(mask_to_latents(ours, 12, 8), cells)


def test_white_is_repainted_and_black_is_kept() -> None:
    half = Image.fromarray(np.repeat(np.array([[0], [255]], np.uint8), 8, axis=0).repeat(16, axis=1))
    mask = mask_to_tensor(half, 16, 16)
    assert mask[0, 0, :8].max() == 0
    assert mask[0, 0, 8:].min() == 1


def test_pixels_and_tensors_are_inverses() -> None:
    picture = photograph(32, 24)
    assert np.array_equal(to_pixels(picture_to_tensor(picture, 32, 24))[0], np.array(picture))


@pytest.mark.parametrize("size", [(512, 512), (517, 767), (8, 15)])
def test_the_size_of_an_input_picture_is_rounded_as_diffusers_does(size: tuple[int, int]) -> None:
    height, width = VaeImageProcessor().get_default_height_width(Image.new("RGB", size))
    assert fitting_size(size) == (width, height)


def test_a_picture_too_small_to_start_from_says_so() -> None:
    with pytest.raises(InvalidRequest, match="7×512"):
        fitting_size((7, 512))


@settings(deadline=None)
@given(st.integers(1, 255), st.integers(0, 11))
def test_psnr_is_the_textbook_formula(error: int, index: int) -> None:
    black = np.zeros((2, 2, 3), np.uint8)
    other = black.copy()
    other.reshape(-1)[index] = error
    assert psnr(black, other) == pytest.approx(20 * math.log10(255) - 10 * math.log10(error**2 / 12))
    assert psnr(other, black) == psnr(black, other)


def test_equal_pictures_are_infinitely_close_and_sizes_must_be_equal() -> None:
    black = np.zeros((2, 3, 3), np.uint8)
    assert psnr(black, black.copy()) == math.inf
    with pytest.raises(InvalidRequest, match="3×2 and 2×3"):
        psnr(black, np.zeros((3, 2, 3), np.uint8))


def test_the_hash_is_of_the_rgb_bytes() -> None:
    picture = np.array(photograph(5, 7))
    assert pixels_sha256(picture) == hashlib.sha256(Image.fromarray(picture).tobytes()).hexdigest()
    assert pixels_sha256(picture[:, ::-1]) == hashlib.sha256(Image.fromarray(picture[:, ::-1]).tobytes()).hexdigest()
