"""The UNet's forward over `Kernels`: the same numbers within rounding, with what doesn't change computed once.

- Maps stay NHWC from end to end; norms are applied by what reads them.
- Keys and values of the cross-attention depend on the prompt alone: kept from step to step.
- The time embedding's projections depend on t alone.
- Up to the first cross-attention both halves of a guided pair are equal: one of them is computed.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.engines.kernels import Kernels
from sfumato.models.unet import Block, UNet
from sfumato.models.unet_inputs import Residuals, Shortcuts, UNetInputs
from sfumato.models.unet_layers import GEGLU, CrossAttention, Downsample, SpatialTransformer, TransformerBlock, Upsample
from sfumato.nn.resnet import ResnetBlock
from sfumato.nn.token_merging import Matching, Merging
from sfumato.nn.typed_modules import typed_module, typed_modules

_KEPT_CONTEXTS, _KEPT_TIMES = 4, 128

KeysValues = Mapping[CrossAttention, tuple[Tensor, Tensor]]
Channels = Mapping[ResnetBlock, Tensor]


class ExactUNet:
    """An `Engine.unet` that takes shortcuts. Weights are read where they are: change them and `forget` what was
    kept."""

    def __init__(self, unet: UNet, kernels: Kernels) -> None:
        self.unet, self.kernels = unet, kernels
        self._cross = [m.attn2 for m in unet.modules() if isinstance(m, TransformerBlock)]
        blocks = [m for m in unet.modules() if isinstance(m, ResnetBlock)]
        self._projections = [(block, block.time_emb_proj) for block in blocks if block.time_emb_proj is not None]
        self._lock = threading.Lock()
        self._contexts: deque[tuple[Tensor, KeysValues]] = deque(maxlen=_KEPT_CONTEXTS)
        self._times: OrderedDict[float, Channels] = OrderedDict()

    def forget(self) -> None:
        """Drop what was computed from the weights."""
        with self._lock:
            self._contexts.clear()
            self._times.clear()

    def __call__(self, inputs: UNetInputs) -> Tensor:
        """The answers (k·B, out_channels, h, w) float32."""
        latents, timesteps, context = inputs.rows(torch.float32)
        shortcuts = inputs.shortcuts or Shortcuts()
        unet, kernels = self.unet, self.kernels
        channels = self._time_channels(timesteps)
        keys_values = self._keys_values(context)
        shared = _twice(latents, timesteps)
        x = latents[: len(latents) // 2] if shared else latents
        run = _Run(kernels, channels, keys_values, len(latents), shortcuts.merging, unet.finest_attending())
        x = kernels.conv3x3(x.permute(0, 2, 3, 1).contiguous(), unet.conv_in)
        x = run.whole(unet.walk(run, x, Residuals(), shortcuts))
        out = kernels.conv3x3(x, unet.conv_out, norm=kernels.group_norm(x, unet.conv_norm_out))
        return out.permute(0, 3, 1, 2).contiguous()

    def _keys_values(self, context: Tensor) -> KeysValues:
        """Keys and values of every cross-attention, by value of the context: guidance puts it together anew each
        step."""
        with self._lock:
            for known, found in self._contexts:
                if torch.equal(known, context):
                    return found
        context = context.contiguous()
        made = {
            layer: (self.kernels.linear(context, layer.to_k), self.kernels.linear(context, layer.to_v))
            for layer in self._cross
        }
        with self._lock:
            self._contexts.append((context, made))
        return made

    def _time_channels(self, timesteps: Tensor) -> Channels:
        """What each residual block adds to its channels, one row where all timesteps are one."""
        values = timesteps.tolist()
        alike = values.count(values[0]) == len(values)
        with self._lock:
            if alike and (found := self._times.get(values[0])) is not None:
                return found
        activated = F.silu(self.unet.time_embedding(timesteps[:1] if alike else timesteps))
        made = {block: projection(activated) for block, projection in self._projections}
        if alike:
            with self._lock:
                self._times[values[0]] = made
                if len(self._times) > _KEPT_TIMES:
                    self._times.popitem(last=False)
        return made


@dataclass(frozen=True, slots=True)
class _Run:
    """One forward: `batch` is the whole batch, maps may still be its first half."""

    kernels: Kernels
    channels: Channels
    keys_values: KeysValues
    batch: int
    merging: Merging | None
    merged: tuple[Block, ...]

    def whole(self, x: Tensor) -> Tensor:
        """Double a map that stands for both halves so far: (B / 2, H, W, C) → (B, H, W, C)."""
        return x if len(x) == self.batch else torch.cat([x, x])

    def layer(self, block: Block, j: int, x: Tensor) -> Tensor:
        """Run `Layers.layer` on x (B, H, W, C)."""
        residual = typed_module(block.resnets[j], ResnetBlock)
        x = resnet(self.kernels, residual, x, self.channels[residual])
        if j >= len(block.attentions):
            return x
        merging = self.merging if block in self.merged else None
        return self._transformer(typed_module(block.attentions[j], SpatialTransformer), x, merging)

    def halved(self, downsample: Downsample, x: Tensor) -> Tensor:
        """Halve x (B, H, W, C) in height and width."""
        return strided(self.kernels, x, downsample.conv)

    def doubled(self, upsample: Upsample, x: Tensor, skip: Tensor) -> Tensor:
        """Enlarge x (B, H, W, C) to the height and width of the skip."""
        height, width = skip.shape[1:3]
        return enlarged(self.kernels, x, upsample.conv, (height, width))

    def joined(self, x: Tensor, skip: Tensor) -> Tensor:
        """Put x (B, H, W, C) and the skip side by side in the channels."""
        return torch.cat([self.whole(x), self.whole(skip)], dim=-1)

    def _transformer(self, transformer: SpatialTransformer, x: Tensor, merging: Merging | None) -> Tensor:
        kernels = self.kernels
        rows = kernels.linear(x.flatten(1, 2), transformer.proj_in, norm=kernels.group_norm(x, transformer.norm))
        for block in typed_modules(transformer.transformer_blocks, TransformerBlock):
            rows = self._to_itself(block, rows, merging.match(rows, (x.shape[1], x.shape[2])) if merging else None)
            layer = block.attn2
            q = self.whole(kernels.linear(rows, layer.to_q, norm=kernels.layer_norm(rows, block.norm2)))
            rows = self._attended(layer, q, *self.keys_values[layer], self.whole(rows))
            gate, out = typed_module(block.ff.net[0], GEGLU), typed_module(block.ff.net[2], nn.Linear)
            hidden = kernels.linear(rows, gate.proj, norm=kernels.layer_norm(rows, block.norm3), gated=True)
            rows = kernels.linear(hidden, out, residual=rows)
        x = self.whole(x)
        return kernels.linear(rows, transformer.proj_out, residual=x.flatten(1, 2)).view(x.shape)

    def _to_itself(self, block: TransformerBlock, rows: Tensor, matching: Matching | None) -> Tensor:
        kernels, layer = self.kernels, block.attn1
        parts = (layer.to_q, layer.to_k, layer.to_v)
        if matching is None:
            norm = kernels.layer_norm(rows, block.norm1)
            q, k, v = (kernels.linear(rows, part, norm=norm) for part in parts)
            return self._attended(layer, q, k, v, rows)
        merged = matching.merge(block.norm1(rows))
        q, k, v = (kernels.linear(merged, part) for part in parts)
        return rows + matching.unmerge(self._attended(layer, q, k, v, None))

    def _attended(self, layer: CrossAttention, q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None) -> Tensor:
        out = typed_module(layer.to_out[0], nn.Linear)
        return self.kernels.linear(self.kernels.attention(q, k, v, layer.heads), out, residual=rows)


def resnet(kernels: Kernels, block: ResnetBlock, x: Tensor, channel: Tensor | None = None) -> Tensor:
    """Run `ResnetBlock.forward` on (B, H, W, C); `channel` is the projected time, one row or one each."""
    if channel is not None:
        channel = channel.expand(len(x), -1) if len(channel) == 1 else channel[: len(x)]
        channel = channel.contiguous()
    h = kernels.conv3x3(x, block.conv1, norm=kernels.group_norm(x, block.norm1), channel=channel)
    if block.conv_shortcut is not None:
        x = kernels.linear(x, block.conv_shortcut)
    return kernels.conv3x3(h, block.conv2, norm=kernels.group_norm(h, block.norm2), residual=x)


def strided(kernels: Kernels, x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 3×3 convolution of stride 2, (B, H, W, C) → (B, H / 2, W / 2, N). Few, and a quarter of the pixels, so it has
    no kernel of its own; but on a small map PyTorch's spends most of its time on the weights' layout, where a product
    of patches doesn't.

    One picture's map decides, however many there are: a picture's numbers don't depend on the others'."""
    pad = 0 if conv.padding == (0, 0) else 1
    height, width = ((side + 2 * pad - 3) // 2 + 1 for side in x.shape[1:3])
    if 4 * height * width >= conv.out_channels:
        return as_torch(x, conv)
    patches = F.pad(x, (0, 0, pad, pad, pad, pad)).unfold(1, 3, 2).unfold(2, 3, 2)  # (B, h, w, C, 3, 3)
    return kernels.linear(patches.flatten(3), conv)


def as_torch(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """PyTorch's own convolution, (B, H, W, C) → (B, H', W', N)."""
    out: Tensor = conv(x.permute(0, 3, 1, 2))
    return out.permute(0, 2, 3, 1).contiguous()


def enlarged(kernels: Kernels, x: Tensor, conv: nn.Conv2d, size: tuple[int, int]) -> Tensor:
    """Enlarge to the nearest pixel, then convolve: (B, H, W, C) → (B, *size, N)."""
    if size == (2 * x.shape[1], 2 * x.shape[2]):
        return kernels.conv3x3(x, conv, enlarged=True)
    larger = F.interpolate(x.permute(0, 3, 1, 2), size=size, mode="nearest")
    return kernels.conv3x3(larger.permute(0, 2, 3, 1).contiguous(), conv)


def _twice(latents: Tensor, timesteps: Tensor) -> bool:
    """Whether the second half of a batch is the first again."""
    half, odd = divmod(len(latents), 2)
    return not odd and torch.equal(timesteps[:half], timesteps[half:]) and torch.equal(latents[:half], latents[half:])
