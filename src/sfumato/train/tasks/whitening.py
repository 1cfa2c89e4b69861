"""Giving a trained autoencoder's latents zero mean and unit variance a channel, without changing what it decodes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.errors import InvalidConfig
from sfumato.models.autoencoder import Autoencoder


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """Mean and standard deviation of the sampled latents, a channel: (latent_channels,) each."""

    mean: Tensor
    deviation: Tensor


@torch.no_grad()
def channel_statistics(autoencoder: Autoencoder, batches: Iterable[Tensor]) -> ChannelStatistics:
    """Measure the latents of pictures (B, 3, H, W) in [-1, 1], in float64. The variance is the means' plus the
    posteriors' own. Raises `InvalidConfig` without a picture."""
    latent = autoencoder.config.latent_channels
    count, total, squares = 0, torch.zeros(latent, dtype=torch.float64), torch.zeros(latent, dtype=torch.float64)
    for pictures in batches:
        posterior = autoencoder.encode(pictures)
        mean, variance = posterior.mean.double().cpu(), posterior.logvar.double().exp().cpu()
        count += mean[:, 0].numel()
        total += mean.sum(dim=(0, 2, 3))
        squares += (mean.square() + variance).sum(dim=(0, 2, 3))
    if not count:
        raise InvalidConfig("no pictures to measure the latents on: give at least one")
    mean = total / count
    return ChannelStatistics(mean, (squares / count - mean.square()).sqrt())


@torch.no_grad()
def whiten(autoencoder: Autoencoder, statistics: ChannelStatistics) -> None:
    """Fold the statistics into the 1×1 convolutions around the latent, in place.

    Afterwards latents times the config's scaling factor have zero mean and unit variance, and decode(encode(x)) is what
    it was. `InvalidConfig` where the autoencoder has no such convolutions.
    """
    before, after = autoencoder.quant_conv, autoencoder.post_quant_conv
    if not isinstance(before, nn.Conv2d) or not isinstance(after, nn.Conv2d):
        raise InvalidConfig("only an autoencoder with quant_conv can be whitened: set model.quant_conv = true")
    assert before.bias is not None
    assert after.bias is not None
    latent = autoencoder.config.latent_channels
    scale = statistics.deviation.to(before.weight) * autoencoder.config.scaling_factor  # old = new · scale + mean
    mean = statistics.mean.to(before.weight)
    after.bias += after.weight[:, :, 0, 0] @ mean
    after.weight *= scale.view(1, -1, 1, 1)
    before.weight[:latent] /= scale.view(-1, 1, 1, 1)
    before.bias[:latent] = (before.bias[:latent] - mean) / scale
    before.bias[latent:] -= 2.0 * scale.log()
