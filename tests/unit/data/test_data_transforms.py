"""Backgrounds, resizing, crops and buckets against Pillow, formulas written out, and what must always hold."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from sfumato.data.buckets import Bucket, bucket_of, make_buckets
from sfumato.data.counter_rng import Stream
from sfumato.data.transforms import fitted, on_background, resized, to_pixels
from sfumato.errors import InvalidRequest
from support.made_data import noise


def test_a_background_shows_through_by_the_opacity() -> None:
    picture = noise(20, 10, 0, 4)
    layer = np.asarray(picture).astype(np.float64)
    opacity = layer[..., 3:] / 255
    expected = layer[..., :3] * opacity + np.array([30, 200, 90]) * (1 - opacity)
    assert np.abs(to_pixels(on_background(picture, (30, 200, 90))) - expected).max() <= 1
    opaque = noise(3, 3, 0)
    assert np.array_equal(to_pixels(on_background(opaque, (1, 2, 3))), np.asarray(opaque))


def test_area_is_the_mean_weighted_by_opacity() -> None:
    layer = np.asarray(noise(16, 8, 3, 4)).astype(np.float64)
    blocks = layer.reshape(2, 4, 4, 4, 4)
    opacity = blocks[..., 3].mean((1, 3))
    colour = (blocks[..., :3] * blocks[..., 3:]).mean((1, 3)) / opacity[..., None]
    small = np.asarray(resized(noise(16, 8, 3, 4), 4, 2, "area")).astype(np.float64)
    assert np.abs(small[..., 3] - opacity).max() <= 1
    assert np.abs(small[..., :3] - colour).max() <= 3  # of 8 bits, twice rounded


def test_hidden_colours_stay_hidden() -> None:
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[:, :32] = (255, 0, 0, 0)
    layer[:, 32:] = (0, 0, 255, 255)
    for kernel in ("area", "lanczos"):
        small = np.asarray(resized(Image.fromarray(layer), 7, 7, kernel))
        assert (small[small[..., 3] > 0][:, 0] == 0).all()


def test_pictures_without_transparency_are_resized_by_pillow() -> None:
    picture = noise(31, 17, 0)
    assert resized(picture, 9, 8).tobytes() == picture.resize((9, 8), Image.Resampling.LANCZOS).tobytes()
    with pytest.raises(InvalidRequest, match="'cubic'"):
        resized(picture, 4, 4, "cubic")


@pytest.mark.parametrize("size", [(64, 128), (128, 64), (100, 100), (32, 512)])
def test_from_the_middle_as_pillow_fits(size: tuple[int, int]) -> None:
    picture = noise(8, 8, 0).resize(size, Image.Resampling.BICUBIC)
    ours, theirs = (
        to_pixels(fitted(picture, 32, 32)),
        to_pixels(ImageOps.fit(picture, (32, 32), Image.Resampling.LANCZOS)),
    )
    assert np.abs(ours.astype(int) - theirs).mean() < 1


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.integers(1, 64), st.integers(0, 5))
def test_any_picture_fits_any_size(width: int, height: int, across: int, down: int, seed: int) -> None:
    picture = Image.new("RGB", (width, height))
    assert fitted(picture, across, down, stream=Stream(seed), kernel="area").size == (across, down)


def test_crops_are_drawn_from_everywhere() -> None:
    ramp = Image.fromarray(np.arange(20, dtype=np.uint8)[None].repeat(10, 0)).convert("RGB")
    lefts = Counter(to_pixels(fitted(ramp, 10, 10, stream=Stream(i)))[0, 0, 0] for i in range(1100))
    assert sorted(lefts) == list(range(11))
    assert min(lefts.values()) > 60
    assert to_pixels(fitted(ramp, 10, 10))[0, 0, 0] == 5


def test_the_buckets_of_512_by_64() -> None:
    sizes = [(bucket.width, bucket.height) for bucket in make_buckets(512)]
    assert sizes == [(384, 640), (448, 576), (512, 512), (576, 448), (640, 384)]


@given(st.integers(1, 16), st.sampled_from([8, 32, 64]), st.floats(1, 4))
def test_buckets_are_as_large_as_the_area_allows(factor: int, multiple: int, max_aspect: float) -> None:
    side = factor * multiple
    buckets = make_buckets(side, multiple=multiple, max_aspect=max_aspect)
    assert Bucket(width=side, height=side) in buckets
    assert [b.aspect for b in buckets] == sorted(b.aspect for b in buckets)
    for bucket in buckets:
        longer, shorter = max(bucket.width, bucket.height), min(bucket.width, bucket.height)
        assert longer <= shorter * max_aspect
        assert bucket.width * bucket.height <= side * side < (longer + multiple) * shorter
        assert bucket.width % multiple == bucket.height % multiple == 0


@given(st.integers(1, 4000), st.integers(1, 4000))
def test_every_picture_goes_to_the_bucket_nearest_to_its_shape(width: int, height: int) -> None:
    buckets = make_buckets(512)
    chosen = bucket_of(width, height, buckets)
    ratios = [max(b.aspect * height / width, width / height / b.aspect) for b in buckets]
    mine = max(chosen.aspect * height / width, width / height / chosen.aspect)
    assert mine <= min(ratios) * (1 + 1e-9)


def test_buckets_that_cannot_be() -> None:
    with pytest.raises(InvalidRequest, match="side 100"):
        make_buckets(100)
    with pytest.raises(InvalidRequest, match=r"max_aspect 0\.5"):
        make_buckets(64, max_aspect=0.5)
