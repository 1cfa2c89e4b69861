"""The residual block of the UNet and of the autoencoder."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.nn.norm import GroupNormSiLU


class ResnetBlock(nn.Module):
    """GroupNorm → SiLU → 3×3 conv, twice, plus the input (He et al. 2016; Ho et al. 2020, appendix B).

    With `time_channels` the block adds a projection of the time embedding between the convolutions. A 1×1 conv
    adapts the input where the channel count changes.
    """

    def __init__(
        self, channels: int, out_channels: int, *, groups: int, eps: float, time_channels: int | None = None
    ) -> None:
        super().__init__()
        self.norm1 = GroupNormSiLU(groups, channels, eps=eps)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, out_channels) if time_channels else None
        self.norm2 = GroupNormSiLU(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else None

    def forward(self, x: Tensor, time_embedding: Tensor | None = None) -> Tensor:
        """x is (B, C, H, W), time_embedding (B, time_channels); returns (B, out_channels, H, W)."""
        h = self.conv1(self.norm1(x))
        if self.time_emb_proj is not None and time_embedding is not None:
            h = h + self.time_emb_proj(F.silu(time_embedding))[:, :, None, None]
        h = self.conv2(self.norm2(h))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        out: Tensor = x + h
        return out
