"""What a request refuses, and that the message names the field, the value and a way out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sfumato.errors import InvalidRequest
from sfumato.pictures.source import ImageSource
from sfumato.pipeline.request import Request

SHA256 = "0" * 64


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("prompt", None, "prompt must be text"),
        ("prompt", "a \udcff", "broken character at position 2"),
        ("negative_prompt", 3, "negative_prompt must be text"),
        ("model", None, "model must be text"),
        ("sampler", "plsm", "'plms'"),
        ("sampler", ["plms"], "sampler must be text"),
        ("profile", "difusers", "'diffusers'"),
        ("spacing", "kerras", "'karras'"),
        ("spacing", "karras", "can't use the spacing 'karras'"),
        ("noise", "gpu", "noise 'gpu'"),
        ("steps", 0, "steps 0 must be a whole number from 1 to 1000"),
        ("steps", 1001, "steps 1001"),
        ("steps", 20.0, "steps 20.0"),
        ("steps", True, "steps True"),
        ("seed", -1, "seed -1"),
        ("seed", 2**63, "from 0 to 9223372036854775807"),
        ("width", 500, "width 500 is not a multiple of 8: use 496 or 504"),
        ("height", 333, "height 333 is not a multiple of 8: use 328 or 336"),
        ("height", 0, "height 0 must be a whole number from 8 to 8192"),
        ("width", 8200, "width 8200"),
        ("guidance_scale", math.nan, "guidance_scale nan must be a number from 0 to 1000"),
        ("guidance_scale", math.inf, "guidance_scale inf"),
        ("guidance_scale", "7.5", "guidance_scale '7.5'"),
        ("guidance_interval", (2.0, 1.0), "guidance_interval 2..1 must rise"),
        ("guidance_interval", (1.0,), "two numbers"),
        ("guidance_interval", (1.0, math.nan), "guidance_interval nan"),
        ("cache_interval", 0, "cache_interval 0 must be a whole number from 1"),
        ("cache_depth", 0, "cache_depth 0 must be a whole number from 1"),
        ("token_merging", 0.8, "token_merging 0.8 must be a number from 0 to 0.75"),
        ("strength", 1.5, "strength 1.5 must be a number from 0 to 1"),
        ("eta", 10**400, "eta"),
        ("mask", ImageSource(sha256=SHA256, width=8, height=8), "mask needs an init_image"),
        ("init_image", "cat.png", "init_image must be an ImageSource"),
    ],
)
def test_refuses(field: str, value: Any, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Request(**{"prompt": "a red heart", field: value})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([], "an object of fields"),
        ({}, "needs a prompt"),
        ({"prompt": "a", "promt": "b"}, "no field 'promt'"),
        ({"prompt": "a", "init_image": "cat.png"}, "an object of fields"),
        ({"prompt": "a", "init_image": {"sha256": SHA256}}, "'height'"),
        ({"prompt": "a", "init_image": {"sha256": "x", "width": 1, "height": 1}}, "64 hexadecimal digits"),
        ({"prompt": "a", "init_image": {"sha256": SHA256, "width": 0, "height": 1}}, "width 0"),
        ({"prompt": "a", "init_image": {"sha256": SHA256, "width": 1, "height": 1, "path": 5}}, "path must be text"),
    ],
)
def test_refuses_malformed_records(values: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        Request.from_dict(values)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"width": 2048, "upscale": 4.01}, "width 2048 × upscale 4.01 is more than 8192"),
        ({"height": 8192, "upscale": 1.5}, "height 8192 × upscale 1.5 is more than 8192"),
        ({"sampler": "dpm_adaptive", "cache_interval": 2}, "cache_interval 2 doesn't go with sampler 'dpm_adaptive'"),
        ({"noise": "generator", "variation_strength": 0.1}, "variation_strength 0.1 doesn't go with noise 'generator'"),
    ],
)
def test_refuses_what_does_not_go_together(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        Request(prompt="a red heart", **fields)
    assert says in str(caught.value)


def test_the_largest_picture_two_passes_can_make() -> None:
    request = Request(prompt="a red heart", width=2048, height=1024, upscale=4.0)
    assert (request.width, request.upscale) == (2048, 4.0)


def test_whole_numbers_become_floats_so_that_equal_requests_are_one() -> None:
    assert Request(prompt="a", guidance_scale=4).to_json() == Request(prompt="a", guidance_scale=4.0).to_json()


def test_numpys_numbers_are_numbers() -> None:
    numbers: dict[str, Any] = {"seed": np.uint64(3), "steps": np.int32(20), "width": np.int64(64)}
    numbers |= {"guidance_scale": np.float32(2.5), "guidance_interval": (np.float64(0), np.float32(4))}
    given = Request(prompt="a", **numbers)
    plain = Request(prompt="a", seed=3, steps=20, width=64, guidance_scale=2.5, guidance_interval=(0, 4))
    assert given == plain and given.to_json() == plain.to_json()
    wrong: tuple[Any, ...] = (np.float64(20), np.bool_(True), np.array(20))
    for value in wrong:
        with pytest.raises(InvalidRequest, match="must be a whole number"):
            Request(prompt="a", steps=value)


def test_replace_validates_again() -> None:
    request = Request(prompt="a red heart")
    assert request.replace(steps=20).steps == 20
    with pytest.raises(InvalidRequest, match="steps"):
        request.replace(steps=0)
