"""Small previews of latents, cheap enough for every step."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d

from sfumato.models.autoencoder import Autoencoder

_SIDE = 16  # of the latents decoded once to learn the map from


class Preview:
    """A linear map from a latent cell to its mean colour, fitted to the model's own decoder.

    Works for every autoencoder, without constants found for one of them. Fitting decodes one small latent.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        config = autoencoder.config
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn((1, config.latent_channels, _SIDE, _SIDE), generator=generator)
        with torch.inference_mode():
            decoded = autoencoder.decode((latents / config.scaling_factor).to(autoencoder.decoder.conv_in.weight))
        colours = avg_pool2d(decoded.float().cpu().clamp(-1, 1), config.factor)  # (1, 3, side, side)
        cells = torch.cat([_cells(latents), torch.ones(_SIDE * _SIDE, 1)], dim=1)
        self.matrix = torch.linalg.lstsq(cells, _cells(colours)).solution  # (latent_channels + 1, 3)

    def __call__(self, latents: Tensor) -> Image.Image:
        """Scaled latents (1, latent_channels, h, w) → a picture of w×h pixels."""
        height, width = latents.shape[2:]
        colours = _cells(latents.float().cpu()) @ self.matrix[:-1] + self.matrix[-1]
        pixels = ((colours * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(np.asarray(pixels.reshape(height, width, 3)))


def _cells(maps: Tensor) -> Tensor:
    """(1, C, h, w) → (h·w, C)"""
    return maps[0].flatten(1).T
