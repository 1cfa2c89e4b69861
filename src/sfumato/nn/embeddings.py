"""Sinusoidal embedding of the timestep."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def timestep_embedding(timesteps: Tensor, channels: int, *, max_period: float = 10_000.0) -> Tensor:
    """Cosines, then sines, of t at `channels`/2 geometrically spaced frequencies (Ho et al. 2020; order as CompVis).

    timesteps is (B,), fractions allowed; returns (B, channels) in float32.
    """
    half = channels // 2
    frequencies = torch.exp(
        -math.log(max_period) * torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
    )
    angles = timesteps.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)
