"""`Kernels` compiled from C++ (`native/`): Winograd convolutions, blocked products, norms applied while reading."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int64, c_void_p

import torch
from torch import Tensor, nn

from sfumato.engines.compiler import kernels
from sfumato.engines.kernels import Affine, Rows
from sfumato.nn.attention import attention

# Below this many tiles of 4×4 outputs, transforming weights for 36 points costs more than F(2×2) saves.
_FEW_TILES = 16
_WIDEST_HEAD = 320  # KC of native/gemm.hpp


def _pointer(tensor: Tensor | None) -> c_void_p:
    if tensor is None:
        return c_void_p(None)
    assert tensor.is_contiguous() and tensor.dtype is torch.float32
    return c_void_p(tensor.data_ptr())


class NativeKernels:
    """float32 only; raises `NoKernelsError` when made where there are none."""

    name = "compiled"

    def __init__(self) -> None:
        self._library: ctypes.CDLL = kernels()

    def group_norm(self, x: Tensor, norm: nn.GroupNorm) -> Affine:
        batch, channels = x.shape[0], x.shape[-1]
        affine = Affine(x.new_empty(batch, channels), x.new_empty(batch, channels))
        self._library.sfumato_group_stats(
            _pointer(x),
            _pointer(norm.weight),
            _pointer(norm.bias),
            _pointer(affine.scale),
            _pointer(affine.shift),
            *map(c_int64, (batch, x[0].numel() // channels, channels, norm.num_groups)),
            c_float(norm.eps),
        )
        return affine

    def layer_norm(self, x: Tensor, norm: nn.LayerNorm) -> Rows:
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
    ) -> Tensor:
        batch, height, width, channels = x.shape
        factor = 2 if enlarged else 1
        out = x.new_empty(batch, height * factor, width * factor, conv.out_channels)
        tiles = batch * -(-height * factor // 4) * -(-width * factor // 4)
        self._library.sfumato_conv3x3(
            _pointer(x),
            _pointer(conv.weight),
            _pointer(conv.bias),
            _pointer(norm.scale if norm else None),
            _pointer(norm.shift if norm else None),
            _pointer(channel),
            _pointer(residual),
            _pointer(out),
            *map(
                c_int64, (batch, height, width, channels, conv.out_channels, enlarged, 2 if tiles < _FEW_TILES else 4)
            ),
        )
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
        outputs, width = layer.weight.shape[:2]
        rows, affine = (norm, None) if isinstance(norm, Rows) else (None, norm)
        out = x.new_empty(*x.shape[:-1], outputs // 2 if gated else outputs)
        count = x.numel() // width
        self._library.sfumato_linear(
            _pointer(x),
            _pointer(layer.weight),
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
        )
        return out

    def attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        batch, count, channels = q.shape
        if channels // heads > _WIDEST_HEAD:
            return attention(q, k, v, heads=heads)
        out = torch.empty_like(q)
        self._library.sfumato_attention(
            _pointer(q),
            _pointer(k),
            _pointer(v),
            _pointer(out),
            *map(c_int64, (batch, heads, count, k.shape[1], channels // heads)),
        )
        return out
