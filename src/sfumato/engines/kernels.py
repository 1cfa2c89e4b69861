"""What the exact CPU engine is made of: a few operations on NHWC maps, compiled (`NativeKernels`) or in plain PyTorch.

Maps are (B, H, W, C), rows (B, N, C), all contiguous. Norms are given as what reads the map has to do to it, so that
the normalised map is never written: `Affine` for GroupNorm, `Rows` for LayerNorm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Affine:
    """A GroupNorm whose statistics are known: x · scale + shift, (B, C) each."""

    scale: Tensor
    shift: Tensor


@dataclass(frozen=True, slots=True)
class Rows:
    """A LayerNorm whose statistics are known: `stats` is (rows, 2), mean and 1/σ."""

    stats: Tensor
    norm: nn.LayerNorm


@dataclass(frozen=True, slots=True)
class Sums:
    """What a GroupNorm needs to know of a map, added up strip by strip: `sums` (B, C, 2) float64 are those of x - base
    and of its square over `pixels`; `base` (B, C) is the first pixel, so that large means cost no digits."""

    base: Tensor
    sums: Tensor
    pixels: int


class Kernels(Protocol):
    """The operations of the exact CPU engine; `name` says whose they are. Weights may be stored in another dtype than
    the maps have."""

    name: str

    def group_norm(self, x: Tensor, norm: nn.GroupNorm) -> Affine:
        """The statistics of a map (B, H, W, C) or of rows (B, N, C)."""
        ...

    def add_sums(self, x: Tensor, before: Sums | None = None) -> Sums:
        """The sums of a strip (B, H, W, C) added to those of the strips before it."""
        ...

    def affine(self, sums: Sums, norm: nn.GroupNorm) -> Affine:
        """The statistics of a whole map from its sums: those that `group_norm` finds."""
        ...

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Rows:
        """The statistics of rows (B, N, C)."""
        ...

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
        """3×3 convolution (B, H, W, C) → (B, H, W, N) of stride 1, padded, of silu(x · scale + shift) where there is a
        norm, of the map enlarged twofold to the nearest where `enlarged`; plus `channel` (B, N) on every pixel, plus
        `residual`. `rows` are the first and the last (excluded) of the result that are wanted; `residual` has no
        others."""
        ...

    def linear(
        self,
        x: Tensor,
        layer: nn.Linear | nn.Conv2d,
        *,
        norm: Affine | Rows | None = None,
        residual: Tensor | None = None,
        gated: bool = False,
    ) -> Tensor:
        """x · Wᵀ + b, (B, …, C) → (B, …, N), of the normed x, of a linear layer or of a convolution whose patches x
        has; `gated` makes value · gelu(gate) (…, N / 2) of its two halves; plus `residual`, as large."""
        ...

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """softmax(q kᵀ / √d) v for each head: q (B, N, C), k and v (B, T, C) → (B, N, C)."""
        ...
