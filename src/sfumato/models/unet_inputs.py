"""What one call of the UNet is given, and what of it may be left out or added to."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sfumato.nn.token_merging import Merging


@dataclass(slots=True, kw_only=True)
class Shortcuts:
    """What one forward leaves out: `merging` of tokens in the finest self-attentions, None for none; `depth`, the
    layers of the way up that are always computed, None to keep nothing.

    DeepCache (Ma, Fang & Wang 2023, section 3.2): the features that come up from the depths change little from step to
    step. A whole forward, with `deep` None, leaves there the map that enters the last `depth` layers of the way up,
    with the batch's rows and in the engine's own layout. One that is given it computes only those and the layers of the
    way down that they are skipped to from, and takes `deep` in the place of all between.
    """

    merging: Merging | None = None
    depth: int | None = None
    deep: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Residuals:
    """What adapters add to the UNet's maps, each of its map's shape.

    A ControlNet gives `skips`, one for each map of the way down that is skipped to the way up (the first convolution's
    first), and `middle`, for the map that comes out of the depths. A T2I-Adapter gives `levels`, one for each level of
    the way down, added behind its last layer and so to what goes on from there too.
    """

    skips: tuple[Tensor, ...] = field(default=(), repr=False)
    middle: Tensor | None = field(default=None, repr=False)
    levels: tuple[Tensor, ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetInputs:
    """One call of the UNet: the latents of B pictures, each under k conditions.

    `latents` are (B, C, h, w) of any floating dtype, of unit variance. `context` is (k·B, T, context_dim), one
    condition's rows after another's; an IP-Adapter's image tokens come behind the text's. Nobody may write to a context
    as long as the same tensor is given: engines know it again. `timesteps` is (1,), or (k·B,) where they differ.
    `extra_channels` (B, C', h, w), an inpainting model's mask and masked picture, stand behind the latents.

    `factors`, where they are given, ask for the guidance too: the k − 1 factors of `diffusion.guidance.combined`.
    Those, `residuals` and `shortcuts` are for engines that say that they take them.
    """

    latents: Tensor = field(repr=False)
    timesteps: Tensor
    context: Tensor = field(repr=False)
    extra_channels: Tensor | None = field(default=None, repr=False)
    residuals: Residuals | None = None
    shortcuts: Shortcuts | None = None
    factors: tuple[float, ...] | None = None

    @property
    def channels(self) -> Tensor:
        """What the first convolution takes, once for all conditions: (B, C + C', h, w)."""
        if self.extra_channels is None:
            return self.latents
        return torch.cat([self.latents, self.extra_channels], dim=1)

    def rows(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """(channels, timesteps, context) with k·B rows each, the channels in `dtype`: the first of what `UNet.forward`
        takes."""
        count = len(self.context)
        channels = torch.cat([self.channels] * (count // len(self.latents))).to(dtype)
        return channels, self.timesteps.expand(count), self.context
