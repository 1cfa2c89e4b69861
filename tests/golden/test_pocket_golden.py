"""The pocket model against the arrays that came with it, made by diffusers 0.42.1 (pocket/README.md).

Everything to 1e-3; measured on a CPU: latents and pictures 2e-5, VAE mean 5e-6, UNet answers 1e-6, embeddings 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sfumato import Pipeline, load_pipeline
from sfumato.diffusion.schedule import make_schedule
from sfumato.pictures.pixels import psnr

PROMPT = "crown"
TOLERANCE = 1e-3

# prefix of the arrays: our sampler and spacing
SAMPLERS: dict[str, tuple[str, str | None]] = {
    "": ("plms", None),
    "lms_": ("k_lms", None),
    "euler_": ("euler", None),
    "ddim_": ("ddim", None),
    "dpmpp2m_": ("dpmpp_2m", None),
    "dpmpp2m_karras_": ("dpmpp_2m", "karras"),
}

Golden = Mapping[str, NDArray[Any]]


@pytest.fixture(scope="module")
def golden() -> Golden:
    with np.load(Path(__file__).parent / "pocket" / "golden.npz", allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline("pocket", device="cpu", dtype="float32", safety="off", watermark=False)


def close(ours: torch.Tensor, theirs: NDArray[Any]) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), theirs, rtol=0, atol=TOLERANCE)


def test_tokens(golden: Golden, pipeline: Pipeline) -> None:
    tokenizer = pipeline.model.tokenizer
    for text, name in ((PROMPT, "text_ids"), ("", "uncond_ids")):
        ids = [tokenizer.bos_id, *tokenizer.encode(text).ids, tokenizer.eos_id]
        padded = ids + [tokenizer.pad_id] * (tokenizer.max_length - len(ids))
        assert padded == golden[name][0].tolist()


def test_embeddings(golden: Golden, pipeline: Pipeline) -> None:
    conditioning = pipeline.encode_prompt(PROMPT)
    close(conditioning.contexts[0], golden["uncond_embedding"])
    close(conditioning.contexts[1], golden["text_embedding"])


@pytest.mark.parametrize(
    ("context", "answer"), [("uncond_embedding", "unet_uncond_first"), ("text_embedding", "unet_cond_first")]
)
def test_first_answers_of_the_unet(golden: Golden, pipeline: Pipeline, context: str, answer: str) -> None:
    noise, timestep = torch.from_numpy(golden["noise"]), torch.from_numpy(golden["unet_first_timestep"]).float()
    close(pipeline.model.unet(noise, timestep, torch.from_numpy(golden[context])), golden[answer])


@pytest.mark.parametrize("prefix", SAMPLERS)
def test_points(golden: Golden, pipeline: Pipeline, prefix: str) -> None:
    """Timesteps shown to the model, and σ where diffusers' scheduler lists them."""
    sampler, spacing = SAMPLERS[prefix]
    schedule = make_schedule(pipeline.model.noise_schedule, sampler=sampler, steps=20, spacing=spacing)
    timesteps = golden[f"{prefix}timesteps"]
    if sampler == "plms":
        assert timesteps[1] == timesteps[2]  # the second is evaluated twice to start
        timesteps = np.delete(timesteps, 1)
    np.testing.assert_allclose(schedule.timesteps, timesteps, atol=TOLERANCE)
    if f"{prefix}sigmas" in golden:
        np.testing.assert_allclose(schedule.sigmas, golden[f"{prefix}sigmas"], atol=TOLERANCE)


@pytest.mark.parametrize("prefix", SAMPLERS)
def test_pictures(golden: Golden, pipeline: Pipeline, prefix: str) -> None:
    sampler, spacing = SAMPLERS[prefix]
    result = pipeline.generate(
        PROMPT,
        sampler=sampler,
        spacing=spacing,
        steps=20,
        guidance_scale=1.5,
        latents=torch.from_numpy(golden["noise"]),
    )
    latents = torch.stack(result.latents)
    close(latents, golden[f"{prefix}latents_final"])
    unit = (pipeline.decode(latents) * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    close(unit, golden[f"{prefix}image_float"])
    expected = (golden[f"{prefix}image_float"][0] * 255).round().astype(np.uint8)
    assert psnr(np.asarray(result.images[0]), expected) > 60


def test_the_seed_draws_the_golden_noise(golden: Golden, pipeline: Pipeline) -> None:
    made = pipeline.generate(PROMPT, steps=20, guidance_scale=1.5, seed=0, output="latents")
    close(torch.stack(made.latents), golden["latents_final"])


def test_the_autoencoders_mean(golden: Golden, pipeline: Pipeline) -> None:
    picture = torch.from_numpy(golden["image_float"]).permute(0, 3, 1, 2) * 2 - 1
    close(pipeline.model.autoencoder.encode(picture).mean, golden["vae_encoded_mean_of_image"])


def test_a_picture_encoded_and_decoded_is_the_picture(golden: Golden, pipeline: Pipeline) -> None:
    pixels = (golden["image_float"][0] * 255).round().astype(np.uint8)
    decoded = pipeline.decode(pipeline.encode_image(Image.fromarray(pixels)))[0].permute(1, 2, 0)
    returned = ((decoded * 0.5 + 0.5).clamp(0, 1) * 255).round().numpy().astype(np.uint8)
    assert psnr(returned, pixels) > 22  # its card: 24.4 dB on held-out pictures
