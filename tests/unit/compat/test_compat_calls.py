"""Everyday scripts' ways to call a pipeline, each run by diffusers too on the same model."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import diffusers
import numpy as np
import pytest
from PIL import Image

from sfumato.compat import diffusers as compat
from sfumato.compat.call_options import CallOptions
from sfumato.errors import InvalidRequest
from sfumato.pictures.pixels import psnr
from support.tiny_pipeline import Pair, generators

CLASSES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
PICTURE = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
MASK = Image.new("L", (32, 32), 255)
INPUTS: dict[str, tuple[Any, ...]] = {CLASSES[0]: (), CLASSES[1]: (PICTURE,), CLASSES[2]: (PICTURE, MASK)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    pair = Pair(tmp_path_factory.mktemp("model"))
    pair.use("DDIMScheduler", clip_sample=False)
    return pair


@pytest.mark.parametrize("name", CLASSES)
def test_arguments_have_diffusers_defaults_and_places(name: str) -> None:
    theirs = inspect.signature(getattr(diffusers, name).__call__).parameters
    ours = inspect.signature(getattr(compat, name).__call__).parameters
    positional = [p.name for p in ours.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == list(theirs)[: len(positional)]
    defaults = {p.name: p.default for p in ours.values() if p.name in theirs and p.name != "self"}
    defaults |= {field.name: field.default for field in fields(CallOptions)}
    assert defaults == {argument: theirs[argument].default for argument in defaults}


def test_steps_are_the_fourth_argument(pair: Any) -> None:
    difference, similarity = pair.compare("crown", 64, 32, 2)
    assert difference < 1e-3
    assert similarity > 45
    images = pair.of_class(CLASSES[1])
    assert images.compare("crown", PICTURE, 0.5, 4)[0] < 1e-3


@pytest.mark.parametrize("name", CLASSES)
def test_latents_in_the_place_of_pictures(pair: Any, name: str) -> None:
    both = pair.of_class(name)
    ours, theirs = (
        pipeline(
            "crown",
            *INPUTS[name],
            num_inference_steps=4,
            num_images_per_prompt=2,
            output_type="latent",
            generator=generators(3),
            **({} if name == CLASSES[1] else {"height": 32, "width": 32}),
        )
        for pipeline in (both.ours, both.theirs)
    )
    assert (ours.images.shape, ours.images.dtype) == (theirs.images.shape, theirs.images.dtype)
    assert float((ours.images - theirs.images).abs().max() / theirs.images.std()) < 1e-3
    assert ours.nsfw_content_detected is theirs.nsfw_content_detected is None
    assert ours.images.requires_grad_().requires_grad  # no inference tensors: they may be optimised


@pytest.mark.parametrize("output_type", ["np", "numpy", "np.array", "pt"])
def test_names_of_numbers(pair: Any, output_type: str) -> None:
    ours, theirs = (
        pipeline("crown", num_inference_steps=2, output_type=output_type, generator=generators(3)).images
        for pipeline in (pair.ours, pair.theirs)
    )
    assert type(ours) is type(theirs)
    assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() < 1.5 / 255


def test_numbers_of_numpy(pair: Any) -> None:
    numbers: dict[str, np.generic[Any]] = {
        "num_inference_steps": np.int64(2),
        "guidance_scale": np.float32(3.25),
        "num_images_per_prompt": np.int32(2),
        "height": np.int64(32),
        "width": np.int16(32),
        "eta": np.float64(0.5),
        "guidance_rescale": np.float32(0.5),
        "clip_skip": np.int64(1),
    }
    plain = {name: value.item() for name, value in numbers.items()}
    first, second = (pair.ours("crown", generator=generators(1), **options).images for options in (numbers, plain))
    theirs = pair.theirs("crown", generator=generators(1), **numbers).images
    for one, other, reference in zip(first, second, theirs, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
        assert psnr(np.asarray(one)[None], np.asarray(reference)[None]) > 45
    assert first[0].size == (32, 32)


@pytest.mark.parametrize("prompt", [None, 3, ["crown", 3]])
def test_prompts_that_are_no_text(pair: Any, prompt: Any) -> None:
    with pytest.raises(InvalidRequest, match="prompt must be a text or a list of texts"):
        pair.ours(prompt)
    with pytest.raises((ValueError, TypeError, AttributeError)):
        pair.theirs(prompt)


def test_how_a_callback_would_be_called_means_nothing_without_one(pair: Any) -> None:
    options: dict[str, Any] = {"callback_steps": 1, "callback": None, "callback_on_step_end_tensor_inputs": ["latents"]}
    assert pair.compare("crown", num_inference_steps=2, **options)[0] < 1e-3


@pytest.mark.parametrize("flags", [None, [True]])
def test_the_output_is_a_mapping_as_diffusers_is(flags: list[bool] | None) -> None:
    home: Any = diffusers.pipelines.stable_diffusion
    ours, theirs = (
        output(images=[PICTURE], nsfw_content_detected=flags)
        for output in (compat.StableDiffusionPipelineOutput, home.StableDiffusionPipelineOutput)
    )
    assert list(ours.keys()) == list(theirs.keys())
    assert list(ours.items()) == list(theirs.items())
    assert list(ours.values()) == list(theirs.values())
    assert list(ours) == list(theirs)
    assert len(ours) == len(theirs)
    assert dict(ours) == dict(theirs)
    assert ours.get("video") is theirs.get("video") is None


def test_the_parts_by_diffusers_names(pair: Any) -> None:
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(pair.ours, part), getattr(pair.theirs, part)
        assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert pair.ours.vae_scale_factor == pair.theirs.vae_scale_factor
    assert pair.ours.unet.config.sample_size == pair.theirs.unet.config.sample_size
    assert pair.ours.feature_extractor is pair.theirs.feature_extractor is None
    assert pair.ours.tokenizer is pair.ours.pipeline.model.tokenizer
