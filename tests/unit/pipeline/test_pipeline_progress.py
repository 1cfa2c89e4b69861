"""Telling how far it is, showing what is becoming, and stopping."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import Cancellation, Generation, Pipeline, Progress, load_pipeline
from sfumato.errors import Cancelled, InvalidRequest
from sfumato.safety.verdict import Verdict, judge
from support.tiny_pipeline import reference_pipeline

FIELDS = {"steps": 5, "guidance_scale": 4.0}


def flag_everything(images: Sequence[Image.Image]) -> list[Verdict]:
    return [judge("stub", {"concept": 0.5}, ("concept",)) for _ in images]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("model")
    reference_pipeline().save_pretrained(folder)
    return load_pipeline(folder, device="cpu", safety="off")


@pytest.fixture(scope="module")
def pocket() -> Pipeline:
    return load_pipeline("pocket", device="cpu", safety="off", watermark=False)


def test_events_count_up_through_every_step_of_every_picture(pipeline: Pipeline) -> None:
    events: list[Progress] = []
    pipeline.generate("crown", count=2, on_progress=events.append, sampler="euler", **FIELDS)
    walked = [(event.image, event.step, event.steps) for event in events if event.stage == "denoise"]
    assert walked == [(image, step, 5) for image in (0, 1) for step in range(1, 6)]
    sigmas = [event.sigma for event in events if event.stage == "denoise" and event.image == 0]
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[-1] == 0.0
    assert events[0].stage == "encode"


def test_every_stage_of_two_passes_is_told_in_order(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps count over both passes, so that whoever divides them never goes back."""
    monkeypatch.setattr("sfumato.safety.policy.OpenNsfwChecker", lambda: flag_everything)
    events: list[Progress] = []
    checked = Pipeline(pipeline.model, safety="flag")
    checked.generate(
        "crown", steps=3, sampler="euler", upscale=1.5, upscale_strength=0.7, on_progress=events.append, count=2
    )
    one = [("denoise", step, 5) for step in (1, 2, 3)] + [("decode", 0, 1), ("decode", 1, 1)]
    two = [("denoise", step, 5) for step in (4, 5)] + [("decode", 0, 1), ("decode", 1, 1), ("check", 0, 1)]
    for image in (0, 1):
        told = [(e.stage, e.step, e.steps) for e in events if e.image == image and e.stage != "encode"]
        assert told == one + two
    assert {event.images for event in events if event.stage != "encode"} == {2}


def test_no_stage_is_told_that_is_not_gone_through(pipeline: Pipeline) -> None:
    events: list[Progress] = []
    pipeline.generate("crown", on_progress=events.append, **FIELDS)
    assert {event.stage for event in events} == {"encode", "denoise", "decode"}


def test_cancelling_while_a_picture_is_decoded(pipeline: Pipeline) -> None:
    cancellation, decoded = Cancellation(), []

    def stop(event: Progress) -> None:
        if event.stage == "decode":
            decoded.append(event.step)
            cancellation.cancel()

    batched = Pipeline(pipeline.model, safety="off", batch_size=3)
    with pytest.raises(Cancelled):
        batched.generate("crown", count=3, cancellation=cancellation, on_progress=stop, **FIELDS)
    assert decoded == [0]


def test_previews_are_small_pictures_of_what_comes_out(pocket: Pipeline) -> None:
    """A pixel a latent cell, of the whole picture; the last one is the finished picture, made small."""
    previews: list[Image.Image] = []

    def look(event: Progress) -> None:
        if event.preview is not None:
            previews.append(event.preview())

    result = pocket.generate("red heart", steps=10, width=128, height=96, sampler="dpmpp_2m", on_progress=look)
    assert [preview.size for preview in previews] == [(16, 12)] * 10
    small = np.asarray(result.images[0].resize((16, 12), Image.Resampling.BOX))
    likeness = [np.corrcoef(np.asarray(preview).ravel(), small.ravel())[0, 1] for preview in previews]
    assert likeness[-1] > 0.8
    assert likeness[-1] > likeness[0]


def test_looking_changes_nothing(pipeline: Pipeline) -> None:
    plain = pipeline.generate("crown", **FIELDS)
    watched = pipeline.generate("crown", on_progress=lambda event: event.preview and event.preview(), **FIELDS)
    assert plain.provenance == watched.provenance


@pytest.mark.parametrize("after", [1, 3, 5])
def test_cancelling_stops_before_the_next_step(pipeline: Pipeline, after: int) -> None:
    cancellation, steps = Cancellation(), 0

    def count(event: Progress) -> None:
        nonlocal steps
        if event.stage == "denoise":
            steps = event.step
            if steps == after:
                cancellation.cancel()

    with pytest.raises(Cancelled):
        pipeline.generate("crown", cancellation=cancellation, on_progress=count, **FIELDS)
    assert steps == after


def test_cancelled_before_it_began(pipeline: Pipeline) -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    events: list[Progress] = []
    with pytest.raises(Cancelled):
        pipeline.generate("crown", cancellation=cancellation, on_progress=events.append, **FIELDS)
    assert [event for event in events if event.stage == "denoise"] == []


def test_an_error_in_the_callers_callback_reaches_the_caller(pipeline: Pipeline) -> None:
    def interrupt(event: Progress) -> None:
        if event.stage == "denoise" and event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.generate("crown", on_progress=interrupt, **FIELDS)


def test_an_interrupted_generation_leaves_nothing(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file, no thread, no hook on the model; the next picture is what it would have been."""
    monkeypatch.chdir(tmp_path)
    before = pipeline.generate("crown", **FIELDS)
    threads = threading.active_count()
    cancellation = Cancellation()
    with pytest.raises(Cancelled):
        pipeline.generate("crown", cancellation=cancellation, on_progress=lambda _: cancellation.cancel(), **FIELDS)
    assert list(tmp_path.iterdir()) == []
    assert threading.active_count() == threads
    assert not any(module._forward_hooks for module in pipeline.model.unet.modules())
    assert not torch.is_inference_mode_enabled()
    assert pipeline.generate("crown", **FIELDS).provenance == before.provenance


def test_stream_yields_progress_and_then_the_pictures(pipeline: Pipeline) -> None:
    *events, result = pipeline.stream("crown", seed=3, **FIELDS)
    assert all(isinstance(event, Progress) for event in events)
    assert [event.step for event in events if event.stage == "denoise"][-1] == 5
    assert isinstance(result, Generation)
    assert result.provenance == pipeline.generate("crown", seed=3, **FIELDS).provenance


def test_closing_a_stream_stops_its_work(pipeline: Pipeline) -> None:
    threads = threading.active_count()
    cancellation = Cancellation()
    stream = pipeline.stream("crown", steps=1000, cancellation=cancellation)
    for event in stream:
        if isinstance(event, Progress) and event.stage == "denoise":
            break
    stream.close()
    assert cancellation.requested
    assert threading.active_count() == threads


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_whatever_stops_the_reader_of_a_stream_stops_its_work(pipeline: Pipeline, error: type[BaseException]) -> None:
    threads = threading.active_count()
    cancellation = Cancellation()
    stream = pipeline.stream("crown", steps=1000, cancellation=cancellation)
    next(stream)
    with pytest.raises(error):
        stream.throw(error)
    assert cancellation.requested
    assert threading.active_count() == threads


def test_a_finished_stream_leaves_the_callers_cancellation_alone(pipeline: Pipeline) -> None:
    cancellation = Cancellation()
    *_, result = pipeline.stream("crown", cancellation=cancellation, **FIELDS)
    assert isinstance(result, Generation)
    assert not cancellation.requested


def test_a_stream_raises_what_the_work_raised(pipeline: Pipeline) -> None:
    with pytest.raises(InvalidRequest, match="multiple of 8"):
        list(pipeline.stream("crown", width=33))


def test_timings_cover_the_stages(pipeline: Pipeline) -> None:
    timings = pipeline.generate("crown", **FIELDS).timings
    assert all(seconds >= 0 for seconds in timings.values())
    assert timings["total"] >= timings["encode"] + timings["generate"]
