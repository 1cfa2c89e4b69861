"""The norm with its activation, as one module: what stands before a convolution and what some engines fuse."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class GroupNormSiLU(nn.GroupNorm):
    """silu(GroupNorm(x)) (Wu & He 2018; Elfwing et al. 2018); (B, C, H, W) → (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H, W)"""
        return F.silu(super().forward(x))
