"""Small previews of latents, cheap enough for every step."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from sfumato.models.autoencoder import Autoencoder

# The latents decoded once to learn the map from. Pictures are smooth: white noise would teach another map.
_EXAMPLES, _COARSE, _SIDE = 8, 8, 16


class Preview:
    """A linear map from a latent cell to its mean colour, fitted to the model's own decoder.

    Works for every autoencoder, without constants found for one of them. Fitting decodes a few small latents.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        config = autoencoder.config
        generator = torch.Generator().manual_seed(0)
        coarse = torch.randn((_EXAMPLES, config.latent_channels, _COARSE, _COARSE), generator=generator)
        latents = interpolate(coarse, size=(_SIDE, _SIDE), mode="bilinear")
        with torch.inference_mode():
            decoded = autoencoder.decode((latents / config.scaling_factor).to(autoencoder.decoder.conv_in.bias))
        colours = avg_pool2d(decoded.float().cpu().clamp(-1, 1), config.factor)  # (examples, 3, side, side)
        cells = torch.cat([_cells(latents), torch.ones(_EXAMPLES * _SIDE * _SIDE, 1)], dim=1)
        self.matrix = torch.linalg.lstsq(cells, _cells(colours)).solution  # (latent_channels + 1, 3)

    def __call__(self, latents: Tensor) -> Image.Image:
        """Scaled latents (1, latent_channels, h, w) → a picture of w×h pixels."""
        height, width = latents.shape[2:]
        colours = _cells(latents.float().cpu()) @ self.matrix[:-1] + self.matrix[-1]
        pixels = ((colours * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(np.asarray(pixels.reshape(height, width, 3)))


def _cells(maps: Tensor) -> Tensor:
    """(B, C, h, w) → (B·h·w, C)"""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)
