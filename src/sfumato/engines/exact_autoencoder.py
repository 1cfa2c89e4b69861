"""The autoencoder's two directions over `Kernels`: the same numbers within rounding, NHWC from end to end."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.engines.exact_unet import as_torch, enlarged, resnet
from sfumato.engines.kernels import Kernels
from sfumato.models.autoencoder import (
    Autoencoder,
    Downsample,
    Level,
    MidBlock,
    PixelAttention,
    Posterior,
    Upsample,
)
from sfumato.nn.resnet import ResnetBlock
from sfumato.nn.typed_modules import typed_module, typed_modules


class ExactAutoencoder:
    """The autoencoder over `Kernels`, `encode` and `decode` as the module's."""

    def __init__(self, autoencoder: Autoencoder, kernels: Kernels) -> None:
        self.autoencoder, self.kernels = autoencoder, kernels

    def encode(self, images: Tensor) -> Posterior:
        """Pixels (B, 3, H, W) in [-1, 1], sides multiples of the factor → the posterior of unscaled latents."""
        encoder = self.autoencoder.encoder
        x = self.kernels.conv3x3(_nhwc(images), encoder.conv_in)
        for level in typed_modules(encoder.down_blocks, Level):
            x = self._level(level, x)
        return self.posterior(self.middle(encoder.mid_block, x))

    def posterior(self, x: Tensor) -> Posterior:
        """The posterior, from the map (B, H, W, C) that the encoder's middle gives."""
        encoder = self.autoencoder.encoder
        moments = self.autoencoder.quant_conv(_nchw(self._out(x, encoder.conv_norm_out, encoder.conv_out)))
        mean, logvar = moments.chunk(2, dim=1)
        return Posterior(mean.contiguous(), logvar.clamp(-30.0, 20.0).contiguous())

    def decode(self, latents: Tensor) -> Tensor:
        """Unscaled latents (B, latent_channels, h, w) → pixels (B, 3, f·h, f·w), about [-1, 1] but not clamped."""
        decoder = self.autoencoder.decoder
        x = self.enter(latents)
        for level in typed_modules(decoder.up_blocks, Level):
            x = self._level(level, x)
        return _nchw(self._out(x, decoder.conv_norm_out, decoder.conv_out)).contiguous()

    def enter(self, latents: Tensor) -> Tensor:
        """The decoder's beginning, its middle included: latents (B, C, h, w) → (B, h, w, C)."""
        decoder = self.autoencoder.decoder
        x = self.kernels.conv3x3(_nhwc(self.autoencoder.post_quant_conv(latents)), decoder.conv_in)
        return self.middle(decoder.mid_block, x)

    def _out(self, x: Tensor, norm: nn.GroupNorm, conv: nn.Conv2d) -> Tensor:
        return self.kernels.conv3x3(x, conv, norm=self.kernels.group_norm(x, norm))

    def _level(self, level: Level, x: Tensor) -> Tensor:
        for block in typed_modules(level.resnets, ResnetBlock):
            x = resnet(self.kernels, block, x)
        if level.resample == "downsamplers":
            (down,) = typed_modules(level.downsamplers, Downsample)
            x = strided_down(F.pad(x, (0, 0, 0, 0, 0, 1)), down.conv)
        elif level.resample == "upsamplers":
            (up,) = typed_modules(level.upsamplers, Upsample)
            x = enlarged(self.kernels, x, up.conv, (2 * x.shape[1], 2 * x.shape[2]))
        return x

    def middle(self, block: MidBlock, x: Tensor) -> Tensor:
        """Run `MidBlock.forward` on (B, H, W, C)."""
        first, last = typed_modules(block.resnets, ResnetBlock)
        (layer,) = typed_modules(block.attentions, PixelAttention)
        return resnet(self.kernels, last, self._attention(layer, resnet(self.kernels, first, x)))

    def _attention(self, layer: PixelAttention, x: Tensor) -> Tensor:
        kernels, rows = self.kernels, x.flatten(1, 2)
        norm = kernels.group_norm(x, layer.group_norm)
        q, k, v = (kernels.linear(rows, part, norm=norm) for part in (layer.to_q, layer.to_k, layer.to_v))
        out = typed_module(layer.to_out[0], nn.Linear)
        return kernels.linear(kernels.attention(q, k, v, 1), out, residual=rows).view(x.shape)


def strided_down(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """`Downsample.forward` on (B, 2h + 1, 2w, C), the row below added already: padded on the right and below only, as
    the published weights expect. → (B, h, w, C). Never a product of patches: strips would take it where the whole map
    doesn't."""
    return as_torch(F.pad(x, (0, 0, 0, 1)), conv)


def _nhwc(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous()


def _nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)
