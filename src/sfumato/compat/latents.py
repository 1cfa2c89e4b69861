"""Latents in the place of pictures: `output_type="latent"`."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sfumato.models.autoencoder import AutoencoderConfig
from sfumato.pipeline.pipeline import Pipeline


class LatentKeeper:
    """A decoder that keeps what it's given to decode, and answers grey pictures of the right size at once."""

    def __init__(self, config: AutoencoderConfig) -> None:
        self.config = config
        self.kept: list[Tensor] = []

    @property
    def latents(self) -> Tensor:
        """All that were kept, scaled: (B, C, h, w) in the model's dtype."""
        return torch.cat(self.kept) * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents (B, C, h, w), kept → zeros (B, 3, H, W)."""
        self.kept.append(latents)
        count, _, height, width = latents.shape
        return latents.new_zeros(count, 3, height * self.config.factor, width * self.config.factor)


def keeping_latents(pipeline: Pipeline) -> tuple[Pipeline, LatentKeeper]:
    """The same model without its decoder or a checker, for one call, and where the call's latents are afterwards."""
    model = pipeline.model
    keeper = LatentKeeper(model.autoencoder.config)
    engine = dataclasses.replace(model.engine, decode=keeper.decode)
    kept = dataclasses.replace(model, engine=engine)
    return Pipeline(kept, safety="off", watermark=False, batch_size=pipeline.batch_size), keeper
