"""Overlapping tiles blended into each other: less memory than anything exact, and another picture.

Each tile has GroupNorm statistics of its own, so contrast and colour drift a little from tile to tile. The tiles, their
overlap and the weights are diffusers' (`AutoencoderKL.enable_vae_tiling`), and so are the numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.models.autoencoder import AutoencoderConfig, Posterior

_OVERLAP = 0.25


def blended_decode(decode: Callable[[Tensor], Tensor], latents: Tensor, config: AutoencoderConfig) -> Tensor:
    """Unscaled latents (B, C, h, w) → pixels (B, 3, f·h, f·w); tiles are of the model's `sample_size`."""
    tile = config.sample_size // config.factor
    step = max(int(tile * (1 - _OVERLAP)), 1)
    return _blended(decode, latents, tile, step, int(config.sample_size * _OVERLAP), config.sample_size)


def blended_encode(encode: Callable[[Tensor], Posterior], images: Tensor, config: AutoencoderConfig) -> Posterior:
    """Pixels (B, 3, H, W) → the posterior; what is blended are means and log-variances."""

    def moments(tile: Tensor) -> Tensor:
        """Mean and logvar of a tile (B, 3, H, W), (B, 2C, h, w)."""
        posterior = encode(tile)
        return torch.cat([posterior.mean, posterior.logvar], dim=1)

    tile = config.sample_size // config.factor
    step = max(int(config.sample_size * (1 - _OVERLAP)), 1)
    mean, logvar = _blended(moments, images, config.sample_size, step, int(tile * _OVERLAP), tile).chunk(2, dim=1)
    return Posterior(mean, logvar)


def needs_tiles(height: int, width: int, config: AutoencoderConfig) -> bool:
    """Whether a picture of this many pixels is larger than one tile."""
    return max(height, width) > config.sample_size


def _blended(run: Callable[[Tensor], Tensor], x: Tensor, tile: int, step: int, blend: int, made: int) -> Tensor:
    """Tiles of `tile` every `step` through `run`, which makes `made` of them; `blend` of these overlap."""
    limit = made - blend
    bands: list[Tensor] = []
    above: list[Tensor] = []
    for i in range(0, x.shape[2], step):
        row: list[Tensor] = []
        for k, j in enumerate(range(0, x.shape[3], step)):
            answer = run(x[:, :, i : i + tile, j : j + tile]).clone()
            if above:
                _blend(above[k], answer, blend, dim=2)
            if row:
                _blend(row[-1], answer, blend, dim=3)
            row.append(answer)
        bands.append(torch.cat([answer[:, :, :limit, :limit] for answer in row], dim=3))
        above = row
    return torch.cat(bands, dim=2)


def _blend(before: Tensor, tile: Tensor, extent: int, *, dim: int) -> None:
    """Fade the beginning of `tile` in over the end of its neighbour."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    if extent == 0:
        return
    shape = [1] * tile.ndim
    shape[dim] = extent
    weight = (torch.arange(extent, dtype=tile.dtype, device=tile.device) / extent).view(shape)
    start = tile.narrow(dim, 0, extent)
    end = before.narrow(dim, before.shape[dim] - extent, extent)
    start.copy_(end * (1 - weight) + start * weight)
