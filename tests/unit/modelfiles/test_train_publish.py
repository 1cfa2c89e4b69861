"""What training writes is read by diffusers, and computes the same there."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch

from sfumato.errors import OutputError
from sfumato.modelfiles.model_parts import UNET, write_module
from sfumato.modelfiles.publish_model import publish_autoencoder
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.models.unet import UNet
from sfumato.models.unet_config import UNetConfig


def test_a_published_autoencoder_decodes_the_same_in_diffusers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoencoderConfig(block_channels=(16, 32), layers_per_block=1, norm_groups=1, sample_size=16)
    ours = Autoencoder(config).requires_grad_(False).to(memory_format=torch.channels_last)
    publish_autoencoder(ours, tmp_path / "vae", dtype=torch.float32)
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours.decode(latents), theirs.decode(latents).sample, atol=2e-5, rtol=1e-4)
    with pytest.raises(OutputError, match="not empty"):
        publish_autoencoder(ours, tmp_path / "vae")


def test_a_published_unet_is_float16_and_answers_the_same_in_diffusers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = UNetConfig(
        block_channels=(32, 64),
        attention=(True, False),
        layers_per_block=1,
        heads=(4, 4),
        depth=(1, 1),
        context_dim=16,
        norm_groups=8,
        sample_size=8,
    )
    ours = UNet(config).requires_grad_(False)
    write_module(tmp_path / "unet", UNET, ours, dtype=torch.float16)
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    assert {tensor.dtype for tensor in theirs.state_dict().values()} <= {torch.float16, torch.float32}
    generator = torch.Generator().manual_seed(1)
    latents, context = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 16, generator=generator)
    rounded = ours.half().float()(latents, torch.tensor([7]), context)
    answer = theirs.float()(latents, 7, context).sample
    torch.testing.assert_close(rounded, answer, atol=2e-5, rtol=1e-4)
