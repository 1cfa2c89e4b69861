"""The denoiser: a UNet with cross-attention (Rombach et al. 2022, appendix E).

Parameter names are those of the diffusers layout, which people who write adapters know; the CompVis names are
generated from the same config in `compvis.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sfumato.models.unet_config import UNetConfig
from sfumato.models.unet_inputs import Residuals, Shortcuts
from sfumato.models.unet_layers import Downsample, SpatialTransformer, TimeEmbedding, Upsample, rows
from sfumato.nn.norm import GroupNormSiLU
from sfumato.nn.resnet import ResnetBlock
from sfumato.nn.token_merging import Merging
from sfumato.nn.typed_modules import typed_module, typed_modules
from sfumato.weights.mapper import Layout


class Layers(Protocol):
    """How an engine runs each kind of layer, on maps (B, C, H, W) or in a layout of its own, such as (B, H, W, C)."""

    def layer(self, block: Block, j: int, x: Tensor) -> Tensor:
        """Residual block j on x (B, C, H, W), and the transformer behind it where there is one."""
        ...

    def halved(self, downsample: Downsample, x: Tensor) -> Tensor:
        """The map (B, C, H, W) at half its height and width."""
        ...

    def doubled(self, upsample: Upsample, x: Tensor, skip: Tensor) -> Tensor:
        """The map (B, C, H, W) enlarged to the height and width of the skip."""
        ...

    def joined(self, x: Tensor, skip: Tensor) -> Tensor:
        """The map and the skip side by side in the channels: (B, C + C', H, W)."""
        ...

    def whole(self, x: Tensor) -> Tensor:
        """The map (B, C, H, W) with rows for all of the batch."""
        ...


class Block(nn.Module):
    """One level: residual blocks, each followed by a transformer where the level attends."""

    def __init__(
        self, channels: list[tuple[int, int]], config: UNetConfig, *, attends: bool, heads: int, depth: int
    ) -> None:
        super().__init__()
        time_channels = config.block_channels[0] * 4
        self.resnets = nn.ModuleList(
            ResnetBlock(i, o, groups=config.norm_groups, eps=1e-5, time_channels=time_channels) for i, o in channels
        )
        self.attentions = nn.ModuleList(
            SpatialTransformer(o, heads, depth, config) for _, o in (channels if attends else [])
        )


class DownBlock(Block):
    def __init__(self, config: UNetConfig, level: int) -> None:
        c = config.block_channels
        previous, out = c[max(level - 1, 0)], c[level]
        pairs = [(previous, out)] + [(out, out)] * (config.layers_per_block - 1)
        super().__init__(
            pairs, config, attends=config.attention[level], heads=config.heads[level], depth=config.depth[level]
        )
        last = level == len(c) - 1
        self.downsamplers = nn.ModuleList([] if last else [Downsample(out)])

    def forward(self, x: Tensor, layers: Layers, most: int, residual: Tensor | None = None) -> list[Tensor]:
        """Every intermediate map of x (B, C, H, W), for the way up; the last one is the level's output. No more than
        `most` are made. `residual` is a T2I-Adapter's, of the last residual block's shape."""
        maps = []
        for j in range(min(len(self.resnets), most)):
            x = layers.layer(self, j, x)
            if residual is not None and j == len(self.resnets) - 1:
                x = x + residual
            maps.append(x)
        if len(maps) < most:
            maps += [layers.halved(typed_module(downsample, Downsample), x) for downsample in self.downsamplers]
        return maps


class MidBlock(Block):
    def __init__(self, config: UNetConfig) -> None:
        c = config.block_channels[-1]
        super().__init__([(c, c)], config, attends=True, heads=config.heads[-1], depth=config.depth[-1])
        time_channels = config.block_channels[0] * 4
        self.resnets.append(ResnetBlock(c, c, groups=config.norm_groups, eps=1e-5, time_channels=time_channels))

    def forward(self, x: Tensor, layers: Layers) -> Tensor:
        """(B, C, H, W) → (B, C, H, W), in the layout of `layers`."""
        return layers.layer(self, 1, layers.layer(self, 0, x))


class UpBlock(Block):
    def __init__(self, config: UNetConfig, level: int) -> None:
        c = config.block_channels
        out, below, above = c[level], c[min(level + 1, len(c) - 1)], c[max(level - 1, 0)]
        n = config.layers_per_block + 1
        # each residual block takes the map from below, then its own, and the skip of the same depth on the way down
        pairs = [((below if j == 0 else out) + (above if j == n - 1 else out), out) for j in range(n)]
        super().__init__(
            pairs, config, attends=config.attention[level], heads=config.heads[level], depth=config.depth[level]
        )
        self.upsamplers = nn.ModuleList([] if level == 0 else [Upsample(out)])
        self.layers_left = n * (level + 1)

    def forward(self, x: Tensor, skips: list[Tensor], layers: Layers, shortcuts: Shortcuts) -> Tensor:
        """x (B, C, H, W) and one skip from the end of `skips` for each layer → the level's map. Where fewer are left
        than layers, x has come from `shortcuts` and stands for those between. The caller takes them off: FSDP hands on
        a copy."""
        skips, count = list(skips), len(self.resnets)
        first = max(self.layers_left - len(skips), 0)
        for j in range(first, count):
            if len(skips) == shortcuts.depth:
                shortcuts.deep = x = layers.whole(x)
            x = layers.layer(self, j, layers.joined(x, skips.pop()))
        for upsample in self.upsamplers if first < count else ():
            x = layers.doubled(typed_module(upsample, Upsample), x, skips[-1])
        return x


@dataclass(frozen=True, slots=True)
class ModuleLayers:
    """The modules themselves, on (B, C, H, W); `merged` are the blocks in which tokens are merged."""

    time: Tensor
    context: Tensor
    merging: Merging | None
    merged: tuple[Block, ...]

    def layer(self, block: Block, j: int, x: Tensor) -> Tensor:
        """Residual block j on x (B, C, H, W), and the transformer behind it where there is one."""
        x = block.resnets[j](x, self.time)
        if j < len(block.attentions):
            x = block.attentions[j](x, self.context, self.merging if block in self.merged else None)
        return x

    def halved(self, downsample: Downsample, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H / 2, W / 2)."""
        out: Tensor = downsample(x)
        return out

    def doubled(self, upsample: Upsample, x: Tensor, skip: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, 2H, 2W), or the size of the skip."""
        height, width = skip.shape[2:]
        out: Tensor = upsample(x, (height, width))
        return out

    def joined(self, x: Tensor, skip: Tensor) -> Tensor:
        """x (B, C, H, W) and a skip of as many rows or fewer → (B, C + C', H, W)."""
        return torch.cat([x, rows(skip, len(x))], dim=1)

    def whole(self, x: Tensor) -> Tensor:
        """The map (B, C, H, W) itself."""
        return x


class UNet(nn.Module):
    """Predicts the noise (or v) in a latent at a timestep, given a context."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        c = config.block_channels
        levels = range(len(c))
        self.conv_in = nn.Conv2d(config.in_channels, c[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(c[0])
        self.down_blocks = nn.ModuleList(DownBlock(config, level) for level in levels)
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList(UpBlock(config, level) for level in reversed(levels))
        self.conv_norm_out = GroupNormSiLU(config.norm_groups, c[0], eps=1e-5)
        self.conv_out = nn.Conv2d(c[0], config.out_channels, 3, padding=1)

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        context: Tensor,
        residuals: Residuals | None = None,
        shortcuts: Shortcuts | None = None,
    ) -> Tensor:
        """latents (B, in_channels, h, w), timesteps (B,), context (B, T, context_dim) → (B, out_channels, h, w).

        The same latents under k contexts, one context's rows after another's: context (k·B, T, context_dim) and
        timesteps (1,) → (k·B, out_channels, h, w). What no context has reached yet is computed once for all.
        """
        shortcuts = shortcuts or Shortcuts()
        merged = self.finest_attending() if shortcuts.merging else ()
        layers = ModuleLayers(self.time_embedding(timesteps), context, shortcuts.merging, merged)
        x = self.walk(layers, self.conv_in(latents), residuals or Residuals(), shortcuts)
        out: Tensor = self.conv_out(self.conv_norm_out(x))
        return out

    def walk(self, layers: Layers, x: Tensor, residuals: Residuals, shortcuts: Shortcuts) -> Tensor:
        """Go down the U and up again: from the first convolution's map to what the last norm takes, both (B, C, H, W)
        in the layout of `layers`. `shortcuts.deep` is left out or filled in."""
        deep = shortcuts.deep
        wanted = self.layers_up if deep is None or shortcuts.depth is None else shortcuts.depth
        skips = [x]
        for down, residual in zip(self.down_blocks, residuals.levels or [None] * len(self.down_blocks), strict=True):
            if len(skips) < wanted:
                skips += down(skips[-1], layers, wanted - len(skips), residual)
        if deep is None:
            x = self.mid_block(skips[-1], layers)
            x = x if residuals.middle is None else x + residuals.middle
        else:
            x = deep
        if residuals.skips:
            skips = [skip + residual for skip, residual in zip(skips, residuals.skips[: len(skips)], strict=True)]
        for up in typed_modules(self.up_blocks, UpBlock):
            x = up(x, skips, layers, shortcuts)
            del skips[up.layers_left - len(up.resnets) :]
        return x

    @property
    def layers_up(self) -> int:
        """Layers of the way up; as many skips lead there."""
        return typed_module(self.up_blocks[0], UpBlock).layers_left

    def finest_attending(self) -> tuple[Block, ...]:
        """The blocks of the finest level that attends, whose attention is the dearest."""
        for down, up in zip(self.down_blocks, reversed(self.up_blocks), strict=True):
            if len(typed_module(down, DownBlock).attentions):
                return typed_module(down, DownBlock), typed_module(up, UpBlock)
        return ()


DIFFUSERS = Layout(
    modules={
        name: (name,)
        for name in ("conv_in", "time_embedding", "down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_out")
    }
)
