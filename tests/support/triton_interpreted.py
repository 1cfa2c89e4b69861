"""Run as a program with TRITON_INTERPRET=1: the errors of what is written in Triton, computed on the CPU, as JSON.

A process of its own, since Triton has to know from its first import on that it is to interpret.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.engines.fused import fused_copy, why_not
from sfumato.engines.triton_norm import group_norm
from sfumato.models.autoencoder import Autoencoder, AutoencoderConfig
from sfumato.models.unet import UNet
from sfumato.models.unet_config import UNetConfig

# (B, C, H, W), groups: widths of v1's UNet and autoencoder; one pixel, one group, groups of one channel; several parts.
SHAPES = (
    ((2, 320, 9, 7), 32),
    ((1, 128, 12, 11), 32),
    ((1, 2560, 3, 4), 32),
    ((2, 40, 1, 1), 4),
    ((2, 12, 5, 6), 1),
    ((1, 6, 8, 8), 6),
    ((1, 12, 33, 40), 3),
    ((1, 4, 160, 150), 2),
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def norms() -> Iterator[tuple[str, float]]:
    """Against torch's group_norm and silu in float64, on maps whose mean is many times their deviation."""
    draw = torch.Generator().manual_seed(0)
    for shape, groups in SHAPES:
        for dtype in DTYPES:
            x = (torch.randn(shape, generator=draw) * 3 + 50).to(dtype)
            weight, bias = torch.randn(2, shape[1], generator=draw).to(dtype)
            for silu in (False, True):
                found = group_norm(x, weight, bias, groups=groups, eps=1e-5, silu=silu)
                assert found.dtype is dtype
                assert found.is_contiguous(memory_format=torch.channels_last)
                expected = F.group_norm(x.double(), groups, weight.double(), bias.double(), 1e-5)
                name = f"{'×'.join(map(str, shape))} {groups} {'silu ' if silu else ''}{dtype}"
                yield name, relative(found, F.silu(expected) if silu else expected)


def networks() -> Iterator[tuple[str, float]]:
    """Both networks' fused twins against the networks, and the trial before an engine takes them."""
    assert why_not("cpu") == ""
    torch.manual_seed(0)
    unet = UNet(
        UNetConfig(
            block_channels=(8, 16),
            attention=(True, False),
            heads=(2, 2),
            depth=(1, 1),
            layers_per_block=1,
            context_dim=8,
            norm_groups=4,
        )
    )
    pictures = Autoencoder(
        AutoencoderConfig(block_channels=(8, 16), layers_per_block=1, norm_groups=4, latent_channels=2)
    )
    for network in (unet, pictures):
        for module in network.modules():
            if isinstance(module, nn.GroupNorm):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
        network.to(memory_format=torch.channels_last)
    x, t, context = torch.randn(2, 4, 6, 5), torch.tensor([981.0, 3.0]), torch.randn(2, 3, 8)
    yield "UNet", relative(fused_copy(unet)(x, t, context), unet(x, t, context))
    latents, image = torch.randn(1, 2, 4, 3), torch.randn(1, 3, 8, 6)
    copied = fused_copy(pictures)
    yield "decoder", relative(copied.decode(latents), pictures.decode(latents))
    yield "encoder", relative(copied.encode(image).mean, pictures.encode(image).mean)


if __name__ == "__main__":
    with torch.inference_mode():
        json.dump(dict([*norms(), *networks()]), sys.stdout)
