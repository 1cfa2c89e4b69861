"""The KL autoencoder between pixels and latents (Rombach et al. 2022, section 3.1). Defaults are Stable Diffusion v1's.

Parameter names are those of the diffusers layout of today; older names are mapped below, CompVis' in `compvis.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import CheckpointError
from sfumato.models.config_checks import (
    divisible,
    flags,
    positive,
    positive_numbers,
    require_fields,
    require_list,
    require_values,
)
from sfumato.nn.attention import attention
from sfumato.nn.norm import GroupNormSiLU
from sfumato.nn.resnet import ResnetBlock
from sfumato.weights.mapper import Layout

_EPS = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderConfig:
    """Shape of the autoencoder. The spatial factor is 2^(levels - 1)."""

    in_channels: Annotated[int, "of the pictures"] = 3
    out_channels: Annotated[int, "of the pictures it gives"] = 3
    latent_channels: Annotated[int, "of the latents"] = 4
    block_channels: Annotated[
        tuple[int, ...], "of each level, the finest first; each level after the first halves the size"
    ] = (128, 256, 512, 512)
    layers_per_block: Annotated[int, "residual blocks a level"] = 2
    norm_groups: Annotated[int, "of the group norms; they divide every block_channels"] = 32
    scaling_factor: Annotated[float, "latents are multiplied by it for the UNet"] = 0.18215
    quant_conv: Annotated[bool, "1×1 convolutions around the latents"] = True
    sample_size: Annotated[int, "side of its pictures: a hint for programs that decode in tiles"] = field(
        default=512, compare=False
    )

    def __post_init__(self) -> None:
        positive(
            "autoencoder",
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            latent_channels=self.latent_channels,
            layers_per_block=self.layers_per_block,
            norm_groups=self.norm_groups,
            sample_size=self.sample_size,
            levels=len(self.block_channels),
        )
        positive_numbers("autoencoder", scaling_factor=self.scaling_factor)
        flags("autoencoder", quant_conv=self.quant_conv)
        for channels in self.block_channels:
            positive("autoencoder", block_channels=channels)
        divisible("autoencoder", groups=self.norm_groups, channels=self.block_channels)

    @property
    def factor(self) -> int:
        """Pixels a latent cell, in each direction."""
        return int(2 ** (len(self.block_channels) - 1))

    @classmethod
    def from_published(cls, values: Mapping[str, Any]) -> Self:
        """The config in diffusers' `vae/config.json`. Raises `InvalidConfig`."""
        require_fields("autoencoder", values, ("block_out_channels", "latent_channels"))
        require_values("autoencoder", values, _FIXED)
        channels = require_list("autoencoder", "block_out_channels", values["block_out_channels"])
        levels = len(channels)
        require_values(
            "autoencoder",
            values,
            {
                "down_block_types": (["DownEncoderBlock2D"] * levels,),
                "up_block_types": (["UpDecoderBlock2D"] * levels,),
                "use_post_quant_conv": (values.get("use_quant_conv", True),),
            },
        )
        return cls(
            in_channels=values.get("in_channels", 3),
            out_channels=values.get("out_channels", 3),
            latent_channels=values["latent_channels"],
            block_channels=channels,
            layers_per_block=values.get("layers_per_block", 1),
            norm_groups=values.get("norm_num_groups", 32),
            scaling_factor=values.get("scaling_factor", 0.18215),
            quant_conv=values.get("use_quant_conv", True),
            sample_size=values.get("sample_size", 512),
        )

    def to_published(self) -> dict[str, Any]:
        """The published JSON of this config: the inverse of `from_published`."""
        levels = len(self.block_channels)
        return {
            "_class_name": "AutoencoderKL",
            "_diffusers_version": "0.12.0",
            "act_fn": "silu",
            "block_out_channels": list(self.block_channels),
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "in_channels": self.in_channels,
            "latent_channels": self.latent_channels,
            "layers_per_block": self.layers_per_block,
            "norm_num_groups": self.norm_groups,
            "out_channels": self.out_channels,
            "sample_size": self.sample_size,
            "scaling_factor": self.scaling_factor,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "use_quant_conv": self.quant_conv,
            "use_post_quant_conv": self.quant_conv,
        }


_FIXED: Mapping[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "mid_block_add_attention": (True,),
    "shift_factor": (None,),
    "latents_mean": (None,),
    "latents_std": (None,),
}


@dataclass(frozen=True, slots=True)
class Posterior:
    """A diagonal Gaussian over latents, unscaled: mean and logvar are (B, latent_channels, h, w)."""

    mean: Tensor
    logvar: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """mean + exp(logvar / 2) · noise, of the mean's shape (Kingma & Welling 2013)."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise


class PixelAttention(nn.Module):
    """Single-head self-attention over the pixels of a feature map, with a residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=_EPS)
        self.to_q, self.to_k = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)"""
        h = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, H·W, C)
        h = self.to_out(attention(self.to_q(h), self.to_k(h), self.to_v(h), heads=1))
        out: Tensor = x + h.transpose(1, 2).reshape(x.shape)
        return out


class MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([PixelAttention(channels, groups)])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups=groups, eps=_EPS) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)"""
        out: Tensor = self.resnets[1](self.attentions[0](self.resnets[0](x)))
        return out


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H/2, W/2), padded on the right and below only, as the published weights expect."""
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, 2H, 2W), nearest then conv."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """Residual blocks at one resolution, then the way to the next one."""

    def __init__(
        self, channels: int, out_channels: int, layers: int, groups: int, *, down: bool = False, up: bool = False
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(channels if j == 0 else out_channels, out_channels, groups=groups, eps=_EPS)
            for j in range(layers)
        )
        if down:
            self.downsamplers = nn.ModuleList([Downsample(out_channels)])
        if up:
            self.upsamplers = nn.ModuleList([Upsample(out_channels)])
        self.resample = "downsamplers" if down else "upsamplers" if up else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, out_channels, H', W')"""
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.resample is None else getattr(self, self.resample)[0](x)


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        c, groups, last = config.block_channels, config.norm_groups, len(config.block_channels) - 1
        self.conv_in = nn.Conv2d(config.in_channels, c[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(c[max(i - 1, 0)], c[i], config.layers_per_block, groups, down=i < last) for i in range(len(c))
        )
        self.mid_block = MidBlock(c[-1], groups)
        self.conv_norm_out = GroupNormSiLU(groups, c[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(c[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, 2·latent_channels, H/f, W/f)"""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        out: Tensor = self.conv_out(self.conv_norm_out(self.mid_block(x)))
        return out


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        c, groups, last = config.block_channels[::-1], config.norm_groups, len(config.block_channels) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, c[0], 3, padding=1)
        self.mid_block = MidBlock(c[0], groups)
        self.up_blocks = nn.ModuleList(
            Level(c[max(i - 1, 0)], c[i], config.layers_per_block + 1, groups, up=i < last) for i in range(len(c))
        )
        self.conv_norm_out = GroupNormSiLU(groups, c[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(c[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, latent_channels, h, w) → (B, out_channels, f·h, f·w)"""
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        out: Tensor = self.conv_out(self.conv_norm_out(x))
        return out


class Autoencoder(nn.Module):
    """Encoder, decoder, and the 1×1 convolutions on either side of the latent."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        latent = config.latent_channels
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if config.quant_conv else nn.Identity()
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if config.quant_conv else nn.Identity()

    def encode(self, images: Tensor) -> Posterior:
        """Pixels (B, 3, H, W) in [-1, 1], sides multiples of the factor → the posterior of unscaled latents."""
        mean, logvar = self.quant_conv(self.encoder(images)).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents (B, latent_channels, h, w) → pixels (B, 3, f·h, f·w), about [-1, 1] but not clamped."""
        out: Tensor = self.decoder(self.post_quant_conv(latents))
        return out


_ATTENTIONS = ("encoder.mid_block.attentions.0", "decoder.mid_block.attentions.0")
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

DIFFUSERS = Layout(
    modules={name: (name,) for name in ("encoder", "decoder", "quant_conv", "post_quant_conv")}
    | {
        f"{attention}.{new}": (f"{attention}.{new}", f"{attention}.{old}")
        for attention in _ATTENTIONS
        for new, old in _OLD_ATTENTION.items()
    }
)


def infer(shapes: Mapping[str, tuple[int, ...]]) -> AutoencoderConfig:
    """The config from the names and shapes of a diffusers file without one beside it. 32 norm groups are assumed.
    Raises `CheckpointError` for an incomplete file."""
    levels = sum(f"encoder.down_blocks.{i}.resnets.0.conv2.weight" in shapes for i in range(len(shapes)))
    try:
        return AutoencoderConfig(
            in_channels=shapes["encoder.conv_in.weight"][1],
            out_channels=shapes["decoder.conv_out.weight"][0],
            latent_channels=shapes["decoder.conv_in.weight"][1],
            block_channels=tuple(shapes[f"encoder.down_blocks.{i}.resnets.0.conv2.weight"][0] for i in range(levels)),
            layers_per_block=sum(
                f"encoder.down_blocks.0.resnets.{j}.conv2.weight" in shapes for j in range(len(shapes))
            ),
            quant_conv="quant_conv.weight" in shapes,
        )
    except KeyError as error:
        raise CheckpointError(f"incomplete: {error.args[0]} is missing") from error
