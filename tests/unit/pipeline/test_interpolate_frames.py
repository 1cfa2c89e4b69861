"""Frames between two pictures: exact at the ends, and in between what the formulas say."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from sfumato import Pipeline, load_pipeline
from sfumato.errors import Cancelled, InvalidRequest
from sfumato.pictures.source import ImageSource
from sfumato.pipeline.conditioning import Conditioning
from sfumato.pipeline.prompt_interpolation import check_walk, interpolate
from sfumato.pipeline.request import Request
from sfumato.progress import Cancellation, Progress

START = Request(prompt="red heart", seed=1, steps=2, sampler="euler")
END = START.replace(prompt="blue heart", negative_prompt="red", seed=2)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline("pocket", safety="off", watermark=False)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sampler": "euler_ancestral", "steps": 3},
        {"sampler": "dpmpp_sde", "steps": 3},
        {"sampler": "ddim", "eta": 1.0, "noise": "cuda"},
        {"variation_seed": 9, "variation_strength": 0.4},
        {"upscale": 1.5, "upscale_strength": 0.5},
        {"upscale": 1.5, "sampler": "euler_ancestral", "variation_seed": 9, "variation_strength": 0.4},
    ],
    ids=str,
)
def test_the_ends_are_what_the_requests_give_alone(pipeline: Pipeline, fields: dict[str, Any]) -> None:
    start, end = START.replace(**fields), END.replace(**fields)
    frames = list(interpolate(pipeline, start, end, 3))
    for frame, request in ((frames[0], start), (frames[-1], end)):
        (record,) = frame.provenance
        assert record.given == "latents,conditioning"
        assert dataclasses.replace(record, given="") == pipeline.generate(request).provenance[0]
    assert [frame.requests[0].prompt for frame in (frames[0], frames[-1])] == ["red heart", "blue heart"]


def test_what_the_last_prompt_lost_is_told_of_the_last_frame(pipeline: Pipeline) -> None:
    end = START.replace(prompt="heart " * 90)
    first, last = (frame.provenance[0].truncated for frame in interpolate(pipeline, START, end, 2))
    assert (first, last) == ("", pipeline.generate(end).provenance[0].truncated)
    assert last


def test_a_frame_between_has_noise_on_the_sphere_and_contexts_on_the_line(pipeline: Pipeline) -> None:
    frame = list(interpolate(pipeline, START, END, 5))[1]
    noises = [torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(seed)).double() for seed in (1, 2)]
    # Shoemake 1985: sin((1-w)θ)/sin θ · a + sin(wθ)/sin θ · b, with w = 1/4.
    angle = torch.acos(torch.dot(*(noise.flatten() / noise.norm() for noise in noises)))
    noise = (torch.sin(0.75 * angle) * noises[0] + torch.sin(0.25 * angle) * noises[1]) / torch.sin(angle)
    ends = [pipeline.encode_prompt("red heart"), pipeline.encode_prompt("blue heart", "red")]
    contexts = tuple(0.75 * a + 0.25 * b for a, b in zip(ends[0].contexts, ends[1].contexts, strict=True))
    expected = pipeline.generate(START, conditioning=Conditioning(contexts, ends[0].weights, ("",)), latents=noise)
    difference = np.abs(np.asarray(frame.images[0]).astype(int) - np.asarray(expected.images[0]))
    assert difference.max() <= 1  # rounding of a pixel, from float64 noise


def test_the_same_seed_keeps_the_noise(pipeline: Pipeline) -> None:
    same = list(interpolate(pipeline, START, START, 3))
    pictures = [np.asarray(frame.images[0]) for frame in same]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures[0], pictures[2])


def test_progress_counts_frames_and_a_walk_can_be_stopped(pipeline: Pipeline) -> None:
    events: list[Progress] = []
    cancellation = Cancellation()

    def watch(event: Progress) -> None:
        events.append(event)
        if event.image == 1:
            cancellation.cancel()

    with pytest.raises(Cancelled):
        list(interpolate(pipeline, START, END, 4, on_progress=watch, cancellation=cancellation))
    assert {event.images for event in events} == {4} and [e.image for e in events][-1] == 1


PICTURE = ImageSource(sha256="0" * 64, width=8, height=8)


@pytest.mark.parametrize(
    ("end", "frames", "message"),
    [
        (END, 1, "frames 1 must be from 2"),
        (END.replace(steps=3), 2, "may differ in prompts and seed only"),
        (END.replace(width=64), 2, "may differ in prompts and seed only"),
    ],
)
def test_walks_that_cannot_be_are_refused(end: Request, frames: int, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check_walk(START, end, frames)


def test_a_walk_starts_from_noise_and_between_prompts_of_one_kind(pipeline: Pipeline) -> None:
    with pytest.raises(InvalidRequest, match="init_image and mask don't go with a walk"):
        check_walk(START.replace(init_image=PICTURE), END.replace(init_image=PICTURE), 2)
    with pytest.raises(InvalidRequest, match="noise 'generator' doesn't go with a walk"):
        check_walk(START.replace(noise="generator"), END.replace(noise="generator"), 2)
    weighted = START.replace(prompt_syntax="weighted")
    with pytest.raises(InvalidRequest, match="equally many parts or windows"):
        next(interpolate(pipeline, weighted, weighted.replace(prompt="a cat AND a dog"), 2))
