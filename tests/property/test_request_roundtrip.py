"""A request is the same after JSON, whatever is in it; anything else is refused with one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.diffusion.profiles import PROFILES
from sfumato.diffusion.sampler_info import SAMPLERS
from sfumato.errors import InvalidRequest
from sfumato.pictures.source import ImageSource
from sfumato.pipeline.request import MAX_SEED, MAX_SIDE, MAX_STEPS, Request

SOURCES = st.builds(
    ImageSource,
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    width=st.integers(1, 65_500),
    height=st.integers(1, 65_500),
    path=st.none() | st.text(),
)
SIDES = st.none() | st.integers(1, MAX_SIDE // 8).map(lambda eighth: eighth * 8)
SEEDS = st.integers(0, MAX_SEED)


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high) | st.integers(int(low) + 1, int(high))


INTERVALS = st.tuples(st.floats(0, 1e3), st.floats(0, 1e3)).filter(lambda ends: ends[0] < ends[1])
SPACED_SAMPLERS = st.sampled_from(
    [(name, spacing) for name, info in SAMPLERS.items() for spacing in (None, *info.spacings)]
)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    sampler, spacing = draw(SPACED_SAMPLERS)
    init_image = draw(st.none() | SOURCES)
    width, height = draw(SIDES), draw(SIDES)
    largest_upscale = min(8.0, MAX_SIDE / max(width or 8, height or 8))
    noise = draw(st.sampled_from(["cpu", "cuda", "generator"]))
    return Request(
        prompt=draw(st.text()),
        negative_prompt=draw(st.text()),
        seed=draw(SEEDS),
        steps=draw(st.integers(1, MAX_STEPS)),
        sampler=sampler,
        spacing=spacing,
        profile=draw(st.sampled_from(list(PROFILES))),
        eta=draw(numbers(0, 1)),
        rtol=draw(st.floats(1e-6, 1)),
        atol=draw(st.floats(1e-6, 1)),
        guidance_scale=draw(numbers(0, 1000)),
        guidance_rescale=draw(numbers(0, 1)),
        guidance_interval=draw(st.none() | INTERVALS),
        cache_interval=draw(st.integers(1, MAX_STEPS)) if SAMPLERS[sampler].takes_steps else 1,
        cache_depth=draw(st.integers(1, 1000)),
        token_merging=draw(st.floats(0, 0.75)),
        width=width,
        height=height,
        model=draw(st.text()),
        vae=draw(st.none() | st.text()),
        noise=noise,
        clip_skip=draw(st.integers(0, 11)),
        prompt_syntax=draw(st.sampled_from(["plain", "weighted"])),
        long_prompts=draw(st.sampled_from(["warn", "chunk"])),
        variation_seed=draw(st.none() | SEEDS),
        variation_strength=0.0 if noise == "generator" else draw(numbers(0, 1)),
        init_image=init_image,
        strength=draw(numbers(0, 1)),
        mask=draw(st.none() | SOURCES) if init_image else None,
        upscale=draw(st.floats(1.0, largest_upscale)),
        upscale_strength=draw(numbers(0, 1)),
    )


@settings(deadline=None)
@given(requests())
def test_json_gives_the_same_request_back(request: Request) -> None:
    text = request.to_json()
    assert "\n" not in text
    again = Request.from_json(text)
    assert again == request
    assert again.to_json() == text
    assert hash(again) == hash(request)


@settings(deadline=None)
@given(requests())
def test_the_json_is_plain_json(request: Request) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    values = json.loads(request.to_json(), parse_constant=refuse)
    assert list(values) == list(Request.__dataclass_fields__)
    assert values == request.to_dict()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None)
@given(st.sampled_from(list(Request.__dataclass_fields__)), JSON)
def test_any_value_in_any_field_is_kept_or_refused_in_one_line(name: str, value: Any) -> None:
    try:
        request = Request.from_dict({"prompt": "a red heart"} | {name: value})
    except InvalidRequest as error:
        message = str(error)
        assert "\n" not in message
        assert name in message or (name in ("init_image", "mask") and "picture" in message)
    else:
        assert Request.from_json(request.to_json()) == request


@settings(deadline=None)
@given(st.text() | JSON.map(json.dumps))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Request.from_json(text)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"prompt": "a", "seed": ' + "9" * 5000 + "}", '{"prompt": "\\ud800"}']
)
def test_hostile_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        Request.from_json(text)
