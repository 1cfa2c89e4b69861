"""A run that trains a diffusion model, and what it has trained as a model folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import InvalidConfig, ModelNotFound
from sfumato.modelfiles.publish_model import publish_model
from sfumato.models.autoencoder import Autoencoder
from sfumato.models.clip_text import ClipText
from sfumato.models.unet import UNet
from sfumato.progress import Cancellation, OnProgress, ignore
from sfumato.prompt.tokenizer import Tokenizer
from sfumato.train.checkpoints import is_begun
from sfumato.train.forecast import NoData, Plan
from sfumato.train.inputs.training_latents import Latents, check_shape, encoded_before, encoded_now, is_encoded
from sfumato.train.runs.autoencoders import (
    autoencoder_for,
    check_autoencoder,
    keep_autoencoder,
    kept_autoencoder,
    load_autoencoder,
)
from sfumato.train.runs.run_weights import RunWeights
from sfumato.train.runs.starting_weights import Weights, diffusion_weights, text_encoder_weights
from sfumato.train.runs.tokenizers import keep_tokenizer, tokenizer_files, tokenizer_folder
from sfumato.train.runs.train_and_publish import Trained, train_and_publish
from sfumato.train.tasks.diffusion_task import (
    DiffusionTask,
    DiffusionTraining,
    LatentDiffusion,
    Validation,
    trained_networks,
)
from sfumato.train.tasks.noise_levels import NoiseConfig


def train_diffusion(
    config: DiffusionTraining,
    data: Path,
    folder: Path,
    *,
    autoencoder: str | None = None,
    text_encoder: str | None = None,
    tokenizer: str | None = None,
    start: str | None = None,
    device: torch.device | None = None,
    minutes: float | None = None,
    cancellation: Cancellation | None = None,
    on_progress: OnProgress = ignore,
) -> Trained:
    """Train a diffusion model on the pictures, or the latents encoded before, in `data`, in the run's `folder`, going
    on where it was stopped.

    `autoencoder`, `text_encoder`, `tokenizer` and `start` name models or runs; None for what the run is to find.
    Raises as `autoencoder_for`, `tokenizer_files`, `encode_moments` and `train` do, and `InvalidConfig` for parts that
    don't fit each other.
    """
    if not config.text_rate and text_encoder is None and start is None and not is_begun(folder):
        raise InvalidConfig(
            "text_rate = 0 freezes a text encoder that knows no words yet: give --text-encoder or --start, or let it "
            "learn with text_rate above 0"
        )
    vae = autoencoder_for(autoencoder, start, folder)
    check_autoencoder(vae, config.unet, config.scaling_factor)
    check = partial(_check_tokenizer, config)
    words = keep_tokenizer(folder, *tokenizer_files(tokenizer, start, folder), check=check)
    check(words)
    keep_autoencoder(folder, vae)
    vae.to(device or "cpu")
    latents = _latents(config, data, folder, vae, on_progress, cancellation or Cancellation())
    check_shape(latents.held_out, config.unet.in_channels, config.unet.sample_size)

    def decode(z: Tensor) -> Tensor:
        """Unscaled latents (B, C, h, w) → pixels (B, 3, H, W)."""
        return vae.to(z.device).decode(z)

    def publish(module: nn.Module, model: Path) -> None:
        assert isinstance(module, LatentDiffusion)
        publish_diffusion(module, config, vae.cpu(), tokenizer_folder(folder), model, overwrite=True)

    validation = Validation(samples=latents.held_out, prompts=config.prompts, decode=decode)
    return train_and_publish(
        DiffusionTask(config, latents.training, words, validation),
        config,
        folder,
        start=_first_weights(start, text_encoder),
        publish=publish,
        device=device,
        minutes=minutes,
        cancellation=cancellation,
        on_progress=on_progress,
    )


def plan_diffusion(config: DiffusionTraining, run: Path) -> Plan:
    """The task and one micro-batch of latents (B, C, h, w) and token windows (B, T), to forecast from."""
    config = replace(config, run=replace(config.run, resident=False))  # the samples are in the batch
    count, unet = config.run.batch // config.run.accumulate, config.unet
    latents = torch.randn(count, unet.in_channels, unet.sample_size, unet.sample_size)
    tokens = torch.zeros(count, config.text_encoder.positions, dtype=torch.long)
    files, where = tokenizer_files(None, None, run)
    task = DiffusionTask(config, NoData(), Tokenizer.from_files(files, folder=where))
    return Plan(task=task, run=config.run, batch={"latents": latents, "tokens": tokens})


def export_diffusion(
    run: RunWeights, folder: Path, *, vae: str | None, tokenizer: str | None, dtype: torch.dtype, overwrite: bool
) -> None:
    """Write the run's networks as a model folder, with its own autoencoder and tokenizer or those that are named.

    `ModelNotFound` where there are none, `OutputError` where the folder can't be written.
    """
    assert isinstance(run.training, DiffusionTraining)
    autoencoder = kept_autoencoder(run.folder) if vae is None else load_autoencoder(vae)
    if autoencoder is None:
        raise ModelNotFound(f"{run.folder} keeps no autoencoder: give --vae MODEL")
    publish_diffusion(
        trained_networks(run.training, run.weights),
        run.training,
        autoencoder,
        tokenizer_folder(run.folder) if tokenizer is None else Path(tokenizer),
        folder,
        dtype=dtype,
        overwrite=overwrite,
    )


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
    """Make `scheduler_config.json`: the schedule that the model was trained with, and v1's sampler and its conventions.

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


def _first_weights(start: str | None, text_encoder: str | None) -> Callable[[], Weights] | None:
    if start is None and text_encoder is None:
        return None
    return lambda: {
        **(diffusion_weights(start) if start else {}),
        **(text_encoder_weights(text_encoder) if text_encoder else {}),
    }


def _latents(
    config: DiffusionTraining,
    data: Path,
    folder: Path,
    autoencoder: Autoencoder,
    on_progress: OnProgress,
    cancellation: Cancellation,
) -> Latents:
    if is_encoded(data):
        if config.buckets:
            raise InvalidConfig(f"{data} holds latents of one shape: give pictures, or set buckets to false")
        return encoded_before(data, config.data, autoencoder)
    factor = autoencoder.config.factor
    # a picture's sides must be such multiples for every level of autoencoder and UNet to halve them
    multiple = int(factor * 2 ** (len(config.unet.block_channels) - 1)) if config.buckets else None
    return encoded_now(
        data,
        config.data,
        autoencoder,
        folder,
        side=config.unet.sample_size * factor,
        multiple=multiple,
        seed=config.run.seed,
        on_progress=on_progress,
        cancellation=cancellation,
    )


def _check_tokenizer(config: DiffusionTraining, tokenizer: Tokenizer) -> None:
    text = config.text_encoder
    if tokenizer.vocab_size > text.vocab_size or tokenizer.max_length > text.positions:
        raise InvalidConfig(
            f"text_encoder.vocab_size = {text.vocab_size} and positions = {text.positions}, but the tokenizer has "
            f"{tokenizer.vocab_size} tokens and windows of {tokenizer.max_length}: set them so, or give another with "
            f"--tokenizer"
        )
