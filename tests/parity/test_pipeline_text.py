"""Text to pictures on whole random models: our pipeline, through its diffusers API, against diffusers' own.

Both read the same folder. Differences of the final latents are in units of their standard deviation; measured are 1e-6
to 1e-4 (float32 rounding, which guidance at 7.5 amplifies), and pictures that differ in a few last bits at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from support.tiny_pipeline import Pair

PROMPT = "a red heart"
PROMPTS = [PROMPT, "flag: Japan, flat style"]

LATENTS = 1e-3
PSNR = 50.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("model"))


@pytest.fixture
def plms(pair: Pair) -> Iterator[Pair]:
    """With the scheduler of its folder."""
    own = pair.theirs.scheduler, pair.ours.scheduler
    yield pair
    pair.theirs.scheduler, pair.ours.scheduler = own


def check(pair: Pair, *arguments: Any, **options: Any) -> None:
    difference, decibels = pair.compare(*arguments, **options)
    assert difference < LATENTS
    assert decibels > PSNR


SCHEDULERS: list[tuple[str, dict[str, Any]]] = [
    ("PNDMScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {"use_karras_sigmas": True}),
    ("DDIMScheduler", {}),
    ("DDPMScheduler", {}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
    ("KDPM2AncestralDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("UniPCMultistepScheduler", {}),
    ("DEISMultistepScheduler", {}),
    ("LCMScheduler", {}),
]
# what these classes default to differently than the published configuration says for PNDM
PUBLISHED = {"DDIMScheduler": {"clip_sample": False}, "DDPMScheduler": {"clip_sample": False}}


@pytest.mark.parametrize(("name", "changes"), SCHEDULERS, ids=str)
def test_schedulers(plms: Pair, name: str, changes: dict[str, Any]) -> None:
    if "timestep_spacing" not in changes:
        changes = {**changes, "timestep_spacing": DEFAULT_SPACING.get(name, "linspace")}
    plms.use(name, **PUBLISHED.get(name, {}), **changes)
    check(plms, PROMPT, num_inference_steps=6, guidance_scale=5.0)


# the folder's own scheduler file says "leading", which the others would take over
DEFAULT_SPACING = dict.fromkeys(("PNDMScheduler", "DDIMScheduler", "DDPMScheduler", "LCMScheduler"), "leading")


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.01, 7.5, 20.0])
def test_guidance_scales(plms: Pair, scale: float) -> None:
    check(plms, PROMPT, num_inference_steps=4, guidance_scale=scale)


def test_fifty_steps_of_the_default(plms: Pair) -> None:
    check(plms, PROMPT)


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_rescale": 0.7},
        {"negative_prompt": "blue circle"},
        {"negative_prompt": "word " * 60},
        {"clip_skip": 1},
        {"clip_skip": 2},
        {"height": 48, "width": 24},
        {"height": 8, "width": 72},
        {"num_images_per_prompt": 3},
        {"num_images_per_prompt": 2, "seed": [5, 6]},
        {"seed": [3]},
    ],
    ids=str,
)
def test_options(plms: Pair, options: dict[str, Any]) -> None:
    check(plms, PROMPT, num_inference_steps=4, **options)


@pytest.mark.parametrize("seed", [7, [1, 2]], ids=["one generator", "one each"])
@pytest.mark.parametrize("negative", [None, ["circle", "square"]], ids=["none", "each"])
def test_batches_of_prompts(plms: Pair, seed: int | list[int], negative: list[str] | None) -> None:
    check(plms, PROMPTS, num_inference_steps=4, seed=seed, negative_prompt=negative)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_eta_from_one_generator(plms: Pair, eta: float) -> None:
    plms.use("DDIMScheduler", clip_sample=False)
    check(plms, PROMPTS, num_inference_steps=8, eta=eta)


def test_eta_is_ignored_where_diffusers_ignores_it(plms: Pair) -> None:
    check(plms, PROMPT, num_inference_steps=4, eta=0.7)


@pytest.mark.parametrize("scheduler", ["EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_generator_goes_on_where_diffusers_leaves_it(plms: Pair, scheduler: str) -> None:
    """Two calls with one generator: the second picture depends on how far the first moved it."""
    import numpy as np
    import torch

    from sfumato.pictures.pixels import psnr

    changes = {"algorithm_type": "sde-dpmsolver++"} if scheduler.startswith("DPM") else {}
    plms.use(scheduler, timestep_spacing="linspace", **changes)
    pictures = []
    for pipeline in (plms.theirs, plms.ours):
        generator = torch.Generator().manual_seed(4)
        for _ in range(2):
            picture = pipeline(PROMPT, num_inference_steps=4, generator=generator).images[0]
        pictures.append(np.asarray(picture))
    assert psnr(*pictures) > PSNR


def test_empty_long_and_odd_prompts(plms: Pair) -> None:
    for prompt in ("", "crown " * 100, "Türkiye 🚀 <|endoftext|> naïve"):
        check(plms, prompt, num_inference_steps=3)


@pytest.mark.parametrize("unet", ["v1-like", "v2-like", "attention below"])
def test_other_models(tmp_path: Any, unet: str) -> None:
    """Factor 8 with four levels; linear projections and heads per level, predicting v; attention only below."""
    vae = {"v1-like": "v1-like", "v2-like": "pocket-like", "attention below": "v1-like"}[unet]
    text = {"v1-like": "v1-like", "v2-like": "v2-like", "attention below": "short"}[unet]
    prediction = "v_prediction" if unet == "v2-like" else "epsilon"
    pair = Pair(tmp_path, unet=unet, vae=vae, text=text, prediction_type=prediction)
    # diffusers' PNDM averages raw answers even where they are v; the original's PLMS averages noise, and so do we
    for scheduler in ("DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        pair.use(scheduler, **PUBLISHED.get(scheduler, {}))
        check(pair, PROMPT, num_inference_steps=3, height=40, width=72)
