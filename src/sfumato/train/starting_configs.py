"""Configs to begin with: v1's own, and small ones for pictures of 128 pixels on one machine."""

from __future__ import annotations

from collections.abc import Mapping

from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.models.clip_text import ClipTextConfig
from sfumato.models.clip_vision import ClipVisionConfig
from sfumato.models.unet_config import UNetConfig
from sfumato.train.run_config import OptimizerConfig, RunConfig
from sfumato.train.tasks.autoencoder_task import AutoencoderLoss, AutoencoderTraining
from sfumato.train.tasks.clip_task import ClipTraining
from sfumato.train.tasks.diffusion_task import DiffusionTraining
from sfumato.train.tasks.noise_levels import NoiseConfig

_FALLING = OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.98), warmup_steps=100, schedule="cosine")
_SMALL_TEXT = ClipTextConfig(vocab_size=4000, positions=77, width=128, hidden=512, layers=4, heads=4)

AUTOENCODERS: Mapping[str, AutoencoderTraining] = {
    "v1": AutoencoderTraining(),
    "small": AutoencoderTraining(
        crop=128,
        first_logvar=-6.0,
        # one norm group: with few channels, more of them level out the colours they should tell apart
        model=AutoencoderConfig(block_channels=(16, 32, 64, 128), layers_per_block=1, norm_groups=1, sample_size=128),
        loss=AutoencoderLoss(coarse=2.0),
        run=RunConfig(steps=6000, batch=8, ema_decay=0.999, optimizer=_FALLING),
    ),
}

DIFFUSIONS: Mapping[str, DiffusionTraining] = {
    "v1": DiffusionTraining(),
    "small": DiffusionTraining(
        text_rate=0.3,
        unet=UNetConfig(
            block_channels=(64, 128, 256),
            attention=(True, True, True),
            layers_per_block=1,
            heads=(4, 4, 4),
            depth=(1, 1, 1),
            context_dim=128,
            norm_groups=32,
            sample_size=16,
        ),
        text_encoder=_SMALL_TEXT,
        # decided at high noise: colour and layout, which the plain loss of a small model hardly sees
        noise=NoiseConfig(weighting="high_noise", density=0.5, stratified=True),
        run=RunConfig(steps=10_000, batch=32, ema_decay=0.999, optimizer=_FALLING),
    ),
}

CLIPS: Mapping[str, ClipTraining] = {
    "v1": ClipTraining(),
    "small": ClipTraining(
        text_encoder=_SMALL_TEXT,
        vision=ClipVisionConfig(
            image_size=128, patch_size=16, width=192, hidden=768, layers=6, heads=6, projection_dim=128
        ),
        run=RunConfig(steps=2000, batch=128, ema_decay=0.99, optimizer=_FALLING),
    ),
}
