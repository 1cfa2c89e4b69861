"""The transformer layer of CLIP's text and image towers (Radford et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.attention import attention


def quick_gelu(x: Tensor) -> Tensor:
    """x · sigmoid(1.702 x) of any shape, the approximation OpenAI's CLIP was trained with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({"quick_gelu": quick_gelu, "gelu": F.gelu})


class ClipAttention(nn.Module):
    """Self-attention with biased projections."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) → (B, N, width)"""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        out: Tensor = self.out_proj(attention(q, k, v, heads=self.heads, causal=self.causal))
        return out


class ClipMLP(nn.Module):
    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) → (B, N, width)"""
        out: Tensor = self.fc2(self.activation(self.fc1(x)))
        return out


class ClipLayer(nn.Module):
    """Pre-norm transformer layer: attention, then MLP, each with a residual."""

    def __init__(self, width: int, heads: int, hidden: int, *, activation: str, eps: float, causal: bool) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.self_attn = ClipAttention(width, heads, causal=causal)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = ClipMLP(width, hidden, activation)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) → (B, N, width)"""
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class ClipEncoder(nn.Module):
    """A stack of layers; `depth` below the full count stops early (clip-skip)."""

    def __init__(
        self, width: int, heads: int, hidden: int, layers: int, *, activation: str, eps: float, causal: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ClipLayer(width, heads, hidden, activation=activation, eps=eps, causal=causal) for _ in range(layers)
        )

    def forward(self, x: Tensor, depth: int) -> Tensor:
        """(B, N, width) → (B, N, width) after the first `depth` layers."""
        for layer in self.layers[:depth]:
            x = layer(x)
        return x
