"""The same request gives the same bytes: alone, in a batch, in any order, in another process, beside other threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sfumato import Generation, Pipeline, Request, load_pipeline
from support.tiny_pipeline import reference_pipeline

FIELDS = {"steps": 3, "guidance_scale": 4.0}
PROMPTS = ["a red heart", "flag: Japan, flat style", "", "crown " * 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    reference_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return load_pipeline(folder, device="cpu", safety="off")


def hashes(generation: Generation) -> list[str]:
    return [provenance.pixels_sha256 for provenance in generation.provenance]


@pytest.mark.parametrize("sampler", ["plms", "euler_ancestral", "dpmpp_sde", "dpm_adaptive"])
def test_alone_in_a_batch_and_in_another_order(pipeline: Pipeline, sampler: str) -> None:
    requests = [Request(prompt=prompt, seed=7 + i, sampler=sampler, **FIELDS) for i, prompt in enumerate(PROMPTS)]
    requests = [request.replace(rtol=1.0, atol=1.0) for request in requests]  # a few steps will do for dpm_adaptive
    alone = [hashes(pipeline.generate(request))[0] for request in requests]
    assert len(set(alone)) == 4
    assert hashes(pipeline.generate(requests)) == alone
    assert hashes(pipeline.generate(requests[::-1])) == alone[::-1]


def test_picture_i_of_a_count_is_the_one_of_seed_plus_i(pipeline: Pipeline) -> None:
    several = pipeline.generate("a red heart", seed=40, count=4, **FIELDS)
    assert several.seeds == (40, 41, 42, 43)
    assert hashes(several) == [
        hashes(pipeline.generate("a red heart", seed=seed, **FIELDS))[0] for seed in several.seeds
    ]
    assert len(set(hashes(several))) == 4


def test_several_prompts_share_the_seed(pipeline: Pipeline) -> None:
    several = pipeline.generate(PROMPTS[:2], seed=3, count=2, **FIELDS)
    assert several.seeds == (3, 4, 3, 4)
    assert [request.prompt for request in several.requests] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2


def test_in_another_process(pipeline: Pipeline, folder: Path) -> None:
    program = f"""
import json
from sfumato import Request, load_pipeline
pipeline = load_pipeline({str(folder)!r}, device="cpu", safety="off")
result = pipeline.generate(Request.from_json({pipeline.resolve(Request(prompt="crown", seed=5, **FIELDS)).to_json()!r}))
print(json.dumps([result.provenance[0].pixels_sha256, result.provenance[0].model_sha256]))
"""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    path = [str(Path(sys.modules["sfumato"].__file__ or "").parents[1]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    here = pipeline.generate("crown", seed=5, **FIELDS).provenance[0]
    assert json.loads(run.stdout) == [here.pixels_sha256, here.model_sha256]


def test_threads_at_once_give_what_they_give_one_after_the_other(pipeline: Pipeline) -> None:
    requests = [Request(prompt=prompt, seed=i, **FIELDS) for i, prompt in enumerate(PROMPTS)]
    one_by_one = [hashes(pipeline.generate(request)) for request in requests]
    with ThreadPoolExecutor(2) as pool:
        at_once = list(pool.map(lambda request: hashes(pipeline.generate(request)), requests))
    assert at_once == one_by_one


def test_no_global_random_state_is_read_or_moved(pipeline: Pipeline) -> None:
    torch.manual_seed(1)
    first = hashes(pipeline.generate("crown", sampler="euler_ancestral", **FIELDS))
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert hashes(pipeline.generate("crown", sampler="euler_ancestral", **FIELDS)) == first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_seeds_generator_gives_the_seeds_picture(pipeline: Pipeline) -> None:
    """What `generator_noise` promises: one generator a picture is that picture's seed."""
    seeded = pipeline.generate("crown", seed=11, sampler="euler_ancestral", **FIELDS)
    generators = [torch.Generator().manual_seed(11)]
    drawn = pipeline.generate("crown", generator=generators, sampler="euler_ancestral", **FIELDS)
    assert hashes(drawn) == hashes(seeded)


def test_given_latents_are_the_starting_noise(pipeline: Pipeline) -> None:
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(11))
    assert hashes(pipeline.generate("crown", latents=noise, **FIELDS)) == hashes(
        pipeline.generate("crown", seed=11, **FIELDS)
    )


def test_the_other_noise_source_gives_another_picture(pipeline: Pipeline) -> None:
    pictures = {hashes(pipeline.generate("crown", noise=noise, **FIELDS))[0] for noise in ("cpu", "cuda")}
    assert len(pictures) == 2


def test_a_resolved_request_makes_the_picture_again(pipeline: Pipeline) -> None:
    first = pipeline.generate("crown", seed=2, sampler="ddim", eta=0.5, clip_skip=1, **FIELDS)
    again = pipeline.generate(Request.from_json(first.requests[0].to_json()))
    assert hashes(again) == hashes(first)
    assert again.requests == first.requests
    assert (first.requests[0].width, first.requests[0].height) == (32, 32)


def test_variations(pipeline: Pipeline) -> None:
    """Strength 0 is the seed's own picture, 1 the variation seed's, between them neither."""

    def made(**fields: object) -> str:
        return hashes(pipeline.generate("crown", **FIELDS, **fields))[0]

    own, other = made(seed=1), made(seed=2)
    assert made(seed=1, variation_seed=2, variation_strength=0.0) == own
    assert made(seed=1, variation_seed=2, variation_strength=1.0) == other
    assert made(seed=1, variation_seed=2, variation_strength=0.5) not in (own, other)
