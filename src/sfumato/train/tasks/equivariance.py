"""EQ-VAE's constraint: a scaled or turned latent decodes to the scaled or turned picture (Kouzelis et al. 2025)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def transformed(latents: Tensor, pictures: Tensor, factor: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put latents and pictures under one random transform: scaled by s in [¼, 1], then turned by quarters.

    Latents (B, C, n, n) and pictures (B, 3, factor·n, factor·n). The scales are those that leave whole latent cells;
    one transform for all keeps the batch one tensor.
    """
    side = latents.shape[-1]
    turns = int(torch.randint(4, (), generator=generator))
    cells = int(torch.randint(max(side // 4, 1), side + 1, (), generator=generator))
    if cells < side:
        latents = F.interpolate(latents, size=(cells, cells), mode="bilinear", antialias=True)
        pictures = F.interpolate(pictures, size=(cells * factor, cells * factor), mode="bilinear", antialias=True)
    return latents.rot90(turns, (-2, -1)), pictures.rot90(turns, (-2, -1))
