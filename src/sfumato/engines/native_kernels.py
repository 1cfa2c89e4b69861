"""`Kernels` compiled from C++ (`native/`): Winograd convolutions, blocked products, norms applied while reading."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p

import torch
from torch import Tensor, nn

from sfumato.engines.kernels import Affine, Rows, Sums
from sfumato.engines.native_build import NoKernelsError, kernels
from sfumato.nn.attention import attention
from sfumato.nn.lazy_weights import done_with

# Below this many tiles of 4×4 outputs, transforming weights for 36 points costs more than F(2×2) saves.
_FEW_TILES = 16
_WIDEST_HEAD = 320  # KC of native/gemm.hpp


# How weights may be stored: the numbers of native/kernels.cpp.
_KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}


def _stored(weight: Tensor) -> tuple[c_void_p, c_int64]:
    assert weight.is_contiguous()
    return c_void_p(weight.data_ptr()), c_int64(_KINDS[weight.dtype])


def _pointer(tensor: Tensor | None) -> c_void_p:
    if tensor is None:
        return c_void_p(None)
    assert tensor.is_contiguous() and tensor.dtype is torch.float32
    return c_void_p(tensor.data_ptr())


class NativeKernels:
    """Maps in float32, weights in any of `_KINDS`. With `pairs`, products are of numbers rounded to bfloat16, added up
    in float32.

    `instructions` is the compiler's. Raises `NoKernelsError` when made where there are none, or with `pairs` where the
    processor has no such products.
    """

    def __init__(self, *, pairs: bool = False, instructions: str = "") -> None:
        self._library: ctypes.CDLL = kernels(instructions)
        if pairs and not self._library.sfumato_pairs():
            raise NoKernelsError("the processor (or the compiler) has no instructions for bfloat16 (avx512_bf16)")
        self._pairs = pairs
        self.name = "compiled, bfloat16" if pairs else "compiled"

    def group_norm(self, x: Tensor, norm: nn.GroupNorm) -> Affine:
        """Find the statistics of x (B, …, C), as `Kernels.group_norm`."""
        return self.affine(self.add_sums(x), norm)

    def add_sums(self, x: Tensor, before: Sums | None = None) -> Sums:
        """Add up x (B, …, C), as `Kernels.add_sums`."""
        batch, channels = x.shape[0], x.shape[-1]
        pixels = x[0].numel() // channels
        if before is None:
            base = x.view(batch, -1, channels)[:, 0].contiguous()
            before = Sums(base, torch.zeros(batch, channels, 2, dtype=torch.float64), 0)
        sums = before.sums.clone()
        self._library.sfumato_group_sums(
            _pointer(x), _pointer(before.base), c_void_p(sums.data_ptr()), *map(c_int64, (batch, pixels, channels))
        )
        return Sums(before.base, sums, before.pixels + pixels)

    def affine(self, sums: Sums, norm: nn.GroupNorm) -> Affine:
        affine = Affine(torch.empty_like(sums.base), torch.empty_like(sums.base))
        batch, channels = sums.base.shape
        self._library.sfumato_group_affine(
            c_void_p(sums.sums.data_ptr()),
            *map(_pointer, (sums.base, norm.weight, norm.bias, affine.scale, affine.shift)),
            *map(c_int64, (batch, sums.pixels, channels, norm.num_groups)),
            c_float(norm.eps),
        )
        return affine

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Rows:
        """Find the statistics of rows (B, N, C), as `Kernels.layer_norm`."""
        width = x.shape[-1]
        rows = x.numel() // width
        stats = x.new_empty(rows, 2)
        self._library.sfumato_layer_stats(
            _pointer(x), _pointer(stats), c_int64(rows), c_int64(width), c_float(norm.eps)
        )
        return Rows(stats, norm)

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
        batch, height, width, channels = x.shape
        factor = 2 if enlarged else 1
        first, last = rows or (0, height * factor)
        out = x.new_empty(batch, last - first, width * factor, conv.out_channels)
        tiles = batch * -(-(last - first) // 4) * -(-width * factor // 4)
        self._library.sfumato_conv3x3(
            _pointer(x),
            *_stored(conv.weight),
            _pointer(conv.bias),
            _pointer(norm.scale if norm else None),
            _pointer(norm.shift if norm else None),
            _pointer(channel),
            _pointer(residual),
            _pointer(out),
            *map(c_int64, (batch, height, width, channels, conv.out_channels, enlarged, first, last - first)),
            c_int64(2 if tiles < _FEW_TILES else 4),
            c_int64(self._pairs),
        )
        done_with(conv)
        return out

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
        outputs, width = len(layer.weight), layer.weight[0].numel()
        rows, affine = (norm, None) if isinstance(norm, Rows) else (None, norm)
        out = x.new_empty(*x.shape[:-1], outputs // 2 if gated else outputs)
        count = x.numel() // width
        self._library.sfumato_linear(
            _pointer(x),
            *_stored(layer.weight),
            _pointer(layer.bias),
            _pointer(residual),
            _pointer(out),
            *map(c_int64, (count, width, outputs, gated)),
            _pointer(rows.norm.weight if rows else None),
            _pointer(rows.norm.bias if rows else None),
            _pointer(rows.stats if rows else None),
            _pointer(affine.scale if affine else None),
            _pointer(affine.shift if affine else None),
            c_int64(count // x.shape[0]),
            c_int64(self._pairs),
        )
        done_with(layer)
        return out

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """Attend from q (B, N, C) to k and v (B, T, C), as `Kernels.attention`."""
        batch, count, channels = q.shape
        if channels // heads > _WIDEST_HEAD:
            return attention(q, k, v, heads=heads)
        out = torch.empty_like(q)
        self._library.sfumato_attention(
            _pointer(q),
            _pointer(k),
            _pointer(v),
            _pointer(out),
            *map(c_int64, (batch, heads, count, k.shape[1], channels // heads, self._pairs)),
        )
        return out
