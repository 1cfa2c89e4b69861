"""`Kernels` in plain PyTorch, for machines without a compiler: channels_last, and Winograd by batched products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.engines.kernels import Affine, Rows, Sums
from sfumato.nn.attention import attention
from sfumato.nn.lazy_weights import done_with

# F(4×4, 3×3), points 0, ±1, ±2, ∞ (Lavin and Gray 2016, section 4.3).
_INPUT = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
_WEIGHT = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
_OUTPUT = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)
# Where batched products win over a direct convolution: enough tiles to share the weights' transform, enough channels.
_LEAST_TILES, _LEAST_CHANNELS = 128, 256


class TorchKernels:
    """`Kernels` in plain PyTorch, in any floating dtype."""

    name = "plain"

    def group_norm(self, x: Tensor, norm: nn.GroupNorm) -> Affine:
        """Find the statistics of x (B, …, C), as `Kernels.group_norm`."""
        batch, channels = x.shape[0], x.shape[-1]
        grouped = x.reshape(batch, -1, norm.num_groups, channels // norm.num_groups)
        variance, mean = torch.var_mean(grouped, dim=(1, 3), correction=0)
        width = channels // norm.num_groups
        inverse = torch.rsqrt(variance + norm.eps).repeat_interleave(width, dim=1)
        scale = inverse * norm.weight
        return Affine(scale, norm.bias - mean.repeat_interleave(width, dim=1) * scale)

    def add_sums(self, x: Tensor, before: Sums | None = None) -> Sums:
        """Add up x (B, …, C), as `Kernels.add_sums`."""
        pixels = x.flatten(1, -2)  # (B, N, C)
        if before is None:
            wide = torch.float32 if x.device.type == "mps" else torch.float64  # which Apple's GPUs don't have
            before = Sums(pixels[:, 0].clone(), x.new_zeros(len(x), x.shape[-1], 2, dtype=wide), 0)
        shifted = pixels.float() - before.base[:, None].float()
        wide = before.sums.dtype
        added = torch.stack([shifted.sum(1, dtype=wide), shifted.square().sum(1, dtype=wide)], dim=2)
        return Sums(before.base, before.sums + added, before.pixels + pixels.shape[1])

    def affine(self, sums: Sums, norm: nn.GroupNorm) -> Affine:
        width = len(norm.weight) // norm.num_groups
        base, count = sums.base.to(sums.sums), sums.pixels
        total, square = sums.sums.unbind(2)
        # Back from the shifted sums, then a group's channels together.
        square = square + 2 * base * total + base.square() * count
        total = total + base * count
        mean, square = (
            part.view(len(base), norm.num_groups, width).sum(2) / (width * count) for part in (total, square)
        )
        inverse = ((square - mean.square()).clamp(min=0) + norm.eps).rsqrt()
        mean, inverse = (part.repeat_interleave(width, dim=1) for part in (mean, inverse))
        scale = inverse * norm.weight
        return Affine(scale.to(sums.base), (norm.bias - mean * scale).to(sums.base))

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Rows:
        """Find the statistics of rows (B, N, C), as `Kernels.layer_norm`."""
        variance, mean = torch.var_mean(x.flatten(0, -2), dim=1, correction=0)
        return Rows(torch.stack([mean, torch.rsqrt(variance + norm.eps)], dim=1), norm)

    def conv3x3(
        self,
        x: Tensor,
        conv: nn.Conv2d,
        *,
        norm: Affine | None = None,
        channel: Tensor | None = None,
        residual: Tensor | None = None,
        enlarged: bool = False,
        rows: tuple[int, int] | None = None,
    ) -> Tensor:
        """Convolve x (B, H, W, C), as `Kernels.conv3x3`."""
        if norm is not None:
            x = F.silu(_affine(x, norm))
        if enlarged:
            x = x.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
        tiles = x.shape[0] * -(-x.shape[1] // 4) * -(-x.shape[2] // 4)
        if tiles >= _LEAST_TILES and min(conv.in_channels, conv.out_channels) >= _LEAST_CHANNELS:
            out = _winograd(x, conv)
        else:
            out = F.conv2d(x.permute(0, 3, 1, 2), conv.weight.to(x.dtype), conv.bias, padding=1).permute(0, 2, 3, 1)
        done_with(conv)
        if rows is not None:
            out = out[:, slice(*rows)]
        if channel is not None:
            out = out + channel[:, None, None]
        if residual is not None:
            out = out + residual
        return out.contiguous()

    def linear(
        self,
        x: Tensor,
        layer: nn.Linear | nn.Conv2d,
        *,
        norm: Affine | Rows | None = None,
        residual: Tensor | None = None,
        gated: bool = False,
    ) -> Tensor:
        """Multiply x (B, …, C) by the layer's weights, as `Kernels.linear`."""
        if isinstance(norm, Rows):
            x = F.layer_norm(x, (x.shape[-1],), norm.norm.weight, norm.norm.bias, norm.norm.eps)
        elif norm is not None:
            x = _affine(x, norm)
        out = F.linear(x, layer.weight.flatten(1).to(x.dtype), layer.bias)
        done_with(layer)
        if gated:
            value, gate = out.chunk(2, dim=-1)
            out = value * F.gelu(gate)
        return out if residual is None else out + residual

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """Attend from q (B, N, C) to k and v (B, T, C), as `Kernels.attention`."""
        return attention(q, k, v, heads=heads)


def _affine(x: Tensor, norm: Affine) -> Tensor:
    shape = (x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
    return x * norm.scale.view(shape) + norm.shift.view(shape)


def _winograd(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """(B, H, W, C) → (B, H, W, N). The weights are transformed anew each time: kept, they would take four times the
    model's memory."""
    batch, height, width, channels = x.shape
    down, across = -(-height // 4), -(-width // 4)
    turn_input, turn_weight, turn_output = (x.new_tensor(matrix) for matrix in (_INPUT, _WEIGHT, _OUTPUT))
    weight = torch.einsum("pi,ncij,qj->pqcn", turn_weight, conv.weight.to(x.dtype), turn_weight).reshape(
        36, channels, -1
    )
    padded = F.pad(x, (0, 0, 1, 4 * across + 1 - width, 1, 4 * down + 1 - height))
    tiles = padded.unfold(1, 6, 4).unfold(2, 6, 4)  # (B, down, across, C, 6, 6)
    turned = torch.einsum("pi,byxcij,qj->pqbyxc", turn_input, tiles, turn_input).reshape(36, -1, channels)
    products = torch.bmm(turned, weight).view(6, 6, batch, down, across, -1)
    out = torch.einsum("ip,pqbyxn,jq->byixjn", turn_output, products, turn_output)
    out = out.reshape(batch, 4 * down, 4 * across, -1)[:, :height, :width]
    return out if conv.bias is None else out + conv.bias
