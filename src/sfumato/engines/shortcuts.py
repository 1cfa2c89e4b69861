"""What a forward of the UNet may leave out, and the order of its layers with that left out.

DeepCache (Ma, Fang & Wang 2023, section 3.2): the features that come up from the depths change little from step to
step. A whole forward keeps the map that enters the last `depth` layers of the way up; the next ones compute only those
and the layers of the way down that they are skipped to from, and take what was kept in the place of all between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from sfumato.engines.typed_modules import members
from sfumato.models.unet import Block, DownBlock, Downsample, MidBlock, UNet, UpBlock, Upsample
from sfumato.nn.token_merging import Merging


@dataclass(slots=True, kw_only=True)
class Shortcuts:
    """For one forward: `merging` of tokens in the finest self-attentions, None for none; `depth`, the layers of the way
    up that are always computed, None to keep nothing.

    A forward with `deep` None is whole and leaves the map there, rows as the batch's, in the engine's own layout; one
    that is given it starts from there.
    """

    merging: Merging | None = None
    depth: int | None = None
    deep: Tensor | None = field(default=None, repr=False)


class Layers(Protocol):
    """An engine's way to run each kind of layer."""

    def layer(self, block: Block, j: int, x: Tensor) -> Tensor:
        """Residual block j, and the transformer behind it where the level attends."""
        ...

    def middle(self, block: MidBlock, x: Tensor) -> Tensor: ...

    def halved(self, downsample: Downsample, x: Tensor) -> Tensor: ...

    def doubled(self, upsample: Upsample, x: Tensor, skip: Tensor) -> Tensor:
        """Enlarged to the size of the skip."""
        ...

    def joined(self, x: Tensor, skip: Tensor) -> Tensor:
        """Side by side in the channels."""
        ...

    def whole(self, x: Tensor) -> Tensor:
        """Rows for all of the batch."""
        ...


def layers_up(unet: UNet) -> int:
    """Layers of the way up; as many skips lead there."""
    return sum(len(up.resnets) for up in members(unet.up_blocks, UpBlock))


def finest_attending(unet: UNet) -> tuple[Block, ...]:
    """The blocks of the finest level that attends, whose attention is the dearest."""
    for down, up in zip(members(unet.down_blocks, DownBlock), reversed(members(unet.up_blocks, UpBlock)), strict=True):
        if len(down.attentions):
            return down, up
    return ()


def walk(unet: UNet, layers: Layers, x: Tensor, shortcuts: Shortcuts) -> Tensor:
    """From the first convolution's map to what the last norm takes."""
    total = layers_up(unet)
    depth = total if shortcuts.depth is None else shortcuts.depth
    first = 0
    if shortcuts.deep is None:
        skips = list(_down(unet, layers, x))
        x = layers.middle(unet.mid_block, skips[-1])
    else:
        skips = list(islice(_down(unet, layers, x), depth))
        x, first = shortcuts.deep, total - depth
    ups = [(up, j) for up in members(unet.up_blocks, UpBlock) for j in range(len(up.resnets))]
    for i, (up, j) in islice(enumerate(ups), first, None):
        if shortcuts.depth is not None and i == total - depth:
            shortcuts.deep = x = layers.whole(x)
        x = layers.layer(up, j, layers.joined(x, skips.pop()))
        if j == len(up.resnets) - 1:
            for upsample in members(up.upsamplers, Upsample):
                x = layers.doubled(upsample, x, skips[-1])
    return x


def _down(unet: UNet, layers: Layers, x: Tensor) -> Iterator[Tensor]:
    """The skips, each computed when it is asked for."""
    yield x
    for down in members(unet.down_blocks, DownBlock):
        for j in range(len(down.resnets)):
            x = layers.layer(down, j, x)
            yield x
        for downsample in members(down.downsamplers, Downsample):
            x = layers.halved(downsample, x)
            yield x


@dataclass(frozen=True, slots=True)
class ModuleLayers:
    """The modules themselves, on (B, C, H, W)."""

    time: Tensor
    context: Tensor
    merging: Merging | None
    merged: tuple[Block, ...]

    def layer(self, block: Block, j: int, x: Tensor) -> Tensor:
        return block.layer(j, x, self.time, self.context, self.merging if block in self.merged else None)

    def middle(self, block: MidBlock, x: Tensor) -> Tensor:
        out: Tensor = block(x, self.time, self.context)
        return out

    def halved(self, downsample: Downsample, x: Tensor) -> Tensor:
        out: Tensor = downsample(x)
        return out

    def doubled(self, upsample: Upsample, x: Tensor, skip: Tensor) -> Tensor:
        height, width = skip.shape[2:]
        out: Tensor = upsample(x, (height, width))
        return out

    def joined(self, x: Tensor, skip: Tensor) -> Tensor:
        return torch.cat([x, skip], dim=1)

    def whole(self, x: Tensor) -> Tensor:
        return x


def approximate(unet: UNet, latents: Tensor, timesteps: Tensor, context: Tensor, shortcuts: Shortcuts) -> Tensor:
    """`UNet.forward` with shortcuts."""
    layers = ModuleLayers(unet.time_embedding(timesteps), context, shortcuts.merging, finest_attending(unet))
    x = walk(unet, layers, unet.conv_in(latents), shortcuts)
    out: Tensor = unet.conv_out(unet.conv_norm_out(x))
    return out
