"""Image to image and inpainting on whole random models, against diffusers' own pipelines.

Differences of the final latents are in units of their standard deviation.
"""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from support.tiny_pipeline import Pair

PROMPT = "a red heart"
LATENTS = 1e-3
PSNR = 50.0


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coloured blobs with some grain."""
    generator = np.random.default_rng(seed)
    blobs = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height))
    grain = generator.integers(-9, 10, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(blobs) + grain, 0, 255).astype(np.uint8))


def stencil(width: int, height: int) -> Image.Image:
    """White, to repaint, in an off-centre box with a grey rim."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[height // 4 : height * 3 // 4, width // 3 :] = 255
    mask[height // 4, :] = 120
    return Image.fromarray(mask)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def nine_channels(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("inpainting"), unet="inpainting", vae="v1-like")


class LMSWithItsOwnHistory(diffusers.LMSDiscreteScheduler):
    """diffusers' LMS, but of the order its history allows.

    Started in the middle, diffusers' takes four weights for a history of one and loses what the others would carry.
    """

    def step(self, model_output: Any, timestep: Any, sample: Any, order: int = 4, return_dict: bool = True) -> Any:
        order = min(len(self.derivatives) + 1, order)
        return super().step(model_output, timestep, sample, order, return_dict)


SCHEDULERS: list[tuple[str, dict[str, Any]]] = [
    ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "leading"}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
    ("LMSDiscreteScheduler", {"timestep_spacing": "linspace"}),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace", "use_karras_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "linspace"}),
    ("HeunDiscreteScheduler", {"timestep_spacing": "linspace"}),
]


@pytest.mark.parametrize("strength", [0.3, 0.58, 1.0])
@pytest.mark.parametrize(("name", "changes"), SCHEDULERS, ids=lambda value: value if isinstance(value, str) else "")
def test_image_to_image(plain: Pair, name: str, changes: dict[str, Any], strength: float) -> None:
    plain.use(name, **changes)
    pair = plain.of_class("StableDiffusionImg2ImgPipeline")
    if name == "LMSDiscreteScheduler":
        pair.theirs.scheduler = LMSWithItsOwnHistory.from_config(pair.theirs.scheduler.config)
    difference, decibels = pair.compare(PROMPT, image=photo(50, 41), strength=strength, num_inference_steps=8)
    assert difference < LATENTS
    assert decibels > PSNR


@pytest.mark.parametrize("seed", [3, [3, 4]], ids=["one generator", "one each"])
def test_image_to_image_of_several_prompts(plain: Pair, seed: int | list[int]) -> None:
    """One generator draws the picture's posterior once for all, several draw it once each."""
    plain.use("DDIMScheduler", clip_sample=False, timestep_spacing="leading")
    pair = plain.of_class("StableDiffusionImg2ImgPipeline")
    options = {"image": photo(32, 32), "strength": 0.5, "num_inference_steps": 6, "eta": 0.5}
    difference, decibels = pair.compare([PROMPT, "circle"], seed=seed, **options)
    assert difference < LATENTS
    assert decibels > PSNR


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("model", ["plain", "nine_channels"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_inpainting(request: pytest.FixtureRequest, model: str, name: str, strength: float) -> None:
    """The repainted pixels: the others are the original's own here, and through the autoencoder in diffusers."""
    pair = request.getfixturevalue(model)
    pair.use(name, **dict(SCHEDULERS)[name])
    pair = pair.of_class("StableDiffusionInpaintPipeline")
    width, height = (32, 40) if model == "plain" else (64, 48)
    picture, mask = photo(70, 60), stencil(70, 60)
    options = {"image": picture, "mask_image": mask, "width": width, "height": height, "strength": strength}
    where = pair.theirs.mask_processor.preprocess(mask, height=height, width=width)[0, 0].numpy() > 0.5
    difference, decibels = pair.compare(PROMPT, where=where, num_inference_steps=6, **options)
    assert difference < LATENTS
    assert decibels > PSNR
    result = pair.ours(PROMPT, num_inference_steps=2, **options).images[0]
    kept = picture.resize((width, height), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(np.asarray(result)[~where], np.asarray(kept)[~where])


def test_inpainting_takes_the_models_size_and_shares_one_posterior(nine_channels: Pair) -> None:
    nine_channels.use("DDIMScheduler", clip_sample=False, timestep_spacing="leading")
    pair = nine_channels.of_class("StableDiffusionInpaintPipeline")
    mask = stencil(64, 64)
    options = {"image": photo(100, 90), "mask_image": mask, "num_inference_steps": 4, "num_images_per_prompt": 2}
    difference, decibels = pair.compare(PROMPT, where=np.asarray(mask) > 127, **options)
    assert difference < LATENTS
    assert decibels > PSNR


def test_given_latents_are_the_starting_noise(plain: Pair) -> None:
    plain.use("EulerDiscreteScheduler", timestep_spacing="linspace")
    noise = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(9))
    difference, decibels = plain.compare([PROMPT, "circle"], latents=noise, num_inference_steps=3)
    assert difference < LATENTS
    assert decibels > PSNR
