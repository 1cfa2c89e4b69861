"""Latents in the place of pictures: `output_type="latent"`."""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from torch import Tensor, nn

from sfumato.models.autoencoder import Autoencoder, Posterior
from sfumato.pipeline.generate import Pipeline


class LatentKeeper(nn.Module):
    """An autoencoder that keeps what it's given to decode, and answers grey pictures of the right size at once."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.config = autoencoder.config
        self.kept: list[Tensor] = []

    @property
    def latents(self) -> Tensor:
        """All that were kept, scaled: (B, C, h, w) in the model's dtype."""
        return torch.cat(self.kept) * self.config.scaling_factor

    def encode(self, images: Tensor) -> Posterior:
        """As the autoencoder itself."""
        return self.autoencoder.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents (B, C, h, w), kept → zeros (B, 3, H, W)."""
        self.kept.append(latents)
        count, _, height, width = latents.shape
        return latents.new_zeros(count, 3, height * self.config.factor, width * self.config.factor)


def keeping_latents(pipeline: Pipeline) -> tuple[Pipeline, LatentKeeper]:
    """The same model without its decoder or a checker, for one call, and where the call's latents are afterwards."""
    keeper = LatentKeeper(pipeline.model.autoencoder)
    model = dataclasses.replace(pipeline.model, autoencoder=cast(Autoencoder, keeper))
    return Pipeline(model, safety="off", watermark=False, batch_size=pipeline.batch_size), keeper
