"""Several pictures in one batch, on a CPU too where it is asked for: each is what it is alone, but for rounding."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato import Pipeline, Progress, Request, load_pipeline
from sfumato.pictures.pixels import pixels_sha256, psnr
from support.tiny_pipeline import reference_pipeline

LOST = "heart " * 90
REQUESTS = [
    Request(prompt="a red heart", seed=3, steps=4, guidance_scale=4.0),
    Request(prompt=LOST, seed=2**40, steps=4, guidance_scale=4.0),
    Request(prompt="", negative_prompt="blue", seed=5, steps=4, guidance_scale=4.0),
    Request(prompt="crown", seed=0, steps=4, guidance_scale=4.0),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    reference_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def one_by_one(folder: Path) -> Pipeline:
    return load_pipeline(folder, device="cpu", safety="off", watermark=False)


@pytest.fixture(scope="module")
def batched(folder: Path) -> Pipeline:
    return load_pipeline(folder, device="cpu", safety="off", watermark=False, batch_size=4)


@pytest.mark.parametrize("sampler", ["plms", "dpmpp_2m", "euler_ancestral", "dpmpp_sde"])
def test_four_pictures_in_one_batch_are_those_made_one_by_one(
    batched: Pipeline, one_by_one: Pipeline, sampler: str
) -> None:
    requests = [request.replace(sampler=sampler) for request in REQUESTS]
    events: list[Progress] = []
    together = batched.generate(requests, on_progress=events.append)
    assert {event.image for event in events if event.stage == "denoise"} == {0}  # one batch
    assert [event.step for event in events if event.stage == "decode"] == [0, 4]
    alone = [one_by_one.generate(request) for request in requests]
    for request, picture, record, single in zip(requests, together.images, together.provenance, alone, strict=True):
        assert psnr(np.asarray(picture), np.asarray(single.images[0])) >= 60.0
        assert record.request == batched.resolve(request)
        assert record.pixels_sha256 == pixels_sha256(np.asarray(picture))
        assert record.truncated == single.provenance[0].truncated
    assert [bool(record.truncated) for record in together.provenance] == [False, True, False, False]
    assert len({record.pixels_sha256 for record in together.provenance}) == 4
    assert together.model_calls == tuple(single.model_calls[0] for single in alone)


def test_a_seeds_own_noise_given_as_latents_changes_nothing(one_by_one: Pipeline) -> None:
    """What is drawn while a sampler runs follows the starting noise in the seed's stream, given or drawn."""
    request = REQUESTS[0].replace(sampler="euler_ancestral", upscale=1.5)
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(request.seed))
    (record,) = one_by_one.generate(request, latents=noise).provenance
    assert dataclasses.replace(record, given="") == one_by_one.generate(request).provenance[0]
