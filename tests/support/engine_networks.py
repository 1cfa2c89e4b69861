"""Tiny networks for the engines' tests, what goes into them, and the measure of what comes out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.models import autoencoder, unet
from sfumato.models.unet_config import UNetConfig
from sfumato.models.unet_inputs import Shortcuts, UNetInputs
from support.in_memory import load
from support.tiny import diffusers_autoencoder, diffusers_unet


def gaussian(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative(ours: Tensor, reference: Tensor) -> float:
    """The error's norm over the reference's: the measure of docs/performance.md."""
    assert ours.shape == reference.shape
    return ((ours.double() - reference.double()).norm() / reference.double().norm()).item()


def ask(
    engine_unet: Callable[[UNetInputs], Tensor],
    latents: Tensor,
    timesteps: Tensor,
    context: Tensor,
    shortcuts: Shortcuts | None = None,
) -> Tensor:
    """What an `Engine.unet` answers to what `UNet.forward` would be given."""
    return engine_unet(UNetInputs(latents=latents, timesteps=timesteps, context=context, shortcuts=shortcuts))


def tiny_unet(name: str) -> unet.UNet:
    reference = diffusers_unet(name)
    config = UNetConfig.from_published(dict(reference.config))
    return load(unet.UNet, config, unet.DIFFUSERS, reference.state_dict())


def tiny_autoencoder(name: str) -> autoencoder.Autoencoder:
    reference = diffusers_autoencoder(name)
    config = autoencoder.AutoencoderConfig.from_published(dict(reference.config))
    return load(autoencoder.Autoencoder, config, autoencoder.DIFFUSERS, reference.state_dict())
