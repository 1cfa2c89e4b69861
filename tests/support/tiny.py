"""Tiny random models made by diffusers and transformers: the references of the parity tests.

The configurations cover every field of ours: levels, attention places, heads, groups, layers, linear projections,
factors other than 8, odd channel counts.
"""

from __future__ import annotations

import diffusers
import torch
import transformers
from torch import nn

CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"


def _unet(down: list[str], **fields: object) -> dict[str, object]:
    up = [kind.replace("Down", "Up") for kind in reversed(down)]
    return {"down_block_types": down, "up_block_types": up, "flip_sin_to_cos": True, "freq_shift": 0, **fields}


UNETS: dict[str, dict[str, object]] = {
    "v1-like": _unet(
        [CROSS, CROSS, CROSS, PLAIN],
        block_out_channels=[32, 64, 96, 96],
        attention_head_dim=8,
        cross_attention_dim=24,
        sample_size=16,
    ),
    "pocket-like": _unet(
        [CROSS, CROSS, PLAIN],
        block_out_channels=[32, 64, 96],
        layers_per_block=1,
        norm_num_groups=16,
        attention_head_dim=4,
        cross_attention_dim=20,
        sample_size=16,
    ),
    "v2-like": _unet(
        [CROSS, CROSS, PLAIN],
        block_out_channels=[32, 64, 128],
        attention_head_dim=[2, 4, 8],
        use_linear_projection=True,
        cross_attention_dim=40,
        sample_size=16,
    ),
    "inpainting": _unet(
        [CROSS, PLAIN],
        in_channels=9,
        block_out_channels=[32, 64],
        attention_head_dim=8,
        cross_attention_dim=16,
        sample_size=16,
    ),
    "attention below": _unet(
        [PLAIN, CROSS, CROSS],
        block_out_channels=[24, 48, 72],
        norm_num_groups=12,
        layers_per_block=3,
        attention_head_dim=3,
        cross_attention_dim=16,
        sample_size=16,
    ),
    "deep and upcast": _unet(
        [CROSS, CROSS],
        block_out_channels=[32, 32],
        transformer_layers_per_block=2,
        upcast_attention=True,
        attention_head_dim=4,
        cross_attention_dim=16,
        out_channels=8,
        sample_size=8,
    ),
    "one level": _unet([CROSS], block_out_channels=[32], attention_head_dim=4, cross_attention_dim=16, sample_size=8),
}

AUTOENCODERS: dict[str, dict[str, object]] = {
    "v1-like": {"block_out_channels": [32, 64, 64, 64], "layers_per_block": 2, "sample_size": 64},
    "pocket-like": {
        "block_out_channels": [16, 32, 64],
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "scaling_factor": 0.58508,
        "sample_size": 64,
    },
    "factor 2": {"block_out_channels": [32, 32], "layers_per_block": 1, "latent_channels": 3, "sample_size": 32},
    "no quant conv": {
        "block_out_channels": [32, 64],
        "layers_per_block": 3,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "latent_channels": 16,
        "sample_size": 32,
    },
}

TEXT_ENCODERS: dict[str, dict[str, object]] = {
    "v1-like": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4},
    "v2-like": {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "hidden_act": "gelu",
    },
    "short": {
        "hidden_size": 24,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "max_position_embeddings": 32,
    },
}


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Random numbers everywhere, norms and biases too: an untouched initialisation would hide swapped tensors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.copy_(noise * 0.1 + (1.0 if name.endswith("weight") else 0.0))
    return module.eval().requires_grad_(False)


def diffusers_unet(name: str, seed: int = 0) -> diffusers.UNet2DConditionModel:
    config = {"layers_per_block": 2, **UNETS[name]}
    # diffusers lists a deep UNet's blocks bottom up the same way only through its own default
    return randomise(diffusers.UNet2DConditionModel(**config), seed)


def diffusers_autoencoder(name: str, seed: int = 0) -> diffusers.AutoencoderKL:
    config = {"latent_channels": 4, **AUTOENCODERS[name]}
    levels = len(config["block_out_channels"])
    config |= {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    return randomise(diffusers.AutoencoderKL(**config), seed)


def transformers_text(name: str, seed: int = 0, vocab_size: int = 200) -> transformers.CLIPTextModel:
    config = transformers.CLIPTextConfig(
        **{
            "vocab_size": vocab_size,
            "max_position_embeddings": 77,
            "bos_token_id": vocab_size - 2,
            "eos_token_id": vocab_size - 1,
            "pad_token_id": vocab_size - 1,
            **TEXT_ENCODERS[name],
        }
    )
    return randomise(transformers.CLIPTextModel(config), seed)
