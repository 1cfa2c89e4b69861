"""What the denoiser is made of beside residual blocks: transformers over the pixels, changes of size, the time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.models.unet_config import UNetConfig
from sfumato.nn.attention import attention
from sfumato.nn.embeddings import timestep_embedding
from sfumato.nn.token_merging import Matching, Merging


def rows(x: Tensor, count: int) -> Tensor:
    """x of any shape itself where it has so many rows, else its rows again and again: (count, …)."""
    return x if len(x) == count else torch.cat([x] * (count // len(x)))


class CrossAttention(nn.Module):
    """Attention from x to a context; to itself where there is none. Projections have no bias, the output has."""

    def __init__(self, channels: int, heads: int, *, context_dim: int | None, upcast: bool) -> None:
        super().__init__()
        self.heads, self.upcast = heads, upcast
        source = context_dim or channels
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(source, channels, bias=False)
        self.to_v = nn.Linear(source, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, N, C), context (B, T, context_dim) → (B, N, C), or of k·B rows where the context is."""
        source = x if context is None else context
        q, k, v = rows(self.to_q(x), len(source)), self.to_k(source), self.to_v(source)
        out: Tensor = self.to_out(attention(q, k, v, heads=self.heads, upcast=self.upcast))
        return out


class GEGLU(nn.Module):
    """a · gelu(b), both halves of one projection (Shazeer 2020); exact erf GELU."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, hidden * 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, channels) → (B, N, hidden)"""
        value, gate = self.proj(x).chunk(2, dim=-1)
        out: Tensor = value * F.gelu(gate)
        return out


class FeedForward(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        # index 1 was the dropout of training; published weights number the last layer 2
        self.net = nn.Sequential(GEGLU(channels, channels * 4), nn.Identity(), nn.Linear(channels * 4, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) → (B, N, C)"""
        out: Tensor = self.net(x)
        return out


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, feed-forward; each after a LayerNorm, each with a residual."""

    def __init__(self, channels: int, heads: int, config: UNetConfig) -> None:
        super().__init__()
        upcast = config.upcast_attention
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = CrossAttention(channels, heads, context_dim=None, upcast=upcast)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = CrossAttention(channels, heads, context_dim=config.context_dim, upcast=upcast)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor, match: Callable[[Tensor], Matching] | None = None) -> Tensor:
        """x (B, N, C), context (B or k·B, T, context_dim) → (B or k·B, N, C). `match` says which tokens attend to each
        other as one."""
        if match is None:
            x = x + self.attn1(self.norm1(x))
        else:
            matching = match(x)
            x = x + matching.unmerge(self.attn1(matching.merge(self.norm1(x))))
        x = rows(x, len(context)) + self.attn2(self.norm2(x), context)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, with a residual around them."""

    def __init__(self, channels: int, heads: int, depth: int, config: UNetConfig) -> None:
        super().__init__()
        self.linear = config.linear_projection
        self.norm = nn.GroupNorm(config.norm_groups, channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, channels) if self.linear else nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, heads, config) for _ in range(depth))
        self.proj_out = nn.Linear(channels, channels) if self.linear else nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor, merging: Merging | None = None) -> Tensor:
        """x (B, C, H, W), context (B, T, context_dim) → (B, C, H, W), or of k·B rows where the context is."""
        _, channels, height, width = x.shape
        h = self.norm(x)
        if not self.linear:
            h = self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)  # (B, H·W, C)
        if self.linear:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context, partial(merging.match, size=(height, width)) if merging else None)
        if self.linear:
            h = self.proj_out(h)
        h = h.transpose(1, 2).reshape(-1, channels, height, width)
        if not self.linear:
            h = self.proj_out(h)
        out: Tensor = rows(x, len(h)) + h
        return out


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, ⌈H/2⌉, ⌈W/2⌉)"""
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, C, H, W) → (B, C, *size), nearest then conv; the size is the skip's, which may be odd."""
        out: Tensor = self.conv(F.interpolate(x, size=size, mode="nearest"))
        return out


class TimeEmbedding(nn.Module):
    """Sinusoid → linear → SiLU → linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear_1, self.linear_2 = nn.Linear(channels, channels * 4), nn.Linear(channels * 4, channels * 4)

    def forward(self, timesteps: Tensor) -> Tensor:
        """(B,) → (B, 4·channels)"""
        # The bias has the dtype to compute in; the weight may be as its file stores it.
        embedding = timestep_embedding(timesteps, self.channels).to(self.linear_1.bias.dtype)
        out: Tensor = self.linear_2(F.silu(self.linear_1(embedding)))
        return out
