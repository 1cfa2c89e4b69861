"""What the diffusion task has trained, with an autoencoder and a tokenizer, as a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from sfumato.modelfiles.publish_model import publish_model
from sfumato.models.autoencoder import Autoencoder
from sfumato.models.clip_text import ClipText
from sfumato.models.unet import UNet
from sfumato.train.tasks.diffusion_task import DiffusionTraining, LatentDiffusion
from sfumato.train.tasks.noise_levels import NoiseConfig


def publish_diffusion(
    module: LatentDiffusion,
    config: DiffusionTraining,
    autoencoder: Autoencoder,
    tokenizer: Path,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
) -> None:
    """Write the trained networks as `publish_model` does, with the schedule and guidance scale of their training.

    `tokenizer` is the folder its files are copied from. Raises `OutputError`.
    """
    networks: dict[str, UNet | Autoencoder | ClipText] = {
        "unet": module.unet,
        "vae": autoencoder,
        "text_encoder": module.text_encoder,
    }
    publish_model(
        networks,
        tokenizer,
        scheduler_config(config.noise),
        folder,
        guidance_scale=config.guidance_scale,
        dtype=dtype,
        overwrite=overwrite,
    )


def scheduler_config(noise: NoiseConfig) -> dict[str, Any]:
    """`scheduler_config.json`: the schedule that the model was trained with, and v1's sampler and its conventions.

    With zero terminal SNR the steps are spaced from the last timestep down, as Lin et al. (2023) ask for it: PNDM has
    no such schedule, so the sampler is DDIM then.
    """
    schedule = {
        "_diffusers_version": "0.12.0",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": noise.prediction,
        "set_alpha_to_one": False,
        "clip_sample": False,
    }
    if noise.zero_terminal_snr:
        spaced = {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}
        return {"_class_name": "DDIMScheduler", **schedule, **spaced}
    return {"_class_name": "PNDMScheduler", **schedule, "skip_prk_steps": True, "steps_offset": 1}
