"""A UNet whose cross-attentions are given keys and values instead of the context they are projections of: the context
stays the same from step to step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.engines.shared_copy import shared_copy
from sfumato.models.unet import UNet
from sfumato.models.unet_layers import CrossAttention, TransformerBlock, rows
from sfumato.nn.attention import attention


class ProjectedAttention(nn.Module):
    """A cross-attention's queries and output, with the layer's weights; `first` is where its columns begin in what
    `project` made."""

    def __init__(self, layer: CrossAttention, first: int) -> None:
        super().__init__()
        self.heads, self.upcast = layer.heads, layer.upcast
        self.columns = slice(first, first + _columns(layer))
        self.to_q, self.to_out = layer.to_q, layer.to_out

    def forward(self, x: Tensor, projected: Tensor) -> Tensor:
        """x (B, N, C) and projected (B or k·B, T, all columns) → (B or k·B, N, C), as the layer's own."""
        k, v = projected[..., self.columns].chunk(2, dim=-1)
        out: Tensor = self.to_out(attention(rows(self.to_q(x), len(k)), k, v, heads=self.heads, upcast=self.upcast))
        return out


def project(unet: UNet, context: Tensor) -> Tensor:
    """Keys and values of every cross-attention side by side: (B, T, context_dim) → (B, T, all columns)."""
    layers = [block.attn2 for block in _blocks(unet)]
    return torch.cat([layer(context) for cross in layers for layer in (cross.to_k, cross.to_v)], dim=-1)


def projected_copy(unet: UNet) -> UNet:
    """A copy that shares the network's weights, to be called with `project(unet, context)` as its context."""
    copied = shared_copy(unet)
    first = 0
    for block in _blocks(copied):
        layer = block.attn2
        block.attn2 = ProjectedAttention(layer, first)  # type: ignore[assignment]
        first += _columns(layer)
    return copied


def _blocks(unet: UNet) -> list[TransformerBlock]:
    return [module for module in unet.modules() if isinstance(module, TransformerBlock)]


def _columns(layer: CrossAttention) -> int:
    return layer.to_k.out_features + layer.to_v.out_features
