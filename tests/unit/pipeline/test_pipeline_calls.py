"""What a generation reports of its work, and that each picture of a call starts from its own input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato import Pipeline, Request, load_pipeline
from sfumato.diffusion.profiles import model_calls
from sfumato.errors import InvalidRequest
from sfumato.pictures.untrusted_pictures import open_picture
from sfumato.pipeline.inputs import files_named


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return load_pipeline("pocket", device="cpu")


@pytest.mark.parametrize("sampler", ["plms", "heun", "dpmpp_2m"])
def test_model_calls_are_those_the_sampler_promises(pipe: Pipeline, sampler: str) -> None:
    result = pipe.generate("rocket", count=2, steps=5, sampler=sampler)
    assert result.model_calls == (model_calls(sampler, 5, "diffusers"),) * 2


def test_adaptive_sampler_reports_its_calls(pipe: Pipeline) -> None:
    loose, tight = (pipe.generate("rocket", sampler="dpm_adaptive", rtol=rtol, atol=rtol) for rtol in (0.5, 0.05))
    assert 0 < loose.model_calls[0] < tight.model_calls[0]


def test_both_passes_of_an_upscaled_picture_count(pipe: Pipeline) -> None:
    result = pipe.generate("rocket", steps=4, sampler="euler", upscale=2.0, upscale_strength=0.5)
    assert result.model_calls == (4 + 2,)
    assert result.images[0].size == (256, 256)


def test_latents_alone_are_those_the_pictures_are_made_of(pipe: Pipeline) -> None:
    fields: dict[str, Any] = {"steps": 3, "count": 2, "upscale": 1.5, "upscale_strength": 0.5}
    whole, alone = (pipe.generate("rocket", output=output, **fields) for output in ("images", "latents"))
    assert torch.equal(torch.stack(whole.latents), torch.stack(alone.latents))
    assert alone.latents[0].shape == (4, 24, 24)
    assert (alone.images, alone.provenance, alone.verdicts) == ((), (), ())
    assert (alone.requests, alone.model_calls) == (whole.requests, whole.model_calls)
    with pytest.raises(InvalidRequest, match="'latents'"):
        pipe.generate("rocket", output="latent")


def test_each_request_starts_from_its_own_picture(pipe: Pipeline, tmp_path: Path) -> None:
    requests = []
    for prompt in ("red heart", "green apple"):
        path = tmp_path / f"{prompt}.png"
        pipe.generate(prompt, steps=3).images[0].save(path)
        _, source = open_picture(path)
        requests.append(Request(prompt="rocket", steps=4, strength=0.5, init_image=source))
    together = pipe.generate(requests, inputs=files_named(requests))
    alone = [pipe.generate(request, inputs=files_named([request])).provenance[0].pixels_sha256 for request in requests]
    assert [record.pixels_sha256 for record in together.provenance] == alone
    assert alone[0] != alone[1]
