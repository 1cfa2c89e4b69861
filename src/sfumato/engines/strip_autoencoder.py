"""The autoencoder's two directions in strips: the same numbers as whole, with one or two maps in memory, not four.

The layers with the largest maps (the decoder's last level, the encoder's first) may be `frugal`: what stands between
the two convolutions of a residual block isn't stored but computed twice, for its norm's sums and for its values.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.engines.exact_autoencoder import ExactAutoencoder, strided_down
from sfumato.engines.kernels import Kernels
from sfumato.engines.row_strips import Convolved, Map, Mapped, Stored, stored, strips, sums_of
from sfumato.models.autoencoder import Autoencoder, Downsample, Level, Posterior, Upsample
from sfumato.nn.resnet import ResnetBlock
from sfumato.nn.typed_modules import typed_modules


class StripAutoencoder:
    """The autoencoder strip by strip, `encode` and `decode` as the module's; pictures pass one by one."""

    def __init__(self, autoencoder: Autoencoder, kernels: Kernels, *, frugal: bool) -> None:
        self.autoencoder, self.kernels, self.frugal = autoencoder, kernels, frugal
        self._whole = ExactAutoencoder(autoencoder, kernels)

    def encode(self, images: Tensor) -> Posterior:
        """Pixels (B, 3, H, W) in [-1, 1], sides multiples of the factor → the posterior of unscaled latents."""
        found = [self._encode(one) for one in images.chunk(len(images))]
        return Posterior(torch.cat([one.mean for one in found]), torch.cat([one.logvar for one in found]))

    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents (B, latent_channels, h, w) → pixels (B, 3, f·h, f·w), about [-1, 1] but not clamped."""
        return torch.cat([self._decode(one) for one in latents.chunk(len(latents))])

    def _encode(self, images: Tensor) -> Posterior:
        encoder = self.autoencoder.encoder
        x: Map = Convolved(self.kernels, self._given(images.permute(0, 2, 3, 1)), encoder.conv_in)
        for i, level in enumerate(typed_modules(encoder.down_blocks, Level)):
            frugal = self.frugal and i == 0
            x = self._blocks(level, x if frugal else self._stored(x), frugal=frugal)
            if level.resample is not None:
                (down,) = typed_modules(level.downsamplers, Downsample)
                height, width = x.size
                x = Mapped(
                    x,
                    partial(_reduced, down.conv),
                    size=(height // 2, width // 2),
                    needs=lambda first, last: (2 * first, 2 * last + 1),
                )
        return self._whole.posterior(self._whole.middle(encoder.mid_block, x.rows(0, x.size[0])))

    def _decode(self, latents: Tensor) -> Tensor:
        decoder = self.autoencoder.decoder
        x: Map = self._given(self._whole.enter(latents))
        levels = typed_modules(decoder.up_blocks, Level)
        enlarged = False
        for i, level in enumerate(levels):
            frugal = self.frugal and i == len(levels) - 1
            x = self._blocks(level, x if frugal and enlarged else self._stored(x), frugal=frugal)
            if level.resample is not None:
                (up,) = typed_modules(level.upsamplers, Upsample)
                x, enlarged = Convolved(self.kernels, x, up.conv, enlarged=True), True
        norm = self.kernels.affine(sums_of(self.kernels, x), decoder.conv_norm_out)
        picture = Convolved(self.kernels, x, decoder.conv_out, norm=norm)
        out = latents.new_empty(1, decoder.conv_out.out_channels, *picture.size)
        for first, last in strips(picture.size):
            out[:, :, first:last] = picture.rows(first, last).permute(0, 3, 1, 2)
            picture.release(last)
        return out

    def _given(self, x: Tensor) -> Stored:
        x = x.contiguous()
        return Stored((x.shape[1], x.shape[2]), [(0, x)], self.kernels.add_sums(x))

    def _stored(self, x: Map) -> Stored:
        return x if isinstance(x, Stored) else stored(self.kernels, x, consume=True)

    def _blocks(self, level: Level, x: Map, *, frugal: bool) -> Map:
        for block in typed_modules(level.resnets, ResnetBlock):
            x = self._block(block, x, frugal=frugal)
        return x

    def _block(self, block: ResnetBlock, x: Map, *, frugal: bool) -> Stored:
        """`ResnetBlock.forward`; x is consumed."""
        kernels = self.kernels
        h: Map = Convolved(kernels, x, block.conv1, norm=kernels.affine(sums_of(kernels, x), block.norm1))
        if not frugal:
            h = stored(kernels, h, consume=False)
        norm = kernels.affine(sums_of(kernels, h), block.norm2)
        residual = x if block.conv_shortcut is None else Mapped(x, partial(_linear, kernels, block.conv_shortcut))
        return stored(kernels, Convolved(kernels, h, block.conv2, norm=norm, residual=residual), consume=True)


def _linear(kernels: Kernels, layer: nn.Conv2d, x: Tensor, _: int) -> Tensor:
    return kernels.linear(x, layer)


def _reduced(conv: nn.Conv2d, x: Tensor, count: int) -> Tensor:
    """`count` rows of the halved map: x has one row more than twice as many, except at the map's end."""
    return strided_down(F.pad(x, (0, 0, 0, 0, 0, 2 * count + 1 - x.shape[1])), conv)
