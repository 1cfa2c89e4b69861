"""Make golden.npz anew with diffusers: `python tests/golden/pocket/record.py`. README.md says what is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray

import sfumato

HERE = Path(__file__).parent
PROMPT, STEPS, GUIDANCE = "crown", 20, 1.5
SCHEDULERS: dict[str, tuple[type[diffusers.SchedulerMixin], dict[str, Any]]] = {
    "": (diffusers.PNDMScheduler, {}),
    "lms_": (diffusers.LMSDiscreteScheduler, {"timestep_spacing": "linspace"}),
    "euler_": (diffusers.EulerDiscreteScheduler, {"timestep_spacing": "linspace"}),
    "ddim_": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "dpmpp2m_": (diffusers.DPMSolverMultistepScheduler, {"timestep_spacing": "linspace"}),
    "dpmpp2m_karras_": (
        diffusers.DPMSolverMultistepScheduler,
        {"timestep_spacing": "linspace", "use_karras_sigmas": True},
    ),
}


@torch.no_grad()
def record(pipeline: diffusers.StableDiffusionPipeline) -> dict[str, NDArray[Any]]:
    side = pipeline.unet.config.sample_size
    noise = torch.randn((1, 4, side, side), generator=torch.Generator().manual_seed(0))
    tokens = {
        name: pipeline.tokenizer(text, padding="max_length", truncation=True, return_tensors="pt").input_ids
        for name, text in (("text", PROMPT), ("uncond", ""))
    }
    embeddings = {name: pipeline.text_encoder(ids).last_hidden_state for name, ids in tokens.items()}
    arrays: dict[str, Any] = {"noise": noise}
    arrays |= {f"{name}_ids": ids for name, ids in tokens.items()}
    arrays |= {f"{name}_embedding": states for name, states in embeddings.items()}
    published, configs = pipeline.scheduler.config, {}
    for prefix, (scheduler, options) in SCHEDULERS.items():
        pipeline.scheduler = scheduler.from_config(published, **options)
        configs[prefix] = {"class": scheduler.__name__, **pipeline.scheduler.config}
        pipeline.scheduler.set_timesteps(STEPS)
        arrays[f"{prefix}timesteps"] = pipeline.scheduler.timesteps
        if hasattr(pipeline.scheduler, "sigmas"):
            arrays[f"{prefix}sigmas"] = pipeline.scheduler.sigmas
        if not prefix:
            first = pipeline.scheduler.timesteps[:1]
            arrays["unet_first_timestep"] = first
            arrays["unet_uncond_first"] = pipeline.unet(noise, first, embeddings["uncond"]).sample
            arrays["unet_cond_first"] = pipeline.unet(noise, first, embeddings["text"]).sample
        latents = pipeline(
            PROMPT, num_inference_steps=STEPS, guidance_scale=GUIDANCE, latents=noise, output_type="latent"
        ).images
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        arrays[f"{prefix}latents_final"] = latents
        arrays[f"{prefix}image_float"] = (decoded * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    picture = arrays["image_float"].permute(0, 3, 1, 2) * 2 - 1
    arrays["vae_encoded_mean_of_image"] = pipeline.vae.encode(picture).latent_dist.mean
    arrays["schedulers_json"] = np.array(json.dumps(configs, default=str))
    return {name: np.asarray(value) for name, value in arrays.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    assets = Path(sfumato.__file__).parent / "assets" / "pocket"
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        assets, torch_dtype=torch.float32, safety_checker=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    np.savez_compressed(HERE / "golden.npz", **record(pipeline))
