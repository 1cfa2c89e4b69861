"""The perceptual hash against scipy's cosine transform; the search against comparing every pair."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dctn

from sfumato.data.near_duplicates import distance, perceptual_hash, without_near_duplicates
from sfumato.errors import InvalidRequest
from support.made_data import noise


@pytest.mark.parametrize("seed", range(5))
def test_the_hash_is_the_signs_of_the_lowest_frequencies(seed: int) -> None:
    picture = noise(6, 6, seed).resize((90, 70), Image.Resampling.BICUBIC)
    gray = np.asarray(picture.convert("L").resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    lowest = dctn(gray, type=2)[:8, :8].ravel()
    # Without normalisation scipy's transform is four times ours: no comparison changes.
    bits = "".join("1" if value > np.median(lowest[1:]) else "0" for value in lowest)
    assert perceptual_hash(picture) == int(bits, 2)


def test_alike_is_near_and_unlike_is_far() -> None:
    picture = noise(5, 5, 1).resize((128, 128), Image.Resampling.BICUBIC)
    value = perceptual_hash(picture)
    assert distance(value, perceptual_hash(picture.resize((60, 60)))) <= 4
    assert distance(value, perceptual_hash(picture.point(lambda x: x * 0.9))) <= 4
    others = [perceptual_hash(noise(5, 5, i).resize((128, 128), Image.Resampling.BICUBIC)) for i in range(2, 30)]
    assert min(distance(value, other) for other in others) > 10


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.integers(0, 63), st.data())
def test_the_search_finds_what_comparing_all_finds(values: list[int], most: int, data: st.DataObject) -> None:
    flips = st.integers(0, 63)
    hashes = values + [value ^ (1 << data.draw(flips)) ^ (1 << data.draw(flips)) for value in values]
    expected: list[int] = []
    for number, value in enumerate(hashes):
        if all(bin(value ^ hashes[kept]).count("1") > most for kept in expected):
            expected.append(number)
    assert without_near_duplicates(hashes, most) == expected


@pytest.mark.parametrize("most", [-1, 64])
def test_a_distance_that_makes_no_sense(most: int) -> None:
    with pytest.raises(InvalidRequest, match=str(most)):
        without_near_duplicates([1, 2], most)
